"""TensorFlow for the probes; see `process`."""

import contextlib
from typing import Any

import numpy as np

from synthseg_native.engines.tensorflow import has_onednn, set_environment
from synthseg_native.networks.layers import NORMALISATION_EPSILON
from synthseg_native.verification.process import versions_of

TITLE, ENGINE = "TensorFlow", "tensorflow"


def start(kind: str) -> tuple[Any, dict[str, str], list[dict]]:
    """TensorFlow itself, versions, and the devices that it sees; for kind "cpu" the GPUs are hidden from it."""
    set_environment()
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    # An operation that the device does not have must fail, not run on the CPU unseen.
    tf.config.set_soft_device_placement(False)
    gpus = tf.config.list_physical_devices("GPU")
    seen = [{"name": "CPU:0", "kind": "cpu", "description": "", "precisions": ["float32"]}]
    for number, gpu in enumerate(gpus):
        description = ""
        with contextlib.suppress(Exception):
            description = str(tf.config.experimental.get_device_details(gpu).get("device_name", ""))
        seen.append({**seen[0], "name": f"GPU:{number}", "kind": "gpu", "description": description})
        if kind == "gpu":
            with contextlib.suppress(Exception):
                tf.config.experimental.set_memory_growth(gpu, True)
    if kind == "cpu":
        tf.config.set_visible_devices([], "GPU")
    return tf, _versions(tf), seen


def _versions(tf):
    onednn = {None: "unknown", True: "on", False: "off"}[has_onednn()]
    return {"tensorflow": tf.__version__, "oneDNN": onednn, **versions_of("keras", "tensorflow-metal")}


def run(tf: Any, kind: str, operation: str, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, str]:
    """One operation, eagerly, on the first device of a kind; arrays are (batch, x, y, z, channels)."""
    with tf.device(f"/{kind.upper()}:0"):
        tensors = {name: tf.constant(value) for name, value in inputs.items()}
        result = _operation(tf, operation, **tensors)
    return result.numpy(), ":".join(result.device.split(":")[-2:])


def _operation(tf, operation, x, **more):
    nn, two = tf.nn, [1, 2, 2, 2, 1]
    if operation == "conv3d":
        return nn.bias_add(nn.conv3d(x, more["kernel"], [1] * 5, "SAME"), more["bias"])
    if operation == "depthwise_conv3d":
        pairs = zip(tf.split(x, x.shape[-1], axis=-1), tf.split(more["kernel"], x.shape[-1], axis=-1), strict=True)
        return tf.concat([nn.conv3d(channel, kernel, [1] * 5, "SAME") for channel, kernel in pairs], axis=-1)
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
    if operation == "batch_normalisation":
        moments = (more[name] for name in ("mean", "variance", "offset", "scale"))
        return nn.batch_normalization(x, *moments, NORMALISATION_EPSILON)
    if operation == "fused_batch_normalisation":
        arguments = {**more, "epsilon": NORMALISATION_EPSILON, "data_format": "NDHWC", "is_training": False}
        return tf.compat.v1.nn.fused_batch_norm(x, **arguments)[0]
    raise ValueError(f"{operation}: no such operation")


def clean(error: Exception) -> str:
    """Without TensorFlow's internal names, on one line.

    >>> clean(ValueError("{{function_node __wrapped__Conv3D}} No OpKernel was registered [Op:Conv3D]\\nmore"))
    'No OpKernel was registered [Op:Conv3D]'
    """
    text = str(getattr(error, "message", "") or error).strip() or type(error).__name__
    return text.split("}} ")[-1].splitlines()[0]
