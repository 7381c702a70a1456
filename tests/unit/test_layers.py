"""The TensorFlow engine and the reference's Keras layers against plain NumPy, on a tiny network."""

import os
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.ndimage import correlate

from synthseg_native import engines
from synthseg_native.errors import SynthSegError
from synthseg_native.networks import layers

pytestmark = pytest.mark.slow
SETTINGS = {"levels": 3, "features": 3, "labels": 4}

# Runs in the TensorFlow environment: the same weights through the engine and through the reference.
PROGRAM = """
import sys
import numpy as np
from synthseg_native import reference
from synthseg_native.networks import layers
from synthseg_native.engines import tensorflow

arrays = dict(np.load(sys.argv[1]))
volume = arrays.pop("volume")
weights = {}
for key, value in arrays.items():
    layer, name = key.split("/")
    weights.setdefault(layer, {})[name] = value
settings = {"levels": 3, "features": 3, "labels": 4}
table = layers.layer_table(**settings)
engine = tensorflow.build(table, weights, threads=2)
slabs = dict(engine.run({"image": volume}, 0.5))
starts = list(slabs)
join = lambda slabs: np.concatenate([slab for _, slab in slabs])
others = {}
for name, more in {"relu": {"activation": "relu"}, "linear": {"end": "linear"}, "none": {"activation": "none"}}.items():
    built = tensorflow.build(layers.layer_table(**settings, **more), weights, threads=2)
    others[name] = join(built.run({"image": volume}))
raw = join(engine.run({"image": volume}))
two = layers.layer_table(**settings, inputs={"image": 1, "other": 1})
kernel = weights["unet_conv_downarm_0_0"]["kernel"]
double = {**weights, "unet_conv_downarm_0_0": {**weights["unet_conv_downarm_0_0"], "kernel": kernel.repeat(2, axis=3)}}
others["two"] = join(tensorflow.build(two, double, threads=2).run({"image": volume, "other": volume[::-1]}))
other = volume[:16, ::-1]
others["reshaped"] = join(engine.run({"image": other}, 0.5))

unet = {"levels": 3, "features": 3, "convolutions_per_level": 2, "kernel": 3, "activation": "elu"}
model = reference.build_network(unet, 1, 4)
for layer in model.layers:
    if layer.weights:
        layer.set_weights([weights[layer.name][w.name.split("/")[-1].split(":")[0]] for w in layer.weights])
names = [layer.name for layer in model.layers]
flip = np.array([0, 2, 1, 3])
np.savez(sys.argv[2], engine=np.concatenate([slabs[s] for s in starts]), starts=starts, names=names,
         reference=reference.smooth(reference.predict(model, volume[..., None]), 0.5),
         flipped=reference.averaged_posteriors(model, volume, flip, 0.5),
         mirrored=join(engine.run({"image": volume[::-1]}, 0.5)), raw=raw, **others,
         place=[engine.name, engine.version, engine.device])
"""


