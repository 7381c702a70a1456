"""From the parcellation's posteriors to parcels of the cortex, a few planes at a time: they are never whole.

In the cortex of the label map a voxel becomes its likeliest parcel, wherever that belongs to: nothing keeps a left one
out of the right hemisphere (as in SynthSeg). Volumes are sums of posteriors over the whole image, scaled so that the
parcels of a hemisphere add up to its cortex.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from synthseg_native.errors import SynthSegError
from synthseg_native.networks.cards import CORTEX, WHITE_MATTER, Labels
from synthseg_native.pipeline.labels import MAX_MARGIN
from synthseg_native.pipeline.posteriors import ROWS, Box, channel_sum
from synthseg_native.scan.grid import workers

VOLUMES = ("cortex", "upstream-66342c1")  # what the volumes of parcels add up to: see `volumes_mm3`


@dataclass
class Parcels:
    """Parcels of one image, in RAS order, as the network saw it.

    labels : (x, y, z) int32, label map with parcels in the place of the cortex · margin : (x, y, z) float32, as of the
    label map, in the cortex the smaller one of it and of the parcels'
    soft : (N,) float64 sums of posteriors, in voxels · counts : (N,) voxels per parcel · confidences : (N,) the mean of
    the best posterior over them (nan where it has none)
    near : posteriors (x, y, z, N) where there is cortex, and the box that it is, where they were asked for
    """

    labels: np.ndarray
    margin: np.ndarray
    soft: np.ndarray
    counts: np.ndarray
    confidences: np.ndarray
    near: tuple[np.ndarray, Box] | None = None


def is_cortex(labels: np.ndarray) -> np.ndarray:
    """Where a label map is cortex."""
    return (labels == CORTEX[0]) | (labels == CORTEX[1])


def parcellate(
    slabs: Iterable[tuple[int, np.ndarray]],
    labels: np.ndarray,
    margin: np.ndarray,
    box: Box,
    values: np.ndarray,
    near: Box | None = None,
    threads: int = 1,
) -> Parcels:
    """Give each voxel of the cortex its likeliest parcel; the first one on a tie.

    slabs : posteriors of the padded volume, as `engine.run` yields them · labels, margin : (x, y, z) of the image, the
    part `box` of it · values : (N,) label per channel · near : a part of the image whose posteriors are kept
    A voxel of the cortex without any parcel's posterior becomes background, as in SynthSeg. Raises
    SynthSegError("internal") for posteriors that are no numbers.
    """
    n, shape = len(values), labels.shape
    result, margin = labels.copy(), margin.copy()
    soft, best_sums = np.zeros((2, shape[0], n))
    counts = np.zeros((shape[0], n), dtype=np.int64)
    kept = None if near is None else np.empty([part.stop - part.start for part in near] + [n], dtype=np.float32)
    first = box[0].start or 0

    def plane(x, channels):
        channels, cortex = channels[box[1:]], is_cortex(labels[x])
        for y in range(0, shape[1], ROWS):
            rows, there = slice(y, y + ROWS), cortex[y : y + ROWS]
            block = np.array(np.moveaxis(channels[rows], 2, 0), order="C")
            block[0] = ~there
            total = channel_sum(block)
            total[total == 0] = 1
            block /= total
            soft[x] += block.sum(axis=(1, 2), dtype=np.float64)
            if kept is not None and near[0].start <= x < near[0].stop:
                first, stop = max(near[1].start, y), min(near[1].stop, y + ROWS)
                if first < stop:
                    part = np.moveaxis(block, 0, 2)[first - y : stop - y, near[2]]
                    kept[x - near[0].start, first - near[1].start : stop - near[1].start] = part
            places = np.flatnonzero(there)
            if len(places):
                among(x, rows, places, block.reshape(n, -1).take(places, axis=1))

    def among(x, rows, places, channels):
        """Parcels of places in some rows, of their posteriors (N, n)."""
        winner, best = channels.argmax(axis=0), channels.max(axis=0)
        channels[winner, range(len(places))] = 0
        certain = np.minimum(best - channels.max(axis=0), np.float32(MAX_MARGIN))
        result[x, rows].reshape(-1)[places] = values[winner]
        margins = margin[x, rows].reshape(-1)
        margins[places] = np.minimum(margins[places], certain)
        counts[x] += np.bincount(winner, minlength=n)
        best_sums[x] += np.bincount(winner, weights=best, minlength=n)

    with workers(threads) as each:
        for start, slab in slabs:
            places = range(start - first, start - first + len(slab))
            inside = [(x, channels) for x, channels in zip(places, slab, strict=True) if 0 <= x < shape[0]]
            if inside:
                each(plane, *zip(*inside, strict=True))
    soft, best_sums, counts = (sums.sum(axis=0) for sums in (soft, best_sums, counts))
    if not np.isfinite(soft).all():
        text = "parcels: some posteriors are no numbers: use another engine, device or precision"
        raise SynthSegError("internal", text)
    return Parcels(
        labels=result,
        margin=margin,
        soft=soft,
        counts=counts,
        confidences=np.divide(best_sums, counts, out=np.full(n, np.nan), where=counts > 0),
        near=None if kept is None else (kept, near),
    )


def volumes_mm3(
    parcels: Parcels, table: Labels, volumes: np.ndarray, labels: Labels, form: str = VOLUMES[0]
) -> np.ndarray:
    """Volumes of parcels (N,) in mm3, 0 of the background.

    table : of the parcels · volumes, labels : (M,) volumes of the structures, and their table
    form : "cortex", the parcels of a hemisphere add up to its cortex; "upstream-66342c1", as SynthSeg's code of that
    state has them: all parcels add up to the white matter of both sides, with labels of SynthSeg 1.0 to both cortices
    """
    of = {int(value): float(volume) for value, volume in zip(labels.index, volumes, strict=True)}
    sides = np.array([{"left": 0, "right": 1}.get(side, -1) for side in table.hemispheres])
    found = np.zeros(len(table))
    if form == VOLUMES[0]:
        parts = [(sides == side, of.get(CORTEX[side], 0.0)) for side in (0, 1)]
    else:
        # Upstream looks for the cortex one column too early where the total stands in front.
        counted = WHITE_MATTER if labels.has_total_intracranial else CORTEX
        parts = [(sides >= 0, sum(of.get(value, 0.0) for value in counted))]
    for those, total in parts:
        whole = parcels.soft[those].sum()
        if whole > 0:
            found[those] = parcels.soft[those] / whole * total
    return found
