"""The OpenVINO engine against the formulas in NumPy, on small networks."""

from dataclasses import replace

import engine_cases
import numpy as np
import pytest

from synthseg_native import engines
from synthseg_native.engines import openvino
from synthseg_native.errors import SynthSegError
from synthseg_native.networks.layers import Layer, layer_table
from synthseg_native.verification import probes

# Runs in the OpenVINO environment: networks and volumes of several shapes, for registers of several sizes.
PROGRAM = """
import json, sys
from dataclasses import replace
import numpy as np
from synthseg_native.verification import probes
from synthseg_native.engines import openvino
from synthseg_native.engines.kernels import language
from synthseg_native.networks.layers import layer_table

def posteriors(engine, volume):
    slabs = [(start, slab.copy()) for start, slab in engine.run({"image": volume}, smoothing)]
    assert [start for start, _ in slabs] == np.cumsum([0, *(len(slab) for _, slab in slabs[:-1])]).tolist()
    return np.concatenate([slab for _, slab in slabs])

ALL_REGISTERS = ("like SynthSeg", "two levels", "smoothed widely")  # writing the kernels takes a second each time
found = {}
here = language.this_machine()
rng = np.random.default_rng(3)
values = lambda *shape: rng.standard_normal(shape, dtype=np.float32)
for name, settings, shape in json.loads(sys.argv[1]):
    smoothing = settings.pop("smoothing", 0.5)
    table = layer_table(**settings)
    weights = {
        layer.name: {key: probes._plausible(values, key, size) for key, size in layer.weights.items()}
        for layer in table if layer.weights
    }
    volume = values(*shape)
    expected = probes._network(table, weights, volume, smoothing=smoothing)
    found[name] = {"errors": {}}
    for registers in ((16, 32), (8, 16), (4, 16))[: None if name in ALL_REGISTERS else 1]:
        fused = registers[0] != 4
        language.this_machine = lambda: replace(here, lanes=registers[0], registers=registers[1], fused=fused)
        engine = openvino.build(table, weights, threads=2)
        found[name]["errors"][registers[0]] = float(np.abs(posteriors(engine, volume) - expected).max())
    language.this_machine = lambda: here
    engine = openvino.build(table, weights, threads=2)
    result = posteriors(engine, volume)
    posteriors(engine, 2 - volume)  # whose features the next pass finds in its memory
    three = openvino.build(table, weights, threads=3)
    found[name]["same"] = [bool(np.array_equal(posteriors(e, volume), result)) for e in (engine, three)]
    found[name]["type"] = str(result.dtype)
    found[name]["unseen"] = []  # voxels that are no numbers by the formulas, and are by the engine
    for broken in (volume, weights):
        spoilt, bad = volume.copy(), weights
        if broken is volume:
            spoilt[tuple(n // 2 for n in shape)] = np.nan
        else:
            layer = next(layer.name for layer in table if layer.kind == "conv")
            bad = weights | {layer: weights[layer] | {"bias": weights[layer]["bias"] + np.float32(np.nan)}}
        with np.errstate(invalid="ignore"):
            lost = np.isnan(probes._network(table, bad, spoilt, smoothing=smoothing))
        seen = np.isnan(posteriors(openvino.build(table, bad, threads=2), spoilt))
        found[name]["unseen"].append([int(lost.sum()), int((lost & ~seen).sum())])
    kept = lambda: sum(array.nbytes for free in engine._stream._memory._free.values() for array in free)
    found[name]["kept"] = [kept()]
    engine.release()
    found[name]["kept"].append(kept())
    other = np.ascontiguousarray(volume[: shape[0] // 2, :, ::-1])
    again = probes._network(table, weights, other, smoothing=smoothing)
    found[name]["reshaped"] = float(np.abs(posteriors(engine, other) - again).max())
    try:
        rough = openvino.build(table, weights, threads=2, precision="bf16")
    except Exception as error:
        found[name]["bf16"] = str(error)
        continue
    found[name]["bf16"] = []
    for scan, wanted in ((volume, expected), (other, again)):
        result = posteriors(rough, scan)
        equal = (result.argmax(-1) == wanted.argmax(-1)).mean()
        found[name]["bf16"].append([float(np.abs(result - wanted).max()), float(equal)])
found["place"] = [engine.name, engine.version, engine.device]
print(json.dumps(found))
"""
CASES = {name: case for name, case in engine_cases.CASES.items() if case[0]["levels"] > 1}  # one is refused


