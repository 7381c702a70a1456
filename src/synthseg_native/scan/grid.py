"""From a scan to the network's grid, and the way back.

Positions are in mm (RAS+), affines map voxel indices to them, sizes are in voxels unless said otherwise.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

Box = tuple[slice, slice, slice]

TOLERANCE_MM = 0.05  # voxel sizes this close to the network's are left alone
MAX_HOUNSFIELD = 80


class OnGrid(Protocol):
    """What is asked of a scan; `reading.Scan` says the shapes."""

    data: np.ndarray
    affine: np.ndarray
    voxel_mm: np.ndarray


@dataclass
class Regridded:
    """A scan on the network's voxel size, in the input's axis order.

    data : (X, Y, Z) float64, or as the scan has it where its grid is kept · affine : (4, 4)
    voxel_mm : (3,) voxel sizes by which volumes are counted
    factor : (3,) input / network voxel size per axis, None where the input's grid is kept
    """

    data: np.ndarray
    affine: np.ndarray
    voxel_mm: np.ndarray
    factor: np.ndarray | None


@dataclass
class Prepared:
    """What the network sees, and what is needed to go back.

    volume : (X, Y, Z) float32 in [0, 1], RAS, padded · box : slices of the (cropped) image in it
    shape : of the uncropped image in RAS order · crop : slices of the cropped image in that
    axes, flipped : voxel axis and direction per world axis
    """

    volume: np.ndarray
    box: Box
    shape: tuple[int, int, int]
    crop: Box
    axes: np.ndarray
    flipped: np.ndarray


@contextmanager
def workers(threads: int) -> Iterator[Callable[..., list]]:
    """A function that calls another with each element of some sequences, by so many threads, and lists the results.

    >>> with workers(2) as each:
    ...     each(max, [1, 5], [4, 2])
    [4, 5]
    """
    if threads == 1:
        yield lambda function, *sequences: list(map(function, *sequences))
        return
    with ThreadPoolExecutor(threads) as pool:
        yield lambda function, *sequences: list(pool.map(function, *sequences))


# To the network's grid -----------------------------------------------------------------------------------------------


def regrid(scan: OnGrid, resolution: float, threads: int = 1) -> Regridded:
    """Resample a scan to isotropic voxels of `resolution` mm where its voxel sizes ask for it."""
    if not needs_resampling(scan.voxel_mm, resolution):
        return Regridded(scan.data, scan.affine, scan.voxel_mm, None)
    data, affine = resample(scan.data, scan.affine, resolution, threads)
    return Regridded(data, affine, np.full(3, resolution, dtype=np.float64), voxel_sizes(scan.affine) / resolution)


def prepare(
    data: np.ndarray,
    affine: np.ndarray,
    *,
    pad_multiple: int,
    min_size: int,
    ct: bool = False,
    crop: Sequence[int] | None = None,
    autocrop: bool = False,
) -> Prepared:
    """Turn to RAS, crop, clip CT, scale and pad.

    data (X, Y, Z) and its affine (4, 4) · crop : (3,) voxels in RAS order, rounded up to pad_multiple, which then is
    the smallest padded size too, as in SynthSeg · autocrop : cut what is dark after scaling, as in FreeSurfer
    """
    axes, flipped = ras_order(affine)
    data = to_ras(data, axes, flipped)
    shape, min_sizes, box = data.shape, (min_size,) * 3, (slice(None),) * 3
    if crop is not None:
        min_sizes = tuple(padded_size(n, pad_multiple, 1) for n in crop)
        box = crop_box(shape, min_sizes)
        data = data[box]
    if ct:
        data = np.clip(data, 0, MAX_HOUNSFIELD)
    data = rescale(data)
    if autocrop:
        box = bright_box(data, pad_multiple)
        data = data[box]
    volume, inside = pad(data.astype(np.float32), pad_multiple, min_sizes)
    return Prepared(volume, inside, shape, box, axes, flipped)


def crop_box(shape: Sequence[int], size: Sequence[int]) -> Box:
    """Slices of the central box of this size (3,), no larger than the image.

    >>> crop_box(shape=(10, 11, 12), size=(4, 4, 96))
    (slice(3, 7, None), slice(3, 7, None), slice(0, 12, None))
    """
    low = [max(int((n - c) / 2), 0) for n, c in zip(shape, size, strict=True)]
    return tuple(slice(start, min(start + c, n)) for start, c, n in zip(low, size, shape, strict=True))


def bright_box(data: np.ndarray, multiple: int) -> Box:
    """Slices around the voxels above 0, one more on the far side, rounded up to a multiple; all of a dark image."""
    from scipy.ndimage import find_objects

    found = find_objects((data > 0).astype(np.uint8))
    if not found:
        return (slice(None),) * 3
    box = []
    for bright, n in zip(found[0], data.shape, strict=True):
        length = bright.stop - bright.start + 1
        size = padded_size(length, multiple, 1)
        start = max(bright.start - (size - length) // 2, 0)
        box.append(slice(start, min(start + size, n)))
    return tuple(box)


def uncrop(data: np.ndarray, prepared: Prepared, background: object = 0) -> np.ndarray:
    """Put what was computed on the cropped image (x, y, z, ...) back into a frame of the whole one.

    background : value outside the crop, or one per channel
    """
    if data.shape[:3] == prepared.shape:
        return data
    frame = np.zeros((*prepared.shape, *data.shape[3:]), dtype=data.dtype)
    frame[...] = background
    frame[prepared.crop] = data
    return frame


def crop_origin(prepared: Prepared) -> tuple[int, int, int]:
    """Where the cropped image begins in the whole one, (3,) in the input's axis order, as `from_ras` turns both."""
    origin = [0, 0, 0]
    for axis, flip, part, n in zip(prepared.axes, prepared.flipped, prepared.crop, prepared.shape, strict=True):
        start, stop, _ = part.indices(n)
        origin[axis] = n - stop if flip else start
    return tuple(origin)


