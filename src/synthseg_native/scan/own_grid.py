"""From the network's grid to a label map on the input's own grid.

Both grids have the same axes and their outer faces coincide, so everything is done axis by axis. `factor` is the input
voxel size over the network's, (3,), as in `grid.resample`; None where nothing was resampled. Arrays are in the
input's axis order, flipped or transposed views are fine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from synthseg_native.scan.grid import sample_positions, workers

PART = 16  # planes that are filled at a time


@dataclass
class Channels:
    """Posteriors (x, y, z, N) on a part of the network's grid, normalised, background first, a channel at a time.

    channel : gives the posteriors (x, y, z) float32 of one · there : for each axis (N, size) bool, where along it a
    channel is not 0 · counts : (N,) how many voxels each is the likeliest of, the first one on a tie
    """

    channel: Callable[[int], np.ndarray]
    there: Sequence[np.ndarray]
    counts: np.ndarray


@dataclass
class GridLabels:
    """labels (x, y, z) int32 · missing : labels of the network's grid without a voxel here · rescued : labels that
    would have had none and were given some; both are lists of label values, background aside"""

    labels: np.ndarray
    missing: list[int]
    rescued: list[int]


def nearest_labels(labels: np.ndarray, factor: np.ndarray | None, shape: Sequence[int]) -> GridLabels:
    """Each voxel takes the label of the network's voxel that its centre lies in, as FreeSurfer's --keepgeom does.

    labels : (x, y, z) int32 on the network's grid. Thin structures can be lost; they are listed as missing. A centre
    halfway between two voxels takes the higher index. A centre that lies further out than those of the network's voxels
    takes the border, where FreeSurfer writes background.

    Slices of 3 mm from a network at 1 mm: the middle voxel of each three is the nearest one, and label 7 is lost.

    >>> labels = np.array([0, 4, 4, 4, 4, 7], np.int32).reshape(1, 1, 6)
    >>> result = nearest_labels(labels, factor=np.array([1, 1, 3]), shape=(1, 1, 2))
    >>> result.labels.ravel().tolist(), result.missing
    ([4, 4], [7])
    """
    factor, grid = _geometry(factor, shape)
    if labels.shape != grid:
        raise ValueError(f"{labels.shape} voxels are not the {grid} of {shape} by {factor}")
    places = []
    for n, f, size in zip(shape, factor, grid, strict=True):
        middle = np.floor(_centres(n, f) + 0.5 + 1e-6)  # rounding of the voxel size must not decide about halves
        places.append(np.clip(middle, 0, size - 1).astype(np.intp))
    result = labels[np.ix_(*places)].astype(np.int32)
    present = [int(value) for value in np.unique(labels) if value != 0]
    return GridLabels(result, [v for v in present if not any(np.any(plane == v) for plane in result)], [])


def labels_on_grid(
    posteriors: Channels,
    values: np.ndarray,
    factor: np.ndarray | None,
    shape: Sequence[int],
    origin: Sequence[int] = (0, 0, 0),
    threads: int = 1,
) -> GridLabels:
    """The likeliest label of each voxel after bringing the posteriors to its grid; the first one on a tie.

    values : (N,) int32, label per channel · origin : where the posteriors begin on the network's grid, if they cover
    only a part; the rest is background

    Along axes where the input's voxels are more than twice as large as the network's, posteriors are averaged over each
    voxel, elsewhere interpolated linearly at its centre: on phantoms with sharp posteriors smoothed as SynthSeg's are,
    each had the higher mean Dice on its side of two, where they are the same.

    A label of the network's grid that would get no voxel gets the ones where its posterior is highest, about as many
    as its volume there amounts to, at least one, and never the last voxel of another label.
    """
    n, expected = len(values), posteriors.counts
    factor, grid = _geometry(factor, shape)
    part = tuple(there.shape[1] for there in posteriors.there)
    if np.any(np.add(origin, part) > grid):
        raise ValueError(f"{part} voxels at {origin} do not fit in {grid}, from {shape} by {factor}")
    taps = [_taps(*sizes) for sizes in zip(shape, factor, grid, strict=True)]
    start, stop = _reach(posteriors.there, origin)

    foreground = np.nonzero(stop[1:, 0])[0] + 1
    if len(foreground):
        start[0], stop[0] = start[foreground].min(axis=0), stop[foreground].max(axis=0)
    candidates = [0, *(np.nonzero(expected[1:])[0] + 1)]  # a label that wins nowhere there must not win here
    channel = _likeliest(posteriors.channel, origin, candidates, start, stop, taps, shape, threads)
    counts = sum(np.bincount(plane.ravel(), minlength=n) for plane in channel)
    lost = np.nonzero((expected > 0) & (counts == 0))[0]
    quota = {k: round(expected[k] / np.prod(factor)) for k in lost if k > 0}
    enough = sum(quota.values()) + n  # no label needs more places to choose from
    choice = {}
    for k in quota:
        likelihood = np.zeros(shape, dtype=np.float32)
        for place, plane in _planes(posteriors.channel(k), origin, k, start[k], stop[k], taps):
            likelihood[place] = plane
        likelihood = likelihood.ravel()
        voxels = np.nonzero(likelihood)[0]
        voxels = voxels[np.argsort(-likelihood[voxels], kind="stable")[:enough]]
        choice[k] = list(zip(voxels.tolist(), likelihood[voxels].tolist(), strict=True))
    _rescue(channel.reshape(-1), counts, choice, quota)
    labels = np.empty(shape, dtype=np.int32)
    for plane, winners in zip(labels, channel, strict=True):  # numpy makes 8 bytes per voxel of an index
        plane[:] = values[winners]
    return GridLabels(
        labels,
        [int(values[k]) for k in range(1, n) if expected[k] and not counts[k]],
        [int(values[k]) for k in quota if counts[k]],
    )


def parcels_on_grid(
    own: GridLabels,
    cortex: np.ndarray,
    posteriors: np.ndarray,
    values: np.ndarray,
    present: Sequence[int],
    factor: np.ndarray | None,
    origin: Sequence[int],
    threads: int = 1,
) -> None:
    """Give the voxels of the cortex on a scan's own grid their likeliest parcel, in place; background without any.

    cortex : (x, y, z), where it is · posteriors : (x, y, z, N) of parcels, normalised, background first
    values, factor, origin : as `labels_on_grid` takes them
    present : channels that occur on the network's grid; those without a voxel here are added to ``own.missing``
    """
    shape = own.labels.shape
    factor, grid = _geometry(factor, shape)
    taps = [_taps(*sizes) for sizes in zip(shape, factor, grid, strict=True)]
    start = np.tile(origin, (posteriors.shape[3], 1))
    stop = start + posteriors.shape[:3]
    some = [k for k in present if k]
    channel = _likeliest(lambda k: posteriors[..., k], origin, some, start, stop, taps, shape, threads)
    found = np.zeros(len(values), dtype=bool)
    for plane, winners, there in zip(own.labels, channel, cortex, strict=True):
        plane[there] = values[winners[there]]
        found[winners[there]] = True
    own.missing += [int(values[k]) for k in present if k and not found[k]]


def _geometry(factor, shape):
    """factor (3,) float64, and the size of the network's grid that `grid.resample` makes of `shape`."""
    if factor is None:
        return np.ones(3), tuple(shape)
    factor = np.asarray(factor, dtype=np.float64)
    return factor, tuple(len(sample_positions(n, f)) for n, f in zip(shape, factor, strict=True))


