"""Posteriors: what a network gives of an image and of its mirror image, averaged, a few planes at a time.

Posteriors are float32, none of them negative, channel 0 is background. Whole they would take a gigabyte: of each plane
what can still get a label is kept. Sums that decide about labels stay in float32 and in SynthSeg's order. Results are
the same however slabs are cut and for any number of threads.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from synthseg_native.engines.capabilities import Engine
from synthseg_native.errors import SynthSegError
from synthseg_native.networks.layers import gaussian_kernel
from synthseg_native.pipeline.smoothing import smoothed, smoothed_channels
from synthseg_native.scan.grid import workers

Box = tuple[slice, slice, slice]
ROWS = 16  # of a plane done at a time: all channels of them stay in the processor's cache
COARSE = 0.35  # share of a run's time before the first planes, where both passes go in step


class Posteriors:
    """Posteriors of an image (X, Y, Z), of all voxels that can get a label.

    These are the ones where all labels together exceed the threshold, which components are made of, or where the
    background has nothing. In all others what follows leaves the background alone: there it is 1, as after dividing.

    shape : (X, Y, Z, N) · threshold : of the sum of posteriors of all labels, above which there is brain
    places : for each plane x, (n,) int32, the kept voxels' places in (Y, Z) written as one row
    values : for each plane x, (N, n) float32
    """

    def __init__(self, shape: Sequence[int], channels: int, threshold: float):
        self.shape, self.threshold = (*shape, channels), threshold
        self.places: list[np.ndarray] = [np.empty(0, np.int32)] * shape[0]
        self.values: list[np.ndarray] = [np.empty((channels, 0), np.float32)] * shape[0]

    def put(self, x: int, blocks: Iterable[np.ndarray]) -> None:
        """Take plane x. blocks : (N, rows, Z) each, from its first row to its last

        Raises SynthSegError("internal") for posteriors that are no numbers.
        """
        places, values, before = [], [], 0
        for block in blocks:
            brain, background = channel_sum(block[1:]), block[0]
            if not np.isfinite(brain + background).all():
                raise _no_numbers()
            here = np.flatnonzero((brain > self.threshold) | (background == 0))
            places.append((here + before).astype(np.int32))
            values.append(block.reshape(len(block), -1).take(here, axis=1))
            before += brain.size
        self.places[x], self.values[x] = np.concatenate(places), np.concatenate(values, axis=1)

    def spread(self, planes: Iterable[np.ndarray], elsewhere: float = 0) -> np.ndarray:
        """An array (X, Y, Z) of a number for each kept voxel: (n,) for each plane."""
        result = None
        for x, (places, numbers) in enumerate(zip(self.places, planes, strict=True)):
            if result is None:
                result = np.full(self.shape[:3], elsewhere, dtype=numbers.dtype)
            result[x].reshape(-1)[places] = numbers
        return result

    def at(self, array: np.ndarray) -> list[np.ndarray]:
        """For each plane what an array (X, Y, Z) has at the kept voxels, (n,)."""
        return [plane.reshape(-1).take(places) for plane, places in zip(array, self.places, strict=True)]

    def channel(self, channel: int) -> np.ndarray:
        """The posteriors (X, Y, Z) of a channel."""
        return self.spread((values[channel] for values in self.values), elsewhere=channel == 0)

    def whole(self) -> np.ndarray:
        """All posteriors (X, Y, Z, N)."""
        result = np.empty((self.shape[3], *self.shape[:3]), dtype=np.float32)
        for channel, target in enumerate(result):
            target[...] = self.channel(channel)
        return np.moveaxis(result, 0, 3)

    def there(self) -> list[np.ndarray]:
        """For each axis of the image, (N, size) bool: where along it each label is not 0; all True of background."""
        *_, row, n = self.shape
        found = [np.zeros((n, size), dtype=bool) for size in self.shape[:3]]
        for x, (places, values) in enumerate(zip(self.places, self.values, strict=True)):
            some = values > 0
            found[0][:, x] = some.any(axis=1)
            for channel in np.nonzero(found[0][:, x])[0]:
                here = places[some[channel]]
                found[1][channel, here // row] = found[2][channel, here % row] = True
        for axis in found:
            axis[0] = True
        return found

    def cropped(self, box: Box) -> "Posteriors":
        """Those of a part of the image."""
        _, rows, row, n = self.shape
        xs, ys, zs = (slice(*part.indices(size)) for part, size in zip(box, self.shape, strict=False))
        result = Posteriors([part.stop - part.start for part in (xs, ys, zs)], n, self.threshold)
        if (ys.start, ys.stop, zs.start, zs.stop) == (0, rows, 0, row):
            result.places, result.values = self.places[xs], self.values[xs]
            return result
        for x, (places, values) in enumerate(zip(self.places[xs], self.values[xs], strict=True)):
            y, z = places // row, places % row
            inside = np.flatnonzero((y >= ys.start) & (y < ys.stop) & (z >= zs.start) & (z < zs.stop))
            result.places[x] = (y[inside] - ys.start) * (zs.stop - zs.start) + z[inside] - zs.start
            result.values[x] = values.take(inside, axis=1)
        return result


def predict(
    engine: Engine,
    inputs: dict[str, np.ndarray],
    flip: np.ndarray | None,
    threshold: float,
    sigma: float = 0.0,
    likeliest: Sequence[float] = (),
    progress: Callable[[float], None] = lambda share: None,
    threads: int = 1,
) -> tuple[Posteriors, dict[float, np.ndarray]]:
    """Posteriors of what a network reads, smoothed, averaged with those of its mirror image, sides swapped back; and
    {smoothing: the likeliest channel (X, Y, Z) uint8 of them, the first one on a tie}.

    inputs : volumes (X, Y, Z) by their names, as `engine.run` takes them
    flip : (N,) channel of the mirrored structure; None: no averaging (fast mode) · threshold : of `Posteriors`
    sigma : of the smoothing, in voxels, 0 for none · likeliest : for each further smoothing of these posteriors, 0 for
    none, the likeliest channel is asked for · progress : told the share that is done, in [0, 1]
    Raises SynthSegError("internal") for posteriors that are no numbers.
    """
    shape = next(iter(inputs.values())).shape
    maps = {smoothing: np.empty(shape, dtype=np.uint8) for smoothing in likeliest}
    before, done, found = 0 if flip is None else COARSE if engine.can.backwards else 0.5, 0, None
    near = {smoothing: _Near(shape[0], smoothing) for smoothing in likeliest if smoothing}
    engine.release()  # of what a pass left that failed

    def put(x, plane, mirrored):
        def blocks():
            for y, block in _averaged(plane, mirrored, flip):
                if 0 in maps:
                    _put_likeliest(maps[0][x, y : y + ROWS], block)
                yield block

        found.put(x, blocks())

    with workers(threads) as each:
        for start, slab, mirrored in _passes(engine, inputs, flip, sigma, each):
            found = found or Posteriors(shape, slab.shape[3], threshold)
            xs = range(start, start + len(slab))
            each(put, xs, slab, [None] * len(slab) if mirrored is None else mirrored)
            for smoothing, planes in near.items():
                ready, channels = planes.add(xs, slab)
                each(_put_likeliest, [maps[smoothing][x] for x in ready], channels)
            done += len(slab)
            progress(before + (1 - before) * done / shape[0])
            del slab, mirrored
    engine.release()
    return found, maps


def _passes(engine, inputs, flip, sigma, each):
    """Slabs (start, slab, slab of the mirror image, turned back, or None)."""
    if flip is None:
        for start, slab in slabs_of(engine, inputs, sigma):
            yield start, slab, None
        return
    mirrored = {name: volume[::-1] for name, volume in inputs.items()}
    planes = len(next(iter(inputs.values())))
    if engine.can.backwards:
        one, other = engine.run(inputs, sigma), engine.run(mirrored, sigma, backwards=True)
        engine.release()  # of what the coarser levels took
        yield from _in_step(one, other, planes)
        return
    total = None
    for start, slab in slabs_of(engine, inputs, sigma):
        if total is None:
            total = np.empty((planes, *slab.shape[1:]), dtype=np.float32)
        each(np.copyto, total[start : start + len(slab)], slab)
        del slab
    for start, slab in slabs_of(engine, mirrored, sigma):
        first = planes - start - len(slab)
        yield first, total[first : planes - start], slab[::-1]


def _in_step(one, other, planes):
    """Of slabs of a volume, and of its mirror image from the last planes on, pairs of the same planes."""
    start, slab, mirrored = 0, (), ()
    while start < planes:
        slab = slab if len(slab) else next(one)[1]
        mirrored = mirrored if len(mirrored) else next(other)[1][::-1]
        both = min(len(slab), len(mirrored))
        yield start, slab[:both], mirrored[:both]
        start, slab, mirrored = start + both, slab[both:], mirrored[both:]


def _averaged(plane, mirrored, flip):
    """Parts (first row, (N, rows, Z)) of a plane (Y, Z, N): half the sum of it and of a mirrored one, channels swapped
    by flip."""
    for y in range(0, len(plane), ROWS):
        block = np.moveaxis(plane[y : y + ROWS], 2, 0)
        if mirrored is None:
            yield y, np.array(block, order="C")
            continue
        block = np.add(block, np.moveaxis(mirrored[y : y + ROWS], 2, 0)[flip], order="C")
        block *= np.float32(0.5)
        yield y, block


class _Near:
    """Planes that are kept until a smoothing has used them."""

    def __init__(self, count, sigma):
        self._count, self._sigma, self._reach = count, sigma, len(gaussian_kernel(sigma)) // 2
        self._held, self._left = {}, set(range(count))

    def add(self, xs, slab):
        """Take planes; of all that have their neighbours by now places, and smoothed channels one after the other."""
        for x in [x for x in self._held if not self._left & {*self._around(x)}]:
            del self._held[x]
        self._held |= {x: np.array(np.moveaxis(plane, 2, 0), order="C") for x, plane in zip(xs, slab, strict=True)}
        ready = [x for x in sorted(self._left) if all(near in self._held for near in self._around(x))]
        self._left -= {*ready}
        return ready, [smoothed_channels(self._held, x, self._sigma, self._count) for x in ready]

    def _around(self, x):
        return range(max(x - self._reach, 0), min(x + self._reach + 1, self._count))


def slabs_of(engine: Engine, inputs: dict[str, np.ndarray], sigma: float = 0.0) -> Iterable[tuple[int, np.ndarray]]:
    """What a network gives, slab by slab, smoothed by its engine where that offers it: it has the planes at hand."""
    if engine.can.smooths:
        return engine.run(inputs, sigma)
    return smoothed(engine.run(inputs), sigma)


def likeliest_of(
    engine: Engine,
    inputs: dict[str, np.ndarray],
    progress: Callable[[float], None] = lambda share: None,
    threads: int = 1,
) -> np.ndarray:
    """The likeliest channel (X, Y, Z) uint8 of what a network gives, which is never whole; the first one on a tie.

    inputs, progress : as of `predict`. Raises SynthSegError("internal") for posteriors that are no numbers.
    """
    found = np.empty(next(iter(inputs.values())).shape, dtype=np.uint8)
    with workers(threads) as each:
        for start, slab in engine.run(inputs):
            each(_put_likeliest, found[start : start + len(slab)], (np.moveaxis(plane, 2, 0) for plane in slab))
            progress((start + len(slab)) / len(found))
    engine.release()
    return found


def _put_likeliest(target, channels):
    """channels : (Y, Z) each, one after the other"""
    channels = iter(channels)
    best = np.array(next(channels))
    target[...] = 0
    for c, channel in enumerate(channels, 1):
        target[channel > best] = c
        np.maximum(channel, best, out=best)  # which keeps what is no number
    if not np.isfinite(best).all():
        raise _no_numbers()


def _no_numbers():
    return SynthSegError("internal", "posteriors: some are no numbers: use another engine, device or precision")


def channel_sum(channels: np.ndarray) -> np.ndarray:
    """Sum of up to 128 float32 channels (N, ...), with the same bits as numpy's sum over a contiguous last axis.

    That adds every eighth channel to one of eight sums, these in pairs, and then what is left of the channels.
    """
    full = len(channels) - len(channels) % 8
    if not full:
        return channels.sum(axis=0)
    sums = channels[:full].reshape(full // 8, 8, *channels.shape[1:]).sum(axis=0)
    while len(sums) > 1:
        sums = sums[::2] + sums[1::2]
    total = sums[0]
    for channel in channels[full:]:
        total += channel
    return total
