"""The U-Net as a table of layers, from which every engine builds, and its weights.

SynthSeg 1.0, 2.0 and small models differ only in levels, features and labels. The table ends with the smoothing of the
posteriors, so that an engine hands out finished posteriors and chooses itself how it smooths them.
"""

from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path

import numpy as np

from synthseg_native.errors import SynthSegError

NORMALISATION_EPSILON = 1e-3  # Keras' default, with which SynthSeg was trained


@dataclass(frozen=True)
class Layer:
    """One row of the table.

    name : upstream's name, by which weights are found
    kind : input · conv (zero padding, stride 1, bias, then activation) · norm (multiply-add with stored moments) ·
           pool (maximum over 2x2x2) · up (nearest, factor 2) · concat (inputs in this order, along channels) ·
           softmax · smooth (3-D Gaussian per channel, zero padding)
    channels : channels of the output · inputs : names of the layers read
    weights : shape per weight, Keras' names and layout (kernel: x, y, z, in, out)
    activation : "elu", or "" for none · sigma : of the smoothing, in voxels
    """

    name: str
    kind: str
    channels: int
    inputs: tuple = ()
    weights: dict = None
    activation: str = ""
    sigma: float = 0.0


def layer_table(
    *, levels, features, labels, convolutions_per_level=2, kernel=3, activation="elu", smoothing_sigma=0.5
) -> list[Layer]:
    """The layers in the order of execution; the last one gives the posteriors.

    Features double per level. A skip connection leaves its level before the normalisation.
    """
    if activation != "elu":
        raise SynthSegError("usage", f"activation {activation}: not a layer of SynthSeg: set elu in the model card")
    table = [Layer("unet_input", "input", 1)]

    def add(name, kind, channels, inputs=None, **more):
        table.append(Layer(name, kind, channels, inputs or (table[-1].name,), **more))

    def convolve(name, channels, size=kernel, function=activation):
        shapes = {"kernel": (size, size, size, table[-1].channels, channels), "bias": (channels,)}
        add(name, "conv", channels, weights=shapes, activation=function)

    def normalise(name):
        channels = table[-1].channels
        names = ("gamma", "beta", "moving_mean", "moving_variance")
        add(name, "norm", channels, weights=dict.fromkeys(names, (channels,)))

    skips = []
    for level in range(levels):
        channels = features * 2**level
        for i in range(convolutions_per_level):
            convolve(f"unet_conv_downarm_{level}_{i}", channels)
        skips.append(table[-1].name)
        normalise(f"unet_bn_down_{level}")
        if level < levels - 1:
            add(f"unet_maxpool_{level}", "pool", channels)
    for i in range(levels - 1):
        number = levels + i
        channels = features * 2 ** (levels - 2 - i)
        add(f"unet_up_{number}", "up", table[-1].channels)
        both = channels + table[-1].channels
        add(f"unet_merge_{number}", "concat", both, (skips[levels - 2 - i], table[-1].name))
        for j in range(convolutions_per_level):
            convolve(f"unet_conv_uparm_{number}_{j}", channels)
        normalise(f"unet_bn_up_{i}")
    convolve("unet_likelihood", labels, 1, "")
    add("unet_prediction", "softmax", labels)
    if smoothing_sigma > 0:
        add("smoothing", "smooth", labels, sigma=smoothing_sigma)
    return table


def table_of(model) -> list[Layer]:
    """The layer table of a `cards.Model`."""
    return layer_table(**model.card["network"], smoothing_sigma=model.smoothing_sigma)


def count_parameters(table) -> int:
    return sum(prod(shape) for layer in table for shape in (layer.weights or {}).values())


def gaussian_kernel(sigma) -> np.ndarray:
    """Full 3-D Gaussian, sum 1, float32; its window is that of upstream: 3 voxels for sigma 0.5."""
    radius = int(ceil(2.5 * sigma) / 2)
    x, y, z = np.meshgrid(*[np.arange(-radius, radius + 1)] * 3, indexing="ij", sparse=True)
    kernel = np.exp(-(x**2) / (2 * sigma**2)) * np.exp(-(y**2) / (2 * sigma**2)) * np.exp(-(z**2) / (2 * sigma**2))
    return (kernel / kernel.sum()).astype(np.float32)


def read_weights(path, table) -> dict:
    """Read the weights of a Keras HDF5 file by layer name.

    Returns {layer name: {weight name: float32 array}}.
    Raises SynthSegError("usage") when the file is not HDF5, lacks a layer, or has another shape than the table.
    """
    import h5py

    try:
        file = h5py.File(Path(path), "r")
    except OSError as error:
        raise SynthSegError("usage", f"{path}: not a readable HDF5 file: give the weights of this model") from error
    weights = {}
    with file:
        root = file.get("model_weights", file)  # a file of a whole model keeps them one step down
        for layer in table:
            if not layer.weights:
                continue
            stored = _datasets(root[layer.name]) if layer.name in root else {}
            weights[layer.name] = {}
            for name, shape in layer.weights.items():
                item = stored.get(name)
                if item is None:
                    raise SynthSegError("usage", f"{path}: no {name} of {layer.name}: give the weights of this model")
                if item.shape != shape:
                    raise SynthSegError(
                        "usage",
                        f"{path}: {layer.name} {name} has shape {item.shape}, the card asks for {shape}: "
                        "give the weights of this model",
                    )
                weights[layer.name][name] = item[()].astype(np.float32)
    return weights


def _datasets(group) -> dict:
    """The arrays below an HDF5 group by Keras' short name: "kernel" for any ".../kernel:0"."""
    found = {}

    def note(path, item):
        if hasattr(item, "shape"):
            found[path.split("/")[-1].split(":")[0]] = item

    group.visititems(note)
    return found
