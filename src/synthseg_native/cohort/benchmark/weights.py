"""Weights of SynthSeg 1.0's size that the project writes itself, in upstream's HDF5 layout.

The benchmark needs a network of the full size (5 levels, 24 features, 1 mm) whose label maps mean something: of random
weights every voxel would be a close call, and no comparison of labels could tell a fault from rounding. So the small
network of models/compact2mm, which works at 2 mm, is put into the full-size one, one level down:

- Level 0 blurs the image and hands on the blurred value and one minus it; after the maximum pooling these are the
  largest and (one minus) the smallest value of every 2 x 2 x 2 block, and the next convolution takes their mean.
- Levels 1 to 4 hold the small network's levels in their first channels.
- The last level interpolates the small network's features linearly to 1 mm (nearest upsampling, then 1/4 1/2 1/4 along
  each axis); its last normalisation and its likelihood layer follow there.
- All other channels are random, with a variance that keeps activations of order 1, and reach the small network's with
  a hundredth of their weight, so that an error in any of them shows.

The labels are roughly those of compact2mm: no use for research.
"""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
import yaml

from synthseg_native.networks import cards as models
from synthseg_native.networks import layers as network
from synthseg_native.verification.probes import plausible_weights

Weights = dict[str, dict[str, np.ndarray]]  # {layer: {weight: float32 array}}
SEED = 20261122
FAMILY = "synthseg2size"  # of `make_family`
ELU_MEAN_SQUARE = 0.645  # of a standard normal variable
LEAK = 0.01
BLUR = np.array([0.25, 0.5, 0.25], np.float32)


def full_size(small: dict, small_weights: Weights, full: dict, seed: int = SEED) -> Weights:
    """{layer: {weight: float32 array}} of the network `full`, which computes about what `small` does, one level down.

    small, full : `cards.Network.shape` of two model cards. full must have one level and some features more, and the
    same labels. small_weights : from `layers.read_weights`.
    """
    if full["levels"] != small["levels"] + 1 or full["features"] <= small["features"] or small["features"] < 2:
        raise ValueError("the full-size network must have one level and some features more than the small one")
    rng = np.random.default_rng(seed)
    weights = {}
    for layer in network.layer_table(**full):
        if layer.kind == "conv":
            kernel = rng.standard_normal(layer.weights["kernel"], np.float32)
            kernel /= np.sqrt(ELU_MEAN_SQUARE * np.prod(kernel.shape[:-1]), dtype=np.float32)
            weights[layer.name] = {"kernel": kernel, "bias": np.zeros(layer.channels, np.float32)}
        elif layer.kind == "norm":
            weights[layer.name] = _no_normalisation(layer.channels)
    last = f"unet_bn_up_{full['levels'] - 3}"  # the small network's last normalisation waits for the last level
    for name, small_name in _places(small, full):
        if "kernel" in weights[name]:
            inputs = _inputs(name, small, full, small_weights[small_name]["kernel"].shape[3])
            _put(weights[name], small_weights[small_name], inputs)
        elif name != last:
            for key, values in small_weights[small_name].items():
                weights[name][key][: len(values)] = values
    _first_level(weights, small_weights)
    _last_level(weights, small_weights, small, full)
    return weights


def _no_normalisation(channels: int) -> dict[str, np.ndarray]:
    """A normalisation layer that changes nothing."""
    one = np.ones(channels, np.float32)
    variance = np.full(channels, 1 - network.NORMALISATION_EPSILON, np.float32)
    return {"gamma": one, "beta": 0 * one, "moving_mean": 0 * one, "moving_variance": variance}


