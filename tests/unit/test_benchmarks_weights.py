"""The weights and images that the benchmark makes: the small network inside the full-size one, in upstream's layout."""

from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from synthseg_native import files
from synthseg_native.cohort.benchmark import images, weights
from synthseg_native.networks import cards, layers

ROOT = Path(__file__).parents[2]
SMALL = {"levels": 2, "features": 3, "labels": 4, "convolutions_per_level": 2, "kernel": 3, "activation": "elu"}
FULL = SMALL | {"levels": 3, "features": 5}


def random_weights(table, seed):
    rng = np.random.default_rng(seed)
    made = {}
    for layer in table:
        if layer.weights:
            made[layer.name] = {n: 0.4 * rng.standard_normal(s, np.float32) for n, s in layer.weights.items()}
            if layer.kind == "norm":
                made[layer.name]["moving_variance"] = 0.5 + rng.random(layer.channels, np.float32)
    return made


def logits(table, weights, image):
    """The likelihood layer's output, by the plain formulas."""
    value = {table[0].name: image[..., None].astype(np.float64)}
    for layer in table[1:]:
        x = value[layer.inputs[0]]
        w = (weights.get(layer.name) or {}) if layer.weights else {}
        if layer.kind == "conv":
            y = np.zeros((*x.shape[:3], layer.channels)) + w["bias"]
            for i in range(x.shape[3]):
                for o in range(layer.channels):
                    y[..., o] += ndimage.correlate(x[..., i], w["kernel"][..., i, o], mode="constant")
            y = np.where(y > 0, y, np.expm1(np.minimum(y, 0))) if layer.activation == "elu" else y
        elif layer.kind == "norm":
            deviation = np.sqrt(w["moving_variance"] + layers.NORMALISATION_EPSILON)
            y = w["gamma"] * (x - w["moving_mean"]) / deviation + w["beta"]
        elif layer.kind == "pool":
            a, b, c, n = x.shape
            y = x.reshape(a // 2, 2, b // 2, 2, c // 2, 2, n).max((1, 3, 5))
        elif layer.kind == "up":
            y = x.repeat(2, 0).repeat(2, 1).repeat(2, 2)
        elif layer.kind == "concat":
            y = np.concatenate([value[name] for name in layer.inputs], axis=-1)
        else:
            return x
        value[layer.name] = y


@pytest.fixture
def both(monkeypatch):
    monkeypatch.setattr(weights, "LEAK", 0)
    small_table, full_table = layers.layer_table(**SMALL), layers.layer_table(**FULL)
    small = random_weights(small_table, 1)
    full = weights.full_size(SMALL, small, FULL)
    return (small_table, small), (full_table, full)


@pytest.mark.slow
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_full_size_gives_the_small_networks_logits(both, value):
    small, full = both
    expected = logits(*small, np.full((28, 28, 28), value))[14, 14, 14]
    found = logits(*full, np.full((56, 56, 56), value))[27:29, 27:29, 27:29]
    assert np.ptp(expected) > 0.1
    assert np.allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_full_size_follows_the_small_network_in_space(both):
    small, full = both
    x, y, z = np.meshgrid(*[np.arange(56) / 56] * 3, indexing="ij")
    image = 0.5 + 0.2 * np.sin(3 * x + 1) + 0.15 * np.cos(4 * y) * z
    halved = image.reshape(28, 2, 28, 2, 28, 2).mean((1, 3, 5))
    expected, found = logits(*small, halved), logits(*full, image)
    found = found.reshape(28, 2, 28, 2, 28, 2, 4).mean((1, 3, 5))
    inside = (slice(11, -11),) * 3
    assert np.abs(found - expected)[inside].max() < 0.005 * np.ptp(expected[inside])


def test_random_channels_reach_the_labels():
    table = layers.layer_table(**FULL)
    made = weights.full_size(SMALL, random_weights(layers.layer_table(**SMALL), 1), FULL)
    inner = made["unet_conv_downarm_1_1"]["kernel"]
    assert 0 < np.std(inner[..., 3:, :3]) < 0.1 * np.std(inner[..., 3:, 3:]), "a little of them in every layer"
    image = np.random.default_rng(0).random((16, 16, 16))
    before = logits(table, made, image)
    made["unet_conv_downarm_0_0"]["kernel"][..., -1] *= 2
    assert np.abs(logits(table, made, image) - before).max() > 1e-4


@pytest.mark.parametrize("wrong", [{"levels": 2}, {"features": 3}])
def test_networks_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ValueError, match="one level and some features more"):
        weights.full_size(SMALL, {}, FULL | wrong)


@pytest.mark.slow
def test_file_has_upstreams_layout(tmp_path):
    folder = weights.make_model(tmp_path / "model", ROOT / "models")
    made = cards.load(folder)
    table = made.network.table()
    assert (made.name, made.research_grade, made.resolution) == ("synthseg1size", False, 1.0)
    assert made.network.layers == cards.load(ROOT / "models" / "synthseg1").network.layers
    read = layers.read_weights(folder / "weights.h5", table)
    small = cards.load(ROOT / "models" / "compact2mm")
    small_weights = layers.read_weights(small.folder / "compact2mm.h5", small.network.table())
    deep = small_weights["unet_conv_downarm_3_1"]["kernel"]
    assert np.array_equal(read["unet_conv_downarm_4_1"]["kernel"][..., : deep.shape[3], : deep.shape[4]], deep)
    with h5py.File(folder / "weights.h5") as file:
        names = list(file.attrs["layer_names"])
        assert names == ["unet_input", *(layer.name for layer in table[1:])]
        for layer in table[1:]:
            stored = list(file[layer.name].attrs["weight_names"])
            assert stored == [f"{layer.name}/{name}:0" for name in layer.weights]
            assert all(file[layer.name][name].dtype == np.float32 for name in stored)
    again = weights.make_model(tmp_path / "again", ROOT / "models")
    assert files.sha256_of(folder / "weights.h5") == files.sha256_of(again / "weights.h5")


def test_weights_of_the_user_are_taken(tmp_path):
    (tmp_path / "mine.h5").write_bytes(b"mine")
    folder = weights.make_model(tmp_path / "model", ROOT / "models", tmp_path / "mine.h5")
    assert (folder / "weights.h5").read_bytes() == b"mine"
    assert sorted(path.name for path in folder.iterdir()) == ["card.yaml", "labels.tsv", "weights.h5"]


@pytest.mark.slow
def test_images_show_the_same_head_on_every_grid(tmp_path):
    made = dict(images.make([(96, 96, 96), (64, 80, 48)]))
    large, small = (np.asarray(made[size].dataobj, float) for size in ((96, 96, 96), (64, 80, 48)))
    for size, image in made.items():
        assert image.shape == size and image.get_data_dtype() == np.int16
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        centre = image.affine[:3, :3] @ ((np.array(size) - 1) / 2) + image.affine[:3, 3]
        assert np.allclose(centre, (0, -18, 22))  # of the template's grid
        images.save(image, tmp_path / "image.nii.gz")
        assert np.array_equal(nib.load(tmp_path / "image.nii.gz").dataobj, image.dataobj)
    inner = large[16:80, 8:88, 24:72]
    assert np.std(inner) > 100
    assert np.corrcoef(inner.ravel(), small.ravel())[0, 1] > 0.99  # noise apart
