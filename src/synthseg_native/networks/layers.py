"""Networks as tables of layers, from which every engine builds, and their weights.

A table ends where its network ends: with the softmax, or without one. What is done with a network's numbers, smoothing,
the average with the mirror image, the likeliest label, are stages of the pipeline.
"""

from dataclasses import dataclass, field
from math import ceil, prod
from pathlib import Path

import numpy as np

from synthseg_native.errors import SynthSegError

NORMALISATION_EPSILON = 1e-3  # Keras' default, with which SynthSeg was trained
KINDS = ("input", "conv", "norm", "pool", "up", "concat", "softmax")
ACTIVATIONS = ("elu", "relu", "none")
ENDS = ("softmax", "linear")
Weights = dict[str, dict[str, np.ndarray]]  # of a table: {layer name: {weight name: float32 array}}


@dataclass(frozen=True)
class Layer:
    """One row of a table.

    name : upstream's name, by which weights are found; of an input the name of what it reads
    kind : input · conv (zero padding, stride 1, bias, then activation) · norm (multiply-add with stored moments) ·
           pool (maximum over 2x2x2) · up (nearest, factor 2) · concat (inputs in this order, along channels) · softmax
    channels : channels of the output · inputs : names of the layers read
    weights : shape per weight, Keras' names and layout (kernel: x, y, z, in, out); empty for a layer without any
    activation : of ACTIVATIONS; elu has alpha 1
    """

    name: str
    kind: str
    channels: int
    inputs: tuple[str, ...] = ()
    weights: dict[str, tuple] = field(default_factory=dict)
    activation: str = "none"


def layer_table(
    *,
    levels: int,
    features: int,
    labels: int,
    convolutions_per_level: int = 2,
    kernel: int = 3,
    activation: str = "elu",
    end: str = "softmax",
    inputs: tuple[str, ...] = ("image",),
) -> list[Layer]:
    """The U-Net of SynthSeg, its layers in the order of execution; the last one gives the result.

    features : channels of the finest level, they double per level · labels : channels of the result
    activation : of the convolutions but the last one, of ACTIVATIONS · end : of ENDS, what follows the last convolution
    inputs : names of what the network reads, one channel each, put together in this order

    A skip connection leaves its level before the normalisation. Raises SynthSegError("usage") for an activation or an
    end that there is not.

    >>> [layer.kind for layer in layer_table(levels=1, features=8, labels=3, convolutions_per_level=1)]
    ['input', 'conv', 'norm', 'conv', 'softmax']
    >>> table = layer_table(levels=2, features=8, labels=3, end="linear")
    >>> table[-1].name, table[-1].activation, table[-1].weights["kernel"]
    ('unet_likelihood', 'none', (1, 1, 1, 8, 3))
    """
    for what, value, known in (("activation", activation, ACTIVATIONS), ("end", end, ENDS)):
        if value not in known:
            raise SynthSegError("usage", f"{what} {value}: no such {what}: use one of {', '.join(known)}")
    table = [Layer(name, "input", 1) for name in inputs]

    def add(name, kind, channels, inputs=None, **more):
        table.append(Layer(name, kind, channels, inputs or (table[-1].name,), **more))

    def convolve(name, channels, size=kernel, function=activation):
        shapes = {"kernel": (size, size, size, table[-1].channels, channels), "bias": (channels,)}
        add(name, "conv", channels, weights=shapes, activation=function)

    def normalise(name):
        channels = table[-1].channels
        names = ("gamma", "beta", "moving_mean", "moving_variance")
        add(name, "norm", channels, weights=dict.fromkeys(names, (channels,)))

    if len(inputs) > 1:
        add("unet_inputs", "concat", len(inputs), tuple(inputs))
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
    convolve("unet_likelihood", labels, 1, "none")
    if end == "softmax":
        add("unet_prediction", "softmax", labels)
    return table


def end_of(table: list[Layer]) -> str:
    """How a table ends: "softmax", or "linear" where its last layer is another one."""
    return "softmax" if table[-1].kind == "softmax" else "linear"


def count_parameters(table: list[Layer]) -> int:
    """How many numbers the weights of a table are.

    >>> count_parameters(layer_table(levels=5, features=24, labels=32))  # SynthSeg 1.0
    13242824
    """
    return sum(prod(shape) for layer in table for shape in layer.weights.values())


def gaussian_kernel(sigma: float) -> np.ndarray:
    """Full 3-D Gaussian, sum 1, float32, sigma in voxels; its window is that of upstream.

    >>> gaussian_kernel(0.5).shape, gaussian_kernel(1.6).shape
    ((3, 3, 3), (5, 5, 5))
    """
    radius = int(ceil(2.5 * sigma) / 2)
    x, y, z = np.meshgrid(*[np.arange(-radius, radius + 1)] * 3, indexing="ij", sparse=True)
    kernel = np.exp(-(x**2) / (2 * sigma**2)) * np.exp(-(y**2) / (2 * sigma**2)) * np.exp(-(z**2) / (2 * sigma**2))
    return (kernel / kernel.sum()).astype(np.float32)


def read_weights(path: str | Path, table: list[Layer]) -> Weights:
    """Read the weights of a Keras HDF5 file by layer name.

    Returns {layer name: {weight name: float32 array}}.
    Raises SynthSegError("usage") when the file is not HDF5, lacks a layer, or has another shape than the table or
    numbers that are none.
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
                values = weights[layer.name][name] = item[()].astype(np.float32)
                if not np.isfinite(values).all():
                    raise SynthSegError(
                        "usage", f"{path}: {layer.name} {name}: some are no numbers: fetch or copy the weights again"
                    )
    return weights


def _datasets(group) -> dict:
    """The arrays below an HDF5 group by Keras' short name: "kernel" for any ".../kernel:0"."""
    found = {}

    def note(path, item):
        if hasattr(item, "shape"):
            found[path.split("/")[-1].split(":")[0]] = item

    group.visititems(note)
    return found
