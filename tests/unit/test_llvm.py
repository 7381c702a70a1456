"""The llvm engine against the formulas in NumPy, on small networks."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import engine_cases
import pytest

from synthseg_native import engines
from synthseg_native.errors import SynthSegError
from synthseg_native.networks.layers import Layer, layer_table

# Runs in the llvm environment: networks and volumes of several shapes, for registers of several sizes.
PROGRAM = """
import json, sys
from dataclasses import replace
import numpy as np
from synthseg_native.verification import probes
from synthseg_native.engines import llvm
from synthseg_native.engines.kernels import language
from synthseg_native.networks.layers import given, layer_table

def posteriors(engine, volumes):
    slabs = [(start, slab.copy()) for start, slab in engine.run(volumes, smoothing)]
    assert [start for start, _ in slabs] == np.cumsum([0, *(len(slab) for _, slab in slabs[:-1])]).tolist()
    return np.concatenate([slab for _, slab in slabs])

def run_both_ways(engine, volumes, result):
    # The last planes first, in step with a run that begins with the first ones.
    other, last = engine.run(volumes, smoothing), len(result)
    for start, slab in engine.run(volumes, smoothing, backwards=True):
        assert start + len(slab) == last and np.array_equal(slab, result[start:last])
        last = start
        start, slab = next(other, (0, result[:0]))
        assert np.array_equal(slab, result[start:start + len(slab)])
    assert last == 0