def _places(small: dict, full: dict) -> Iterator[tuple[str, str]]:
    """(layer of the full-size network, layer of the small one that it holds)."""
    for level in range(small["levels"]):
        for i in range(small["convolutions_per_level"]):
            yield f"unet_conv_downarm_{level + 1}_{i}", f"unet_conv_downarm_{level}_{i}"
        yield f"unet_bn_down_{level + 1}", f"unet_bn_down_{level}"
    for up in range(small["levels"] - 1):
        for i in range(small["convolutions_per_level"]):
            yield f"unet_conv_uparm_{full['levels'] + up}_{i}", f"unet_conv_uparm_{small['levels'] + up}_{i}"
        yield f"unet_bn_up_{up}", f"unet_bn_up_{up}"


def _inputs(name: str, small: dict, full: dict, n: int) -> np.ndarray:
    """Which inputs of a layer are the small network's n inputs: the first, after a merge those of both parts."""
    _, _, arm, number, i = name.split("_")
    if arm != "uparm" or i != "0":
        return np.arange(n)
    up = int(number) - full["levels"]
    skip = small["features"] * 2 ** (small["levels"] - 2 - up)
    full_skip = full["features"] * 2 ** (full["levels"] - 2 - up)
    return np.r_[np.arange(skip), full_skip + np.arange(n - skip)]


def _put(here: dict[str, np.ndarray], small: dict[str, np.ndarray], inputs: np.ndarray) -> None:
    """Write a convolution of the small network into a larger one; its other inputs get little weight."""
    n = len(small["bias"])
    here["kernel"][..., :n] *= LEAK
    here["kernel"][..., inputs, :n] = small["kernel"]
    here["bias"][:n] = small["bias"]


def _first_level(weights: Weights, small_weights: Weights) -> None:
    """Level 0, and the first convolution of level 1, which takes the mean of its two values."""
    blur = BLUR[:, None, None] * BLUR[:, None] * BLUR
    first, second, third = (weights[f"unet_conv_{name}"] for name in ("downarm_0_0", "downarm_0_1", "downarm_1_0"))
    first["kernel"][..., 0] = 0
    first["kernel"][1, 1, 1, 0, 0] = 1
    second["kernel"][..., :2] = 0
    second["kernel"][..., 0, 0], second["kernel"][..., 0, 1] = blur, -blur
    second["bias"][1] = 1
    kernel = small_weights["unet_conv_downarm_0_0"]["kernel"][..., 0, :]
    n = kernel.shape[-1]
    third["kernel"][..., 0, :n], third["kernel"][..., 1, :n] = kernel / 2, -kernel / 2
    third["bias"][:n] += kernel.sum((0, 1, 2)) / 2


def _last_level(weights: Weights, small_weights: Weights, small: dict, full: dict) -> None:
    """ELU gives -1 and more: plus one, the features pass through two more ELUs unchanged."""
    n, levels, features = small["features"], full["levels"], full["features"]
    weights[f"unet_bn_up_{levels - 3}"]["beta"][:n] = 1
    number = 2 * levels - 2
    through = {
        "kernel": np.zeros((3, 3, 3, n, n), np.float32),
        "bias": np.zeros(n, np.float32),
    }
    channels = np.arange(n)
    for i in range(full["convolutions_per_level"]):
        through["kernel"][:] = 0
        if i == 0:
            through["kernel"][..., channels, channels] = (BLUR[:, None, None] * BLUR[:, None] * BLUR)[..., None]
        else:
            through["kernel"][1, 1, 1, channels, channels] = 1
        _put(weights[f"unet_conv_uparm_{number}_{i}"], through, (features if i == 0 else 0) + channels)
    end = small_weights[f"unet_bn_up_{small['levels'] - 2}"]
    for key, values in end.items():
        weights[f"unet_bn_up_{levels - 2}"][key][:n] = values + (key == "moving_mean")
    likelihood = weights["unet_likelihood"]
    likelihood["kernel"] *= LEAK
    likelihood["kernel"][..., :n, :] = small_weights["unet_likelihood"]["kernel"]
    likelihood["bias"][:] = small_weights["unet_likelihood"]["bias"]


