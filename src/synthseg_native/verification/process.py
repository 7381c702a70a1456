"""A runtime's devices for the probes, each in a process of its own: one may crash or hang without taking us along.

A runtime is a module with
    TITLE, ENGINE : its name for people, and that of its engine
    start(kind) : import it for devices of this kind; returns (handle, versions, the devices seen: see `find_devices`)
    run(handle, kind, operation, inputs) : the result of an operation of `probes.FORMULAS` as an array, and the name of
        the device that computed it; raises for an operation that it does not have
    clean(error) : its message without what is of no use to people
    OPERATIONS : those of `probes.FORMULAS` that it has, where it has not all
"""

import contextlib
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Sequence
from importlib import import_module, metadata
from pathlib import Path

import numpy as np

from synthseg_native.verification.probes import SMOOTHING, DeviceLost

START_S = 300  # importing a runtime from a cold network file system takes its time
PROBE_S = 120


def find_devices(runtime: str) -> tuple[dict[str, str], list[dict], list["ProcessDevice"]]:
    """Start a runtime, named by its module in this package, and list its devices.

    Returns the versions, all devices seen as dicts (name, kind, description, precisions), and those to be probed: the
    CPU and the first GPU, the one that the engine uses. Raises DeviceLost, one line, when the runtime does not start.
    """
    cpu = ProcessDevice(runtime, "CPU:0", "cpu")
    versions, seen = cpu.start()
    cpu.precisions = next(device["precisions"] for device in seen if device["kind"] == "cpu")
    gpus = [ProcessDevice(runtime, **device) for device in seen if device["kind"] == "gpu"]
    devices = [cpu, *gpus[:1]]
    for device in devices:
        device.operations = getattr(import_module(f".{runtime}", __package__), "OPERATIONS", None)
    return versions, seen, devices


def versions_of(*packages: str) -> dict[str, str]:
    """The versions of those packages that are installed."""
    versions = {}
    for package in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


class ProcessDevice:
    """See `probes.Device`. Its process starts with the first request."""

    def __init__(
        self,
        runtime: str,
        name: str,
        kind: str,
        description: str = "",
        precisions: Sequence[str] = ("float32",),
    ):
        self.name, self.kind, self.description, self.precisions = name, kind, description, precisions
        self.operations = None
        self._runtime = runtime
        self._process = None

    def start(self) -> tuple[dict[str, str], list[dict]]:
        """Returns versions and devices seen; raises DeviceLost, one line, when the runtime does not start."""
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        with tempfile.NamedTemporaryFile(delete=False) as file:
            self._noise = Path(file.name)  # what the runtime prints: only read when it dies
        arguments = (theirs, self._runtime, self.kind, str(self._noise))
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        theirs.close()
        return self._answer(START_S)

    def run(self, operation: str, inputs: dict[str, object]) -> tuple[np.ndarray, str]:
        """The result, and the device that computed it.

        Raises RuntimeError where the operation failed, and DeviceLost where the process died or has not answered after
        PROBE_S seconds.
        """
        if self._process is None:
            self.start()
        with contextlib.suppress(OSError):  # a process that has ended is noticed on reading
            self._connection.send((operation, inputs))
        return self._answer(PROBE_S)

    def close(self) -> None:
        """End its process, whatever it is doing. May be called twice."""
        if self._process is None:
            return
        self._process.kill()
        self._process.join()
        self._noise.unlink(missing_ok=True)

    def _answer(self, seconds):
        try:
            if not self._connection.poll(seconds):
                self.close()
                raise DeviceLost(f"no answer within {seconds} s")
            kind, value = self._connection.recv()
        except (EOFError, OSError) as error:
            self._process.join(10)
            reason = self._cause_of_death()
            self.close()
            raise DeviceLost(reason) from error
        if kind == "lost":
            self.close()
            raise DeviceLost(value)
        if kind == "error":
            raise RuntimeError(value)
        return value

    def _cause_of_death(self):
        code = self._process.exitcode
        how = f"exit status {code}"
        if code is not None and code < 0:
            with contextlib.suppress(ValueError):
                how = signal.Signals(-code).name
        lines = self._noise.read_text(errors="replace").strip().splitlines()
        return f"the process died ({how}){': ' + lines[-1] if lines else ''}"


def _serve(connection, name, kind, noise):
    """The other process: start the runtime, then answer one request after the other."""
    with open(noise, "w") as file:  # noqa: PTH123
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    runtime = import_module(f".{name}", __package__)
    try:
        handle, versions, seen = runtime.start(kind)
    except Exception as error:
        connection.send(("lost", f"{runtime.TITLE} does not start: {runtime.clean(error)}"))
        return
    connection.send(("ok", (versions, seen)))
    while True:
        try:
            operation, inputs = connection.recv()
        except EOFError:
            return
        try:
            if operation == "network":
                # The engine runs it on the device or not at all, which the runtime's `start` sees to.
                answer = _network(runtime.ENGINE, kind, **inputs), f"{kind.upper()}:0"
            else:
                answer = runtime.run(handle, kind, operation, inputs)
            connection.send(("ok", answer))
        except Exception as error:
            connection.send(("error", runtime.clean(error)))


def _network(engine, kind, table, weights, x, precision="float32"):
    """What an engine makes of a volume, smoothed: (X, Y, Z, labels)."""
    from synthseg_native import engines

    built = engines.load(engine).build(table, weights, device=kind, threads=1, precision=precision)
    result = np.full((*x.shape, table[-1].channels), np.nan, np.float32)
    for start, slab in built.run({table[0].name: x}, SMOOTHING):
        result[start : start + len(slab)] = slab
    return result