@pytest.fixture(scope="module")
def found(root, openvino_python):
    found, said = engine_cases.run(PROGRAM, CASES, openvino_python, root)
    assert said == ""
    return found


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_registers_of_every_size_give_what_the_formulas_give(found, case):
    assert max(found[case]["errors"].values()) < 1e-5
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
    assert found[case]["reshaped"] < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_bf16_is_near(found, case):
    if isinstance(found[case]["bf16"], str):
        assert "this CPU does not compute in it" in found[case]["bf16"]
        pytest.skip("this CPU has no bfloat16")
    for error, equal in found[case]["bf16"]:
        assert error < 0.03
        assert equal > 0.99


@pytest.mark.slow
def test_registers_of_three_sizes_were_tried(found):
    assert [set(found[case]["errors"]) for case in CASES].count({"16", "8", "4"}) == 3


@pytest.mark.slow
def test_what_ran_is_known(found):
    name, version, device = found["place"]
    assert (name, device) == ("openvino", "cpu")
    assert version[:2] == "20"


def test_transposed_convolution_is_the_convolution_of_the_upsampled_image():
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((1, 3, 4, 5, 2)), rng.standard_normal((3, 3, 3, 2, 3)).astype(np.float32)
    wide = openvino.transposed_kernel(kernel)
    shape = [2 * n for n in x.shape[1:4]]
    result = np.zeros((*[n + 2 for n in shape], 3))  # the transposed convolution by the book: each voxel spreads
    for i, j, k in np.ndindex(x.shape[1:4]):
        result[2 * i : 2 * i + 4, 2 * j : 2 * j + 4, 2 * k : 2 * k + 4] += np.tensordot(x[0, i, j, k], wide, (0, 3))
    expected = probes._conv3d(probes._up_sampling3d(x), kernel, np.zeros(3))
    np.testing.assert_allclose(result[1:-1, 1:-1, 1:-1], expected[0], atol=1e-5)


def linear_in_the_middle(table):
    return [replace(layer, activation="none") if layer.name == "unet_conv_downarm_1_0" else layer for layer in table]


def without_a_skip(table):
    return [layer for layer in table if layer.kind != "concat"]


def crossed_skips(table):
    return [
        replace(layer, inputs=("unet_bn_down_0", layer.inputs[1])) if layer.kind == "concat" else layer
        for layer in table
    ]


def elu_at_the_end(table):
    return [replace(layer, activation="elu") for layer in table[:-1]] + table[-1:]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"device": "gpu"}, "device gpu: the openvino engine runs on the cpu"),
        ({"levels": 1}, r"order of layers \(it has a U-Net of two levels or more"),
        ({"kernel": 5}, r"kernel 5 of unet_conv_downarm_0_0 \(it has 1, 3\)"),
        ({"kernel": 1}, "kernel 1 of unet_conv_uparm_2_0, behind an upsampling"),
        ({"activation": "relu"}, r"activation relu of unet_conv_downarm_0_0 \(it has elu, none\)"),
        ({"activation": "none"}, "no activation behind unet_conv_downarm_0_0"),
        ({"end": "linear"}, r"linear end \(it has softmax\)"),
        ({"inputs": ("image", "cortex")}, r"2 inputs \(it has 1\)"),
        ({"change": linear_in_the_middle}, "no activation behind unet_conv_downarm_1_0"),
        ({"change": without_a_skip}, "order of layers"),
        ({"change": crossed_skips}, "inputs unet_bn_down_0, unet_up_2 of unet_merge_2"),
        ({"change": elu_at_the_end}, "last convolution unet_likelihood"),
        ({"change": lambda table: [*table, Layer("mean", "mean", 2)]}, "layer mean of kind mean"),
    ],
)
def test_what_it_cannot_do_is_one_line(how, words):
    """Never computed as something else: its kernels know ELU, skips and a softmax alone."""
    named = {name: how[name] for name in how if name not in ("device", "change")}
    table = how.get("change", lambda table: table)(layer_table(**{"levels": 2, "features": 2, "labels": 2, **named}))
    with pytest.raises(SynthSegError, match=f"^{words}") as caught:
        engines.load("openvino").build(table, {}, device=how.get("device", "cpu"))
    assert caught.value.exit_code == 2
    assert "\n" not in caught.value.message
    if "device" not in how:
        others = "no engine has it" if words.endswith("mean") else "use --engine tensorflow"
        assert f"the openvino engine cannot compute it: {others}" in caught.value.message