def _centres(n, factor):
    """Where the centres of the input's voxels lie on one axis of the network's grid, in its voxels."""
    return np.arange(n) * factor + (factor - 1) / 2


def _taps(n, factor, size):
    """Voxels of the network's axis (T, n) and weights (T, n) float32 for each voxel of the input's axis."""
    if factor > 2:
        low, high = np.arange(n) * factor, np.arange(1, n + 1) * factor  # faces; voxel j reaches from j to j + 1
        index = np.floor(low).astype(np.intp) + np.arange(int(np.ceil(factor)) + 1)[:, None]
        weight = np.clip(np.minimum(high, index + 1) - np.maximum(low, index), 0, None) / factor
    else:
        position = np.clip(_centres(n, factor), 0, size - 1)
        index = np.floor(position).astype(np.intp) + np.arange(2)[:, None]
        weight = np.stack([index[1] - position, position - index[0]])
    used = weight.any(axis=1)
    return np.minimum(index[used], size - 1), weight[used].astype(np.float32)


def _reach(there, origin):
    """Where each channel is not zero on the network's grid, start and stop (N, 3); 0 and 0 of one that is nowhere."""
    start, stop = np.zeros((2, len(there[0]), 3), dtype=np.intp)
    for axis, along in enumerate(there):
        anywhere = along.any(axis=1)
        start[:, axis] = np.where(anywhere, along.argmax(axis=1) + origin[axis], 0)
        stop[:, axis] = np.where(anywhere, along.shape[1] - along[:, ::-1].argmax(axis=1) + origin[axis], 0)
    return start, stop


