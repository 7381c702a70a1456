"""From posteriors to labels and volumes.

Posteriors are float32 arrays (X, Y, Z, N), none of them negative, channel 0 is background. Sums that decide about
labels stay in float32 and in SynthSeg's order; volumes are summed in float64.

`predict` lays posteriors out plane by plane, (X, N, Y, Z) in memory, so that channels are contiguous. Functions take
any layout, and give the same bits for it and for any number of threads.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from synthseg_native.engines.capabilities import Engine
from synthseg_native.errors import SynthSegError
from synthseg_native.networks.cards import Labels
from synthseg_native.pipeline.smoothing import smoothed, smoothed_channels
from synthseg_native.scan.grid import workers

Box = tuple[slice, slice, slice]
Boxes = list[Box]  # one per channel
MAX_MARGIN = 0.0655  # what the margin map can hold: 65500 steps of 1e-6
FAST_THRESHOLD = 0.2  # posteriors below it are dropped in fast mode, in place of the topology step
ROWS = 16  # of a plane, where its channels lie last: so many at a time stay in the processor's cache


@dataclass
class Segmentation:
    """Labels of one image and what they rest on.

    posteriors : (x, y, z, N) float32, normalised · labels : (x, y, z) int32
    margin : (x, y, z) float32, best minus second-best posterior, at most MAX_MARGIN
    soft : (N,) float64 sums of posteriors, in voxels · counts : (N,) voxels per label
    confidence : mean of the best posterior over the foreground (nan without any)
    confidences : (N,) the same per label (nan where it has no voxel)
    removed : voxels above the threshold that the component steps dropped: {0: of the brain, topology class: of it}
    """

    posteriors: np.ndarray
    labels: np.ndarray
    margin: np.ndarray
    soft: np.ndarray
    counts: np.ndarray
    confidence: float
    confidences: np.ndarray
    removed: dict


def predict(
    engine: Engine,
    inputs: dict[str, np.ndarray],
    flip: np.ndarray | None,
    sigma: float = 0.0,
    progress: Callable[[float], None] = lambda share: None,
    threads: int = 1,
) -> np.ndarray:
    """Posteriors of what a network reads, smoothed, averaged with those of its mirror image, sides swapped back.

    inputs : volumes (X, Y, Z) by their names, as `engine.run` takes them
    flip : (N,) channel of the mirrored structure; None: no averaging (fast mode) · sigma : of the smoothing, in voxels,
    0 for none. The engine's slabs go straight into the one array of the result. progress is told the share that is
    done, in [0, 1].
    """
    planes, *plane = next(iter(inputs.values())).shape
    total, passes = None, 1 if flip is None else 2
    engine.release()  # of what a pass left that failed
    with workers(threads) as each:
        for start, slab in slabs_of(engine, inputs, sigma):
            if total is None:
                total = np.empty((planes, slab.shape[-1], *plane), dtype=np.float32)
            each(_put, total[start : start + len(slab)], slab)
        progress(1 / passes)
        if flip is not None:
            del slab
            mirrored = {name: volume[::-1] for name, volume in inputs.items()}
            for start, slab in slabs_of(engine, mirrored, sigma):
                first = planes - start - len(slab)
                each(lambda target, plane: _average(target, plane, flip), total[first : planes - start], slab[::-1])
            progress(1.0)
    engine.release()
    return np.moveaxis(total, 1, 3)


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


def likeliest(posteriors: np.ndarray, sigma: float = 0.0, threads: int = 1) -> np.ndarray:
    """The likeliest channel (X, Y, Z) uint8 of posteriors, the first one on a tie. sigma : of a smoothing, in voxels,
    of what is compared; 0 for none. Raises SynthSegError("internal") for posteriors that are no numbers."""
    found = np.empty(posteriors.shape[:3], dtype=np.uint8)
    planes = np.moveaxis(posteriors, 3, 1)
    around = (smoothed_channels(planes, x, sigma) for x in range(len(planes))) if sigma else planes
    with workers(threads) as each:
        each(_put_likeliest, found, around)
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
        raise SynthSegError("internal", "posteriors: some are no numbers: use another engine, device or precision")


def _blocks(target, plane):
    """Pairs of parts of a target (N, Y, Z) and of a plane (Y, Z, N), both as (N, y, Z)."""
    rows = ROWS if plane.strides[2] < plane.strides[1] else len(plane)
    for start in range(0, len(plane), rows):
        yield target[:, start : start + rows], np.moveaxis(plane[start : start + rows], 2, 0)


def _put(target, plane):
    for block, source in _blocks(target, plane):
        block[...] = source


def _average(target, plane, flip):
    """Make the target half the sum of itself and of a plane with channels swapped by flip."""
    for block, source in _blocks(target, plane):
        for channel, other in zip(block, flip, strict=True):
            channel += source[other]
            channel *= np.float32(0.5)


def channel_sum(channels: np.ndarray, places: Sequence | None = None) -> np.ndarray:
    """Sum of up to 128 float32 channels (N, ...), with the same bits as numpy's sum over a contiguous last axis.

    That adds every eighth channel to one of eight sums, these in pairs, and then what is left of the channels.
    places : where in the result each channel counts, an index or None for nowhere; elsewhere it must be 0.
    """
    n, shape = len(channels), channels.shape[1:]
    places = [...] * n if places is None else places
    sums = np.zeros((8, *shape), dtype=np.float32)
    total = None
    for c, place in enumerate(places):
        if c == n - n % 8:
            total = _paired(sums)
        if place is not None:
            (sums[c % 8] if total is None else total)[place] += channels[c][place]
    return _paired(sums) if total is None else total


def _paired(sums):
    while len(sums) > 1:
        sums = sums[::2] + sums[1::2]
    return sums[0]


def extent(mask: np.ndarray) -> Box:
    """Slices of the smallest box that holds all of a mask (X, Y, Z); empty ones without any."""
    box = []
    for across in ((1, 2), (0, 2), (0, 1)):
        there = np.nonzero(mask.any(axis=across))[0]
        box.append(slice(int(there[0]), int(there[-1]) + 1) if len(there) else slice(0, 0))
    return tuple(box)


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest part of a mask that hangs together by faces; the first one on a tie. No part: the mask itself."""
    from scipy.ndimage import label

    box = extent(mask)
    parts, n = label(mask[box])
    if n <= 1:
        return mask
    sizes = sum(np.bincount(plane.ravel(), minlength=n + 1) for plane in parts)  # numpy makes 8 bytes of each voxel
    largest = np.zeros_like(mask)
    np.equal(parts, sizes[1:].argmax() + 1, out=largest[box])
    return largest


