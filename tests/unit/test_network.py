"""The layer table against the published shape of SynthSeg, and the weights file."""

import h5py
import numpy as np
import pytest

from synthseg_native.errors import SynthSegError
from synthseg_native.networks import cards
from synthseg_native.networks import layers as network

V1 = {"levels": 5, "features": 24, "labels": 32}
SMALL = {"levels": 2, "features": 3, "labels": 4}


@pytest.mark.parametrize(("labels", "parameters"), [(32, 13_242_824), (33, 13_242_849)])
def test_parameters_of_synthseg(labels, parameters):
    assert network.count_parameters(network.layer_table(levels=5, features=24, labels=labels)) == parameters


def test_layers_of_synthseg_1():
    table = network.layer_table(**V1)
    layers = {layer.name: layer for layer in table}
    assert len(layers) == len(table)
    assert sum(1 for layer in table if layer.weights) == 28
    assert [layer.channels for layer in table if layer.kind == "concat"] == [576, 288, 144, 72]
    assert layers["unet_merge_5"].inputs == ("unet_conv_downarm_3_1", "unet_up_5")  # skip first, before the norm
    assert layers["unet_maxpool_0"].inputs == ("unet_bn_down_0",)
    assert layers["unet_conv_downarm_4_1"].weights["kernel"] == (3, 3, 3, 384, 384)
    assert layers["unet_conv_uparm_8_0"].weights["kernel"] == (3, 3, 3, 72, 24)
    assert layers["unet_likelihood"].weights == {"kernel": (1, 1, 1, 24, 32), "bias": (32,)}
    assert layers["unet_likelihood"].activation == "none"
    assert "unet_maxpool_4" not in layers
    assert [layer.kind for layer in table[-2:]] == ["conv", "softmax"]


GROUPS = {"image": 1, "groups": 5}
SYNTHSEG_2 = {  # prefix: what is not as in `V1`, layers with weights, parameters
    "unet": ({"labels": 5}, 28, 13_242_149),
    "l2l": (
        {"labels": 5, "features": 16, "kernel": 5, "levels_without_skip": 2, "inputs": {"groups": 5}},
        28, 27_086_501,
    ),
    "unet2": ({"labels": 33, "inputs": GROUPS}, 28, 13_246_089),
    "unet_parc": ({"labels": 69, "inputs": {"image": 1, "cortex": 2}}, 28, 13_245_045),
    "qc": (
        {"form": "encoder", "levels": 4, "labels": 9, "kernel": 5, "activation": "relu", "inputs": {"groups": 9}},
        18, 12_450_663,
    ),
}  # fmt: skip


@pytest.mark.parametrize("prefix", SYNTHSEG_2)
def test_networks_of_synthseg_2(prefix):
    """Numbers of the official files."""
    more, layers, parameters = SYNTHSEG_2[prefix]
    table = network.layer_table(**V1 | more, prefix=prefix)
    assert sum(1 for layer in table if layer.weights) == layers
    assert network.count_parameters(table) == parameters
    assert all(layer.name.startswith(f"{prefix}_") for layer in table if layer.weights)


def test_the_denoiser_has_no_skips_at_its_finest_levels():
    more, _, _ = SYNTHSEG_2["l2l"]
    table = network.layer_table(**V1 | more, prefix="l2l")
    assert [layer.name for layer in table if layer.kind == "concat"] == ["l2l_merge_5", "l2l_merge_6"]
    kernels = {layer.name: layer.weights["kernel"] for layer in table if layer.kind == "conv"}
    assert kernels["l2l_conv_uparm_7_0"] == (5, 5, 5, 64, 32)
    assert kernels["l2l_conv_uparm_8_0"] == (5, 5, 5, 32, 16)


def test_layers_of_the_quality_network():
    more, _, _ = SYNTHSEG_2["qc"]
    layers = {layer.name: layer for layer in network.layer_table(**V1 | more, prefix="qc")}
    assert layers["qc_conv_downarm_1_0"].inputs == layers["qc_expand_down_merge_1"].inputs == ("qc_maxpool_0",)
    found = {name: layer.activation for name, layer in layers.items() if layer.activation != "none"}
    assert set(found.values()) == {"relu"}
    assert [name for name in layers if name.endswith("_2") and name in found] == [
        "qc_expand_down_merge_2", "qc_res_down_merge_2"]  # fmt: skip
    assert layers["qc_bn_down_3"].inputs == ("qc_res_down_merge_3",)
    assert layers["qc_final_conv_0"].weights["kernel"] == (5, 5, 5, 192, 9)
    assert (layers["qc_final_pred"].kind, layers["qc_final_pred"].channels) == ("mean", 9)


def test_every_layer_reads_from_earlier_ones():
    known = set()
    for layer in network.layer_table(**V1):
        assert set(layer.inputs) <= known
        known.add(layer.name)


