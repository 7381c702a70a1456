"""A network, a few planes at a time through kernels of our own.

At the finest level a tensor of the whole volume takes a gigabyte. Here a step computes its planes when the next one
asks for them, and keeps them until they were read; which results are kept whole, `steps` says.

Stream.run : image -> the steps whose results are kept whole, the finest first -> all others, as they are asked for
    -> posteriors, BLOCK planes at a time, the first ones first or the last ones
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from synthseg_native.engines.kernels import language, operations, winograd
from synthseg_native.engines.kernels.layout import TILE, VECTORS, Layout, block_of, zeros
from synthseg_native.engines.kernels.library import Library
from synthseg_native.engines.kernels.planes import BLOCK, Given, Memory, Planes, any_alike, around, halved
from synthseg_native.engines.kernels.steps import Step, Steps
from synthseg_native.networks.layers import NORMALISATION_EPSILON, Weights, gaussian_kernel
from synthseg_native.networks.weights import default_cache

PARTS = 4  # of a kernel's rows, for each thread
SMOOTHED = (1, 3)  # sizes of the smoothing's kernel: none, and SynthSeg's


def factors_of(step: Step, weights: Weights) -> np.ndarray:
    """Factor and summand per channel, (2, N) float32, of the normalisation of a step; 1 and 0 where it has none."""
    if step.norm is None:
        return np.repeat(np.float32([[1], [0]]), step.layer.channels, axis=1)
    w = {name: value.astype(np.float64) for name, value in weights[step.norm.name].items()}
    scale = w["gamma"] / np.sqrt(w["moving_variance"] + NORMALISATION_EPSILON)
    return np.stack([scale, w["beta"] - w["moving_mean"] * scale]).astype(np.float32)


class Convolution:
    """A convolution layer, with its activation and the normalisation behind it.

    step : of `steps` · channels : of the tensors that it reads, by name · halo : of all planes
    """

    def __init__(self, step: Step, channels: dict[str, int], weights: Weights, library: Library, halo: int):
        machine, layer = library.machine, step.layer
        w = weights[layer.name]
        self.channels, self.sources = layer.channels, [(channels[name], up) for name, up in step.sources]
        block, kernel = block_of(layer.channels, machine), w["kernel"]
        if kernel.shape[0] == 1:
            kernel = np.pad(kernel, [(1, 1)] * 3 + [(0, 0)] * 2)
        self.size, ups = len(kernel), [upsampled for _, upsampled in self.sources]
        parts = np.split(kernel, np.cumsum([n for n, _ in self.sources])[:-1], axis=3)
        self.weights = winograd.winograd_weights(parts, ups, block)
        after = factors_of(step, weights)
        self.per_channel = np.ascontiguousarray(np.concatenate([w["bias"][None], after]), dtype=np.float32)
        self.scratch = winograd.scratch_size(self.size, self.sources, layer.channels, machine.lanes)
        added = step.added is not None
        named = self.size, step.activation, "".join("du"[up] for up in ups) + "a" * added, block
        self.kernel = "_".join(["convolution", *map(str, named)])
        library.add(self.kernel, winograd.convolution, self.size, step.activation, ups, block, halo, added)

    def together(self, z: int, lanes: int) -> int:
        """How many tiles along y are done side by side, of rows of z numbers."""
        upsampled = any(upsampled for _, upsampled in self.sources)
        return 1 if upsampled else winograd.rows_together(z, self.size, lanes)


class Stream:
    """A network; see the module's text. It is made of `steps.Steps`."""

    def __init__(self, network: Steps, weights: Weights, threads: int):
        self._network, self._threads, self._memory = network, threads, Memory()
        library = Library(language.this_machine())
        self._machine, self._lanes = library.machine, library.machine.lanes
        convolutions = {name: step for name, step in network.steps.items() if step.layer.kind == "conv"}
        self._halo = max([1, *(step.layer.weights["kernel"][0] // 2 for step in convolutions.values())])
        # Planes that are kept of a tensor that is not whole: a block, the one before it, and what reaches into a third.
        self._near = 2 * BLOCK + self._halo
        self._channels = {network.source: sum(layer.channels for layer in network.inputs)}
        self._channels |= {name: step.layer.channels for name, step in network.steps.items()}
        self._pool = ThreadPoolExecutor(threads)

        def convolution(step):
            return Convolution(step, self._channels, weights, library, self._halo)

        self._convolutions = dict(zip(convolutions, self._pool.map(convolution, convolutions.values()), strict=True))
        self._factors = {
            name: factors_of(step, weights) for name, step in network.steps.items() if step.layer.kind == "pool"
        }
        library.add("pooling", operations.pooling, self._halo)
        likelihood_scratch = self._add_likelihood(library, weights) if network.last else 0
        self._compiled = self._pool.submit(library.compile, default_cache() / "kernels")  # meanwhile the scan is read
        size = max([likelihood_scratch, *(layer.scratch for layer in self._convolutions.values())])
        self._scratch = zeros((threads, -(-size // 16) * 16))

    def _add_likelihood(self, library, weights):
        """Write the last convolution and the smoothing; returns the numbers that a thread needs for the first."""
        last = self._network.last
        w, block = weights[last.name], operations.likelihood_block(last.channels, library.machine)
        self._likelihood = operations.likelihood_weights(w["kernel"][0, 0, 0], w["bias"], block)
        library.add("likelihood", operations.likelihood, block, self._network.softmax, self._halo)
        for size in SMOOTHED:
            library.add(f"smoothing_{size}", operations.smoothing, size)
        return len(self._likelihood) * block * VECTORS * self._lanes

    def run(
        self, volumes: dict[str, np.ndarray], sigma: float = 0.0, backwards: bool = False
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Iterate over (start, slab): what the network gives (planes, Y, Z, labels) of volumes (X, Y, Z) by the names
        of what it reads; a slab is valid until the next one of its run is asked for. sigma : of the smoothing
        of it, 0 for none · backwards : the last planes first, and the same bytes

        What is kept whole is computed by the call, all else as it is asked for.
        """
        self._gauss, last = _along_an_axis(sigma), self._network.last
        given = Given(self._network.inputs, volumes)
        halo = max(self._halo, len(self._gauss))
        channels = max(last.channels if last else 1, *self._channels.values())
        layout = Layout(given.volumes[0].shape[1:], channels, self._lanes, halo)
        self._zeros = zeros(layout.plane)
        self._outside = zeros(layout.plane)  # written where no plane is, and never read
        self._kernels = self._compiled.result()
        whole = {}
        features = self._planes_of(self._network.read, whole, given, backwards)
        for planes in whole.values():
            planes.need(0, planes.count)
        if last is None:
            mean = features.layout.inside(features.array[: features.count]).mean(axis=(0, 1, 2), dtype=np.float64)
            return iter([(0, mean.astype(np.float32)[None, None, None])])
        self._add_smoothing(len(self._gauss))
        return self._results(features, backwards)

    def release(self) -> None:
        """Give back the memory that one pass leaves for the next."""
        self._memory.release()

    def _planes_of(self, name, whole, given, backwards):
        """The planes that a step gives. whole : those that are kept whole, by name; new ones are added · given : what
        the network reads, put in place as often as it is read · backwards : of what is not kept whole, whether its last
        planes come first"""
        if name == self._network.source:
            return Planes.of(self._memory, given, self._lanes, self._halo, self._near, backwards)
        if name in whole:
            return whole[name]
        step = self._network.steps[name]
        backwards = backwards and not step.whole
        sources = [self._planes_of(source, whole, given, backwards) for source in step.reads]
        if step.layer.kind == "pool":
            planes = self._pool_of(*sources, self._factors[name], step.whole, backwards)
        else:
            added = sources.pop() if step.added else None
            layer, kept = self._convolutions[name], self._kept(name, step)
            planes = self._convolve(layer, sources, kept, backwards, added)
        if step.whole:
            whole[name] = planes
        return planes

    def _kept(self, name, step):
        if step.whole:
            return None
        return BLOCK if name == self._network.read else self._near  # the likelihood reads no neighbours

    def _add_smoothing(self, size):
        """Compile the smoothing of a size that SynthSeg does not have."""
        name = f"smoothing_{size}"
        if name not in self._kernels:
            library = Library(self._machine)
            library.add(name, operations.smoothing, size)
            self._kernels |= library.compile(default_cache() / "kernels")

    def _convolve(self, layer, sources, kept, backwards, added=None):
        (planes, (_, upsampled)), *_ = zip(sources, layer.sources, strict=True)
        double = 1 + upsampled
        shape = tuple(double * n for n in planes.layout.shape)
        layout = Layout(shape, layer.channels, self._lanes, self._halo)
        result = Planes(self._memory, layout, double * planes.count, kept, backwards)
        (y, z), padding, outside = shape, self._zeros, self._outside  # of this run: another one has others
        tiles, together = -(-y // TILE), layer.together(z, self._lanes)
        groups = -(-tiles // together)
        # Small results in one go: else there were too little for many threads.
        read = [*sources, *([added] if added else [])]
        at_once = not backwards and all(planes.whole for planes in [result, *read])
        blocks, model = -(-result.count // BLOCK) if at_once else 1, []
        if together == blocks == 1 and all(planes.alike is not None for planes in read) and double == 1:
            result.alike = any_alike(np.logical_and.reduce([around(planes.alike) for planes in read]))

        def tables(x):
            """What a block reads, and where its results are written."""
            table = []
            for planes, (_, upsampled) in zip(sources, layer.sources, strict=True):
                before = winograd.reach(layer.size, upsampled)
                first = (x // 2 if upsampled else x) - before
                count = winograd.planes_read(layer.size, upsampled)
                planes.need(first, first + count)
                table += planes.addresses(first, first + count, padding.ctypes.data)
            places = np.array(result.addresses(x, x + BLOCK, outside.ctypes.data))
            if added is None:
                return np.array(table), places, places
            added.need(x, x + BLOCK)
            return np.array(table), places, np.array(added.addresses(x, x + BLOCK, padding.ctypes.data))

        def make(x):
            given = [tables(x + n * BLOCK) for n in range(blocks)]
            sizes = [y, z, layer.channels, layout.row, together, z + layer.size - 1]
            sizes += [n for planes in sources for n in (planes.layout.channels, planes.layout.row)]

            def run(first, last, scratch):
                for number, addresses in enumerate(given):
                    start, stop = (min(max(n - number * groups, 0), groups) * together for n in (first, last))
                    if start < stop:
                        arrays = *addresses, layer.weights, layer.per_channel, scratch
                        pointers = [array.ctypes.data for array in arrays]
                        self._kernels[layer.kernel](*pointers, start, min(stop, tiles), *sizes)

            def run_or_copy(first, last, scratch):
                bounds = first + 1 + np.flatnonzero(np.diff(alike[first:last]))
                for start, stop in pairwise([first, *bounds.tolist(), last]):
                    if alike[start]:
                        for plane, rows in zip(result.rows(x, start, stop), model, strict=True):
                            plane.reshape(-1, *rows.shape)[...] = rows
                    else:
                        run(start, stop, scratch)

            if result.alike is None or not (alike := result.alike[x // BLOCK]).any():
                self._share(run, blocks * groups)
                return x + blocks * BLOCK
            if not model:  # what all tiles hold that are alike
                tile = int(alike.argmax())
                run(tile, tile + 1, self._scratch[0])
                model.extend(plane.copy() for plane in result.rows(x, tile, tile + 1))
            self._share(run_or_copy, tiles)
            return x + BLOCK

        result.make = make
        return result

    def _pool_of(self, source, factors, whole, backwards):
        (y, z), channels = source.layout.shape, source.layout.channels
        layout = Layout((y // 2, z // 2), channels, self._lanes, self._halo)
        result = Planes(self._memory, layout, source.count // 2, None if whole else self._near, backwards)
        result.alike = None if source.alike is None else any_alike(halved(source.alike))

        def make(x):
            order = range(x, min(x + BLOCK, result.count))
            for i in reversed(order) if backwards else order:
                source.need(2 * i, 2 * i + 2)
                table = np.array(source.addresses(2 * i, 2 * i + 2, 0))
                (place,) = result.addresses(i, i + 1, 0)

                def run(first, last, scratch, table=table, place=place):
                    self._kernels["pooling"](
                        *(table.ctypes.data, place, factors.ctypes.data, first, last),
                        *(z // 2, channels, source.layout.row, layout.row),
                    )

                self._share(run, y // 2)
            return x + BLOCK

        result.make = make
        return result

    def _results(self, source, backwards):
        """Likelihoods, softmax and smoothing of the features of the finest level."""
        (y, z), labels, size = source.layout.shape, self._network.last.channels, len(self._gauss)
        reach, count, gauss, outside = size // 2, source.count, self._gauss, self._zeros
        layout = Layout((y, z), labels, self._lanes, halo=reach)
        probabilities = Planes(self._memory, layout, count, BLOCK + 2 * reach, backwards)

        def make(x):
            source.need(x, x + BLOCK)
            stop = min(x + BLOCK, count)
            table = np.array(source.addresses(x, stop, 0))
            places = np.array(probabilities.addresses(x, stop, 0))

            def run(first, last, scratch):
                self._kernels["likelihood"](
                    *(array.ctypes.data for array in (table, places, self._likelihood, scratch)),
                    *(stop - x, first, last, z, source.layout.channels, source.layout.row, labels, layout.row, reach),
                )

            self._share(run, y)
            return x + BLOCK

        probabilities.make = make
        width = -(-z // self._lanes) * self._lanes
        slab = zeros((BLOCK + reach, labels, y, width))
        start, stop = (count, count) if backwards else (0, 0)
        while start > 0 if backwards else stop < count:
            # All that has its neighbours by now.
            if backwards:
                probabilities.need(start - reach - 1, start)
                first, _ = probabilities.made
                start, stop = first + reach if first > 0 else 0, start
            else:
                probabilities.need(stop, stop + reach + 1)
                _, last = probabilities.made
                start, stop = stop, last - reach if last < count else count
            table = np.array(probabilities.addresses(start - reach, stop + reach, outside.ctypes.data))

            def run(first, last, scratch, start=start, stop=stop, table=table):
                self._kernels[f"smoothing_{size}"](
                    *(array.ctypes.data for array in (table, slab, gauss, scratch)),
                    *(stop - start, first, last, z, labels, layout.row, labels * y * width, y * width, width),
                )

            self._share(run, y)
            yield start, np.moveaxis(slab[: stop - start, :, :, :z], 1, 3)

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