def _likeliest(of_channel, origin, candidates, start, stop, taps, shape, threads):
    """The likeliest of the candidates, the first one on a tie, for each of the input's voxels: int16."""
    channel = np.zeros(shape, dtype=np.int16)
    best = np.zeros(shape, dtype=np.float32)

    def fill(part):
        some = [tuple(along[:, part] for along in taps[0]), *taps[1:]]
        for place, plane in _planes(posteriors, origin, k, start[k], stop[k], some):
            so_far = best[part][place]
            np.copyto(channel[part][place], k, where=plane > so_far)
            np.maximum(plane, so_far, out=so_far)

    with workers(threads) as each:
        for k in candidates:
            posteriors = of_channel(k)
            each(fill, [slice(x, x + PART) for x in range(0, shape[0], PART)])
    return channel


def _planes(posteriors, origin, k, start, stop, taps):
    """Channel k, its posteriors (x, y, z), on the input's grid, where it can differ from zero: pairs of a place (x,
    slice, slice) and a plane."""
    reached, first, block = [], [], []
    for (index, weight), low, high in zip(taps, start, stop, strict=True):
        outputs = np.nonzero(((index >= low) & (index < high) & (weight > 0)).any(axis=0))[0]
        if not len(outputs):
            return
        reached.append(slice(outputs[0], outputs[-1] + 1))
        needed = index[:, reached[-1]]
        first.append(needed.min())
        block.append(needed.max() + 1 - first[-1])

    data = np.full(block, k == 0, dtype=np.float32)  # outside what is known there is background
    first, origin = np.array(first), np.array(origin)
    low, high = np.maximum(first, origin), np.minimum(first + block, origin + posteriors.shape)
    inside, known = (tuple(map(slice, low - at, high - at)) for at in (first, origin))
    data[inside] = posteriors[known]

    parts = [(i[:, r] - f, w[:, r]) for (i, w), r, f in zip(taps, reached, first, strict=True)]
    for axis in (2, 1):
        data = _along(data, axis, *parts[axis])
    for i, x in enumerate(range(reached[0].start, reached[0].stop)):
        yield (x, *reached[1:]), sum(data[j] * w for j, w in zip(parts[0][0][:, i], parts[0][1][:, i], strict=True))


def _along(data, axis, index, weight):
    """Weighted sum of voxels along one axis: index, weight (T, n)."""
    shape = [1, 1, 1]
    shape[axis] = -1
    total = 0
    for places, w in zip(index, weight, strict=True):
        part = data.take(places, axis=axis)
        part *= w.reshape(shape)
        total += part
    return total


def _rescue(channel, counts, choice, quota):
    """Give voxels to lost channels, in place.

    channel : (V,) channel per voxel · counts : (N,) · choice : (voxel, posterior) pairs per lost channel, best first
    """
    taken = set()

    def give(k, voxel):
        holder = channel[voxel]
        if voxel in taken or (holder > 0 and counts[holder] == 1):
            return False
        taken.add(voxel)
        channel[voxel] = k
        counts[holder] -= 1
        counts[k] += 1
        return True

    for k in sorted(choice, key=lambda k: (len(choice[k]), k)):  # one each; who has the least choice goes first
        any(give(k, voxel) for voxel, _ in choice[k])
    rest = sorted((-likelihood, k, voxel) for k, places in choice.items() for voxel, likelihood in places)
    for _, k, voxel in rest:
        if 0 < counts[k] < quota[k]:
            give(k, voxel)
