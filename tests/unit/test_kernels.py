"""The kernels of the OpenVINO engine by themselves, against NumPy."""

import json
import os
import subprocess

import numpy as np
import pytest

from synthseg_native.engines import kernels

# Runs in the OpenVINO environment. A kernel of its own applies a function to a row of numbers.
PROGRAM = """
import json
from dataclasses import replace
import numpy as np
from synthseg_native.engines import kernels, vector

def apply(function, values):
    with library.kernel(function, 2, 1) as code:
        source, result, stop = code.arguments
        with code.loop(0, stop, code.lanes) as i:
            code.store(getattr(code, function)(code.load(source, i.index)), result, i.index)

here, found = vector.this_machine(), {"lanes": {}}
rows = np.float32([-1e30, -100, -87.5, -87, -20, -1, -0.34, -1e-3, -1e-7, -0.0, 0, 1e-7, 0.5, 3, 80, 1e30] * 4)
for lanes in (16, 8, 4):
    library = vector.Library(replace(here, lanes=lanes))
    for function in ("exp", "elu"):
        apply(function, rows)
    calls = library.compile()
    found["lanes"][lanes] = {}
    for function, call in calls.items():
        given = np.minimum(rows, 0) if function == "exp" else rows
        result = np.zeros_like(given)
        call(given.ctypes.data, result.ctypes.data, len(given))
        found["lanes"][lanes][function] = [given.tolist(), result.tolist()]
found["machine"] = [here.lanes, here.registers]
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(root, openvino_python):
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    done = subprocess.run([openvino_python, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("lanes", ["16", "8", "4"])
def test_functions_are_those_of_numpy(found, lanes):
    given, result = (np.array(values) for values in found["lanes"][lanes]["exp"])
    np.testing.assert_allclose(result, np.exp(np.maximum(given, -87)), rtol=5e-7)
    given, result = (np.array(values) for values in found["lanes"][lanes]["elu"])
    np.testing.assert_allclose(result, np.where(given > 0, given, np.expm1(np.minimum(given, 0))), atol=2e-7)


@pytest.mark.slow
def test_this_machine_is_one_of_those_known(found):
    assert found["machine"] in [[16, 32], [8, 16], [4, 32], [4, 16]]


def test_winograd_transforms_give_the_convolution():
    rng = np.random.default_rng(0)
    tile, kernel = rng.standard_normal((6, 6)), rng.standard_normal((3, 3))
    sums = (kernels.KERNEL @ kernel @ kernels.KERNEL.T) * (kernels.INPUT @ tile @ kernels.INPUT.T)
    result = kernels.RESULTS @ sums @ kernels.RESULTS.T
    expected = [[(tile[i : i + 3, j : j + 3] * kernel).sum() for j in range(4)] for i in range(4)]
    np.testing.assert_allclose(result, expected, atol=1e-12)
    low = rng.standard_normal((4, 4))
    wide = low.repeat([1, 2, 2, 1], axis=0).repeat([1, 2, 2, 1], axis=1)
    np.testing.assert_allclose(
        kernels.UPSAMPLED @ low @ kernels.UPSAMPLED.T, kernels.INPUT @ wide @ kernels.INPUT.T, atol=1e-12
    )


@pytest.mark.parametrize("lanes", [16, 8, 4])
@pytest.mark.parametrize("halo", [0, 1, 2])
def test_rows_have_room_for_whole_registers(lanes, halo):
    for z in range(1, 70):
        layout = kernels.Layout((6, z), 3, lanes, halo)
        step = kernels.VECTORS * lanes
        assert layout.row >= halo + -(-z // step) * step  # what is written
        assert layout.row % lanes == 0
    planes = np.arange(2 * np.prod(layout.plane)).reshape(2, *layout.plane)
    part = layout.inside(planes)
    assert part.shape == (2, 6, 69, 3)
    assert part[1, 2, 4, 1] == planes[1, 2 + halo, 1, 4 + halo]


def test_zeros_begin_a_line_after_the_halo():
    for ahead in (0, 1, 2):
        array = kernels.zeros((3, 5, 32), ahead)
        assert (array.ctypes.data + 4 * ahead) % 64 == 0
        assert array.shape == (3, 5, 32)
        assert not array.any()
