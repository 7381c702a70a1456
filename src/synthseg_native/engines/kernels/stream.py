"""The finest levels of the network, a few planes at a time through kernels of our own.

At the finest level a tensor of the whole volume takes a gigabyte. Here a layer computes its planes when the next one
asks for them, and keeps them until they were read: only the coarser levels' skip tensors are ever whole. The finest
level's head is computed twice, for what is pooled and for the tail: that takes about as long as getting the memory of
its skip tensor from the system, and takes a quarter less memory.

Stream.run : image -> head of level 0 -> head of level 1 -> `deep`, all that is coarser, given by the caller
    -> tail of level 1 -> tail of level 0, which reads head of level 0 again -> posteriors, BLOCK planes at a time
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from synthseg_native.engines.kernels import language, operations, winograd
from synthseg_native.engines.kernels.layout import TILE, VECTORS, Layout, block_of, zeros
from synthseg_native.engines.kernels.library import Library
from synthseg_native.networks.layers import NORMALISATION_EPSILON, gaussian_kernel
from synthseg_native.networks.weights import default_cache

BLOCK = TILE  # planes done at a time
PARTS = 4  # of a kernel's rows, for each thread
SMOOTHED = (1, 3)  # sizes of the smoothing's kernel: none, and SynthSeg's
KEPT = 3 * BLOCK  # planes of a tensor that is not kept whole: what a convolution reads lies in three blocks


class Memory:
    """Arrays for planes. One that is given back serves again, also in the next pass: a page that the system hands out
    anew is cleared first, on a virtual machine at a tenth of the speed at which memory is written. Kernels write zeros
    outside the volume, or nothing, so an array can serve planes of the same layout as it is."""

    def __init__(self):
        self._free = defaultdict(list)

    def take(self, layout: Layout, planes: int) -> np.ndarray:
        """An array for so many planes; what it holds may be of an earlier use."""
        free = self._free[layout, planes]
        return free.pop() if free else zeros((planes, *layout.plane), ahead=layout.halo)

    def give(self, layout: Layout, array: np.ndarray) -> None:
        """Give an array back."""
        self._free[layout, len(array)].append(array)

    def release(self) -> None:
        """Give all that serves nobody back to the system."""
        self._free.clear()


class Planes:
    """Planes 0 to `count` of features, made in blocks when asked for; outside these there is zero padding.

    memory : a `Memory`, which gets the array when nobody has the planes any more · kept : how many are kept, the last
    ones; None for all · make : to be set; called with the first plane of a block
    """

    def __init__(self, memory, layout, count, kept=None):
        self.layout, self.count, self.done, self.make = layout, count, 0, None
        self._memory, self.array = memory, memory.take(layout, kept or -(-count // BLOCK) * BLOCK)
        self._size = self.array[0].nbytes

    def __del__(self):
        if hasattr(self, "array"):  # there was memory for it
            self._memory.give(self.layout, self.array)

    @classmethod
    def of(cls, memory: Memory, array: np.ndarray, lanes: int) -> "Planes":
        """Planes that hold an array (planes, Y, Z, channels)."""
        planes = cls(memory, Layout(array.shape[1:3], array.shape[3], lanes), len(array))
        planes.layout.inside(planes.array[: len(array)])[...] = array
        planes.done = len(array)
        return planes

    def need(self, stop: int) -> None:
        """Make the planes up to `stop`."""
        while self.done < min(stop, self.count):
            self.make(self.done)
            self.done += BLOCK
        if self.done >= self.count:
            self.make = None  # it knows this object: both would stay in memory

    def addresses(self, start: int, stop: int, outside: int) -> list[int]:
        """Addresses of planes; outside : that of a plane of zeros."""
        first = self.array.ctypes.data
        return [
            first + i % len(self.array) * self._size if 0 <= i < self.count else outside for i in range(start, stop)
        ]


def norm_of(weights: dict[str, np.ndarray]) -> np.ndarray:
    """A normalisation's factor and summand per channel: (2, N) float32."""
    w = {name: value.astype(np.float64) for name, value in weights.items()}
    scale = w["gamma"] / np.sqrt(w["moving_variance"] + NORMALISATION_EPSILON)
    return np.stack([scale, w["beta"] - w["moving_mean"] * scale]).astype(np.float32)


class Convolution:
    """A convolution layer, with the normalisation behind it if that is all that reads it.

    channels : of the result · sources : (channels, whether upsampled) of what it reads
    """

    def __init__(self, layer, norm, sources, weights, library):
        machine, w = library.machine, weights[layer.name]
        self.channels, self.sources = layer.channels, sources
        block, kernel = block_of(layer.channels, machine), w["kernel"]
        if kernel.shape[0] == 1:
            kernel = np.pad(kernel, [(1, 1)] * 3 + [(0, 0)] * 2)
        ups = [upsampled for _, upsampled in sources]
        parts = np.split(kernel, np.cumsum([n for n, _ in sources])[:-1], axis=3)
        self.weights = winograd.winograd_weights(parts, ups, block)
        unchanged = np.repeat(np.float32([[1], [0]]), layer.channels, axis=1)
        after = unchanged if norm is None else norm_of(weights[norm.name])
        self.per_channel = np.ascontiguousarray(np.concatenate([w["bias"][None], after]), dtype=np.float32)
        self.scratch = winograd.scratch_size(sources, layer.channels, machine.lanes)
        self.kernel = f"convolution_{''.join('du'[up] for up in ups)}_{block}"
        library.add(self.kernel, winograd.convolution, ups, block)


