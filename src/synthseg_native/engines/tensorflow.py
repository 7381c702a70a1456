"""The TensorFlow engine: the layer table as one graph of TensorFlow operations.

Uses the operations behind the Keras layers of SynthSeg, with variables as weights, so that TensorFlow optimises the
graph as it does for Keras and every bit of the result is the same.
"""

import os
from collections.abc import Iterator
from functools import partial

import numpy as np

from synthseg_native.engines import capabilities
from synthseg_native.errors import SynthSegError
from synthseg_native.networks.layers import NORMALISATION_EPSILON, Layer, Weights, gaussian_kernel, given

CAN = capabilities.Capabilities()
SLAB = 16  # planes handed out at a time


def check(table: list[Layer]) -> None:
    """See `engines`."""
    capabilities.check("tensorflow", CAN, table)


def build(
    table: list[Layer], weights: Weights, *, device: str = "cpu", threads: int = 1, precision: str = "float32"
) -> "TensorFlowEngine":
    """See `engines`. Devices: cpu, gpu. Precisions: float32."""
    check(table)
    tf = _import(threads)
    gpus = tf.config.list_physical_devices("GPU")
    if device == "cpu":
        tf.config.set_visible_devices([], "GPU")
    elif device != "gpu":
        raise SynthSegError("usage", f"device {device}: the tensorflow engine runs on cpu or gpu: ask for one of them")
    elif not gpus:
        raise SynthSegError("usage", "device gpu: TensorFlow sees none: use --device cpu")
    return TensorFlowEngine(tf, table, weights, device)


def set_environment() -> None:
    """Set what TensorFlow reads when it is imported. The verification of its environment does the same."""
    # Its oneDNN kernels, which it takes by itself only on processors with AVX-512: three times as quick with AVX2.
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # start-up notes about plug-ins that are not there
    os.environ["KERAS_HOME"] = os.devnull  # Keras would read, and write, a keras.json in the home


def has_onednn() -> bool | None:
    """Whether TensorFlow runs with its oneDNN kernels; None where it does not say. Imports it."""
    try:
        from tensorflow.python.util import _pywrap_util_port

        return bool(_pywrap_util_port.IsMklEnabled())
    except (ImportError, AttributeError):
        return None


def _import(threads):
    set_environment()
    try:
        import tensorflow as tf
    except (ImportError, OSError) as error:  # OSError: a library of its is missing, or damaged
        why = " ".join(str(error).split())
        raise SynthSegError(
            "usage", f"tensorflow: cannot be imported ({why}): install the environment envs/tensorflow.txt"
        ) from error
    tf.get_logger().setLevel("ERROR")  # it warns of scans of several shapes
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError as error:  # only possible before TensorFlow's first operation
        raise SynthSegError("usage", f"threads {threads}: {error}: build the engine in a new process") from error
    return tf


class TensorFlowEngine:
    """An engine; see `engines` for the contract."""

    name, can = "tensorflow", CAN

    def __init__(self, tf, table, weights, device):
        self.tf = tf
        self.version = tf.__version__
        self.onednn = has_onednn()
        self.device = device
        self.device_reason = "asked for"
        self._table = table
        self._place = "/CPU:0" if device == "cpu" else "/GPU:0"
        with tf.device(self._place):
            # Variables, not constants: constants would be folded into the convolutions, with other roundings.
            self._weights = {
                layer: {name: tf.Variable(value) for name, value in values.items()} for layer, values in weights.items()
            }
        self._kept = None, None  # of what the graph is, and the graph

    def release(self) -> None:
        """Nothing is left by a pass."""

    def run(self, inputs: dict[str, np.ndarray], smoothing: float = 0.0) -> Iterator[tuple[int, np.ndarray]]:
        """See `engines`."""
        tf = self.tf
        volumes = [inputs[layer.name] for layer in given(self._table)]
        try:
            with tf.device(self._place):
                network = self._graph(volumes[0].shape, smoothing)
                result = network(*(tf.constant(volume[None, ..., None]) for volume in volumes))
                for start in range(0, result.shape[1], SLAB):
                    yield start, result[0, start : start + SLAB].numpy()
        except tf.errors.ResourceExhaustedError as error:
            raise MemoryError(f"TensorFlow: {error.message.splitlines()[0]}") from error

    def _graph(self, shape, smoothing):
        """The network, and the smoothing, as one graph for volumes of a shape; that of the last call is kept."""
        key, graph = self._kept
        if key != (shape, smoothing):
            types = {"input": self.tf.float32, "onehot": self.tf.uint8}
            signature = [self.tf.TensorSpec((1, *shape, 1), types[layer.kind]) for layer in given(self._table)]
            forward = partial(self._forward, smoothing)
            graph = self.tf.function(forward, input_signature=signature, autograph=False)
            self._kept = (shape, smoothing), graph
        return graph

    def _forward(self, smoothing, *images):
        """Run the table. A tensor is dropped by TensorFlow as soon as its last reader is done."""
        outputs, images = {}, iter(images)
        for layer in self._table:
            if layer.kind == "input":
                outputs[layer.name] = next(images)
            elif layer.kind == "onehot":
                outputs[layer.name] = self.tf.one_hot(next(images)[..., 0], layer.channels)
            else:
                inputs = [outputs[name] for name in layer.inputs]
                outputs[layer.name] = self._operations[layer.kind](self, layer, *inputs)
        result = outputs[self._table[-1].name]
        return self._smooth(result, smoothing) if smoothing else result

    def _conv(self, layer, x):
        weights = self._weights[layer.name]
        x = self.tf.nn.conv3d(x, weights["kernel"], [1] * 5, "SAME")
        return self._activated(layer, self.tf.nn.bias_add(x, weights["bias"]))

    def _activated(self, layer, x):
        function = {"elu": self.tf.nn.elu, "relu": self.tf.nn.relu, "none": lambda x: x}[layer.activation]
        return function(x)

    def _norm(self, layer, x):
        # x * scale + shift per channel: needs no 5-D fused kernel, which some devices lack.
        w = self._weights[layer.name]
        return self.tf.nn.batch_normalization(
            x, w["moving_mean"], w["moving_variance"], w["beta"], w["gamma"], NORMALISATION_EPSILON
        )

    def _pool(self, layer, x):
        return self.tf.nn.max_pool3d(x, [1, 2, 2, 2, 1], [1, 2, 2, 2, 1], "SAME")

    def _up(self, layer, x):
        for axis in (1, 2, 3):
            x = self.tf.repeat(x, 2, axis=axis)
        return x

    def _concat(self, layer, *inputs):
        return self.tf.concat(inputs, axis=-1)

    def _add(self, layer, *inputs):
        return self._activated(layer, self.tf.add_n(inputs))

    def _mean(self, layer, x):
        return self.tf.reduce_mean(x, axis=[1, 2, 3], keepdims=True)

    def _softmax(self, layer, x):
        return self.tf.nn.softmax(x, axis=-1)

    def _smooth(self, x, sigma):
        # Channel by channel with the full kernel, as SynthSeg does it: other orders round differently.
        kernel = self.tf.constant(gaussian_kernel(sigma)[..., None, None])
        channels = [self.tf.nn.conv3d(c, kernel, [1] * 5, "SAME") for c in self.tf.split(x, x.shape[-1], axis=-1)]
        return self.tf.concat(channels, axis=-1)

    _operations = {  # noqa: RUF012
        "conv": _conv,
        "norm": _norm,
        "pool": _pool,
        "up": _up,
        "concat": _concat,
        "add": _add,
        "softmax": _softmax,
        "mean": _mean,
    }
