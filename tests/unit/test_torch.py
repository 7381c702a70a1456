"""The torch engine against the formulas in NumPy, on small networks."""

import os
import subprocess
import sys
import types
from pathlib import Path

import engine_cases
import numpy as np
import pytest

from synthseg_native import engines
from synthseg_native.engines import torch as engine
from synthseg_native.errors import SynthSegError
from synthseg_native.networks.layers import Layer, layer_table
from synthseg_native.verification import probes

# Runs in an interpreter with PyTorch: networks and volumes of several shapes, in slabs of several sizes, on every
# device that it sees.
PROGRAM = """
import json, sys
import numpy as np
from synthseg_native.verification import probes
from synthseg_native.engines import torch as engine
from synthseg_native.networks.layers import given, layer_table

def posteriors(built, volume):
    slabs = [(start, slab.copy()) for start, slab in built.run(inputs_of(table, volume), smoothing)]
    assert [start for start, _ in slabs] == np.cumsum([0, *(len(slab) for _, slab in slabs[:-1])]).tolist()
    return np.concatenate([slab for _, slab in slabs]), len(slabs)

def inputs_of(table, volume):
    # A second input gets the volume mirrored, a map of whole numbers what they are made of it.
    pairs = zip(given(table), (volume, np.flip(volume, 1)))
    whole = lambda volume, layer: np.uint8(np.abs(4 * volume) % layer.channels)
    return {each.name: of if each.kind == "input" else whole(of, each) for each, of in pairs}

torch = engine.start(2)
devices = ["cpu", "gpu"] if engine.place_of(torch, "gpu") else ["cpu"]
found = {}
rng = np.random.default_rng(3)
values = lambda *shape: rng.standard_normal(shape, dtype=np.float32)
for name, settings, shape in json.loads(sys.argv[1]):
    smoothing = settings.pop("smoothing", 0.5)
    table = layer_table(**settings)
    weights = probes.plausible_weights(table, rng)
    volume = values(*shape)
    other = np.moveaxis(volume, 0, 2)
    expected = probes._network(table, weights, inputs_of(table, volume), smoothing=smoothing)
    expected_other = probes._network(table, weights, inputs_of(table, other), smoothing=smoothing)
    found[name] = {"errors": [], "slabs": [], "same": [], "reshaped": [], "bf16": []}
    for device in devices:
        built = engine.build(table, weights, device=device, threads=2)
        for size in (2**27, 4 * expected[0].size * shape[0] // 3, 1):
            engine.SLAB_BYTES = size
            result, slabs = posteriors(built, volume)
            assert result.dtype == np.float32
            found[name]["errors"].append(float(np.abs(result - expected).max()))
            found[name]["slabs"].append(slabs)
            found[name]["same"].append(bool(np.array_equal(posteriors(built, volume)[0], result)))
        engine.SLAB_BYTES = 2**27
        found[name]["reshaped"].append(float(np.abs(posteriors(built, other)[0] - expected_other).max()))
        if "bf16" not in engine.precisions(torch, engine.place_of(torch, device)):
            continue
        built = engine.build(table, weights, device=device, threads=2, precision="bf16")
        result, _ = posteriors(built, volume)
        same = np.array_equal(posteriors(built, volume)[0], result)
        equal = (result.argmax(-1) == expected.argmax(-1)).mean()
        # bfloat16 has 8 bits: posteriors that passed through it have the lower 16 of float32 empty.
        bits = (result.view(np.uint32) & 0xFFFF != 0).mean()
        found[name]["bf16"].append([float(np.abs(result - expected).max()), float(equal), float(bits), bool(same)])
found["place"] = [built.name, built.version, built.device, devices[-1]]
found["settings"] = [torch.backends.fp32_precision, torch.backends.cudnn.conv.fp32_precision,
                     torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark]
print(json.dumps(found))
"""
CASES = engine_cases.CASES | engine_cases.MORE | engine_cases.WIDER


