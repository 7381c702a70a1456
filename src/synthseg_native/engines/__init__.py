"""Engines: one module per runtime, all built from the same table of layers.

The contract of a module ``engines.<name>``:

``CAN``
    `capabilities.Capabilities`: what it compiles.
``check(table)``
    Refuses a table that asks for more, in one line: SynthSegError("usage"). No table is computed as something else.
``build(table, weights, *, device, threads, precision)``
    Returns an engine. `table` is from `layers.layer_table`, `weights` from `layers.read_weights`. It imports its
    runtime here and not before, so that bad input is reported without it. Raises SynthSegError("usage") as
    `check` does, for a device that it does not have, and for a precision that this machine has not.
``engine.run(inputs, smoothing=0.0[, backwards=False])``
    Runs the network. inputs : {name of what it reads (`layers.given`): volume (X, Y, Z)}, float32 of an image, uint8 of
    a map that is read one-hot, all of one shape; a volume may be a mirrored view. Yields ``(start, slab)``: what the
    last layer of the table gives, as float32 (planes, Y, Z, channels) for the planes ``start: start + planes`` of the
    first axis. The slabs cover the volume once, the first planes first; a slab is only valid until the next one is
    asked for. (Of a table that ends with the mean over space there is one slab, (1, 1, 1, channels).) A consumer thus
    accumulates an average in a single array.
    smoothing : sigma in voxels of a Gaussian (`layers.gaussian_kernel`, zeros outside the volume) over each channel of
    the result, 0 for none; only of an engine whose ``CAN.smooths``. It is a stage of the pipeline, which decides what
    is smoothed, and does it itself (`pipeline.smoothing`) for an engine that does not offer it. Engines may: they have
    the planes at hand, and TensorFlow's own rounding is the reference's.
    backwards : of an engine whose ``CAN.backwards``: the same bytes, the last planes first. Such an engine's slabs are
    in order, and two runs on volumes of one shape may be gone through by turns: an image and its mirror image in step.
``engine.release()``
    Gives back the memory that one call of `run` leaves for the next one: there is none for now.
``engine.can``
    The module's `CAN`.
``engine.name, engine.version, engine.device, engine.device_reason``
    What ran and where, for the record.

An engine does one thing at a time; several engines may work at once, each in a thread of its own. TensorFlow and
PyTorch keep the number of threads and their precision once per process: the engines of a process share them.

Standard library only: the launcher asks which engines there are.
"""

import importlib
from collections.abc import Sequence
from types import ModuleType

from synthseg_native.errors import SynthSegError

NAMES = ("tensorflow", "llvm", "torch")
PRECISIONS = ("float32", "bf16")
BF16 = ("torch",)  # engines that have it
ANY_THREADS = ("llvm",)  # engines that give the same bytes for any number of threads
FORMER = {"openvino": "llvm"}  # names of engines that are no more, and what took their place


def unknown(name: str, known: Sequence[str] = NAMES) -> str:
    """What to say of an engine that there is not.

    >>> unknown("openvino")
    'openvino: no such engine any more: llvm took its place: write that'
    >>> unknown("onnx")
    'onnx: no such engine: use one of tensorflow, llvm, torch'
    """
    if name in FORMER:
        return f"{name}: no such engine any more: {FORMER[name]} took its place: write that"
    return f"{name}: no such engine: use one of {', '.join(known)}"


def load(name: str, precision: str = "float32") -> ModuleType:
    """The module of an engine that has this precision. It does not import the runtime yet."""
    if name not in NAMES:
        raise SynthSegError("usage", unknown(name))
    known = PRECISIONS if name in BF16 else PRECISIONS[:1]
    if precision not in known:
        has = " and ".join(known)
        raise SynthSegError("usage", f"precision {precision}: the {name} engine has {has}: ask for that")
    return importlib.import_module(f".{name}", __name__)
