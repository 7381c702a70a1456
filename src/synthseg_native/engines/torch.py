"""The PyTorch engine: the layer table in slabs along the first axis, for NVIDIA GPUs (cuda), Apple GPUs (mps) and CPUs.

Only the image, the skip tensors and what is upsampled next exist whole. Everything else is computed slab by slab from
those, with a halo of planes, so that memory and the size of any one tensor are bounded (Apple's GPUs abort at 2^32
bytes, and share their memory with the system). Zeros are added where the volume ends, never where a slab ends: a slab
has the same numbers as the whole.

Two identities keep the upsampled and the concatenated tensor from existing: conv(concat(a, b)) = conv_a(a) +
conv_b(b); and kernel 3 over an image doubled by nearest neighbour is, for every other voxel along each axis, kernel 2
over the image itself, and kernel 5 is kernel 3. (The first is a transposed convolution of kernel 4, stride 2, padding
1; as an ordinary convolution it needs no operation more than the rest, and Apple's GPUs have transposed ones in float32
only.)

Only operations that are sound on Apple's GPUs are used: no padding of 5-D tensors, contiguous inputs and weights. What
is sound on a machine is decided by the probes (`verify`), never here.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from math import prod
from typing import Any

import numpy as np

from synthseg_native.engines import capabilities
from synthseg_native.errors import SynthSegError
from synthseg_native.networks.layers import GIVEN, NORMALISATION_EPSILON, Layer, Weights, gaussian_kernel

CAN = capabilities.Capabilities()
SLAB_BYTES = 2**27  # of one tensor in float32: a dozen planes of 256 x 256, 33 labels
OLDEST = (2, 11)
OLDEST_MPS = (2, 14)  # before it, 3-D convolutions on Apple's GPUs were slow or wrong
NO_MEMORY = re.compile("out of memory|can't allocate memory|invalid buffer size", re.IGNORECASE)


def check(table: list[Layer]) -> None:
    """See `engines`."""
    capabilities.check("torch", CAN, table)


def build(
    table: list[Layer], weights: Weights, *, device: str = "cpu", threads: int = 1, precision: str = "float32"
) -> "TorchEngine":
    """See `engines`. Devices: cpu, gpu (cuda, else mps). Precisions: float32, and bf16 where the device has it."""
    if device not in ("cpu", "gpu"):
        raise SynthSegError("usage", f"device {device}: the torch engine runs on cpu or gpu: ask for one of them")
    check(table)
    torch = start(threads)
    place = place_of(torch, device)
    if place is None:
        raise SynthSegError("usage", "device gpu: PyTorch sees none: use --device cpu")
    if place == "mps" and _version(torch) < OLDEST_MPS:
        raise SynthSegError("usage", f"torch {torch.__version__}: too old for Apple's GPUs: {_ADVICE}")
    if precision not in precisions(torch, place):
        raise SynthSegError("usage", f"precision bf16: this {device} does not compute in it: ask for float32")
    return TorchEngine(torch, table, weights, device, place, torch.bfloat16 if precision == "bf16" else None)


_ADVICE = "install the environment envs/torch.txt"


def _version(torch):
    return tuple(int(number) for number in torch.__version__.split(".")[:2])


def start(threads: int) -> Any:
    """Import PyTorch and set it, for the whole process, to full precision and to the same bits in every run."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for the same bits; read when CUDA starts
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a library of CUDA's is missing
        raise SynthSegError("usage", f"torch: cannot be imported ({error}): {_ADVICE}") from error
    if _version(torch) < OLDEST:
        raise SynthSegError("usage", f"torch {torch.__version__}: too old: {_ADVICE}")
    torch.set_num_threads(threads)
    torch.backends.fp32_precision = "ieee"  # no TF32
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # before 2.13 it does not follow the word for all
    torch.backends.cudnn.benchmark = False  # it would choose by time, a different kernel in every run
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    return torch


def place_of(torch: Any, device: str) -> str | None:
    """PyTorch's name for device cpu or gpu, or None where it sees no GPU."""
    if device == "cpu":
        return "cpu"
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else None