def _brain(posteriors, threshold, each):
    """The largest part of where there is brain (X, Y, Z), and how many voxels the others have."""
    planes = np.moveaxis(posteriors, 3, 1)
    mask = np.stack(each(lambda plane: channel_sum(plane[1:]) > threshold, planes))
    brain = largest_component(mask)
    return brain, int(np.count_nonzero(mask) - np.count_nonzero(brain))


def _restrict(channel, box, mask):
    """Set to zero, in place, what of a channel (X, Y, Z) lies outside a box (slices) and outside a mask within it."""
    np.copyto(channel[box], 0, where=~mask)
    for part in box:
        channel[: part.start] = 0
        channel[part.stop :] = 0
        channel = np.moveaxis(channel[part], 0, -1)


def keep_brain(posteriors: np.ndarray, threshold: float, threads: int = 1) -> tuple[Boxes, dict[int, int]]:
    """Set to zero, in place, what lies outside the largest part of the brain, and posteriors up to FAST_THRESHOLD.

    Returns boxes (slices) that hold what is not zero of each channel, and the voxels dropped as {0: number}.
    """
    with workers(threads) as each:
        brain, dropped = _brain(posteriors, threshold, each)
        box = extent(brain)
        brain = brain[box]
        channels = np.moveaxis(posteriors, 3, 0)
        each(lambda channel: _restrict(channel, box, brain & (channel[box] > FAST_THRESHOLD)), channels[1:])
    return [(slice(None),) * 3, *[box] * (len(channels) - 1)], {0: dropped}


def keep_components(
    posteriors: np.ndarray, topology: np.ndarray, threshold: float, threads: int = 1
) -> tuple[Boxes, dict[int, int]]:
    """Set to zero, in place, what lies outside the brain's largest part and outside each class's largest part.

    topology : (N,) class per channel; 0 is left alone. Classes have no channel in common. Returns boxes (slices) that
    hold what is not zero of each channel, and the voxels dropped: {0: of the brain, class: of that class}.
    """
    with workers(threads) as each:
        brain, dropped = _brain(posteriors, threshold, each)
        box = extent(brain)
        brain = brain[box]
        channels = np.moveaxis(posteriors, 3, 0)

        def part(group):
            """Box and mask of a class's largest part, and how many voxels the others have."""
            mask = np.zeros(brain.shape, dtype=bool)
            for c in np.nonzero(topology == group)[0]:
                mask |= channels[c][box] > threshold
            mask &= brain
            largest = largest_component(mask)
            inner = extent(largest)
            at = tuple(slice(b.start + i.start, b.start + i.stop) for b, i in zip(box, inner, strict=True))
            return at, largest[inner].copy(), int(np.count_nonzero(mask) - np.count_nonzero(largest))

        classes = np.unique(topology[topology > 0]).tolist()
        parts = {0: (box, brain, dropped), **dict(zip(classes, each(part, classes), strict=True))}
        each(lambda channel, group: _restrict(channel, *parts[group][:2]), channels[1:], topology[1:].tolist())
    boxes = [(slice(None),) * 3, *(parts[group][0] for group in topology[1:].tolist())]
    return boxes, {group: found[2] for group, found in parts.items()}


