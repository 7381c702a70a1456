"""What benchmarks/predict.py reads of the code for other processors, and what it counts of the work."""

import json
import os
import subprocess

import pytest

from synthseg_native.engines.kernels.language import Machine
from synthseg_native.engines.kernels.steps import steps_of
from synthseg_native.networks.layers import layer_table

# Runs in the llvm environment: the products of a skip tensor and upsampled features, compiled for an Apple M1.
PROGRAM = """
import json
from benchmarks import predict
m1 = predict.ARM[0]
kernel = predict.kernel_of(3, "elu", [False, True], 24, m1.machine)
wanted = {predict.fmas_of(3, up, kernel[3]): up for up in (False, True)}
loops = predict.loops(predict.assembly(m1, predict.winograd.convolution, *kernel, False))
found = [(wanted[it.fmas], it.fmas, it.loads, it.stores, it.spills) for it in loops if it.fmas in wanted]
print(json.dumps([kernel[3], found]))
"""


@pytest.mark.slow
def test_products_on_an_apple_m1_stay_in_registers(root, llvm_python):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "src")])}
    done = subprocess.run([llvm_python, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    block, found = json.loads(done.stdout)
    assert block == 12  # two registers of each channel, two of what is multiplied, the rest for factors
    assert sorted(upsampled for upsampled, *_ in found) == [False, False, True]
    for upsampled, fmas, loads, stores, spills in found:
        assert (fmas, stores, spills) == (48 if upsampled else 72, 0, 0)
        assert fmas / loads > (0.9 if upsampled else 1.6)


ARM = """
LBB0_1:
	prfm	pldl2keep, [x22]
	ldp	q5, q6, [x3, #-16]
	ldr	q7, [sp, #32]                   ; 16-byte Reload
	fmla.4s	v25, v5, v7[0]
	str	q25, [sp, #48]
	ldr	x1, [sp, #424]
	b.lt	LBB0_1
LBB0_2:
	fmla.4s	v25, v5, v7[0]
	b.lt	LBB0_1
"""
X86 = """
.LBB0_9:                                # =>This Inner Loop Header: Depth=4
	prefetcht1	(%rdx)
	vmovups	-72(%rax), %zmm17
	vfmadd231ps	64(%rsp), %zmm3, %zmm6 # 64-byte Folded Reload
	vmovups	%zmm6, 128(%rsp)
	cmpq	8(%rsp), %rax
	jl	.LBB0_9
"""


@pytest.mark.parametrize(("text", "counts"), [(ARM, (1, 4, 1, 2)), (X86, (1, 3, 1, 2))])
def test_spills_are_seen(root, monkeypatch, text, counts):
    monkeypatch.syspath_prepend(root)
    from benchmarks import predict

    (loop,) = predict.loops(text)
    assert (loop.fmas, loop.loads, loop.stores, loop.spills) == counts


@pytest.mark.parametrize("lanes", [4, 16])
def test_the_work_is_that_of_the_definition_by_winograds_share(root, monkeypatch, lanes):
    monkeypatch.syspath_prepend(root)
    from benchmarks import predict

    network = steps_of(layer_table(levels=2, features=4, labels=3))
    work = list(predict.products(network, (8, 16, 64), Machine(lanes, 32)))
    shares = [product.fmas * product.rounds * lanes / product.definition for product in work]
    # 36 products for 16 results where there are 9 along x and y; of an upsampled image 25, and two along z for three.
    plain, upsampled = 36 / 16 / 9, 25 / 16 / 9 * 2 / 3
    # What leads to the skip tensor is done twice, the coarser level and the tail once.
    assert shares == pytest.approx([2 * plain, 2 * plain, plain, plain, plain, upsampled, plain])
    voxels = 8 * 16 * 64
    assert sum(product.definition for product in work) == 27 * (
        voxels * (1 * 4 + 4 * 4 + (4 + 8) * 4 + 4 * 4) + voxels // 8 * (4 * 8 + 8 * 8)
    )
