"""The OpenVINO engine: the finest levels by kernels of our own (`stream`), all coarser ones as an OpenVINO graph.

Nine tenths of the time and of the memory are the finest two levels'; for these OpenVINO has no faster convolution than
the plain one. precision says how the graph computes; the kernels always compute in float32.

The graph has no concatenated tensor, by two identities: conv(concat(a, b)) = conv_a(a) + conv_b(b), and a convolution
of kernel 3 of an image upsampled by 2 is a transposed convolution of kernel 4 and stride 2 (`transposed_kernel`).
"""

import itertools
import re
import sys
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import numpy as np

from synthseg_native.engines import capabilities
from synthseg_native.engines.kernels.stream import Stream, norm_of
from synthseg_native.errors import SynthSegError
from synthseg_native.networks.layers import Layer, Weights

# The kernels compute ELU behind every convolution but the last one, and a softmax behind that.
CAN = capabilities.Capabilities(activations=("elu", "none"), ends=("softmax",), kernels=(1, 3), inputs=1)
STREAMED = 4  # levels by kernels of our own, where there are so many
KEPT_GRAPHS = 2  # for the last shapes of volumes: each has a copy of its weights
# Kernel 4 of the transposed convolution from kernel 3 of the convolution, along one axis.
# Of kinds of layers, to look at their order.
LETTERS = {"input": "i", "conv": "c", "norm": "n", "pool": "p", "up": "u", "concat": "m", "softmax": "s"}
TAPS = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=np.float64)


def check(table: list[Layer]) -> None:
    """See `engines`."""
    capabilities.check("openvino", CAN, table)
    if lack := _unlike(table):
        raise capabilities.refuse("openvino", lack, table)


def build(
    table: list[Layer], weights: Weights, *, device: str = "cpu", threads: int = 1, precision: str = "float32"
) -> "OpenVINOEngine":
    """See `engines`. Devices: cpu. Precisions: float32, and bf16 where the CPU computes in it."""
    if device != "cpu":
        raise SynthSegError("usage", f"device {device}: the openvino engine runs on the cpu: ask for that")
    check(table)
    ov = import_openvino()
    core = ov.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise SynthSegError("usage", "precision bf16: this CPU does not compute in it: ask for float32")
    return OpenVINOEngine(ov, core, table, weights, threads, precision)


def import_openvino() -> Any:
    """The module openvino, imported so that it tells nobody: the one place where it is.

    When it is imported it looks for its package openvino_telemetry, which opens a connection to an analytics server in
    every process and writes an id to ~/intel. Without that package it takes a stand-in that does nothing. Raises
    SynthSegError("usage") where it is not installed.
    """
    telemetry = "openvino_telemetry"
    hidden = telemetry not in sys.modules
    if hidden:
        sys.modules[telemetry] = None  # type: ignore[assignment]  # importing it raises ImportError
    try:
        import openvino as ov
        import openvino.opset13
    except ImportError as error:
        raise SynthSegError(
            "usage", f"openvino: cannot be imported ({error}): install the environment envs/openvino.txt"
        ) from error
    finally:
        if hidden:
            del sys.modules[telemetry]
    return ov


def transposed_kernel(kernel: np.ndarray) -> np.ndarray:
    """The kernel (4, 4, 4, in, out) whose transposed convolution, stride 2, padding 1, is the convolution of kernel
    (3, 3, 3, in, out), padding 1, of the image upsampled by 2 with nearest neighbours.

    Along an axis, output 2j reads x[j-1] once and x[j] twice, output 2j+1 reads x[j] twice and x[j+1] once.
    """
    wide = np.einsum("ax,by,cz,xyzio->abcio", TAPS, TAPS, TAPS, kernel.astype(np.float64), optimize=True)
    return wide.astype(np.float32)