def write_h5(path: Path | str, table: Sequence[network.Layer], weights: Weights) -> None:
    """Write weights as Keras does (``layer_names``, and per layer ``weight_names`` and the arrays)."""
    with h5py.File(path, "w") as file:
        names = [layer.name for layer in table]
        if names[0] == "image" and len(network.given(table)) == 1:
            names[0] = "unet_input"  # upstream's
        file.attrs["layer_names"] = names
        file.attrs["backend"], file.attrs["keras_version"] = "tensorflow", "2.15.0"
        for layer, place in zip(table, names, strict=True):
            group = file.create_group(place)
            names = [f"{layer.name}/{name}:0" for name in layer.weights]
            group.attrs["weight_names"] = names or np.zeros(0)
            for name in names:
                array = weights[layer.name][name.split("/")[1].removesuffix(":0")]
                group.create_dataset(name, data=array, dtype="float32", track_times=False)


def make_model(folder: Path | str, models_folder: Path | str, weights: Path | str | None = None) -> Path:
    """A model folder for SynthSeg 1.0's network: its card and labels, and `weights` or ones made here.

    folder : made where it is missing. models_folder : the project's models/. Returns the folder; the weights are in
    ``weights.h5``. Made weights are the same bytes on every call.
    """
    folder, models_folder = Path(folder), Path(models_folder)
    folder.mkdir(parents=True, exist_ok=True)
    full = models.load(models_folder / "synthseg1")
    shutil.copyfile(models_folder / "synthseg1" / "labels.tsv", folder / "labels.tsv")
    card = {key: value for key, value in full.card.items() if key not in ("cite", "title")}
    networks = [card["networks"][0] | {"weights": {"file": "weights.h5"}}]
    card |= {"name": "synthseg1size", "research_grade": False, "networks": networks}
    (folder / "card.yaml").write_text(yaml.safe_dump(card), encoding="utf-8")
    place = folder / "weights.h5"
    beside = folder / "weights.h5.part"
    if weights is not None:
        shutil.copyfile(weights, beside)
    else:
        small = models.load(models_folder / "compact2mm")
        small_weights = network.read_weights(models_folder / "compact2mm" / small.weights.file, small.network.table())
        made = full_size(small.network.shape(), small_weights, full.network.shape())
        write_h5(beside, full.network.table(), made)
    beside.replace(place)
    return folder


def make_family(folder: Path | str, models_folder: Path | str) -> Path:
    """A model folder with all networks of SynthSeg 2.0, of their size: for time and memory, labels mean nothing.

    folder : made where it is missing. models_folder : the project's models/. The segmentation holds that of golden2, as
    `full_size` has it; the others are random. Returns the folder. Weights are the same bytes on every call.
    """
    folder, models_folder = Path(folder), Path(models_folder)
    folder.mkdir(parents=True, exist_ok=True)
    model, small = models.load(models_folder / "synthseg2"), models.load(models_folder / "golden2").network
    for name in ("labels.tsv", "parcels.tsv", "scores.tsv"):
        shutil.copyfile(models_folder / "synthseg2" / name, folder / name)
    entries, files = [], {}
    for entry, (name, full) in zip(model.card["networks"], model.networks.items(), strict=True):
        if name == "segmentation":
            made = full_size(
                small.shape(), network.read_weights(small.folder / small.weights.file, small.table()), full.shape()
            )
        else:
            made = plausible_weights(full.table(), np.random.default_rng(SEED))
        table, weights = files.setdefault(full.weights.file, ([], {}))
        table += [layer for layer in full.table() if layer.weights]
        weights |= made
        entries.append(entry | {"weights": {"file": full.weights.file}})
    for file, (table, weights) in files.items():
        write_h5(folder / file, table, weights)
    card = {key: value for key, value in model.card.items() if key not in ("cite", "title")}
    card |= {"name": FAMILY, "research_grade": False, "networks": entries}
    (folder / "card.yaml").write_text(yaml.safe_dump(card, sort_keys=False), encoding="utf-8")
    return folder