def plain(table, weights, volume, sigma=0.5):
    """The layer table in float64, by the book, smoothed. volume : (X, Y, Z), or several by name"""
    given = volume if isinstance(volume, dict) else {"image": volume}
    outputs = {}
    for layer in table:
        x = [outputs[name] for name in layer.inputs]
        w = {k: v.astype(float) for k, v in weights.get(layer.name, {}).items()}
        if layer.kind == "input":
            y = given[layer.name][..., None].astype(float)
        elif layer.kind == "conv":
            y = np.stack(
                [
                    sum(correlate(x[0][..., i], w["kernel"][..., i, o], mode="constant") for i in range(x[0].shape[-1]))
                    + w["bias"][o]
                    for o in range(layer.channels)
                ],
                axis=-1,
            )
            if layer.activation == "elu":
                y = np.where(y > 0, y, np.expm1(np.minimum(y, 0)))
            elif layer.activation == "relu":
                y = np.maximum(y, 0)
        elif layer.kind == "norm":
            y = (x[0] - w["moving_mean"]) / np.sqrt(w["moving_variance"] + 1e-3) * w["gamma"] + w["beta"]
        elif layer.kind == "pool":
            a, b, c, n = x[0].shape
            y = x[0].reshape(a // 2, 2, b // 2, 2, c // 2, 2, n).max(axis=(1, 3, 5))
        elif layer.kind == "up":
            y = x[0].repeat(2, axis=0).repeat(2, axis=1).repeat(2, axis=2)
        elif layer.kind == "concat":
            y = np.concatenate(x, axis=-1)
        elif layer.kind == "softmax":
            y = np.exp(x[0] - x[0].max(axis=-1, keepdims=True))
            y /= y.sum(axis=-1, keepdims=True)
        outputs[layer.name] = y
    if not sigma:
        return y
    line = np.exp(-0.5 * np.arange(-1, 2) ** 2 / sigma**2)
    kernel = line[:, None, None] * line[:, None] * line / line.sum() ** 3
    return np.stack([correlate(y[..., c], kernel, mode="constant") for c in range(y.shape[-1])], axis=-1)


@pytest.fixture(scope="module")
def run(root, tensorflow_python, tmp_path_factory):
    folder = tmp_path_factory.mktemp("layers")
    rng = np.random.default_rng(0)
    table = layers.layer_table(**SETTINGS)
    weights = {
        layer.name: {
            name: (rng.normal(size=shape) / np.sqrt(np.prod(shape[:-1])) + (name == "moving_variance") * 3).astype("f4")
            for name, shape in layer.weights.items()
        }
        for layer in table
        if layer.weights
    }
    for values in weights.values():
        if "moving_variance" in values:
            values["moving_variance"] = np.abs(values["moving_variance"])
    volume = rng.random((20, 12, 8), dtype=np.float32)
    arrays = {f"{layer}/{name}": value for layer, values in weights.items() for name, value in values.items()}
    np.savez(folder / "in.npz", volume=volume, **arrays)
    done = subprocess.run(
        [tensorflow_python, "-c", PROGRAM, folder / "in.npz", folder / "out.npz"],
        env={**os.environ, "PYTHONPATH": str(root / "src")}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return SimpleNamespace(
        stderr=done.stderr, expected=plain(table, weights, volume), table=table, weights=weights, volume=volume,
        **np.load(folder / "out.npz"),
    )  # fmt: skip


def test_engine_computes_the_table(run):
    np.testing.assert_allclose(run.engine, run.expected, atol=2e-6)
    assert run.engine.dtype == np.float32


def test_without_smoothing_and_with_another_shape(run):
    np.testing.assert_allclose(run.raw, plain(run.table, run.weights, run.volume, 0), atol=2e-6)
    assert np.abs(run.raw - run.engine).max() > 0.01
    np.testing.assert_allclose(run.reshaped, plain(run.table, run.weights, run.volume[:16, ::-1]), atol=2e-6)


@pytest.mark.parametrize(
    ("found", "more"),
    [("relu", {"activation": "relu"}), ("none", {"activation": "none"}), ("linear", {"end": "linear"})],
)
def test_other_activations_and_ends(run, found, more):
    expected = plain(layers.layer_table(**SETTINGS, **more), run.weights, run.volume, 0)
    np.testing.assert_allclose(getattr(run, found), expected, atol=5e-6 * max(1, np.abs(expected).max()))
    assert np.abs(expected - run.raw).max() > 0.01


def test_two_inputs(run):
    first = run.weights["unet_conv_downarm_0_0"]
    weights = {**run.weights, "unet_conv_downarm_0_0": {**first, "kernel": first["kernel"].repeat(2, axis=3)}}
    table = layers.layer_table(**SETTINGS, inputs={"image": 1, "other": 1})
    expected = plain(table, weights, {"image": run.volume, "other": run.volume[::-1]}, 0)
    np.testing.assert_allclose(run.two, expected, atol=2e-6)


def test_a_layer_that_nobody_has_is_refused():
    table = [*layers.layer_table(**SETTINGS), layers.Layer("last", "sharpen", 4)]
    for name in engines.NAMES:
        words = f"^layer last of kind sharpen .*: the {name} engine cannot compute it: no engine has it"
        with pytest.raises(SynthSegError, match=words) as caught:
            engines.load(name).build(table, {})
        assert caught.value.exit_code == 2


def test_reference_computes_the_table(run):
    np.testing.assert_allclose(run.reference, run.expected, atol=2e-6)


def test_engine_and_reference_agree_in_every_bit(run):
    np.testing.assert_array_equal(run.engine, run.reference)
    flipped = np.float32(0.5) * (run.engine + run.mirrored[::-1][..., [0, 2, 1, 3]])
    np.testing.assert_array_equal(run.flipped, flipped)


def test_slabs_cover_the_volume_and_are_smaller_than_it(run):
    assert run.starts.tolist() == [0, 16]
    assert run.engine.shape == (20, 12, 8, 4)


def test_smoothing_loses_weight_at_the_border_only(run):
    sums = run.engine.sum(axis=-1)
    inside = 1 - 0.10650698  # what is left of the sum on a face
    np.testing.assert_allclose(sums[1:-1, 1:-1, 1:-1], 1, atol=1e-6)
    np.testing.assert_allclose(sums[0, 1:-1, 1:-1], inside, atol=1e-6)
    np.testing.assert_allclose(sums[0, 0, 1:-1], inside**2, atol=1e-6)
    np.testing.assert_allclose(sums[-1, -1, -1], inside**3, atol=1e-6)


def test_reference_uses_the_names_of_the_table(run):
    # Keras adds no weighted layer of its own, and weights are found by these names.
    assert {layer.name for layer in run.table if layer.kind != "input"} <= set(run.names.tolist())


def test_what_ran_is_known_and_nothing_is_printed(run):
    assert run.place.tolist()[0] == "tensorflow"
    assert run.place.tolist()[2] == "cpu"
    assert run.stderr == ""


def test_other_precisions_and_engines_are_refused():
    for words, asked in [
        ("torch9: no such engine", ["torch9"]),
        ("precision bf16: the tensorflow engine has float32: ask for that", ["tensorflow", "bf16"]),
        ("precision float16: the torch engine has float32 and bf16: ask", ["torch", "float16"]),
    ]:
        with pytest.raises(SynthSegError, match=words) as caught:
            engines.load(*asked)
        assert caught.value.exit_code == 2