def test_a_table_ends_where_its_network_ends():
    assert network.end_of(network.layer_table(**SMALL)) == "softmax"
    linear = network.layer_table(**SMALL, end="linear")
    assert network.end_of(linear) == "linear"
    assert (linear[-1].name, linear[-1].kind, linear[-1].activation) == ("unet_likelihood", "conv", "none")


@pytest.mark.parametrize("activation", network.ACTIVATIONS)
def test_every_convolution_but_the_last_has_the_activation(activation):
    found = [layer.activation for layer in network.layer_table(**SMALL, activation=activation) if layer.kind == "conv"]
    assert found == [activation] * 6 + ["none"]


def test_several_inputs_are_put_together():
    table = network.layer_table(**SMALL, inputs={"image": 1, "groups": 5})
    assert [(layer.name, layer.kind, layer.channels) for layer in table[:3]] == [
        ("image", "input", 1),
        ("groups", "onehot", 5),
        ("unet_inputs", "concat", 6),
    ]
    assert table[3].weights["kernel"] == (3, 3, 3, 6, 3)


@pytest.mark.parametrize("wrong", [{"activation": "gelu"}, {"end": "sigmoid"}, {"form": "resnet"}])
def test_other_activations_and_ends_are_refused(wrong):
    ((what, value),) = wrong.items()
    with pytest.raises(SynthSegError, match=f"^{what} {value}: no such {what}: use one of") as caught:
        network.layer_table(**SMALL, **wrong)
    assert caught.value.code == "usage"


def test_smoothing_kernel():
    kernel = network.gaussian_kernel(0.5)
    line = np.array([0.10650698, 0.78698604, 0.10650698])
    assert kernel.shape == (3, 3, 3)
    assert kernel.dtype == np.float32
    np.testing.assert_allclose(kernel, line[:, None, None] * line[:, None] * line, rtol=1e-6)
    assert kernel.sum() == pytest.approx(1)


# Weights -------------------------------------------------------------------------------------------------------------


def write_weights(path, table, nested=True, skip=None, reshape=None, spoil=None):
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for layer in table:
            for name, shape in (layer.weights or {}).items():
                if (layer.name, name) == skip:
                    continue
                shape = (*shape, 2) if (layer.name, name) == reshape else shape
                place = f"{layer.name}/{layer.name}/{name}:0" if nested else f"{layer.name}/{name}:0"
                file[place] = rng.random(shape, dtype=np.float32)
                if (layer.name, name) == spoil:
                    file[place][0] = np.nan
    return path


@pytest.mark.parametrize("nested", [True, False])
def test_weights_are_found_by_name(tmp_path, nested):
    table = network.layer_table(**SMALL)
    path = write_weights(tmp_path / "w.h5", table, nested)
    weights = network.read_weights(path, table)
    assert set(weights) == {layer.name for layer in table if layer.weights}
    assert weights["unet_conv_downarm_0_0"]["kernel"].shape == (3, 3, 3, 1, 3)
    with h5py.File(path) as file:
        group = file["unet_bn_up_0"]
        stored = group["unet_bn_up_0"] if nested else group
        np.testing.assert_array_equal(weights["unet_bn_up_0"]["gamma"], stored["gamma:0"][()])


def test_weights_of_a_whole_saved_model_are_found(tmp_path):
    table = network.layer_table(**SMALL)
    inner = write_weights(tmp_path / "inner.h5", table)
    with h5py.File(inner) as source, h5py.File(tmp_path / "w.h5", "w") as target:
        for name in source:
            source.copy(name, target.require_group("model_weights"))
    assert network.read_weights(tmp_path / "w.h5", table)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"skip": ("unet_likelihood", "bias")}, "no bias of unet_likelihood"),
        (
            {"reshape": ("unet_likelihood", "bias")},
            r"unet_likelihood bias has shape \(4, 2\), the card asks for \(4,\)",
        ),
        ({"spoil": ("unet_bn_up_0", "gamma")}, "unet_bn_up_0 gamma: some are no numbers: fetch or copy the weights"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, options, words):
    table = network.layer_table(**SMALL)
    path = write_weights(tmp_path / "w.h5", table, **options)
    with pytest.raises(SynthSegError, match=words) as caught:
        network.read_weights(path, table)
    assert caught.value.code == "usage"
    assert caught.value.message.startswith(f"{path}: ")


def test_a_file_that_is_not_hdf5_is_refused(tmp_path):
    (tmp_path / "w.h5").write_bytes(b"<html>404</html>")
    with pytest.raises(SynthSegError, match="not a readable HDF5 file"):
        network.read_weights(tmp_path / "w.h5", network.layer_table(**SMALL))


def test_the_shipped_weights_fit_their_card(root):
    table = cards.load(root / "models" / "compact2mm").network.table()
    weights = network.read_weights(root / "models" / "compact2mm" / "compact2mm.h5", table)
    count = sum(value.size for values in weights.values() for value in values.values())
    assert count == network.count_parameters(table)
