"""From posteriors to labels and volumes.

Posteriors are float32 arrays (X, Y, Z, N), channel 0 is background. Sums that decide about labels stay in float32, as
in SynthSeg; volumes are summed in float64.
"""

from dataclasses import dataclass

import numpy as np

MAX_MARGIN = 0.0655  # what the margin map can hold: 65500 steps of 1e-6
FAST_THRESHOLD = 0.2  # posteriors below it are dropped in fast mode, in place of the topology step


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


def predict(engine, volume, flip, progress=lambda share: None) -> np.ndarray:
    """Posteriors of a volume (X, Y, Z), averaged with those of its mirror image, sides swapped back.

    flip : (N,) channel of the mirrored structure; None: no averaging (fast mode). The engine's slabs go straight into
    the one array of the result. progress is told the share that is done, in [0, 1].
    """
    planes, total, passes = volume.shape[0], None, 1 if flip is None else 2
    for start, slab in engine.posteriors(volume):
        if total is None:
            total = np.empty((*volume.shape, slab.shape[-1]), dtype=np.float32)
        total[start : start + len(slab)] = slab
    progress(1 / passes)
    if flip is None:
        return total
    for start, slab in engine.posteriors(np.ascontiguousarray(volume[::-1])):
        stop = start + len(slab)
        total[planes - stop : planes - start] += np.take(slab[::-1], flip, axis=-1)
    total *= np.float32(0.5)
    progress(1.0)
    return total


def largest_component(mask) -> np.ndarray:
    """The largest part of a mask that hangs together by faces; the first one on a tie. No part: the mask itself."""
    from scipy.ndimage import label

    parts, n = label(mask)
    if n <= 1:
        return mask
    return parts == np.bincount(parts.ravel())[1:].argmax() + 1


def keep_brain(posteriors, threshold):
    """Set to zero, in place, what lies outside the largest part of the brain; its mask, and how many voxels dropped."""
    mask = posteriors[..., 1:].sum(axis=-1) > threshold
    brain = largest_component(mask)
    for plane, inside in zip(posteriors, brain, strict=True):
        plane[..., 1:] *= inside[..., None]
    return brain, int(np.count_nonzero(mask) - np.count_nonzero(brain))


def keep_components(posteriors, topology, threshold) -> dict:
    """Set to zero, in place, what lies outside the brain's largest part and outside each class's largest part.

    topology : (N,) class per channel; 0 is left alone. Classes have no channel in common. Returns the voxels dropped:
    {0: of the brain, class: of that class}.
    """
    from scipy.ndimage import find_objects

    brain, dropped = keep_brain(posteriors, threshold)
    classes = np.unique(topology[topology > 0]).tolist()
    removed = {0: dropped, **dict.fromkeys(classes, 0)}
    extent = find_objects(brain.astype(np.uint8))
    if not extent:
        return removed
    posteriors = posteriors[extent[0]]  # outside there is nothing left to find
    # Plane by plane, for all classes at once: channels lie side by side in memory, and reading one of them reads all.
    groups = [np.nonzero(topology == group)[0] for group in classes]
    inside = np.empty((len(groups), *posteriors.shape[:3]), dtype=bool)
    for x, plane in enumerate(posteriors):
        above = plane > threshold
        for mask, channels in zip(inside, groups, strict=True):
            mask[x] = above[..., channels].any(axis=-1)
    for group, mask in zip(classes, inside, strict=True):
        largest = largest_component(mask)
        removed[group] = int(np.count_nonzero(mask) - np.count_nonzero(largest))
        mask[:] = largest
    for x, plane in enumerate(posteriors):
        keep = np.ones(plane.shape, dtype=bool)
        for mask, channels in zip(inside, groups, strict=True):
            keep[..., channels] = mask[x, ..., None]
        plane *= keep
    return removed


def label(posteriors, values, removed) -> Segmentation:
    """Normalise, in place, and take the likeliest label of each voxel; the first one on a tie.

    values : (N,) label per channel. A voxel without any posterior is background.
    """
    shape, n = posteriors.shape[:3], posteriors.shape[3]
    channel = np.empty(shape, dtype=np.int32)
    margin = np.empty(shape, dtype=np.float32)
    soft, best_sums = np.zeros(n), np.zeros(n)
    for x, plane in enumerate(posteriors):
        total = plane.sum(axis=-1, keepdims=True)
        total[total == 0] = 1
        plane /= total
        soft += plane.sum(axis=(0, 1), dtype=np.float64)
        winner = plane.argmax(axis=-1)
        best = np.take_along_axis(plane, winner[..., None], axis=-1)
        np.put_along_axis(plane, winner[..., None], -1, axis=-1)
        channel[x] = winner
        margin[x] = np.minimum(best[..., 0] - plane.max(axis=-1), np.float32(MAX_MARGIN))
        np.put_along_axis(plane, winner[..., None], best, axis=-1)
        best_sums += np.bincount(winner.ravel(), weights=best.ravel(), minlength=n)
    counts = np.bincount(channel.ravel(), minlength=n)
    foreground = counts[1:].sum()
    return Segmentation(
        posteriors=posteriors,
        labels=values[channel],
        margin=margin,
        soft=soft,
        counts=counts,
        confidence=best_sums[1:].sum() / foreground if foreground else np.nan,
        confidences=np.divide(best_sums, counts, out=np.full(n, np.nan), where=counts > 0),
        removed=removed,
    )


def finish(posteriors, box, labels, threshold, fast=False) -> Segmentation:
    """Components, then labels of the image part `box`: components on the padded grid, in fast mode on the image's."""
    if not fast:
        removed = keep_components(posteriors, labels.topology, threshold)
        return label(posteriors[box], labels.index, removed)
    posteriors = posteriors[box]
    removed = {0: keep_brain(posteriors, threshold)[1]}
    for plane in posteriors:
        plane[..., 1:] *= plane[..., 1:] > FAST_THRESHOLD
    return label(posteriors, labels.index, removed)