def precisions(torch: Any, place: str) -> list[str]:
    """What the device computes in by itself, not by emulation."""
    if place == "cpu":
        bf16 = any(has for name, has in torch.cpu.get_capabilities().items() if "bf16" in name)
    else:
        bf16 = place == "mps" or torch.cuda.is_bf16_supported(including_emulation=False)
    return ["float32", "bf16"] if bf16 else ["float32"]


def folding(size: int) -> np.ndarray:
    """How a line of a kernel of this odd size over doubled voxels is one over the voxels, (2, size // 2 + 1, size): for
    even voxels of the doubled line, and for odd ones.

    >>> folding(3).astype(int).tolist()
    [[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]]
    """
    read = [[(odd + z - size // 2) // 2 for z in range(size)] for odd in (0, 1)]
    return np.float32([[[n == each[0] + row for n in each] for row in range(size // 2 + 1)] for each in read])


def _folded(kernel):
    """The kernel (n, n, n, in, 8 out) over an image that equals `kernel` (size, size, size, in, out) over the doubled
    image."""
    fold = folding(len(kernel))
    parts = [np.einsum("ai,bj,ck,ijkxy->abcxy", *(fold[n] for n in odd), kernel) for odd in product((0, 1), repeat=3)]
    return np.concatenate(parts, axis=-1)


class TorchEngine:
    """An engine; see `engines` for the contract."""

    name, can = "torch", CAN

    def __init__(self, torch, table, weights, device, place, reduced):
        """reduced : the type of activations and weights but in `_precise` layers; None for float32."""
        self.torch = torch
        self.version = torch.__version__
        self.device = device
        self.device_reason = "asked for"
        self._place = torch.device(place)
        # What each backend is fast at, and the only layout that Apple's GPUs are sound in.
        self._layout = torch.channels_last_3d if place == "cpu" else torch.contiguous_format
        self._layers = {layer.name: layer for layer in table}
        self._type = reduced or torch.float32
        self._given = [layer for layer in table if layer.kind in GIVEN]
        self._steps = self._plan(table)
        self._whole = {name for name, _ in self._steps}
        # Where rounding costs most voxels, float32 stays: in what reads the images, and from the last doubling on.
        names = [layer.name for layer in table]
        doubled = max((number for number, layer in enumerate(table) if layer.kind == "up"), default=0)
        first = next(number for number, layer in enumerate(table) if layer.kind == "conv")
        self._precise = {*names[: first + 1], *names[doubled:]}
        self._shapes = {}
        with self._told():
            self._weights = {layer.name: self._prepare(layer, weights.get(layer.name)) for layer in table}

    def _shape(self, shape):
        """Note the shape of each layer's output, without its channels, for volumes of a shape."""
        self._shapes = shapes = {}
        for layer in self._layers.values():
            size = shapes[layer.inputs[-1]] if layer.inputs else tuple(shape)
            if layer.kind == "pool":
                size = tuple(n // 2 for n in size)
            if layer.kind == "mean":
                size = (1, 1, 1)
            shapes[layer.name] = tuple(2 * n for n in size) if layer.kind == "up" else size

    def release(self) -> None:
        """Nothing is left by a pass."""

    def run(self, inputs: dict[str, np.ndarray], smoothing: float = 0.0) -> Iterator[tuple[int, np.ndarray]]:
        """See `engines`."""
        steps, (last, _) = self._steps[len(self._given) : -1], self._steps[-1]
        self._shape(inputs[self._given[0].name].shape)
        with self._told():
            whole = {}
            for layer in self._given:
                kind = np.uint8 if layer.kind == "onehot" else np.float32
                whole[layer.name] = self._put(np.asarray(inputs[layer.name], kind)[None, None])
            for name, done in steps:
                output = self._empty(self._layers[name].channels, self._shapes[name], self._type)
                for start, stop in self._slabs(name):
                    output[:, :, start:stop] = self._compute(name, start, stop, whole)
                whole[name] = output
                for source in done:
                    del whole[source]
                del output
            kernel = self._gaussian(smoothing, self._layers[last].channels) if smoothing else None
            for start, stop in self._slabs(last):
                if kernel is None:
                    result = self._compute(last, start, stop, whole)
                else:
                    result = self._smoothed(last, start, stop, kernel, whole)
                yield start, result[0].permute(1, 2, 3, 0).contiguous().cpu().numpy()

    @contextmanager
    def _told(self):
        """PyTorch's many ways to say that memory is short, as one."""
        try:
            yield
        except RuntimeError as error:
            line = str(error).strip().splitlines()[0] if str(error).strip() else ""
            if NO_MEMORY.search(line):
                raise MemoryError(f"PyTorch: {line}") from error
            raise

    # The plan

    def _plan(self, table):
        """The outputs that exist whole, in order, each with those that nothing needs after it; the last one is handed
        out instead."""
        readers = {layer.name: [other for other in table if layer.name in other.inputs] for layer in table}
        names = [name for name, those in readers.items() if len(those) > 1 or any(r.kind == "up" for r in those)]
        given = [layer.name for layer in table if layer.kind in GIVEN]
        names = [*given, *(name for name in names if name not in given), table[-1].name]

        def sources(name):
            for source in self._layers[name].inputs:
                yield from [source] if source in names else sources(source)

        last_use = {source: name for name in names for source in sources(name)}
        return [(name, [source for source, last in last_use.items() if last == name]) for name in names]

    def _slabs(self, name):
        """(start, stop) of slabs of which no tensor on the way takes more than SLAB_BYTES, but for the halo."""

        def widest(name):
            layer = self._layers[name]
            own = 0 if layer.kind in ("concat", "up") else 4 * layer.channels * prod(self._shapes[name])
            return max([own, *(widest(source) for source in layer.inputs if source not in self._whole)])

        planes = self._shapes[name][0]
        step = max(1, SLAB_BYTES * planes // widest(name))
        return [(start, min(start + step, planes)) for start in range(0, planes, step)]

    # Weights

    def _prepare(self, layer, values):
        """A layer's weights on the device, as its operation takes them."""
        if layer.kind == "norm":
            scale = values["gamma"] / np.sqrt(values["moving_variance"].astype(np.float64) + NORMALISATION_EPSILON)
            shift = values["beta"] - values["moving_mean"] * scale
            return [self._put(v.astype(np.float32).reshape(1, -1, 1, 1, 1)) for v in (scale, shift)]
        if layer.kind != "conv":
            return None
        kind = self.torch.float32 if layer.name in self._precise else self._type
        parts, start = [], 0
        for source in self._read_by(layer):
            kernel = values["kernel"][:, :, :, start : start + source.channels]
            start += source.channels
            kernel = _folded(kernel) if source.kind == "up" else kernel
            parts.append(self._put(kernel.transpose(4, 3, 0, 1, 2), kind))
        return parts, self._put(values["bias"], kind)

    def _gaussian(self, sigma, channels):
        kernel = gaussian_kernel(sigma)
        return self._put(np.broadcast_to(kernel, (channels, 1, *kernel.shape)))

    def _read_by(self, layer):
        """The layers that a convolution reads, those behind a concatenation one by one."""
        (name,) = layer.inputs
        source = self._layers[name]
        return [self._layers[part] for part in source.inputs] if source.kind == "concat" else [source]

    def _put(self, array, kind=None):
        array = np.ascontiguousarray(array, np.uint8 if array.dtype == np.uint8 else np.float32)
        tensor = self.torch.tensor(array, dtype=kind, device=self._place)
        return tensor.contiguous(memory_format=self._layout) if tensor.ndim == 5 else tensor

    def _empty(self, channels, shape, kind):
        size = (1, channels, *shape)
        return self.torch.empty(size, dtype=kind, device=self._place, memory_format=self._layout)

    # Computing

    def _compute(self, name, start, stop, whole):
        """Planes start to stop of a layer's output (1, channels, planes, Y, Z), from what exists whole."""
        with self.torch.inference_mode():
            layer = self._layers[name]
            return getattr(self, f"_{layer.kind}")(layer, start, stop, whole)

    def _planes(self, name, start, stop, whole):
        if name not in whole:
            return self._compute(name, start, stop, whole)
        planes, layer = whole[name][:, :, start:stop], self._layers[name]
        if layer.kind == "onehot":
            numbers = self.torch.arange(layer.channels, dtype=planes.dtype, device=self._place)
            return (planes == numbers.view(1, -1, 1, 1, 1)).to(self.torch.float32)
        return planes

    def _conv(self, layer, start, stop, whole):
        parts, bias = self._weights[layer.name]
        total = None
        for source, kernel in zip(self._read_by(layer), parts, strict=True):
            if source.kind == "up":
                part = self._convolve_doubled(source.inputs[0], start, stop, kernel, whole)
                if total is None:
                    part.add_(bias.view(1, -1, 1, 1, 1))
            else:
                part = self._convolve(source.name, start, stop, kernel, whole, bias if total is None else None)
            total = part if total is None else total.add_(part)
            del part
        return self._activated(layer, total)

    def _activated(self, layer, total):
        """The activation of a layer, in place."""
        if layer.activation == "none":
            return total
        functional = self.torch.nn.functional
        return (functional.elu_ if layer.activation == "elu" else functional.relu_)(total)

    def _convolve(self, source, start, stop, kernel, whole, bias=None, groups=1):
        """Planes start to stop of a convolution of a layer's output, which is zero outside of the volume.

        Plane i of kernel size k reads the planes i - k // 2 to i - k // 2 + k - 1.
        """
        reach = kernel.shape[-1] // 2
        planes = self._shapes[source][0]
        first, last = start - reach, stop - reach + kernel.shape[-1] - 1
        before, behind = max(0, -first), max(0, last - planes)
        x = self._planes(source, max(0, first), min(last, planes), whole)
        x = x.to(kernel.dtype).contiguous(memory_format=self._layout)
        # The convolution adds zeros on both sides alike: where the volume ends on one side only, the planes that saw
        # zeros on the other are cut off.
        more = max(before, behind)
        y = self.torch.nn.functional.conv3d(x, kernel, bias, padding=(more, reach, reach), groups=groups)
        y = y[:, :, more - before : y.shape[2] - (more - behind)] if before != behind else y
        return y.contiguous(memory_format=self._layout)

    def _convolve_doubled(self, source, start, stop, kernel, whole):
        """Planes start to stop of a convolution of a layer's output doubled by nearest neighbour.

        kernel : from `_folded`. Voxel 2i of the doubled image is voxel i of the first eighth of the channels, voxel
        2i + 1 is voxel i, where the folded kernel's size is even i + 1, of the last, and so on along each axis.
        """
        first, last, shift = start // 2, (stop + 1) // 2, 1 - kernel.shape[-1] % 2
        folded = self._convolve(source, first, last + shift, kernel, whole)
        sizes = [n - shift for n in folded.shape[2:]]
        y = self._empty(folded.shape[1] // 8, [2 * n for n in sizes], folded.dtype)
        for part, odd in zip(folded.chunk(8, dim=1), product((0, 1), repeat=3), strict=True):
            (a, b, c), (n, m, k) = odd, sizes
            i, j, h = (shift * each for each in odd)
            y[:, :, a::2, b::2, c::2] = part[:, :, i : i + n, j : j + m, h : h + k]
        return y[:, :, start - 2 * first : stop - 2 * first]

    def _norm(self, layer, start, stop, whole):
        scale, shift = self._weights[layer.name]
        return (self._planes(layer.inputs[0], start, stop, whole) * scale).add_(shift)

    def _pool(self, layer, start, stop, whole):
        x = self._planes(layer.inputs[0], 2 * start, 2 * stop, whole)
        return self.torch.nn.functional.max_pool3d(x.contiguous(memory_format=self._layout), 2)

    def _add(self, layer, start, stop, whole):
        one, other = (self._planes(name, start, stop, whole) for name in layer.inputs)
        return self._activated(layer, one + other)

    def _mean(self, layer, start, stop, whole):
        (source,) = layer.inputs
        return self._planes(source, 0, self._shapes[source][0], whole).mean(dim=(2, 3, 4), keepdim=True)

    def _softmax(self, layer, start, stop, whole):
        return self._planes(layer.inputs[0], start, stop, whole).softmax(dim=1)

    def _smoothed(self, name, start, stop, kernel, whole):
        """Planes start to stop of a layer's output, each channel convolved with a `_gaussian`."""
        with self.torch.inference_mode():
            return self._convolve(name, start, stop, kernel, whole, groups=self._layers[name].channels)