def voxel_sizes(affine: np.ndarray) -> np.ndarray:
    """Lengths of the columns of an affine (4, 4): mm per voxel (3,).

    >>> voxel_sizes(np.array([[0, -3, 0, 90], [1, 0, 0, -126], [0, 4, 2, -72], [0, 0, 0, 1]])).tolist()
    [1.0, 5.0, 2.0]
    """
    return np.sqrt(np.sum(affine[:3, :3] * affine[:3, :3], axis=0))


def needs_resampling(voxel_mm: Sequence[float] | np.ndarray, resolution: float) -> bool:
    """True where an axis is outside resolution -/+ TOLERANCE_MM, the limits included in what is left alone.

    Headers hold float32, and they are compared as what they hold: 0.95 in a header is a little less than 0.95.

    >>> [needs_resampling(sizes, 1) for sizes in ((1, 1, 1.05), (1, 1, 1.06), np.float32([1, 1, 0.95]))]
    [False, True, True]
    """
    voxel_mm = np.asarray(voxel_mm, dtype=np.float64)
    return bool(np.any((voxel_mm < resolution - TOLERANCE_MM) | (voxel_mm > resolution + TOLERANCE_MM)))


def sample_positions(n: int, factor: float) -> np.ndarray:
    """Where the new voxels of one axis lie, in old voxels; factor = old / new voxel size.

    Outer faces of the first voxels coincide. Upstream builds the row as a float range, whose length can be one off
    from ceil(n * factor); so does this. Positions outside the image are moved to its border.

    >>> sample_positions(3, factor=2).tolist()  # 2 mm to 1 mm
    [0.0, 0.25, 0.75, 1.25, 1.75, 2.0]
    >>> sample_positions(4, factor=0.5).tolist()  # 1 mm to 2 mm
    [0.5, 2.5]
    """
    step = 1.0 / factor
    start = -(factor - 1) / (2 * factor)
    return np.clip(np.arange(start, start + step * np.ceil(n * factor), step), 0, n - 1)


def _neighbours(positions, n):
    """The voxels before and after positions on an axis of n voxels, each with its weight in linear interpolation."""
    before = np.minimum(positions.astype(np.intp), n - 2)
    share = positions - before
    return (before, 1 - share), (before + 1, share)