class Stream:
    """The finest levels of one network; see the module's text.

    levels : `Level`s, the finest first · last : the layers behind the finest level's tail
    """

    def __init__(self, levels, last, weights, threads):
        self._threads, self._levels, self._memory = threads, [], Memory()
        library = Library(language.this_machine())
        self._machine, self._lanes = library.machine, library.machine.lanes
        for level in levels:
            head = _convolutions(level.head, [(level.source.channels, False)], weights, library)
            pool = norm_of(weights[level.head[-2].name])
            both = [(level.skip.channels, False), (level.deep.channels, True)]
            tail = _convolutions(level.tail[2:], both, weights, library)
            self._levels.append((head, pool, tail))
        library.add("pooling", operations.pooling)
        layer = last[0]
        block = operations.likelihood_block(layer.channels, library.machine)
        w = weights[layer.name]
        self._labels = layer.channels
        self._likelihood = operations.likelihood_weights(w["kernel"][0, 0, 0], w["bias"], block)
        self._likelihood_scratch = len(self._likelihood) * block * VECTORS * self._lanes
        library.add("likelihood", operations.likelihood, block)
        for size in SMOOTHED:
            library.add(f"smoothing_{size}", operations.smoothing, size)
        self._pool = ThreadPoolExecutor(threads)
        self._compiled = self._pool.submit(library.compile, default_cache() / "kernels")  # meanwhile the scan is read
        sizes = [layer.scratch for head, _, tail in self._levels for layer in [*head, *tail]]
        size = max(*sizes, self._likelihood_scratch)
        self._scratch = zeros((threads, -(-size // 16) * 16))

    def run(
        self, volume: np.ndarray, deep: Callable[[np.ndarray], np.ndarray], sigma: float = 0.0
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (start, slab): posteriors (planes, Y, Z, labels) of a volume (X, Y, Z); a slab is valid until the next
        one is asked for. deep : called with (planes, Y, Z, channels) of the last level's pooling, returns features
        (planes, Y, Z, channels) in one's place. sigma : of the smoothing of the posteriors, 0 for none."""
        self._gauss = _along_an_axis(sigma)
        read = (n for head, _, tail in self._levels for layer in [*head, *tail] for n, _ in layer.sources)
        layout = Layout(volume.shape[1:], max(self._labels, *read), self._lanes, len(self._gauss))
        self._zeros = zeros(layout.plane)
        self._outside = zeros(layout.plane)  # written where no plane is, and never read
        self._kernels = self._compiled.result()
        self._add_smoothing(len(self._gauss))
        # Its memory is not kept: nothing else has this layout.
        image = planes = Planes.of(Memory(), volume[..., None], self._lanes)
        skips, heads = [], [head for head, _, _ in self._levels]
        for head, pool, _ in self._levels:
            skips.append(self._head_of(planes, head, whole=head is not heads[0]))
            planes = self._pool_of(skips[-1], pool, whole=head is heads[-1])
        planes.need(planes.count)
        given = np.ascontiguousarray(planes.layout.inside(planes.array[: planes.count]))
        del planes
        planes = Planes.of(self._memory, deep(given), self._lanes)
        del given
        skips[0] = self._head_of(image, heads[0], whole=False)
        del image
        for (_, _, tail), skip in zip(reversed(self._levels), reversed(skips), strict=True):
            sources = [skip, planes]
            for layer in tail:
                last = layer is self._levels[0][2][-1]  # the likelihood reads no neighbours
                planes = self._convolve(layer, sources, kept=BLOCK if last else KEPT)
                sources = [planes]
        del skips, skip, sources
        yield from self._results(planes)

    def release(self) -> None:
        """Give back the memory that one pass leaves for the next."""
        self._memory.release()

    def _add_smoothing(self, size):
        """Compile the smoothing of a size that SynthSeg does not have."""
        name = f"smoothing_{size}"
        if name not in self._kernels:
            library = Library(self._machine)
            library.add(name, operations.smoothing, size)
            self._kernels |= library.compile(default_cache() / "kernels")

    def _head_of(self, planes, layers, whole):
        for layer in layers:
            planes = self._convolve(layer, [planes], kept=None if whole and layer is layers[-1] else KEPT)
        return planes

    def _convolve(self, layer, sources, kept):
        skip = sources[0]
        layout = Layout(skip.layout.shape, layer.channels, self._lanes)
        result = Planes(self._memory, layout, skip.count, kept)
        zeros = self._zeros.ctypes.data

        def make(x):
            table, sizes = [], []
            for planes, (channels, upsampled) in zip(sources, layer.sources, strict=True):
                reach = (x // 2 - 1, x // 2 + 3) if upsampled else (x - 1, x + BLOCK + 1)
                planes.need(reach[1])
                table += planes.addresses(*reach, zeros)
                sizes += [channels, planes.layout.row]
            table = np.array(table)
            places = np.array(result.addresses(x, x + BLOCK, self._outside.ctypes.data))
            (y, z), row = result.layout.shape, result.layout.row

            def run(first, last, scratch):
                self._kernels[layer.kernel](
                    *(array.ctypes.data for array in (table, places, layer.weights, layer.per_channel, scratch)),
                    *(first, last, y, z, layer.channels, row, *sizes),
                )  # fmt: skip

            self._share(run, -(-y // TILE))

        result.make = make
        return result

    def _pool_of(self, source, norm, whole):
        (y, z), channels = source.layout.shape, source.layout.channels
        layout = Layout((y // 2, z // 2), channels, self._lanes)
        result = Planes(self._memory, layout, source.count // 2, None if whole else KEPT)

        def make(x):
            for i in range(x, min(x + BLOCK, result.count)):
                source.need(2 * i + 2)
                table = np.array(source.addresses(2 * i, 2 * i + 2, 0))
                (place,) = result.addresses(i, i + 1, 0)

                def run(first, last, scratch, table=table, place=place):
                    self._kernels["pooling"](
                        *(table.ctypes.data, place, norm.ctypes.data, first, last),
                        *(z // 2, channels, source.layout.row, layout.row),
                    )

                self._share(run, y // 2)

        result.make = make
        return result

    def _results(self, source):
        """Likelihoods, softmax and smoothing of the features of the finest level."""
        (y, z), labels, size = source.layout.shape, self._labels, len(self._gauss)
        reach = size // 2
        layout = Layout((y, z), labels, self._lanes, halo=reach)
        # Smoothed plane by plane: what one takes lies in two blocks, if the kernel is not very large.
        kept = BLOCK * (1 + -(-2 * reach // BLOCK))
        probabilities = Planes(self._memory, layout, source.count, kept)

        def make(x):
            source.need(x + BLOCK)
            stop = min(x + BLOCK, source.count)
            table = np.array(source.addresses(x, stop, 0))
            places = np.array(probabilities.addresses(x, stop, 0))

            def run(first, last, scratch):
                self._kernels["likelihood"](
                    *(array.ctypes.data for array in (table, places, self._likelihood, scratch)),
                    *(stop - x, first, last, z, source.layout.channels, source.layout.row, labels, layout.row, reach),
                )

            self._share(run, y)

        probabilities.make = make
        width = -(-z // self._lanes) * self._lanes
        slab = zeros((BLOCK + reach, labels, y, width))
        start = 0
        while start < source.count:
            probabilities.need(start + reach + 1)
            # All that has its neighbours by now.
            stop = source.count if probabilities.done >= source.count else probabilities.done - reach
            table = np.array(probabilities.addresses(start - reach, stop + reach, self._zeros.ctypes.data))

            def run(first, last, scratch, start=start, stop=stop, table=table):
                self._kernels[f"smoothing_{size}"](
                    *(array.ctypes.data for array in (table, slab, self._gauss, scratch)),
                    *(stop - start, first, last, z, labels, layout.row, labels * y * width, y * width, width),
                )

            self._share(run, y)
            yield start, np.moveaxis(slab[: stop - start, :, :, :z], 1, 3)
            start = stop

    def _share(self, run, count):
        """Run a kernel on the rows 0 to count, by all threads: run(first, last, scratch). A thread takes the next part
        when it is done with one: they need not be equally fast."""
        parts = min(count, self._threads * PARTS if self._threads > 1 else 1)
        bounds = [count * n // parts for n in range(parts + 1)]
        left = iter(pairwise(bounds))

        def work(scratch):
            for first, last in left:
                run(first, last, scratch)

        list(self._pool.map(work, self._scratch))


def _along_an_axis(sigma):
    """`gaussian_kernel` along each of its axes, float32; of sigma 0 the kernel that changes nothing."""
    gauss = gaussian_kernel(sigma) if sigma else np.ones((1, 1, 1))
    return gauss.sum(axis=(1, 2), dtype=np.float64).astype(np.float32)


def _convolutions(layers, sources, weights, library):
    """The `Convolution`s among layers, the first one of these sources, each other one of the one before. The
    normalisation behind the last one belongs to it, but where there is a pooling: there the skip tensor leaves."""
    found, pooled = [], layers[-1].kind == "pool"
    for number, layer in enumerate(layers):
        if layer.kind == "conv":
            following = layers[number + 1] if number + 1 < len(layers) else None
            norm = following if following is not None and following.kind == "norm" and not pooled else None
            found.append(Convolution(layer, norm, sources, weights, library))
            sources = [(layer.channels, False)]
    return found