class OpenVINOEngine:
    """An engine; see `engines` for the contract."""

    name, can = "openvino", CAN
    device, device_reason = "cpu", "the openvino engine has no other"

    def __init__(self, ov, core, table, weights, threads, precision):
        self.version = ov.__version__.split("-")[0]
        self._ov, self._core, self._weights = ov, core, weights
        self._precision, self._threads = precision, threads
        levels, self._deep, last = cut(table)
        self._source, self._result = levels[-1].head[-1], levels[-1].deep
        self._stream = Stream(levels, last, weights, threads)
        self._graphs = OrderedDict()

    def run(self, inputs: dict[str, np.ndarray], smoothing: float = 0.0) -> Iterator[tuple[int, np.ndarray]]:
        """See `engines`."""
        (volume,) = inputs.values()
        try:
            yield from self._stream.run(volume, self._coarse, smoothing)
        except RuntimeError as error:
            if "alloc" in str(error):  # std::bad_alloc, and what oneDNN says of it
                raise MemoryError("OpenVINO: no memory for an array") from error
            raise

    def release(self) -> None:
        """See `engines`."""
        self._stream.release()

    def _coarse(self, pooled):
        """Features (planes, Y, Z, channels) of the coarser levels, from what the last streamed one pooled."""
        graph = self._graphs.pop(pooled.shape, None) or self._compile(pooled.shape)
        self._graphs[pooled.shape] = graph
        while len(self._graphs) > KEPT_GRAPHS:
            self._graphs.popitem(last=False)
        request = graph.create_infer_request()
        request.set_input_tensor(self._ov.Tensor(pooled[None], shared_memory=True))
        request.infer()
        features = request.get_output_tensor().data[0].copy()
        del request
        graph.release_memory()
        return features

    def _compile(self, shape):
        ov, graph = self._ov, Graph(self._ov, self._weights)
        parameter = ov.opset13.parameter([1, *shape], ov.Type.f32)
        graph.take(self._source.name, parameter)
        graph.add(self._deep)
        model = ov.Model([graph.give(self._result.name)], [parameter])
        # In bf16 OpenVINO 2026.2 crashes, or gives nan, where a tensor has a single plane.
        single = shape[0] >> sum(layer.kind == "pool" for layer in self._deep) <= 1
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if self._precision == "bf16" and not single else "f32",
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": 1,
        }
        return self._core.compile_model(model, "CPU", settings)


class Level:
    """The layers of one level that is streamed.

    source : the layer that it begins with · head, tail : its layers · skip : what goes from head to tail · deep : the
    layer whose features the tail takes from the coarser levels
    """

    def __init__(self, source, head, tail, table):
        layers = {layer.name: layer for layer in table}
        self.source, self.head, self.tail = source, head, tail
        up, merge = tail[:2]
        self.skip, self.deep = layers[merge.inputs[0]], layers[up.inputs[0]]


def _unlike(table):
    """Where a table is no U-Net of the form that is cut and streamed; None where it is.

    Kinds and activations are known to be right one by one; here it is how they follow one another.
    """
    convolutions = [layer for layer in table if layer.kind == "conv"]
    for layer in convolutions[:-1]:
        if layer.activation != "elu":
            return f"no activation behind {layer.name} (it has elu there)"
    if convolutions[-1].activation != "none" or convolutions[-1].weights["kernel"][0] != 1:
        return f"last convolution {convolutions[-1].name} (it has one of kernel 1 without an activation)"
    kinds = "".join(LETTERS[layer.kind] for layer in table)
    if not re.fullmatch("i(c+np)+c+n(umc+n)+cs", kinds) or kinds.count("p") != kinds.count("u"):
        return "order of layers (it has a U-Net of two levels or more, a skip connection on each)"
    layers = {layer.name: layer for layer in table}
    ends = [before for before, after in itertools.pairwise(table) if before.kind == "conv" and after.kind == "norm"]
    skips = ends[: kinds.count("p")]
    for before, layer in itertools.pairwise(table):
        read = [before.name]
        if layer.kind == "concat":
            read.insert(0, skips.pop().name)
        if list(layer.inputs) != read:
            return f"inputs {', '.join(layer.inputs)} of {layer.name} (it has {', '.join(read)} there)"
        source = layers[layer.inputs[0]]
        if layer.kind == "conv" and source.kind == "concat" and layer.weights["kernel"][0] != 3:
            return f"kernel 1 of {layer.name}, behind an upsampling (it has 3 there)"
    return None


