"""The OpenVINO engine: the layer table as small graphs, those of the finest levels run slab by slab.

At the finest level a tensor of the whole volume takes a gigabyte, so little there is ever whole. For each of the
finest levels, along the first axis:

head : image (or what the finer level pooled) -> skip tensor and pooled tensor, slab by slab
tail : skip tensor and what the coarser levels give -> features, at the finest level smoothed posteriors, slab by slab

and between them, for all coarser levels at once, deep : pooled tensor -> features.

A slab is computed with as many planes more on either side as its convolutions reach, and zero padding applies at the
borders of the volume alone, so that the result is that of the whole volume. The decoder is computed without the
concatenated tensor, by two identities: conv(concat(a, b)) = conv_a(a) + conv_b(b), and a convolution of kernel 3 of
an image upsampled by 2 is a transposed convolution of kernel 4 and stride 2 (`transposed_kernel`).
"""

import numpy as np

from ..errors import SynthSegError
from ..network import NORMALISATION_EPSILON, gaussian_kernel

SLAB_BYTES = 80e6  # of one float32 tensor of a level's features
SMALLEST_SLAB = 8  # planes; more than a neighbour reaches into
IN_SLABS = 2  # levels done in slabs, where there are so many
BF16 = "bf16"
# Kernel 4 of the transposed convolution from kernel 3 of the convolution, along one axis.
TAPS = np.array([[0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=np.float64)


def build(table, weights, shape, *, device="cpu", threads=1, precision="float32"):
    """See `engines`. Devices: cpu. Precisions: float32, and bf16 where the CPU computes in it."""
    if device != "cpu":
        raise SynthSegError("usage", f"device {device}: the openvino engine runs on the cpu: ask for that")
    if precision not in ("float32", BF16):
        raise SynthSegError("usage", f"precision {precision}: the openvino engine has float32 and bf16: ask for one")
    if sum(layer.kind == "pool" for layer in table) < 1:
        raise SynthSegError("usage", "levels 1: the openvino engine needs two or more: correct the model card")
    if any(layer.kind == "conv" and layer.weights["kernel"][0] not in (1, 3) for layer in table):
        raise SynthSegError("usage", "kernel: the openvino engine has convolutions of 3 alone: correct the model card")
    ov = _import()
    core = ov.Core()
    if precision == BF16 and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise SynthSegError("usage", "precision bf16: this CPU does not compute in it: ask for float32")
    return OpenVINOEngine(ov, core, table, weights, threads, precision)


def _import():
    try:
        import openvino as ov
        import openvino.opset13
    except ImportError as error:
        raise SynthSegError(
            "usage", f"openvino: cannot be imported ({error}): install the environment envs/openvino.txt"
        ) from error
    return ov


def transposed_kernel(kernel):
    """The kernel (4, 4, 4, in, out) whose transposed convolution, stride 2, padding 1, is the convolution of kernel
    (3, 3, 3, in, out), padding 1, of the image upsampled by 2 with nearest neighbours.

    Along an axis, output 2j reads x[j-1] once and x[j] twice, output 2j+1 reads x[j] twice and x[j+1] once.
    """
    wide = np.einsum("ax,by,cz,xyzio->abcio", TAPS, TAPS, TAPS, kernel.astype(np.float64), optimize=True)
    return wide.astype(np.float32)


def to_bf16(array):
    """Float32 rounded to bfloat16, half to even, as its bits (uint16); for finite numbers."""
    bits = np.ascontiguousarray(array, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def split_kernel(kernel):
    """The first convolution's kernel (3, 3, 3, 1, out) for the image in the channels coarse, fine, coarse.

    Eight bits of the image are too few: a posterior would be off by 0.03. Image and kernel are the sum of what bfloat16
    makes of them, coarse, and of what it makes of the rest, fine; of the product only fine times fine is left out.
    """
    coarse = from_bf16(to_bf16(kernel))
    return np.concatenate([coarse, coarse, kernel - coarse], axis=3)


class OpenVINOEngine:
    """An engine; see `engines` for the contract."""

    name = "openvino"
    device, device_reason = "cpu", "the openvino engine has no other"

    def __init__(self, ov, core, table, weights, threads, precision):
        self.version = ov.__version__.split("-")[0]
        if precision == BF16:
            first = next(layer.name for layer in table if layer.kind == "conv")
            weights = {**weights, first: {**weights[first], "kernel": split_kernel(weights[first]["kernel"])}}
        self._ov, self._core, self._weights = ov, core, weights
        self._precision, self._threads = precision, threads
        self._cut(table)
        self._compiled, self._recent = {}, set()
        self._used, self._stage = set(), None

    def reshape(self, shape):
        """Go over to padded volumes of another shape (X, Y, Z), which itself is the volume's to tell. The graphs of
        the last shape are kept, and no others: many fit both, and each has a copy of its weights."""
        self._compiled = {key: graph for key, graph in self._compiled.items() if key in self._recent}
        self._recent = set()

    def _cut(self, table):
        """Cut the table into the parts of the module's text."""
        kinds = [layer.kind for layer in table]
        pools = [number for number, kind in enumerate(kinds) if kind == "pool"][:IN_SLABS]
        ups = [number for number, kind in enumerate(kinds) if kind == "up"][::-1][:IN_SLABS]
        # The last convolution, whose rounding is the posteriors', is done apart, in float32, with all that follows it.
        cut = len(kinds) - 1 - kinds[::-1].index("conv") if self._precision == BF16 else len(table)
        starts, stops = [0, *pools], [cut, *ups]
        self._levels = [
            Level(table[start], table[start + 1 : pool + 1], table[up:stop], table)
            for start, pool, up, stop in zip(starts, pools, ups, stops, strict=False)  # one start and stop more
        ]
        self._deep, self._last = table[pools[-1] + 1 : ups[-1]], table[cut:]
        self._last_reach = sum(map(_reach, self._last))

    def posteriors(self, volume):
        try:
            yield from self._through(0, self._image_array(volume))
        except RuntimeError as error:
            if "alloc" in str(error):  # std::bad_alloc, and what oneDNN says of it
                raise MemoryError("OpenVINO: no memory for an array") from error
            raise
        finally:
            self._release()

    def _through(self, number, source):
        """A level and all coarser ones: yields (start, slab) of its features, at the finest level of the posteriors.

        source : (planes, Y, Z, channels), the image or what the finer level pooled
        """
        level, (x, y, z) = self._levels[number], source.shape[:3]
        skip = self._array(x, y, z, level.skip.channels)
        pooled = self._array(x // 2, y // 2, z // 2, level.pooled.channels)
        reach = level.head_reach
        for start, stop, low, high in _slabs(x, y * z * level.skip.channels):
            part = source[start - low * reach : stop + high * reach]
            self._run(("head", number, low, high), (part,), (skip[start:stop], pooled[start // 2 : stop // 2]))
        del source
        deep = self._array(x // 2, y // 2, z // 2, level.deep.channels)
        if number + 1 < len(self._levels):
            for start, slab in self._through(number + 1, pooled):
                deep[start : start + len(slab)] = slab
        else:
            self._run(("deep", number, 0, 0), (pooled,), (deep,))
        del pooled
        last = 0 if number else self._last_reach
        reach, half = level.tail_reach + last, level.deep_reach(last)
        slabs = list(_slabs(x, y * z * level.skip.channels))
        # The same arrays for all slabs: the last one is copied by now, and fresh memory takes time.
        most, channels = max(stop - start for start, stop, *_ in slabs), level.tail[-1].channels
        shape = most + 2 * last, y, z, channels
        features = self._array(*shape) if number else np.empty(shape, dtype=np.float32)
        result = None
        if self._last and not number:
            result = np.empty((most, y, z, self._last[-1].channels), dtype=np.float32)
        for start, stop, low, high in slabs:
            around = skip[start - low * reach : stop + high * reach]
            below = deep[start // 2 - low * half : stop // 2 + high * half]
            slab = features[: stop - start + (low + high) * last]
            self._run(("tail", number, low, high), (around, below), (slab,))
            if result is not None:
                slab, given = result[: stop - start], slab
                self._run(("last", number, low, high), (given,), (slab,))
            yield start, slab

    def _array(self, *shape):
        """An array for what goes from one part to the next; of bfloat16 the bits."""
        return np.empty(shape, dtype=np.uint16 if self._precision == BF16 else np.float32)

    def _image_array(self, volume):
        """The image (planes, Y, Z) as the input of the first convolution; see `split_kernel`."""
        if self._precision != BF16:
            return np.ascontiguousarray(volume)[..., None]
        coarse = to_bf16(volume)
        fine = to_bf16(volume - from_bf16(coarse))
        return np.stack([coarse, fine, coarse], axis=-1)

    # --- graphs ------------------------------------------------------------------------------------------------------

    def _run(self, part, inputs, outputs):
        """Run a part (name, level, low, high) on arrays (planes, Y, Z, channels), which share their memory with
        OpenVINO; low, high : whether there are planes of the volume below and above these."""
        stage = part[0].replace("last", "tail"), *part[1:]
        if stage != self._stage:
            self._release()
            self._stage = stage
        key = *part, *(array.shape for array in inputs)
        if key not in self._compiled:
            self._compiled[key] = self._compile(*part, inputs)
        self._used.add(key)
        self._recent.add(key)
        request = self._compiled[key].create_infer_request()
        for number, array in enumerate(inputs):
            request.set_input_tensor(number, self._tensor(array))
        for number, array in enumerate(outputs):
            request.set_output_tensor(number, self._tensor(array))
        request.infer()

    def _release(self):
        """Give back the intermediate tensors of the graphs that ran: each keeps its own."""
        for key in self._used:
            if key[0] == "head":  # would keep a copy of its slab of the skip tensor all the same
                del self._compiled[key]
            else:
                self._compiled[key].release_memory()
        self._used, self._stage = set(), None

    def _type(self, array):
        return self._ov.Type.bf16 if array.dtype == np.uint16 else self._ov.Type.f32

    def _tensor(self, array):
        return self._ov.Tensor(array[None], self._ov.Shape([1, *array.shape]), self._type(array))

    def _compile(self, part, number, low, high, inputs):
        ov, graph, level = self._ov, Graph(self._ov, self._weights), self._levels[number]
        parameters = [ov.opset13.parameter([1, *array.shape], self._type(array)) for array in inputs]
        last, bits = 0 if number else self._last_reach, self._precision == BF16
        tail = [(level.skip, level.tail_reach + last), (level.deep, level.deep_reach(last))]
        layers, sources, results, bits = {
            "head": (level.head, [(level.source, level.head_reach)], [level.skip, level.pooled], bits),
            "deep": (self._deep, [(level.pooled, 0)], [level.deep], bits),
            "tail": (level.tail, tail, level.tail[-1:], bits and number > 0),
            "last": (self._last, [(level.tail[-1], last)], self._last[-1:], False),
        }[part]
        for parameter, (layer, reach) in zip(parameters, sources, strict=True):
            graph.take(layer.name, parameter, low * reach, high * reach)
        graph.add(layers)
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if self._precision == BF16 and part != "last" else "f32",
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": 1,
        }
        model = ov.Model([graph.give(layer.name, bits) for layer in results], parameters)
        return self._core.compile_model(model, "CPU", settings)


class Level:
    """The layers of one level that is done in slabs.

    source : what it begins with · head, tail : its layers · skip, pooled : what the head gives · deep : what the tail
    takes from the coarser levels · head_reach, tail_reach : planes read beyond those written, on either side
    """

    def __init__(self, source, head, tail, table):
        layers = {layer.name: layer for layer in table}
        self.source, self.head, self.tail = source, head, tail
        self.pooled, self.deep = head[-1], layers[tail[0].inputs[0]]
        self.skip = layers[tail[1].inputs[0]]
        self.head_reach, self.tail_reach = sum(map(_reach, head)), sum(map(_reach, tail))

    def deep_reach(self, more):
        """Planes of the deep tensor beyond a slab: half of those of the skip tensor, rounded up. more : planes that
        what follows the tail reaches."""
        return (self.tail_reach + more + 1) // 2


def _slabs(planes, plane):
    """(start, stop, low, high): planes of a slab, and whether there are planes below and above it.

    plane : numbers in a plane of the level's features
    """
    size, start = max(int(SLAB_BYTES / (4 * plane)) // 2 * 2, SMALLEST_SLAB), 0
    while start < planes:
        stop = start + size
        if planes - stop < SMALLEST_SLAB:
            stop = planes
        yield start, stop, int(start > 0), int(stop < planes)
        start = stop


def _reach(layer):
    """Planes that a layer reads beyond those it writes, on either side."""
    if layer.kind == "conv":
        return layer.weights["kernel"][0] // 2
    return gaussian_kernel(layer.sigma).shape[0] // 2 if layer.kind == "smooth" else 0


class Graph:
    """Turns layers into OpenVINO operations on tensors (1, channels, planes, Y, Z).

    Every tensor is known with the planes (low, high) that it has beyond the slab: none at a border of the volume, and
    there zero padding applies. An upsampling or a concatenation is only noted, for the convolution that reads it.
    """

    def __init__(self, ov, weights):
        self.ov, self.ops, self.weights = ov, ov.opset13, weights
        self.tensors, self.noted = {}, {}

    def take(self, name, parameter, low, high):
        """A tensor (1, planes, Y, Z, channels) from outside."""
        if parameter.get_element_type() != self.ov.Type.f32:
            parameter = self.ops.convert(parameter, "f32")
        self.tensors[name] = self.ops.transpose(parameter, np.array([0, 4, 1, 2, 3])), low, high

    def give(self, name, bits):
        """The same for outside, as bfloat16 on request."""
        node = self.ops.transpose(self.tensors[name][0], np.array([0, 2, 3, 4, 1]))
        return self.ops.convert(node, "bf16") if bits else node

    def add(self, layers):
        for layer in layers:
            if layer.kind in ("up", "concat"):
                self.noted[layer.name] = layer
            else:
                self.tensors[layer.name] = getattr(self, f"_{layer.kind}")(layer)

    def _conv(self, layer):
        """A convolution, of a concatenation the sum over what was put together."""
        ops, (source,), w = self.ops, layer.inputs, self.weights[layer.name]
        reach, parts = _reach(layer), [source]
        if source in self.noted:
            parts = self.noted[source].inputs
        total, first, planes = None, 0, None
        for name in parts:
            upsampled = self.noted.get(name)
            node, low, high = self.tensors[upsampled.inputs[0] if upsampled else name]
            channels = node.shape[1]
            kernel = w["kernel"][..., first : first + channels, :]
            first += channels
            if upsampled:  # comes second: the planes that the first part leaves are what is wanted
                kernel = np.ascontiguousarray(transposed_kernel(kernel).transpose(3, 4, 0, 1, 2))
                cut = [1 + 2 * low - planes[0], 1, 1], [1 + 2 * high - planes[1], 1, 1]
                node = ops.convolution_backprop_data(node, ops.constant(kernel), [2] * 3, None, *cut, [1] * 3)
            else:
                planes = max(low - reach, 0), max(high - reach, 0)
                kernel = np.ascontiguousarray(kernel.transpose(4, 3, 0, 1, 2))
                padding = self._padding(reach, low, high)
                node = ops.convolution(node, ops.constant(kernel), [1] * 3, *padding, [1] * 3)
            total = node if total is None else ops.add(total, node)
        total = ops.add(total, self._per_channel(w["bias"]))
        return (ops.elu(total, 1.0) if layer.activation == "elu" else total), *planes

    @staticmethod
    def _padding(reach, low, high):
        """Zeros before and after: along the first axis at the volume's borders alone."""
        return [0 if low else reach, reach, reach], [0 if high else reach, reach, reach]

    def _per_channel(self, values):
        return self.ops.constant(np.ascontiguousarray(values, dtype=np.float32).reshape(1, -1, 1, 1, 1))

    def _norm(self, layer):
        node, *planes = self.tensors[layer.inputs[0]]
        w = {name: value.astype(np.float64) for name, value in self.weights[layer.name].items()}
        scale = w["gamma"] / np.sqrt(w["moving_variance"] + NORMALISATION_EPSILON)
        node = self.ops.multiply(node, self._per_channel(scale))
        return self.ops.add(node, self._per_channel(w["beta"] - w["moving_mean"] * scale)), *planes

    def _pool(self, layer):
        node, low, high = self.tensors[layer.inputs[0]]
        pooled = self.ops.max_pool(node, [2] * 3, [1] * 3, [0] * 3, [0] * 3, [2] * 3)
        return pooled.output(0), low // 2, high // 2

    def _softmax(self, layer):
        # Over the last axis, which is where the convolutions keep their channels: over axis 1 all is moved twice.
        node, *planes = self.tensors[layer.inputs[0]]
        node = self.ops.softmax(self.ops.transpose(node, np.array([0, 2, 3, 4, 1])), 4)
        return self.ops.transpose(node, np.array([0, 4, 1, 2, 3])), *planes

    def _smooth(self, layer):
        node, low, high = self.tensors[layer.inputs[0]]
        kernel = np.tile(gaussian_kernel(layer.sigma), (layer.channels, 1, 1, 1, 1, 1))
        padding = self._padding(_reach(layer), low, high)
        return self.ops.group_convolution(node, self.ops.constant(kernel), [1] * 3, *padding, [1] * 3), 0, 0
