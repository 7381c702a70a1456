"""From posteriors to labels and volumes: components, the likeliest label of each voxel, what each label amounts to.

All voxels but the kept ones of `posteriors.Posteriors` are background. Volumes are summed in float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from synthseg_native.networks.cards import Labels
from synthseg_native.pipeline.posteriors import Box, Posteriors, channel_sum
from synthseg_native.scan.grid import workers

MAX_MARGIN = 0.0655  # what the margin map can hold: 65500 steps of 1e-6
FAST_THRESHOLD = 0.2  # posteriors below it are dropped in fast mode, in place of the topology step


@dataclass
class Segmentation:
    """Labels of one image and what they rest on.

    posteriors : `Posteriors`, normalised; None where nobody asks for them · labels : (x, y, z) int32
    margin : (x, y, z) float32, best minus second-best posterior, at most MAX_MARGIN
    soft : (N,) float64 sums of posteriors, in voxels · counts : (N,) voxels per label
    confidence : mean of the best posterior over the foreground (nan without any)
    confidences : (N,) the same per label (nan where it has no voxel)
    removed : voxels above the threshold that the component steps dropped: {0: of the brain, topology class: of it}
    """

    posteriors: Posteriors | None
    labels: np.ndarray
    margin: np.ndarray
    soft: np.ndarray
    counts: np.ndarray
    confidence: float
    confidences: np.ndarray
    removed: dict


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


def _largest(found, planes):
    """Whether kept voxels are of the largest part of those that have True, plane by plane, and how many others have."""
    mask = found.spread(planes)
    largest = largest_component(mask)
    return found.at(largest), int(np.count_nonzero(mask) - np.count_nonzero(largest))


def _brain(found, each):
    """`_largest` of where there is brain."""
    return _largest(found, each(lambda values: channel_sum(values[1:]) > found.threshold, found.values))


def keep_brain(found: Posteriors, threads: int = 1) -> dict[int, int]:
    """Set to zero, in place, what lies outside the largest part of the brain, and posteriors up to FAST_THRESHOLD.

    Returns the voxels dropped as {0: number}.
    """
    with workers(threads) as each:
        brain, dropped = _brain(found, each)

        def restrict(values, there):
            values[1:] *= there & (values[1:] > FAST_THRESHOLD)

        each(restrict, found.values, brain)
    return {0: dropped}


def keep_components(found: Posteriors, topology: np.ndarray, threads: int = 1) -> dict[int, int]:
    """Set to zero, in place, what lies outside the brain's largest part and outside each class's largest part.

    topology : (N,) class per channel; 0 is left alone. Classes have no channel in common. Returns the voxels dropped:
    {0: of the brain, class: of that class}.
    """
    with workers(threads) as each:
        brain, dropped = _brain(found, each)

        def keep(group):
            """Drop what lies outside a class's largest part; how many voxels the others have."""
            channels = np.nonzero(topology == group)[0]
            largest, others = _largest(
                found,
                [
                    there & (values[channels] > found.threshold).any(axis=0)
                    for values, there in zip(found.values, brain, strict=True)
                ],
            )
            restrict(channels, largest)
            return others

        def restrict(channels, planes):
            for values, there in zip(found.values, planes, strict=True):
                for channel in channels:
                    values[channel] *= there

        restrict([channel for channel in np.nonzero(topology == 0)[0] if channel], brain)
        classes = np.unique(topology[topology > 0]).tolist()
        return {0: dropped, **dict(zip(classes, each(keep, classes), strict=True))}


def label(found: Posteriors, values: np.ndarray, removed: dict[int, int], threads: int = 1) -> Segmentation:
    """Normalise, in place, and take the likeliest label of each voxel; the first one on a tie.

    values : (N,) label per channel, the background's first. A voxel without any posterior is background.
    """
    *shape, n = found.shape
    labels = np.full(shape, values[0], dtype=np.int32)
    margin = np.full(shape, MAX_MARGIN, dtype=np.float32)  # of background that is alone
    soft, best_sums = np.zeros((2, shape[0], n))
    counts = np.zeros((shape[0], n), dtype=np.int64)

    def plane(x, places, channels):
        total = channel_sum(channels)
        total[total == 0] = 1
        best, second = np.zeros((2, len(places)), dtype=np.float32)
        winner = np.zeros(len(places), dtype=np.intp)
        for c, posterior in enumerate(channels):
            posterior /= total
            soft[x, c] = posterior.sum(dtype=np.float64)
            np.copyto(winner, c, where=posterior > best)
            np.maximum(second, np.minimum(posterior, best), out=second)
            np.maximum(posterior, best, out=best)
        labels[x].reshape(-1)[places] = values[winner]
        margin[x].reshape(-1)[places] = np.minimum(best - second, np.float32(MAX_MARGIN))
        counts[x] = np.bincount(winner, minlength=n)
        best_sums[x] = np.bincount(winner, weights=best, minlength=n)
        for sums in (soft, counts, best_sums):
            sums[x, 0] += labels[x].size - len(places)

    with workers(threads) as each:
        each(plane, range(shape[0]), found.places, found.values)
    soft, best_sums, counts = (sums.sum(axis=0) for sums in (soft, best_sums, counts))
    foreground = counts[1:].sum()
    return Segmentation(
        posteriors=found,
        labels=labels,
        margin=margin,
        soft=soft,
        counts=counts,
        confidence=best_sums[1:].sum() / foreground if foreground else np.nan,
        confidences=np.divide(best_sums, counts, out=np.full(n, np.nan), where=counts > 0),
        removed=removed,
    )


def finish(found: Posteriors, box: Box, labels: Labels, fast: bool = False, threads: int = 1) -> Segmentation:
    """Components, then labels of the image part `box`: components on the padded grid, in fast mode on the image's.
    The posteriors are changed."""
    if fast:
        found = found.cropped(box)
        return label(found, labels.index, keep_brain(found, threads), threads)
    removed = keep_components(found, labels.topology, threads)
    return label(found.cropped(box), labels.index, removed, threads)


def volumes_mm3(segmentation: Segmentation, voxel_mm: Sequence[float]) -> np.ndarray:
    """Sum of posteriors per channel, in mm3 (N,), float64. voxel_mm : (3,)"""
    return segmentation.soft * np.prod(voxel_mm, dtype=np.float64)