def cut(table: list[Layer]) -> tuple[list[Level], list[Layer], list[Layer]]:
    """Cut a table into the levels that are streamed, the layers of all coarser ones, and what follows the finest one's
    tail: the last convolution and all behind it."""
    kinds = [layer.kind for layer in table]
    pools = [number for number, kind in enumerate(kinds) if kind == "pool"][:STREAMED]
    ups = [number for number, kind in enumerate(kinds) if kind == "up"][::-1][:STREAMED]
    end = len(kinds) - 1 - kinds[::-1].index("conv")
    starts, stops = [0, *pools], [end, *ups]
    levels = [
        Level(table[start], table[start + 1 : pool + 1], table[up:stop], table)
        for start, pool, up, stop in zip(starts, pools, ups, stops, strict=False)  # one start and stop more
    ]
    return levels, table[pools[-1] + 1 : ups[-1]], table[end:]


class Graph:
    """Turns layers into OpenVINO operations on tensors (1, channels, X, Y, Z).

    An upsampling or a concatenation is only noted, for the convolution that reads it.
    """

    def __init__(self, ov, weights):
        self.ov, self.ops, self.weights = ov, ov.opset13, weights
        self.nodes, self.noted = {}, {}

    def take(self, name: str, parameter: Any) -> None:
        """A tensor (1, X, Y, Z, channels) from outside."""
        self.nodes[name] = self.ops.transpose(parameter, np.array([0, 4, 1, 2, 3]))

    def give(self, name: str) -> Any:
        """The same for outside."""
        return self.ops.transpose(self.nodes[name], np.array([0, 2, 3, 4, 1]))

    def add(self, layers: list[Layer]) -> None:
        """Make operations of layers, in their order."""
        for layer in layers:
            if layer.kind in ("up", "concat"):
                self.noted[layer.name] = layer
            else:
                self.nodes[layer.name] = getattr(self, f"_{layer.kind}")(layer)

    def _conv(self, layer):
        """A convolution, of a concatenation the sum over what was put together."""
        ops, (source,), w = self.ops, layer.inputs, self.weights[layer.name]
        parts = self.noted[source].inputs if source in self.noted else [source]
        padding, total, first = [w["kernel"].shape[0] // 2] * 3, None, 0
        for name in parts:
            upsampled = self.noted.get(name)
            node = self.nodes[upsampled.inputs[0] if upsampled else name]
            channels = node.shape[1]
            kernel = w["kernel"][..., first : first + channels, :]
            first += channels
            if upsampled:
                kernel = np.ascontiguousarray(transposed_kernel(kernel).transpose(3, 4, 0, 1, 2))
                node = ops.convolution_backprop_data(
                    node, ops.constant(kernel), [2] * 3, None, [1] * 3, [1] * 3, [1] * 3
                )
            else:
                kernel = np.ascontiguousarray(kernel.transpose(4, 3, 0, 1, 2))
                node = ops.convolution(node, ops.constant(kernel), [1] * 3, padding, padding, [1] * 3)
            total = node if total is None else ops.add(total, node)
        total = ops.add(total, self._per_channel(w["bias"]))
        return ops.elu(total, 1.0) if layer.activation == "elu" else total

    def _per_channel(self, values):
        return self.ops.constant(np.ascontiguousarray(values, dtype=np.float32).reshape(1, -1, 1, 1, 1))

    def _norm(self, layer):
        scale, shift = norm_of(self.weights[layer.name])
        node = self.ops.multiply(self.nodes[layer.inputs[0]], self._per_channel(scale))
        return self.ops.add(node, self._per_channel(shift))

    def _pool(self, layer):
        node = self.nodes[layer.inputs[0]]
        return self.ops.max_pool(node, [2] * 3, [1] * 3, [0] * 3, [0] * 3, [2] * 3).output(0)