def label(
    posteriors: np.ndarray, values: np.ndarray, removed: dict[int, int], boxes: Boxes | None = None, threads: int = 1
) -> Segmentation:
    """Normalise, in place, and take the likeliest label of each voxel; the first one on a tie.

    values : (N,) label per channel · boxes : (N,) slices outside which a channel is known to be 0. A voxel without any
    posterior is background. Raises SynthSegError("internal") for posteriors that are no numbers.
    """
    shape, n = posteriors.shape[:3], posteriors.shape[3]
    boxes = [(slice(None),) * 3] * n if boxes is None else boxes
    reached = [range(shape[0])[box[0]] for box in boxes]
    labels = np.empty(shape, dtype=np.int32)
    margin = np.empty(shape, dtype=np.float32)
    soft, best_sums = np.zeros((2, shape[0], n))
    counts = np.zeros((shape[0], n), dtype=np.int64)

    def plane(x, channels):
        places = [box[1:] if x in there else None for box, there in zip(boxes, reached, strict=True)]
        total = channel_sum(channels, places)
        total[total == 0] = 1
        best, second = np.zeros((2, *shape[1:]), dtype=np.float32)
        winner = np.zeros(shape[1:], dtype=np.intp)
        for c, place in enumerate(places):
            if place is None:
                continue
            posterior, first = channels[c][place], best[place]
            posterior /= total[place]
            soft[x, c] = posterior.sum(dtype=np.float64)
            np.copyto(winner[place], c, where=posterior > first)
            np.maximum(second[place], np.minimum(posterior, first), out=second[place])
            np.maximum(posterior, first, out=first)
        labels[x] = values[winner]
        margin[x] = np.minimum(best - second, np.float32(MAX_MARGIN))
        counts[x] = np.bincount(winner.ravel(), minlength=n)
        best_sums[x] = np.bincount(winner.ravel(), weights=best.ravel(), minlength=n)

    with workers(threads) as each:
        each(plane, range(shape[0]), np.moveaxis(posteriors, 3, 1))
    soft, best_sums, counts = (sums.sum(axis=0) for sums in (soft, best_sums, counts))
    if not np.isfinite(soft).all():
        raise SynthSegError("internal", "posteriors: some are no numbers: use another engine, device or precision")
    foreground = counts[1:].sum()
    return Segmentation(
        posteriors=posteriors,
        labels=labels,
        margin=margin,
        soft=soft,
        counts=counts,
        confidence=best_sums[1:].sum() / foreground if foreground else np.nan,
        confidences=np.divide(best_sums, counts, out=np.full(n, np.nan), where=counts > 0),
        removed=removed,
    )


def finish(
    posteriors: np.ndarray, box: Box, labels: Labels, threshold: float, fast: bool = False, threads: int = 1
) -> Segmentation:
    """Components, then labels of the image part `box`: components on the padded grid, in fast mode on the image's."""
    if fast:
        posteriors = posteriors[box]
        boxes, removed = keep_brain(posteriors, threshold, threads)
        return label(posteriors, labels.index, removed, boxes, threads)
    boxes, removed = keep_components(posteriors, labels.topology, threshold, threads)
    return label(posteriors[box], labels.index, removed, [_within(inner, box) for inner in boxes], threads)


def volumes_mm3(segmentation: Segmentation, voxel_mm: Sequence[float]) -> np.ndarray:
    """Sum of posteriors per channel, in mm3 (N,), float64. voxel_mm : (3,)"""
    return segmentation.soft * np.prod(voxel_mm, dtype=np.float64)


def _within(inner, box):
    """Slices in an array that were slices in one of which the array is the part `box`."""
    moved = []
    for i, b in zip(inner, box, strict=True):
        start = b.start or 0
        moved.append(i if i == slice(None) else slice(max(i.start - start, 0), max(i.stop - start, 0)))
    return tuple(moved)
