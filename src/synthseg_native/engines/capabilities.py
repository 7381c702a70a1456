"""What an engine compiles, as it declares it, and the refusal of a table that asks for more."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from synthseg_native import engines
from synthseg_native.errors import SynthSegError
from synthseg_native.networks import layers


@dataclass(frozen=True)
class Capabilities:
    """What an engine compiles.

    kinds, activations, ends : of those that `layers` has
    kernels : sizes of convolutions, along each axis; None for any odd one
    inputs : the most input layers that a network may have; None for any number
    smooths, backwards : whether `run` takes these; backwards only with smooths
    """

    kinds: tuple[str, ...] = layers.KINDS
    activations: tuple[str, ...] = ("elu", "relu", "none")
    ends: tuple[str, ...] = layers.ENDS
    kernels: tuple[int, ...] | None = None
    inputs: int | None = None
    smooths: bool = True
    backwards: bool = False

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
        inputs = len(layers.given(table))
        if self.inputs and inputs > self.inputs:
            return f"{inputs} inputs (it has {self.inputs})"
        if layers.end_of(table) not in self.ends:
            return f"{layers.end_of(table)} end (it has {', '.join(self.ends)})"
        return None


class Engine(Protocol):
    """What an engine's `build` returns; see `engines`."""

    can: Capabilities
    name: str
    version: str
    device: str
    device_reason: str

    def run(self, inputs: dict[str, np.ndarray], smoothing: float = 0.0) -> Iterator[tuple[int, np.ndarray]]:
        """Slabs of what the network gives; where `can.backwards`, takes that too."""

    def release(self) -> None:
        """Give back the memory that is kept for the next run."""


def refuse(name: str, lack: str, table: list[layers.Layer]) -> SynthSegError:
    """The error for a table that the engine of this name cannot compile for a `lack`; it names those that can."""
    others = [other for other in engines.NAMES if other != name and engines.load(other).CAN.lacks(table) is None]
    remedy = f"use --engine {' or --engine '.join(others)}" if others else "no engine has it: correct the model card"
    return SynthSegError("usage", f"{lack}: the {name} engine cannot compute it: {remedy}")


def check(name: str, can: Capabilities, table: list[layers.Layer]) -> None:
    """Raise SynthSegError("usage") where a table asks for more than the engine of this name can compile."""
    if lack := can.lacks(table):
        raise refuse(name, lack, table)
