"""From a scan to the network's grid, and the way back.

Positions are in mm (RAS+), affines map voxel indices to them, sizes are in voxels unless said otherwise.
"""

from dataclasses import dataclass

import numpy as np

TOLERANCE_MM = 0.05  # voxel sizes this close to the network's are left alone
MAX_HOUNSFIELD = 80


@dataclass
class Prepared:
    """What the network sees, and what is needed to go back.

    volume : (X, Y, Z) float32 in [0, 1], RAS, padded · box : slices of the image in it
    axes, flipped : voxel axis and direction per world axis · affine, voxel_mm : of the output grid
    """

    volume: np.ndarray
    box: tuple
    axes: np.ndarray
    flipped: np.ndarray
    affine: np.ndarray
    voxel_mm: np.ndarray


# To the network's grid -----------------------------------------------------------------------------------------------


def prepare(scan, *, resolution, pad_multiple, min_size, ct=False) -> Prepared:
    """Resample where needed, turn to RAS, clip CT, scale and pad. resolution in mm."""
    data, affine, voxel_mm = scan.data, scan.affine, scan.voxel_mm
    if needs_resampling(voxel_mm, resolution):
        data, affine = resample(data, affine, resolution)
        voxel_mm = np.full(3, resolution, dtype=np.float64)
    axes, flipped = ras_order(affine)
    data = to_ras(data, axes, flipped)
    if ct:
        data = np.clip(data, 0, MAX_HOUNSFIELD)
    volume, box = pad(rescale(data).astype(np.float32), pad_multiple, min_size)
    return Prepared(volume, box, axes, flipped, affine, voxel_mm)


def needs_resampling(voxel_mm, resolution) -> bool:
    """True where an axis is outside resolution -/+ TOLERANCE_MM, the limits included in what is left alone.

    Headers hold float32, and they are compared as what they hold: 0.95 in a header is a little less than 0.95.
    """
    voxel_mm = np.asarray(voxel_mm, dtype=np.float64)
    return bool(np.any((voxel_mm < resolution - TOLERANCE_MM) | (voxel_mm > resolution + TOLERANCE_MM)))


def sample_positions(n, factor) -> np.ndarray:
    """Where the new voxels of one axis lie, in old voxels; factor = old / new voxel size.

    Outer faces of the first voxels coincide. Upstream builds the row as a float range, whose length can be one off
    from ceil(n * factor); so does this. Positions outside the image are moved to its border.
    """
    step = 1.0 / factor
    start = -(factor - 1) / (2 * factor)
    return np.clip(np.arange(start, start + step * np.ceil(n * factor), step), 0, n - 1)


def resample(data, affine, resolution):
    """Linear interpolation to isotropic voxels (mm), after a light blur along axes that lose resolution.

    data (X, Y, Z) float64 and its affine; returns both for the new grid.
    """
    from scipy.interpolate import RegularGridInterpolator
    from scipy.ndimage import gaussian_filter

    factor = np.sqrt(np.sum(affine[:3, :3] * affine[:3, :3], axis=0)) / resolution
    blurred = gaussian_filter(data, np.where(factor > 1, 0, 0.25 / factor))
    lookup = RegularGridInterpolator([np.arange(n) for n in data.shape], blurred)
    x, y, z = (sample_positions(n, f) for n, f in zip(data.shape, factor, strict=True))

    result = np.empty((len(x), len(y), len(z)))
    for i in range(len(x)):  # plane by plane: the interpolator needs some ten arrays of what it is given
        result[i] = lookup((x[i], y[:, None], z[None, :]))

    new = affine.astype(np.float64)
    new[:3, :3] = new[:3, :3] / factor
    new[:3, 3] = new[:3, 3] - new[:3, :3] @ (0.5 * (factor - 1))
    return result, new


def ras_order(affine):
    """Voxel axis per world axis (3,), and whether it runs the other way (3,): no rotation for oblique scans."""
    weight = np.abs(np.linalg.inv(affine)[:3, :3])  # voxel axis, world axis
    axes = weight.argmax(axis=0)
    for axis in range(3):
        if axis not in axes:  # near 45 degrees one axis can win twice; the later claim goes to the unclaimed axis
            claims = np.bincount(axes, minlength=3)
            axes[np.nonzero(axes == np.nonzero(claims > 1)[0][0])[0][-1]] = axis
    return axes, affine[np.arange(3), axes] < 0


def to_ras(data, axes, flipped):
    """A view of (X, Y, Z) data with its axes to the right, the front and the top."""
    directions = tuple(slice(None, None, -1 if flip else 1) for flip in flipped)
    return data.transpose(axes)[directions]


def from_ras(data, axes, flipped):
    """The inverse of `to_ras`, also a view."""
    directions = tuple(slice(None, None, -1 if flip else 1) for flip in flipped)
    return data[directions].transpose(np.argsort(axes))


def rescale(data) -> np.ndarray:
    """Clip to the 0.5 and 99.5 percentiles of all voxels and scale to [0, 1]; all zeros where they are equal."""
    low, high = np.percentile(data, [0.5, 99.5])
    if low == high:
        return np.zeros(data.shape)
    scaled = np.clip(data, low, high)
    scaled -= low
    scaled /= high - low
    return scaled


def padded_size(n, multiple, min_size) -> int:
    return max(-(-n // multiple), -(-min_size // multiple)) * multiple


def pad(data, multiple, min_size):
    """Zeros around the image, the odd plane on the far side; returns the volume and the slices of the image in it."""
    margins = [padded_size(n, multiple, min_size) - n for n in data.shape]
    volume = np.pad(data, [(m // 2, m - m // 2) for m in margins])
    return volume, tuple(slice(m // 2, m // 2 + n) for m, n in zip(margins, data.shape, strict=True))