# Writing the kernels takes a second each time.
ALL_REGISTERS = ("like SynthSeg", "two levels", "smoothed widely", "kernel 5")
found = {}
here = language.this_machine()
rng = np.random.default_rng(3)
values = lambda *shape: rng.standard_normal(shape, dtype=np.float32)
for name, settings, shape in json.loads(sys.argv[1]):
    smoothing = settings.pop("smoothing", 0.5)
    table = layer_table(**settings)
    weights = probes.plausible_weights(table, rng)
    maps = lambda n: rng.integers(0, n, shape, np.uint8)
    inputs = {layer.name: layer for layer in given(table)}
    is_image = {name: layer.kind == "input" for name, layer in inputs.items()}
    volumes = {name: values(*shape) if is_image[name] else maps(inputs[name].channels) for name in inputs}
    formulas = lambda volumes, weights=weights: probes._network(
        table, weights, volumes, smoothing=smoothing
    )
    expected, by_registers = formulas(volumes), {}
    size = max(1, float(np.abs(expected).max()))  # of likelihoods, which are no shares of 1
    found[name] = {"errors": {}}
    for registers in ((16, 32), (8, 16), (4, 16))[: None if name in ALL_REGISTERS else 1]:
        fused = registers[0] != 4
        language.this_machine = lambda: replace(here, lanes=registers[0], registers=registers[1], fused=fused)
        by_registers[registers[0]] = posteriors(llvm.build(table, weights, threads=2), volumes)
        found[name]["errors"][registers[0]] = float(np.abs(by_registers[registers[0]] - expected).max()) / size
    # Where each multiplies and adds in one step.
    found[name]["alike"] = len({by_registers[lanes].tobytes() for lanes in by_registers if lanes != 4})
    language.this_machine = lambda: here
    engine = llvm.build(table, weights, threads=2)
    result = posteriors(engine, volumes)
    run_both_ways(engine, volumes, result)
    # Whose features the next pass finds in its memory.
    posteriors(engine, {name: 2 - volume if is_image[name] else volume[::-1] for name, volume in volumes.items()})
    three = llvm.build(table, weights, threads=3)
    found[name]["same"] = [bool(np.array_equal(posteriors(e, volumes), result)) for e in (engine, three)]
    found[name]["type"] = str(result.dtype)
    found[name]["unseen"] = []  # voxels that are no numbers by the formulas, and are by the engine
    images = [name for name in inputs if is_image[name]]
    for broken in (volumes, weights) if images else (weights,):
        spoilt, bad = {name: volume.copy() for name, volume in volumes.items()}, weights
        if broken is volumes:
            spoilt[images[-1]][tuple(n // 2 for n in shape)] = np.nan
        else:
            layer = next(layer.name for layer in table if layer.kind == "conv")
            bad = weights | {layer: weights[layer] | {"bias": weights[layer]["bias"] + np.float32(np.nan)}}
        with np.errstate(invalid="ignore"):
            lost = np.isnan(formulas(spoilt, bad))
        seen = np.isnan(posteriors(llvm.build(table, bad, threads=2), spoilt))
        found[name]["unseen"].append([int(lost.sum()), int((lost & ~seen).sum())])
    kept = lambda: sum(array.nbytes for free in engine._stream._memory._free.values() for array in free)
    found[name]["kept"] = [kept()]
    engine.release()
    found[name]["kept"].append(kept())
    others = {name: volume[: shape[0] // 2, :, ::-1] for name, volume in volumes.items()}
    found[name]["reshaped"] = float(np.abs(posteriors(engine, others) - formulas(others)).max()) / size
found["place"] = [engine.name, engine.version, engine.device]
print(json.dumps(found))
"""
CASES = engine_cases.CASES | engine_cases.MORE | engine_cases.WIDER
# Larger tiles round more coarsely (`winograd.AT`).
LIMIT = {case: 2e-5 if CASES[case][0].get("kernel") == 5 else 1e-5 for case in CASES}


@pytest.fixture(scope="module")
def found(root, llvm_python):
    found, said = engine_cases.run(PROGRAM, CASES, llvm_python, root)
    assert said == ""
    return found


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_registers_of_every_size_give_what_the_formulas_give(found, case):
    assert max(found[case]["errors"].values()) < LIMIT[case]
    assert found[case]["type"] == "float32"


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_twice_and_with_more_threads_gives_the_same_bytes(found, case):
    assert found[case]["same"] == [True] * 2


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_what_is_no_number_stays_that(found, case):
    """So that the pipeline ends in its error, not in labels that one could believe."""
    for lost, unseen in found[case]["unseen"]:
        assert lost > 0 and unseen == 0


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_memory_is_kept_until_it_is_given_back(found, case):
    before, after = found[case]["kept"]
    assert before > 0
    assert after == 0


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_another_shape_needs_no_new_engine(found, case):
    assert found[case]["reshaped"] < LIMIT[case]


@pytest.mark.slow
def test_registers_of_three_sizes_were_tried(found):
    """With 16 numbers (AVX-512) and with 8 (AVX2) the bytes are the same."""
    tried = [case for case in CASES if set(found[case]["errors"]) == {"16", "8", "4"}]
    assert len(tried) == 4 and {found[case]["alike"] for case in tried} == {1}


@pytest.mark.slow
def test_what_ran_is_known(found):
    name, version, device = found["place"]
    assert (name, device) == ("llvm", "cpu")
    assert re.fullmatch(r"\d+\.\d+\.\d+", version)


def changed(name, **what):
    return lambda table: [replace(layer, **what) if layer.name == name else layer for layer in table]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"device": "gpu"}, "device gpu: the llvm engine runs on the cpu"),
        ({"kernel": 7}, r"kernel 7 of unet_conv_downarm_0_0 \(it has 1, 3, 5\)"),
        ({"change": changed("unet_likelihood", activation="elu")}, "last convolution unet_likelihood"),
        ({"change": changed("unet_likelihood", inputs=("unet_up_2",))}, "unet_up_2, which unet_likelihood reads"),
        ({"change": changed("unet_likelihood", inputs=("image",))}, "what unet_likelihood reads"),
        ({"change": changed("unet_merge_2", inputs=("unet_maxpool_0", "unet_up_2"))}, "sizes of what"),
        ({"change": changed("unet_bn_down_1", inputs=("unet_up_2",))}, "unet_up_2, which unet_bn_down_1 reads"),
        ({"change": changed("unet_bn_up_0", inputs=("unet_bn_down_1",))}, "normalisation unet_bn_up_0"),
        ({"change": changed("unet_bn_up_0", inputs=("image",))}, "normalisation unet_bn_up_0"),
        ({"change": lambda table: [*table, Layer("last", "sharpen", 2)]}, "layer last of kind sharpen"),
        (
            {"form": "encoder", "change": changed("unet_res_down_merge_0", inputs=("image",) * 2)},
            "what unet_res_down_merge_0 reads",
        ),
    ],
)
def test_what_it_cannot_do_is_one_line(how, words):
    """Never computed as something else."""
    named = {name: how[name] for name in how if name not in ("device", "change")}
    table = how.get("change", lambda table: table)(layer_table(**{"levels": 2, "features": 2, "labels": 2, **named}))
    with pytest.raises(SynthSegError, match=f"^{words}") as caught:
        engines.load("llvm").build(table, {}, device=how.get("device", "cpu"))
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.message
    if "device" not in how:
        others = "no engine has it" if words.endswith("sharpen") else "use --engine tensorflow"
        assert f"the llvm engine cannot compute it: {others}" in caught.value.message


def test_a_damaged_llvmlite_is_one_line_that_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "llvmlite").mkdir()
    (tmp_path / "llvmlite/__init__.py").touch()
    (tmp_path / "llvmlite/binding.py").write_text("raise OSError('libllvmlite.so:\\n  invalid ELF header')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "llvmlite", None)  # so that what is imported here is forgotten afterwards
    monkeypatch.delitem(sys.modules, "llvmlite")
    with pytest.raises(SynthSegError) as caught:
        engines.load("llvm").build(layer_table(levels=2, features=2, labels=2), {})
    says = "llvmlite: cannot be imported (libllvmlite.so: invalid ELF header): install the environment envs/llvm.txt"
    assert (caught.value.message, caught.value.exit_code) == (says, 2)


def test_a_name_of_old_says_what_took_its_place():
    with pytest.raises(SynthSegError, match=r"^openvino: no such engine any more: llvm took its place: write that$"):
        engines.load("openvino")


# Runs in the llvm environment: an image and maps with much of the same around them, with and without what is copied.
ALIKE = """
import json
import numpy as np
from synthseg_native.engines import llvm
from synthseg_native.engines.kernels import planes, stream
from synthseg_native.networks.layers import given, layer_table
from synthseg_native.verification import probes

rng, shape, found = np.random.default_rng(1), (72, 66, 36), {}
inside = np.zeros(shape, bool)
inside[30:41, 20:33, 5:20] = True
for name, settings in {
    "image": dict(levels=2, features=4, labels=3),
    "maps": dict(form="encoder", levels=2, features=4, labels=2, kernel=5, activation="relu", inputs={"groups": 3}),
}.items():
    table = layer_table(**settings)
    (layer,), weights = given(table), probes.plausible_weights(layer_table(**settings), rng)
    values = rng.integers(1, 3, shape, np.uint8) if layer.kind == "onehot" else rng.random(shape, np.float32)
    volume = np.where(inside, values, np.zeros((), values.dtype))
    results, copied = [], {}
    for any_alike in (planes.any_alike, lambda alike: None):
        planes.any_alike = stream.any_alike = any_alike
        copied[any_alike] = 0
        engine = llvm.build(table, weights, threads=2)
        planes_of = engine._stream._planes_of
        def noted(*arguments):
            made = planes_of(*arguments)
            copied[any_alike] += 0 if made.alike is None else int(made.alike.sum())
            return made
        engine._stream._planes_of = noted
        for backwards in (False, True):
            slabs = engine.run({layer.name: volume}, 0, backwards)
            slabs = sorted(((start, slab.copy()) for start, slab in slabs), key=lambda pair: pair[0])
            results.append(np.concatenate([slab for _, slab in slabs]))
    planes.any_alike = stream.any_alike = next(iter(copied))
    found[name] = [all(np.array_equal(result, results[0]) for result in results), [*copied.values()]]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_where_nothing_but_the_same_is_read_results_are_copied_and_are_the_same(root, llvm_python):
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    done = subprocess.run([llvm_python, "-c", ALIKE], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for name, (same, copied) in json.loads(done.stdout).items():
        assert same and copied[0] > 50 and copied[1] == 0, name


# A process that may not run what it has written, as SELinux and hardened kernels have it (prctl's PR_SET_MDWE).
FORBIDDEN = """
import ctypes, sys
if ctypes.CDLL(None).prctl(65, 1, 0, 0, 0):
    sys.exit("cannot be forbidden here")
from synthseg_native import engines
from synthseg_native.errors import SynthSegError
from synthseg_native.networks.layers import layer_table
try:
    engines.load("llvm").build(layer_table(levels=2, features=2, labels=2), {})
except SynthSegError as error:
    print(error)
"""


@pytest.mark.slow
def test_where_no_process_may_run_what_it_has_written_that_is_one_line(root, llvm_python):
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    done = subprocess.run([llvm_python, "-c", FORBIDDEN], env=environment, capture_output=True, text=True)
    if "cannot be forbidden here" in done.stderr:
        pytest.skip("this kernel has no such rule")
    assert (done.returncode, done.stderr) == (0, "")
    says = "llvm: this system lets no program run code that it has made: use --engine tensorflow or --engine torch\n"
    assert done.stdout == says
