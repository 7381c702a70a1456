"""From posteriors to labels and volumes.

Posteriors are float32 arrays (X, Y, Z, N), channel 0 is background. Sums that decide about labels stay in float32, as
in SynthSeg; volumes are summed in float64.
"""

from dataclasses import dataclass

import numpy as np

MAX_MARGIN = 0.0655  # what the margin map can hold: 65500 steps of 1e-6


@dataclass
class Segmentation:
    """labels (x, y, z) int32 · margin (x, y, z) float32, best minus second-best posterior, at most MAX_MARGIN ·
    soft : (N,) float64 sums of posteriors, in voxels · counts : (N,) voxels per label · confidence : mean of the best
    posterior over the foreground (nan without any)"""

    labels: np.ndarray
    margin: np.ndarray
    soft: np.ndarray
    counts: np.ndarray
    confidence: float


def flip_average(engine, volume, flip) -> np.ndarray:
    """Average the posteriors of a volume (X, Y, Z) with those of its mirror image, sides swapped back.

    flip : (N,) channel of the mirrored structure. The engine's slabs go straight into the one array of the result.
    """
    planes = volume.shape[0]
    total = np.empty((*volume.shape, len(flip)), dtype=np.float32)
    for start, slab in engine.posteriors(volume):
        total[start : start + len(slab)] = slab
    for start, slab in engine.posteriors(np.ascontiguousarray(volume[::-1])):
        stop = start + len(slab)
        total[planes - stop : planes - start] += np.take(slab[::-1], flip, axis=-1)
    total *= np.float32(0.5)
    return total


def largest_component(mask) -> np.ndarray:
    """The largest part of a mask that hangs together by faces; the first one on a tie. No part: the mask itself."""
    from scipy.ndimage import label

    parts, n = label(mask)
    if n <= 1:
        return mask
    return parts == np.bincount(parts.ravel())[1:].argmax() + 1


def keep_components(posteriors, topology, threshold):
    """Set to zero, in place, what lies outside the brain's largest part and outside each class's largest part.

    topology : (N,) class per channel; 0 is left alone. Classes have no channel in common.
    """
    from scipy.ndimage import find_objects

    brain = largest_component(posteriors[..., 1:].sum(axis=-1) > threshold)
    for plane, inside in zip(posteriors, brain, strict=True):
        plane[..., 1:] *= inside[..., None]
    extent = find_objects(brain.astype(np.uint8))
    if not extent:
        return
    posteriors = posteriors[extent[0]]  # outside there is nothing left to find
    # Plane by plane, for all classes at once: channels lie side by side in memory, and reading one of them reads all.
    groups = [np.nonzero(topology == group)[0] for group in np.unique(topology[topology > 0])]
    inside = np.empty((len(groups), *posteriors.shape[:3]), dtype=bool)
    for x, plane in enumerate(posteriors):
        above = plane > threshold
        for mask, channels in zip(inside, groups, strict=True):
            mask[x] = above[..., channels].any(axis=-1)
    for mask in inside:
        mask[:] = largest_component(mask)
    for x, plane in enumerate(posteriors):
        keep = np.ones(plane.shape, dtype=bool)
        for mask, channels in zip(inside, groups, strict=True):
            keep[..., channels] = mask[x, ..., None]
        plane *= keep


def label(posteriors, values) -> Segmentation:
    """Normalise and take the likeliest label of each voxel; the first one on a tie.

    values : (N,) label per channel. A voxel without any posterior is background.
    """
    shape, n = posteriors.shape[:3], posteriors.shape[3]
    channel = np.empty(shape, dtype=np.int32)
    margin = np.empty(shape, dtype=np.float32)
    soft = np.zeros(n)
    confidence = 0.0
    for x, plane in enumerate(posteriors):
        total = plane.sum(axis=-1, keepdims=True)
        total[total == 0] = 1
        share = plane / total
        soft += share.sum(axis=(0, 1), dtype=np.float64)
        winner = share.argmax(axis=-1)
        best = np.take_along_axis(share, winner[..., None], axis=-1)
        np.put_along_axis(share, winner[..., None], -1, axis=-1)
        channel[x] = winner
        margin[x] = np.minimum(best[..., 0] - share.max(axis=-1), np.float32(MAX_MARGIN))
        confidence += best[winner > 0].sum(dtype=np.float64)
    counts = np.bincount(channel.ravel(), minlength=n)
    foreground = counts[1:].sum()
    return Segmentation(values[channel], margin, soft, counts, confidence / foreground if foreground else np.nan)


def finish(posteriors, box, labels, threshold) -> Segmentation:
    """Components on the padded grid, then labels of the image part `box`."""
    keep_components(posteriors, labels.topology, threshold)
    return label(posteriors[box], labels.index)