def resample(
    data: np.ndarray, affine: np.ndarray, resolution: float, threads: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Linear interpolation to isotropic voxels (mm), after a light blur along axes that lose resolution.

    data (X, Y, Z), numbers of any type, and its affine; returns both for the new grid, float64.
    """
    from scipy.ndimage import gaussian_filter1d

    factor = voxel_sizes(affine) / resolution
    blurred = np.array(data, dtype=np.float64, order="C")
    x, y, z = (_neighbours(sample_positions(n, f), n) for n, f in zip(data.shape, factor, strict=True))
    result = np.zeros([len(axis[0][0]) for axis in (x, y, z)])

    def interpolate(plane, *near):
        # Products and sums over the eight neighbours in the order of SciPy's RegularGridInterpolator, as upstream.
        for i, along_x in near:
            for j, along_y in y:
                rows, weights = blurred[i].take(j, axis=0), (along_x * along_y)[:, None]
                for k, along_z in z:
                    term = rows.take(k, axis=1)
                    term *= weights * along_z
                    plane += term

    with workers(threads) as each:
        for axis in np.nonzero(factor <= 1)[0]:
            blur = partial(gaussian_filter1d, sigma=0.25 / factor[axis], axis=axis)
            parts = np.array_split(blurred, threads, axis=axis - 1)
            each(lambda part, blur=blur: blur(part, output=part), parts)
        each(interpolate, result, *(zip(*side, strict=True) for side in x))

    new = affine.astype(np.float64)
    new[:3, :3] = new[:3, :3] / factor
    new[:3, 3] = new[:3, 3] - new[:3, :3] @ (0.5 * (factor - 1))
    return result, new


def ras_order(affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxel axis per world axis (3,), and whether it runs the other way (3,): no rotation for oblique scans.

    >>> lia = np.array([[-1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])  # axes to left, inferior, anterior
    >>> axes, flipped = ras_order(lia)
    >>> axes.tolist(), flipped.tolist()
    ([0, 2, 1], [True, False, True])
    """
    weight = np.abs(np.linalg.inv(affine)[:3, :3])  # voxel axis, world axis
    axes = weight.argmax(axis=0)
    for axis in range(3):
        if axis not in axes:  # near 45 degrees one axis can win twice; the later claim goes to the unclaimed axis
            claims = np.bincount(axes, minlength=3)
            axes[np.nonzero(axes == np.nonzero(claims > 1)[0][0])[0][-1]] = axis
    return axes, affine[np.arange(3), axes] < 0


def to_ras(data: np.ndarray, axes: np.ndarray, flipped: np.ndarray) -> np.ndarray:
    """A view of (X, Y, Z) data with its axes to the right, the front and the top."""
    directions = tuple(slice(None, None, -1 if flip else 1) for flip in flipped)
    return data.transpose(axes)[directions]


def from_ras(data: np.ndarray, axes: np.ndarray, flipped: np.ndarray) -> np.ndarray:
    """The inverse of `to_ras`, also a view; further axes stay last."""
    directions = tuple(slice(None, None, -1 if flip else 1) for flip in flipped)
    return data[directions].transpose((*np.argsort(axes), *range(3, data.ndim)))


def rescale(data: np.ndarray) -> np.ndarray:
    """Clip to the 0.5 and 99.5 percentiles of all voxels and scale to [0, 1]; all zeros where they are equal."""
    flat = data.flatten(order="K").astype(np.float64, copy=False)  # one copy, as it lies
    low, high = np.percentile(flat, [0.5, 99.5], overwrite_input=True)
    del flat
    if low == high:
        return np.zeros(data.shape)
    scaled = data.astype(np.float64)  # first: numpy 1 and 2 make different types of the limits
    np.clip(scaled, low, high, out=scaled)
    scaled -= low
    scaled /= high - low
    return scaled


def padded_size(n: int, multiple: int, min_size: int) -> int:
    """The size of an axis of n voxels after padding: a multiple, and no less than min_size rounded up to one.

    >>> padded_size(181, multiple=32, min_size=128), padded_size(40, multiple=32, min_size=100)
    (192, 128)
    """
    return max(-(-n // multiple), -(-min_size // multiple)) * multiple


def pad(data: np.ndarray, multiple: int, min_sizes: Sequence[int]) -> tuple[np.ndarray, Box]:
    """Zeros around the image, the odd plane on the far side; returns the volume and the slices of the image in it.

    min_sizes : (3,) smallest size per axis, rounded up to the multiple as well.
    """
    sizes = [padded_size(n, multiple, smallest) for n, smallest in zip(data.shape, min_sizes, strict=True)]
    margins = [size - n for size, n in zip(sizes, data.shape, strict=True)]
    volume = np.pad(data, [(m // 2, m - m // 2) for m in margins])
    return volume, tuple(slice(m // 2, m // 2 + n) for m, n in zip(margins, data.shape, strict=True))
