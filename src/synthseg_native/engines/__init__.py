"""Engines: one module per runtime, all built from the same table of layers.

The contract of a module ``engines.<name>``:

``CAN``
    `Capabilities`: what it compiles. A table that asks for more is refused by `build`, in one line, never computed as
    something else.
``build(table, weights, *, device, threads, precision)``
    Returns an engine. `table` is from `layers.layer_table`, `weights` from `layers.read_weights`. It imports its
    runtime here and not before, so that bad input is reported without it. Raises SynthSegError("usage") for a table
    that it cannot compile, a device that it does not have, or a precision that this machine has not.
``engine.run(inputs, smoothing=0.0)``
    Runs the network. inputs : {name of an input layer: float32 volume (X, Y, Z)}, all of one shape; a volume may be a
    mirrored view. Yields ``(start, slab)``: what the last layer of the table gives, as float32 (planes, Y, Z, channels)
    for the planes ``start: start + planes`` of the first axis. The slabs cover the volume once, the first planes first;
    a slab is only valid until the next one is asked for. A consumer thus accumulates an average in a single array.
    smoothing : sigma in voxels of a Gaussian (`layers.gaussian_kernel`, zeros outside the volume) over each channel of
    the result, 0 for none; only of an engine whose ``CAN.smooths``. It is a stage of the pipeline, which decides what
    is smoothed, and does it itself (`pipeline.smoothing`) for an engine that does not offer it. Engines may: they have
    the planes at hand, and TensorFlow's own rounding is the reference's.
``engine.release()``
    Gives back the memory that one call of `run` leaves for the next one: there is none for now.
``engine.can``
    The module's `CAN`.
``engine.name, engine.version, engine.device, engine.device_reason``
    What ran and where, for the record.

An engine does one thing at a time; several engines may work at once, each in a thread of its own. TensorFlow and
PyTorch keep the number of threads and their precision once per process: the engines of a process share them.
"""

import importlib
from dataclasses import dataclass

from synthseg_native.errors import SynthSegError
from synthseg_native.networks import layers

NAMES = ("tensorflow", "openvino", "torch")
PRECISIONS = ("float32", "bf16")
BF16 = ("openvino", "torch")  # engines that have it


@dataclass(frozen=True)
class Capabilities:
    """What an engine compiles.

    kinds : of `layers.KINDS` · activations : of `layers.ACTIVATIONS` · ends : of `layers.ENDS`
    kernels : sizes of convolutions, along each axis; None for any odd one
    inputs : the most input layers that a network may have; None for any number
    smooths : whether `run` takes smoothing
    """

    kinds: tuple[str, ...] = layers.KINDS
    activations: tuple[str, ...] = layers.ACTIVATIONS
    ends: tuple[str, ...] = layers.ENDS
    kernels: tuple[int, ...] | None = None
    inputs: int | None = None
    smooths: bool = True

    def lacks(self, table: list[layers.Layer]) -> str | None:
        """What a table asks for beyond this, with what there is; None where it can be compiled.

        >>> table = layers.layer_table(levels=2, features=4, labels=3, activation="relu")
        >>> Capabilities().lacks(table)
        >>> Capabilities(activations=("elu", "none")).lacks(table)
        'activation relu of unet_conv_downarm_0_0 (it has elu, none)'
        """
        for layer in table:
            if layer.kind not in self.kinds:
                return f"layer {layer.name} of kind {layer.kind} (it has {', '.join(self.kinds)})"
            if layer.activation not in self.activations:
                return f"activation {layer.activation} of {layer.name} (it has {', '.join(self.activations)})"
            if layer.kind == "conv" and self.kernels and layer.weights["kernel"][0] not in self.kernels:
                known = ", ".join(map(str, self.kernels))
                return f"kernel {layer.weights['kernel'][0]} of {layer.name} (it has {known})"
        inputs = sum(layer.kind == "input" for layer in table)
        if self.inputs and inputs > self.inputs:
            return f"{inputs} inputs (it has {self.inputs})"
        if layers.end_of(table) not in self.ends:
            return f"{layers.end_of(table)} end (it has {', '.join(self.ends)})"
        return None


def load(name, precision="float32"):
    """The module of an engine that has this precision. It does not import the runtime yet."""
    if name not in NAMES:
        raise SynthSegError("usage", f"{name}: no such engine: use one of {', '.join(NAMES)}")
    known = PRECISIONS if name in BF16 else PRECISIONS[:1]
    if precision not in known:
        has = " and ".join(known)
        raise SynthSegError("usage", f"precision {precision}: the {name} engine has {has}: ask for that")
    return importlib.import_module(f".{name}", __name__)


def refuse(name: str, lack: str, table: list[layers.Layer]) -> SynthSegError:
    """The error for a table that the engine of this name cannot compile for a `lack`; it names those that can."""
    others = [f"--engine {other}" for other in NAMES if other != name and load(other).CAN.lacks(table) is None]
    remedy = f"use {' or '.join(others)}" if others else "no engine has it: correct the model card"
    return SynthSegError("usage", f"{lack}: the {name} engine cannot compute it: {remedy}")


def check(name: str, can: Capabilities, table: list[layers.Layer]):
    """Raise SynthSegError("usage") where a table asks for more than the engine of this name can compile."""
    if lack := can.lacks(table):
        raise refuse(name, lack, table)