@pytest.fixture(scope="module")
def found(root, torch_python):
    return engine_cases.run(PROGRAM, CASES, torch_python, root)[0]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_slabs_give_what_the_whole_volume_gives(found, case):
    assert max(found[case]["errors"]) < 1e-5
    whole, some, single = found[case]["slabs"][:3]
    planes = CASES[case][1][0] if CASES[case][0].get("form") != "encoder" else 1
    assert whole == 1 <= some and single == planes  # down to slabs of one plane
    assert some > 1 or planes == 1


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_twice_gives_the_same_bytes(found, case):
    assert all(found[case]["same"])


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_another_shape_needs_no_new_engine(found, case):
    assert max(found[case]["reshaped"]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_bf16_is_near_and_its_posteriors_are_not_rounded(found, case):
    if not found[case]["bf16"]:
        pytest.skip("no device here computes in bfloat16")
    for error, equal, bits, same in found[case]["bf16"]:
        assert error < probes.TOLERANCE_BF16
        encoder = CASES[case][0].get("form") == "encoder"  # all of it is precise, and gives a few numbers alone
        assert error > 1e-5 or CASES[case][0]["levels"] == 1 or encoder
        assert equal > 0.98
        assert bits > 0.9 or encoder
        assert same


@pytest.mark.slow
def test_what_ran_is_known_and_precise(found):
    name, version, device, expected = found["place"]
    assert (name, device) == ("torch", expected)
    assert version[0].isdigit()
    assert found["settings"] == ["ieee", "ieee", True, False]


@pytest.mark.slow
def test_too_little_memory_is_a_memory_error(root, torch_python):
    code = """
import resource
import numpy as np
from synthseg_native.verification import probes
from synthseg_native.engines import torch as engine
from synthseg_native.networks.layers import layer_table

table = layer_table(levels=2, features=24, labels=32)
weights = {l.name: {n: np.ones(s, np.float32) for n, s in l.weights.items()} for l in table if l.weights}
shape = (128, 128, 128)
built = engine.build(table, weights)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, used + 2**26))
try:
    next(built.run({"image": np.zeros(shape, np.float32)}))
except MemoryError as error:
    print(error)
"""
    if not Path("/proc/self/statm").exists():
        pytest.skip("memory cannot be limited here")
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    done = subprocess.run([torch_python, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("PyTorch: ") and done.stdout.count("\n") == 1
    assert "allocate" in done.stdout


# What needs no PyTorch


def test_folded_kernel_is_the_kernel_over_doubled_voxels():
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((1, 3, 4, 5, 2)), rng.standard_normal((3, 3, 3, 2, 3)).astype(np.float32)
    expected = probes._conv3d(probes._up_sampling3d(x), kernel, np.zeros(3))[0]
    folded = engine._folded(kernel)
    assert folded.shape == (2, 2, 2, 2, 24)
    padded = np.pad(x[0], [(1, 1)] * 3 + [(0, 0)])
    result = np.zeros((4, 5, 6, 24))  # voxel i sums over i - 1 and i
    for i, j, k in np.ndindex(2, 2, 2):
        result += padded[i : i + 4, j : j + 5, k : k + 6] @ folded[i, j, k]
    for part, (a, b, c) in enumerate(np.ndindex(2, 2, 2)):
        mine = result[a : a + 3, b : b + 4, c : c + 5, 3 * part : 3 * part + 3]
        np.testing.assert_allclose(mine, expected[a::2, b::2, c::2], atol=1e-5)


def build(table=None, **how):
    table = table or layer_table(levels=2, features=2, labels=2)
    return engines.load("torch").build(table, {}, **how)


def test_what_it_cannot_do_is_one_line():
    table = [*layer_table(levels=2, features=2, labels=2), Layer("last", "sharpen", 2)]
    for words, how in [
        ("device npu: the torch engine runs on cpu or gpu", {"device": "npu"}),
        (r"^layer last of kind sharpen \(.*: the torch engine cannot compute it: no engine has it", {"table": table}),
    ]:
        with pytest.raises(SynthSegError, match=words) as caught:
            build(**how)
        assert caught.value.code == "usage" and "\n" not in caught.value.message


@pytest.fixture
def pretended(monkeypatch):
    """A torch of some version that sees some GPU."""

    def pretend(version="2.14.0", cuda=False, mps=False, bf16=False):
        torch = types.SimpleNamespace(
            __version__=version,
            set_num_threads=lambda n: None,
            use_deterministic_algorithms=lambda on: None,
            utils=types.SimpleNamespace(deterministic=types.SimpleNamespace()),
            backends=types.SimpleNamespace(
                cudnn=types.SimpleNamespace(conv=types.SimpleNamespace()),
                mps=types.SimpleNamespace(is_available=lambda: mps),
            ),
            cuda=types.SimpleNamespace(is_available=lambda: cuda, is_bf16_supported=lambda including_emulation: bf16),
            cpu=types.SimpleNamespace(get_capabilities=lambda: {"avx2": True, "amx_bf16": bf16}),
        )
        monkeypatch.setitem(sys.modules, "torch", torch)
        return torch

    return pretend


@pytest.mark.parametrize(
    ("torch", "how", "words"),
    [
        ({"version": "2.10.1"}, {}, "torch 2.10.1: too old: install the environment envs/torch.txt"),
        (
            {"version": "2.13.0+cpu", "mps": True},
            {"device": "gpu"},
            r"torch 2.13.0\+cpu: too old for Apple's GPUs: inst",
        ),
        ({}, {"device": "gpu"}, "device gpu: PyTorch sees none: use --device cpu"),
        ({}, {"precision": "bf16"}, "precision bf16: this cpu does not compute in it: ask for float32"),
        ({"cuda": True}, {"device": "gpu", "precision": "bf16"}, "this gpu does not compute in it"),
    ],
)
def test_a_torch_that_will_not_do_is_one_line(pretended, torch, how, words):
    pretended(**torch)
    with pytest.raises(SynthSegError, match=words) as caught:
        build(**how)
    assert caught.value.code == "usage" and "\n" not in caught.value.message


def test_no_torch_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SynthSegError, match=r"torch: cannot be imported .*: install the environment envs/torch.txt"):
        build()


def test_the_gpu_and_what_it_has(pretended):
    assert engine.place_of(pretended(cuda=True, mps=True), "gpu") == "cuda"
    apple = pretended(mps=True)
    assert (engine.place_of(apple, "gpu"), engine.place_of(apple, "cpu")) == ("mps", "cpu")
    assert engine.precisions(apple, "mps") == ["float32", "bf16"]
    assert engine.precisions(apple, "cpu") == engine.precisions(pretended(cuda=True), "cuda") == ["float32"]
    assert engine.precisions(pretended(bf16=True), "cpu") == ["float32", "bf16"]


@pytest.mark.parametrize(
    "words",
    [
        "CUDA out of memory. Tried to allocate 4.50 GiB. GPU 0 has a total capacity of 4.00 GiB",
        "MPS backend out of memory (MPS allocated: 8.00 GB)",
        "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried",
        "Invalid buffer size: 40.00 GB",
    ],
)
def test_every_way_to_say_that_memory_is_short(words):
    with pytest.raises(MemoryError, match=r"^PyTorch: "), engine.TorchEngine._told(None):
        raise RuntimeError(f"{words}\nmore")


def test_other_errors_stay_what_they_are():
    for words in ("expected a 5-D tensor", ""):
        with pytest.raises(RuntimeError, match=f"^{words}$"), engine.TorchEngine._told(None):
            raise RuntimeError(words)
