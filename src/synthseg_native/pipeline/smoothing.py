"""The smoothing of a network's result, for engines that do not offer it, and where it is needed with and without."""

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from synthseg_native.networks.layers import gaussian_kernel


def smoothed(slabs: Iterable[tuple[int, np.ndarray]], sigma: float) -> Iterator[tuple[int, np.ndarray]]:
    """Slabs (start, (planes, Y, Z, channels)), each channel smoothed by `gaussian_kernel`, zeros outside the volume.

    slabs : of one volume, the first planes first, as `engine.run` yields them · sigma : in voxels, 0 for none
    What comes out covers the same planes in the same order, each slab as late as it needs its neighbours: no more than
    the planes that the kernel reaches are kept.

    >>> ones = np.ones((4, 5, 6, 1), np.float32)
    >>> whole = np.concatenate([slab for _, slab in smoothed([(0, ones)], 0.5)])
    >>> whole.shape, whole[:, 2, 2, 0].astype(float).round(3).tolist()
    ((4, 5, 6, 1), [0.893, 1.0, 1.0, 0.893])
    """
    if not sigma:
        yield from slabs
        return
    line = gaussian_kernel(sigma).sum(axis=(1, 2), dtype=np.float64).astype(np.float32)  # it is that along each axis
    reach = len(line) // 2
    held, first = None, 0  # planes smoothed along Y and Z, `reach` of them before plane `first`, which is next
    for _, slab in slabs:
        slab = _along(_along(slab, line, 1), line, 2)
        held = np.concatenate([np.zeros((reach, *slab.shape[1:]), np.float32) if held is None else held, slab])
        if len(held) > 2 * reach:
            result = _inner(held, line)
            yield first, result
            held, first = held[len(held) - 2 * reach :], first + len(result)
    if held is not None:
        yield first, _inner(np.concatenate([held, np.zeros((reach, *held.shape[1:]), np.float32)]), line)


def smoothed_channels(planes: Mapping[int, np.ndarray], x: int, sigma: float, count: int) -> Iterator[np.ndarray]:
    """The channels (Y, Z) of plane x of `count` planes (N, Y, Z), each as `smoothed` makes it.

    planes : those around plane x, as far as there are

    >>> ones = dict(enumerate(np.ones((4, 1, 5, 6), np.float32)))
    >>> [round(float(next(smoothed_channels(ones, x, 0.5, 4))[2, 2]), 3) for x in range(4)]
    [0.893, 1.0, 1.0, 0.893]
    """
    line = gaussian_kernel(sigma).sum(axis=(1, 2), dtype=np.float64).astype(np.float32)
    reach = len(line) // 2
    near = [(factor, x + n - reach) for n, factor in enumerate(line) if 0 <= x + n - reach < count]
    for channel in range(len(planes[x])):
        plane = sum(factor * planes[at][channel] for factor, at in near)
        yield _along(_along(plane, line, 0), line, 1)


def _inner(planes, line):
    """Planes convolved along the first axis, without those that lack neighbours."""
    count = len(planes) - len(line) + 1
    return sum(factor * planes[n : n + count] for n, factor in enumerate(line))


def _along(planes, line, axis):
    """Planes convolved along an axis, with zeros beyond its ends."""
    reach = len(line) // 2
    padded = np.pad(planes, [(reach, reach) if n == axis else (0, 0) for n in range(planes.ndim)])
    size = planes.shape[axis]
    return sum(factor * padded.take(range(n, n + size), axis=axis) for n, factor in enumerate(line))
