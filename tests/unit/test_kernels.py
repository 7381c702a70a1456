"""The kernels of the llvm engine by themselves, against NumPy."""

import json
import os
import subprocess

import numpy as np
import pytest

from synthseg_native import shared_disk
from synthseg_native.engines.kernels import layout as layouts
from synthseg_native.engines.kernels import library
from synthseg_native.engines.kernels import winograd as winograds

# Runs in the llvm environment. A kernel of its own applies a function to a row of numbers.
PROGRAM = """
import json, sys
from dataclasses import replace
from pathlib import Path
import numpy as np
from synthseg_native.engines.kernels import language, library

written = []

def write(program, name, function):
    written.append(name)
    with program.kernel(name, 2, 1) as code:
        given, result, stop = code.arguments
        with code.loop(0, stop, code.lanes) as i:
            code.store(getattr(code, function)(code.load(given, i.index)), result, i.index)

def library_of(machine):
    made = library.Library(machine)
    for function in ("exp", "elu"):
        made.add(f"row_{function}", write, function)
    return made

library.inspect.getsourcefile = lambda function: library.__file__  # this program has no file

here, found = language.this_machine(), {"lanes": {}}
rows = np.float32([-1e30, -100, -87.5, -87, -20, -1, -0.34, -1e-3, -1e-7, -0.0, 0, 1e-7, 0.5, 3, 80, 1e30] * 4)
for lanes in (16, 8, 4):
    found["lanes"][lanes] = {}
    for name, call in library_of(replace(here, lanes=lanes, fused=lanes != 4)).compile().items():
        function = name.split("_")[1]
        given = np.minimum(rows, 0) if function == "exp" else rows
        result = np.zeros_like(given)
        call(given.ctypes.data, result.ctypes.data, len(given))
        found["lanes"][lanes][function] = [given.tolist(), result.tolist()]
found["machine"] = [here.lanes, here.registers]

folder, found["kept"] = Path(sys.argv[1]), {}
def kept(what, machine=here):
    written.clear()
    result = np.zeros(16, np.float32)
    library_of(machine).compile(folder)["row_exp"](np.full(16, -1, np.float32).ctypes.data, result.ctypes.data, 16)
    found["kept"][what] = [len(written), float(result[0]), len([*folder.iterdir()]) if folder.is_dir() else 0]

kept("first")
kept("again")
file, other = sorted(folder.iterdir())
file.write_bytes(file.read_bytes()[:-100])
kept("cut short")
kept("after that")
file.chmod(0o666)
kept("others can write it")
kept("another machine", replace(here, lanes=here.lanes // 2))
folder = folder / file.name  # a file: nothing can be kept in it
kept("no folder")
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(root, llvm_python, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache") / "kernels"
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    done = subprocess.run([llvm_python, "-c", PROGRAM, folder], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("lanes", ["16", "8", "4"])
def test_functions_are_those_of_numpy(found, lanes):
    given, result = (np.array(values) for values in found["lanes"][lanes]["exp"])
    np.testing.assert_allclose(result, np.exp(np.maximum(given, -86)), rtol=5e-7)
    given, result = (np.array(values) for values in found["lanes"][lanes]["elu"])
    np.testing.assert_allclose(result, np.where(given > 0, given, np.expm1(np.minimum(given, 0))), atol=2e-7)


@pytest.mark.slow
def test_this_machine_is_one_of_those_known(found):
    assert found["machine"] in [[16, 32], [8, 16], [4, 32], [4, 16]]


@pytest.mark.slow
def test_compiled_kernels_are_kept_for_the_next_process(found):
    value = np.float32(np.exp(-1))
    assert {what: (writes, files) for what, (writes, _, files) in found["kept"].items()} == {
        "first": (2, 2),
        "again": (0, 2),
        "cut short": (1, 2),  # and written anew
        "after that": (0, 2),
        "others can write it": (1, 2),  # it may be theirs
        "another machine": (2, 4),
        "no folder": (2, 0),
    }
    assert [result for _, result, _ in found["kept"].values()] == pytest.approx([value] * 7, rel=3e-7)


def test_code_that_was_exchanged_after_it_was_looked_at_is_not_taken(tmp_path, monkeypatch):
    file = tmp_path / "code.o"
    library._keep(file, b"code")
    assert library._kept(file) == b"code"
    (tmp_path / "other.o").write_bytes(file.read_bytes())  # whole, and of another kernel
    (tmp_path / "other.o").chmod(0o600)
    assert library._kept(tmp_path / "other.o") is None
    monkeypatch.setattr(shared_disk, "is_private", lambda path: True)  # of the file that had the name before
    file.chmod(0o666)
    assert library._kept(file) is None


@pytest.mark.parametrize("size", winograds.SIZES)
@pytest.mark.parametrize("sources", [[False], [False, True], [True]])
def test_winograd_transforms_give_the_convolution(size, sources):
    rng, winograd = np.random.default_rng(0), winograds.Winograd(size, sources)
    count, repeats = winograd.count, winograds.upsampled_numbers(size, 4)
    sums, expected = np.zeros((count, count)), np.zeros((4, 4))
    for number, upsampled in enumerate(sources):
        tile = rng.standard_normal((4, 4) if upsampled else (count, count))
        kernel = rng.standard_normal((size, size))
        given, points = winograd.inputs[number], winograd.points[number]
        factors = winograd.kernel @ kernel @ winograd.kernel.T
        sums[np.ix_(points, points)] += factors[np.ix_(points, points)] * (given @ tile @ given.T)
        if upsampled:
            tile = tile.repeat(repeats, axis=0).repeat(repeats, axis=1)
        expected += [[(tile[i : i + size, j : j + size] * kernel).sum() for j in range(4)] for i in range(4)]
    np.testing.assert_allclose(winograd.results @ sums @ winograd.results.T, expected, atol=1e-12)


def test_the_products_of_an_upsampled_image_that_are_always_0_are_left_out():
    winograd = winograds.Winograd(3, [False, True])
    assert [winograd.products(source) for source in (0, 1)] == [36, 25]
    assert winograd.common == 25
    assert sorted(winograd.pairs) == [(i, j) for i in range(6) for j in range(6)]
    assert not {pair for pair in winograd.pairs[:25] if 2 in pair}


@pytest.mark.parametrize("lanes", [16, 8, 4])
@pytest.mark.parametrize("halo", [0, 1, 2])
def test_rows_have_room_for_whole_registers(lanes, halo):
    for z in range(1, 70):
        layout = layouts.Layout((6, z), 3, lanes, halo)
        step = layouts.VECTORS * lanes
        assert layout.row >= halo + -(-z // step) * step  # what is written
        assert layout.row % lanes == 0
    planes = np.arange(2 * np.prod(layout.plane)).reshape(2, *layout.plane)
    part = layout.inside(planes)
    assert part.shape == (2, 6, 69, 3)
    assert part[1, 2, 4, 1] == planes[1, 2 + halo, 1, 4 + halo]


def test_zeros_begin_a_line_after_the_halo():
    for ahead in (0, 1, 2):
        array = layouts.zeros((3, 5, 32), ahead)
        assert (array.ctypes.data + 4 * ahead) % 64 == 0
        assert array.shape == (3, 5, 32)
        assert not array.any()
