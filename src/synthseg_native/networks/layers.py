"""Networks as tables of layers, from which every engine builds, and their weights.

A table ends where its network ends: with the softmax, with a mean over space, or without either. What is done with a
network's numbers, smoothing, the average with the mirror image, the likeliest label, are stages of the pipeline.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil, prod
from pathlib import Path

import numpy as np

from synthseg_native.errors import SynthSegError

NORMALISATION_EPSILON = 1e-3  # Keras' default, with which SynthSeg was trained
KINDS = ("input", "onehot", "conv", "norm", "pool", "up", "concat", "add", "softmax", "mean")
GIVEN = ("input", "onehot")  # kinds of what a network reads
ACTIVATIONS = ("elu", "relu", "none")
FORMS = ("unet", "encoder")
ENDS = ("softmax", "linear", "mean")
Weights = dict[str, dict[str, np.ndarray]]  # of a table: {layer name: {weight name: float32 array}}


@dataclass(frozen=True)
class Layer:
    """One row of a table.

    name : upstream's name, by which weights are found; of what is read the name of that
    kind : input (an image) · onehot (a map of whole numbers, one channel for each) · conv (zero padding, stride 1,
           bias, then activation) · norm (multiply-add with stored moments) · pool (maximum over 2x2x2) · up (nearest,
           factor 2) · concat (inputs in this order, along channels) · add (their sum, then activation) · softmax ·
           mean (over space)
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
    form: str = "unet",
    prefix: str = "unet",
    levels_without_skip: int = 0,
    end: str | None = None,
    inputs: Mapping[str, int] | None = None,
) -> list[Layer]:
    """The layers of one of SynthSeg's networks in the order of execution; the last one gives the result.

    features : channels of the finest level, they double per level · labels : channels of the result
    activation : of the convolutions but the last one, of ACTIVATIONS
    form : of FORMS: the U-Net, or the encoder that gives numbers for the whole volume · prefix : of all names
    levels_without_skip : of a U-Net, the finest ones
    end : of ENDS, what follows the last convolution; None: what its form ends with, softmax or mean
    inputs : what the network reads, put together in this order, and how many channels that has: 1 of an image, more of
    a map of whole numbers; None: the image alone

    Raises SynthSegError("usage") for an activation, a form or an end that there is not.

    >>> [layer.kind for layer in layer_table(levels=1, features=8, labels=3, convolutions_per_level=1)]
    ['input', 'conv', 'norm', 'conv', 'softmax']
    >>> table = layer_table(levels=2, features=8, labels=3, end="linear")
    >>> table[-1].name, table[-1].activation, table[-1].weights["kernel"]
    ('unet_likelihood', 'none', (1, 1, 1, 8, 3))
    """
    end = end or {"encoder": "mean"}.get(form, "softmax")
    for what, value, known in (("activation", activation, ACTIVATIONS), ("form", form, FORMS), ("end", end, ENDS)):
        if value not in known:
            raise SynthSegError("usage", f"{what} {value}: no such {what}: use one of {', '.join(known)}")
    write = _Writer(prefix, {"image": 1} if inputs is None else inputs)
    if form == "unet":
        _unet(write, levels, features, labels, convolutions_per_level, kernel, activation, levels_without_skip)
    else:
        _encoder(write, levels, features, labels, convolutions_per_level, kernel, activation)
    if end == "softmax":
        write.add("prediction", "softmax", labels)
    elif end == "mean":
        write.add("final_pred", "mean", labels)
    return write.table


class _Writer:
    """A table that is written, layer after layer; each reads the one before, where nothing else is said."""

    def __init__(self, prefix, inputs):
        self.prefix = prefix
        self.table = [Layer(name, "onehot" if n > 1 else "input", n) for name, n in inputs.items()]
        if len(inputs) > 1:
            self.add("inputs", "concat", sum(inputs.values()), tuple(inputs))

    @property
    def last(self):
        return self.table[-1]

    def add(self, name, kind, channels, inputs=None, **more):
        self.table.append(Layer(f"{self.prefix}_{name}", kind, channels, inputs or (self.last.name,), **more))
        return self.last

    def convolve(self, name, channels, size, activation, source=None):
        source = source or self.last
        shapes = {"kernel": (size, size, size, source.channels, channels), "bias": (channels,)}
        return self.add(name, "conv", channels, (source.name,), weights=shapes, activation=activation)

    def normalise(self, name):
        names = ("gamma", "beta", "moving_mean", "moving_variance")
        return self.add(name, "norm", self.last.channels, weights=dict.fromkeys(names, (self.last.channels,)))


def _unet(write, levels, features, labels, convolutions_per_level, kernel, activation, levels_without_skip):
    """A skip connection leaves its level before the normalisation."""
    skips = []
    for level in range(levels):
        for i in range(convolutions_per_level):
            write.convolve(f"conv_downarm_{level}_{i}", features * 2**level, kernel, activation)
        skips.append(write.last)
        write.normalise(f"bn_down_{level}")
        if level < levels - 1:
            write.add(f"maxpool_{level}", "pool", write.last.channels)
    for i in range(levels - 1):
        number, level = levels + i, levels - 2 - i
        up = write.add(f"up_{number}", "up", write.last.channels)
        if level >= levels_without_skip:
            skip = skips[level]
            write.add(f"merge_{number}", "concat", skip.channels + up.channels, (skip.name, up.name))
        for j in range(convolutions_per_level):
            write.convolve(f"conv_uparm_{number}_{j}", features * 2**level, kernel, activation)
        write.normalise(f"bn_up_{i}")
    write.convolve("likelihood", labels, 1, "none")


def _encoder(write, levels, features, labels, convolutions_per_level, kernel, activation):
    """Each level adds what it reads to what its convolutions make of it, the last one of these without an activation;
    where the number of channels changes, a convolution of its own makes them as many."""
    for level in range(levels):
        source, channels = write.last, features * 2**level
        for i in range(convolutions_per_level):
            last = i == convolutions_per_level - 1
            write.convolve(f"conv_downarm_{level}_{i}", channels, kernel, "none" if last else activation)
        convolved = write.last
        if source.channels != channels:
            source = write.convolve(f"expand_down_merge_{level}", channels, kernel, activation, source)
        both = (source.name, convolved.name)
        write.add(f"res_down_merge_{level}", "add", channels, both, activation=activation)
        write.normalise(f"bn_down_{level}")
        write.add(f"maxpool_{level}", "pool", channels)
    for i in range(2):
        write.convolve(f"final_conv_{i}", labels, kernel, activation)


def end_of(table: list[Layer]) -> str:
    """How a table ends: "softmax", "mean", or "linear" where its last layer is another one."""
    return table[-1].kind if table[-1].kind in ENDS else "linear"


def given(table: list[Layer]) -> list[Layer]:
    """What a network reads, in the order in which it is put together.

    >>> [layer.name for layer in given(layer_table(levels=1, features=8, labels=3))]
    ['image']
    """
    return [layer for layer in table if layer.kind in GIVEN]


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
