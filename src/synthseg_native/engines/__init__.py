"""Engines: one module per runtime, all built from the same layer table.

The contract of a module ``engines.<name>``:

``build(table, weights, shape, *, device, threads, precision)``
    Returns an engine for padded volumes of one shape (X, Y, Z). `table` is from `layers.layer_table`, `weights` from
    `layers.read_weights`. It imports its runtime here and not before, so that bad input is reported without it.
    Raises SynthSegError("usage") for a device that it does not have, or a precision that this machine has not.
``engine.posteriors(volume)``
    Takes a float32 volume (X, Y, Z), which may be a mirrored view, and yields ``(start, slab)``: posteriors after the
    last layer of the table, that is smoothed, as float32 (planes, Y, Z, labels) for the planes ``start: start +
    planes`` of the first axis. The slabs cover the volume once, in any order; a slab is only valid until the next one
    is asked for. A consumer thus accumulates the average with the mirror image in a single array.
``engine.release()``
    Gives back the memory that one call of `posteriors` leaves for the next one: there is none for now.
``engine.reshape(shape)``
    Goes over to padded volumes of another shape, and keeps what fits it too.
``engine.name, engine.version, engine.device, engine.device_reason``
    What ran and where, for the record.
"""

import importlib

from synthseg_native.errors import SynthSegError

NAMES = ("tensorflow", "openvino", "torch")
PRECISIONS = ("float32", "bf16")
BF16 = ("openvino", "torch")  # engines that have it
ANY_THREADS = ("openvino",)  # engines that give the same bytes for any number of threads


def load(name, precision="float32"):
    """The module of an engine that has this precision. It does not import the runtime yet."""
    if name not in NAMES:
        raise SynthSegError("usage", f"{name}: no such engine: use one of {', '.join(NAMES)}")
    known = PRECISIONS if name in BF16 else PRECISIONS[:1]
    if precision not in known:
        has = " and ".join(known)
        raise SynthSegError("usage", f"precision {precision}: the {name} engine has {has}: ask for that")
    return importlib.import_module(f".{name}", __name__)
