"""TensorFlow's devices for the probes, each in a process of its own: one may crash or hang without taking us along."""

import contextlib
import multiprocessing
import os
import signal
import tempfile
from pathlib import Path

from .probes import DeviceLost

START_S = 300  # importing TensorFlow from a cold network file system takes its time
PROBE_S = 120


def find_devices() -> tuple[dict, list, list]:
    """Start TensorFlow and list its devices.

    Returns the versions, all devices seen as dicts (name, kind, description), and those to be probed: the CPU and the
    first GPU, the one that the engine uses. Raises DeviceLost, one line, when TensorFlow itself does not start.
    """
    cpu = TensorFlowDevice("CPU:0", "cpu", "")
    versions, seen = cpu.start()
    gpus = [TensorFlowDevice(**device) for device in seen if device["kind"] == "gpu"]
    return versions, seen, [cpu, *gpus[:1]]


class TensorFlowDevice:
    """See `probes.Device`. Its process starts with the first request."""

    def __init__(self, name, kind, description):
        self.name, self.kind, self.description = name, kind, description
        self._process = None

    def start(self):
        """Returns versions and devices seen; raises DeviceLost, one line, when TensorFlow does not start."""
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        with tempfile.NamedTemporaryFile(delete=False) as file:
            self._noise = Path(file.name)  # what TensorFlow prints: only read when it dies
        self._process = context.Process(target=_serve, args=(theirs, self.kind, str(self._noise)), daemon=True)
        self._process.start()
        theirs.close()
        return self._answer(START_S)

    def run(self, operation, inputs):
        if self._process is None:
            self.start()
        with contextlib.suppress(OSError):  # a process that has ended is noticed on reading
            self._connection.send((operation, inputs))
        return self._answer(PROBE_S)

    def close(self):
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


def _serve(connection, kind, noise):
    """The other process: start TensorFlow, then answer one request after the other."""
    with open(noise, "w") as file:  # noqa: PTH123
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        tf, versions, seen = _start(kind)
    except Exception as error:
        connection.send(("lost", f"TensorFlow does not start: {_clean(error)}"))
        return
    connection.send(("ok", (versions, seen)))
    while True:
        try:
            operation, inputs = connection.recv()
        except EOFError:
            return
        try:
            connection.send(("ok", _run(tf, kind, operation, inputs)))
        except Exception as error:
            connection.send(("error", _clean(error)))


def _start(kind):
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    from importlib import metadata

    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    # An operation that the device does not have must fail, not run on the CPU unseen.
    tf.config.set_soft_device_placement(False)
    gpus = tf.config.list_physical_devices("GPU")
    seen = [{"name": "CPU:0", "kind": "cpu", "description": ""}]
    for number, gpu in enumerate(gpus):
        description = ""
        with contextlib.suppress(Exception):
            description = str(tf.config.experimental.get_device_details(gpu).get("device_name", ""))
        seen.append({"name": f"GPU:{number}", "kind": "gpu", "description": description})
        if kind == "gpu":
            with contextlib.suppress(Exception):
                tf.config.experimental.set_memory_growth(gpu, True)
    if kind == "cpu":
        tf.config.set_visible_devices([], "GPU")
    versions = {"tensorflow": tf.__version__}
    for package in ("keras", "tensorflow-metal"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return tf, versions, seen


def _run(tf, kind, operation, inputs):
    """The result as an array, and the device that computed it."""
    if operation == "network":
        from .engines import tensorflow as engine

        x = inputs["x"]
        built = engine.build(inputs["table"], inputs["weights"], x.shape, device=kind, threads=1)
        result = None
        for start, slab in built.posteriors(x):
            if result is None:
                result = tf.zeros((*x.shape, slab.shape[-1])).numpy()
            result[start : start + len(slab)] = slab
        return result, f"{kind.upper()}:0"  # without soft placement it raises where it cannot run there
    with tf.device(f"/{kind.upper()}:0"):
        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        result = _operation(tf, operation, **tensors)
    return result.numpy(), ":".join(result.device.split(":")[-2:])


def _operation(tf, operation, x, **more):
    nn, two = tf.nn, [1, 2, 2, 2, 1]
    if operation == "conv3d":
        return nn.bias_add(nn.conv3d(x, more["kernel"], [1] * 5, "SAME"), more["bias"])
    if operation == "max_pool3d":
        return nn.max_pool3d(x, two, two, "SAME")
    if operation == "up_sampling3d":
        for axis in (1, 2, 3):
            x = tf.repeat(x, 2, axis=axis)
        return x
    if operation == "elu":
        return nn.elu(x)
    if operation == "softmax":
        return nn.softmax(x, axis=-1)
    from .network import NORMALISATION_EPSILON as EPSILON

    if operation == "batch_normalisation":
        return nn.batch_normalization(x, more["mean"], more["variance"], more["offset"], more["scale"], EPSILON)
    if operation == "fused_batch_normalisation":
        arguments = {**more, "epsilon": EPSILON, "data_format": "NDHWC", "is_training": False}
        return tf.compat.v1.nn.fused_batch_norm(x, **arguments)[0]
    raise ValueError(f"{operation}: no such operation")


def _clean(error):
    """TensorFlow's message without its internal names, on one line."""
    text = str(getattr(error, "message", "") or error).strip() or type(error).__name__
    return text.split("}} ")[-1].splitlines()[0]
