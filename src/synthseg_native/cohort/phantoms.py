"""Template-derived phantoms for the demo cohort, made from the ICBM 152 T1 template that nilearn carries.

They are no scans of anybody. The template is mirror-symmetric and skull-stripped, which would hide a swap of sides and
spare the network the head, so the left lateral ventricle and the right hippocampus are enlarged by a smooth
deformation and a synthetic skull and scalp are put around the brain. All arrays follow from fixed seeds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import ndimage

Curve = tuple[Sequence[float], Sequence[float]]  # intensities, and what they become
Pull = tuple[str, Sequence[float], Sequence[float], Sequence[float]]

# (structure, centre in MNI mm, spread in mm along x, y, z, strength of the pull along x, y, z).
# Lengths at the centre grow by 1 / (1 - strength). Along an axis the displacement is largest one spread away:
# strength * spread * exp(-1/2), here up to 4 mm.
ENLARGED: tuple[Pull, ...] = (
    ("left lateral ventricle", (-11.0, 12.0, 12.0), (9.0, 22.0, 10.0), (0.65, 0.15, 0.60)),
    ("left lateral ventricle", (-16.0, -12.0, 20.0), (10.0, 16.0, 10.0), (0.60, 0.0, 0.60)),
    ("left lateral ventricle", (-24.0, -38.0, 12.0), (11.0, 16.0, 12.0), (0.65, 0.15, 0.60)),
    ("right hippocampus", (28.0, -22.0, -15.0), (10.0, 18.0, 10.0), (0.55, 0.40, 0.60)),
)
CSF = 0.15  # intensity between brain and skull, on the scale where white matter is 0.9
# Shell by distance from the brain's envelope: (outer limit in mm, intensity): CSF, inner table, marrow, outer table,
# scalp, skin.
MARROW = 0.30
SHELL = ((1.5, CSF), (3.0, 0.04), (5.5, MARROW), (7.0, 0.04), (12.0, 0.85), (13.5, 0.50))
# The same anatomy with a FLAIR-like contrast, as curves (intensity above, intensity there): CSF dark, grey matter
# brighter than white matter.
FLAIR_TISSUE = ((0.0, 0.15, 0.30, 0.62, 0.90, 1.10), (0.08, 0.08, 0.30, 0.85, 0.50, 0.55))
FLAIR_SHELL = ((0.0, 0.04, CSF, MARROW, 0.50, 0.85), (0.0, 0.03, 0.10, 0.25, 0.40, 0.80))


@dataclass(frozen=True)
class Phantom:
    """Intensities of the tissue and of the shell around it, and how much of each voxel is tissue (0..1), all on the
    template's grid (float32)."""

    tissue: np.ndarray
    shell: np.ndarray
    inside: np.ndarray
    affine: np.ndarray

    def image(self, tissue: Curve | None = None, shell: Curve | None = None) -> np.ndarray:
        """Both parts in one array; ``tissue`` and ``shell`` are curves (from, to) of another contrast."""
        inner = self.tissue if tissue is None else np.interp(self.tissue, *tissue)
        outer = self.shell if shell is None else np.interp(self.shell, *shell)
        return (self.inside * inner + (1 - self.inside) * outer).astype(np.float32)


def template() -> tuple[np.ndarray, np.ndarray]:
    """The ICBM 152 2009a symmetric T1 template: float32 array (197, 233, 189) of 0..1, and its affine (1 mm, RAS)."""
    from nilearn.datasets import load_mni152_template

    image = load_mni152_template(resolution=1)
    return np.asarray(image.dataobj, np.float32), image.affine


def pull_back(points: np.ndarray, enlarged: Sequence[Pull] = ENLARGED) -> np.ndarray:
    """Where in the template the phantom's ``points`` come from; both (..., 3) in mm, RAS.

    Each entry pulls by ``strength * (point - centre) * exp(-q / 2)``, q being the squared distance in spreads. Along
    any ray from the centre that is monotone for a strength below 1, so nothing folds.

    >>> pull = ("sphere", (0.0, 0.0, 0.0), (10.0, 10.0, 10.0), (0.5, 0.5, 0.5))
    >>> pull_back(np.array([[0.0, 0, 0], [10, 0, 0], [60, 0, 0]]), [pull]).round(2).tolist()
    [[0.0, 0.0, 0.0], [6.97, 0.0, 0.0], [60.0, 0.0, 0.0]]
    """
    points = np.asarray(points)
    for _, centre, spread, strength in reversed(enlarged):
        offset = points - np.asarray(centre, points.dtype)
        weight = np.exp(-0.5 * np.sum((offset / np.asarray(spread, points.dtype)) ** 2, axis=-1, keepdims=True))
        points = points - weight * np.asarray(strength, points.dtype) * offset
    return points


def deform(array: np.ndarray, affine: np.ndarray, enlarged: Sequence[Pull] = ENLARGED) -> np.ndarray:
    """Return the array, warped on its own grid by `pull_back` (cubic interpolation)."""
    # The pull ends a few spreads from its centres, so only the box around them is worked on.
    corners = [np.array(c) + side * 4 * np.array(s) for _, c, s, _ in enlarged for side in (-1, 1)]
    voxels = nib.affines.apply_affine(np.linalg.inv(affine), corners)
    low = np.clip(np.floor(voxels.min(0)), 0, None).astype(int)
    high = np.minimum(np.ceil(voxels.max(0)).astype(int) + 1, array.shape)
    box = tuple(map(slice, low, high))
    grid = np.moveaxis(np.mgrid[box], 0, -1)
    points = pull_back(nib.affines.apply_affine(affine, grid), enlarged)
    voxels = nib.affines.apply_affine(np.linalg.inv(affine), points)
    warped = array.copy()
    warped[box] = ndimage.map_coordinates(array, np.moveaxis(voxels, -1, 0), order=3, mode="nearest")
    return np.clip(warped, 0, 1)


def smooth_field(shape: Sequence[int], spread: float, seed: int) -> np.ndarray:
    """Smooth random field of the shape, within -1..1, with features of about ``spread`` voxels."""
    field = np.random.default_rng(seed).standard_normal([int(n / spread) + 4 for n in shape])
    for n in shape:  # each turn interpolates the first axis and moves it to the end
        offset = np.arange(n)[:, None] / spread - np.arange(int(n / spread) + 4)[None, :] + 1.5
        weight = np.exp(-0.5 * (offset / 0.6) ** 2)
        weight /= np.sqrt((weight**2).sum(axis=1, keepdims=True))
        field = np.tensordot(field, weight.astype(np.float32), axes=(0, 1))
    return np.clip(field / 2, -1, 1).astype(np.float32)


def envelope_distance(mask: np.ndarray, closing: float = 14.0) -> np.ndarray:
    """Distance (voxels) from the mask with its sulci and clefts closed; negative inside. Worked out on every second
    voxel: the surface is smoothed anyway.

    mask : (X, Y, Z) bool, its last axis upwards · closing : width in voxels of the widest gap that is closed
    """
    # The neck goes on below the template, or the shell would close under the brain stem.
    neck, edge = 20, int(closing) + 3
    coarse = np.pad(mask, ((0, 0), (0, 0), (neck, 0)), mode="edge")
    coarse = np.pad(coarse, edge)[::2, ::2, ::2]
    near = ndimage.distance_transform_edt(~coarse) <= closing / 2
    closed = ndimage.distance_transform_edt(near) > closing / 2
    distance = ndimage.distance_transform_edt(~closed) - ndimage.distance_transform_edt(closed)
    distance = 2 * ndimage.gaussian_filter(distance.astype(np.float32), 1.0)
    start = (edge / 2, edge / 2, (edge + neck) / 2)
    return ndimage.affine_transform(distance, (0.5, 0.5, 0.5), start, mask.shape, order=1, mode="nearest")


def make_phantom(array: np.ndarray, affine: np.ndarray) -> Phantom:
    """Return the Phantom (white matter about 0.9): deformed brain, CSF, skull and scalp, no noise.

    array, affine : of `template`
    """
    brain = deform(array, affine)
    mask = brain > 0.05
    # The template's CSF lies near 0.35, grey matter near 0.70, white matter near 0.87.
    tissue = np.clip((brain - 0.22) / 0.72, 0.02, 1.1)
    tissue[~mask] = CSF
    distance = envelope_distance(mask)
    # Thickness and marrow vary over the skull, as they do in people.
    distance /= 1 + 0.2 * smooth_field(mask.shape, 35, seed=1)
    marrow = 1 + 0.5 * smooth_field(mask.shape, 12, seed=2)
    shell = np.zeros(mask.shape, np.float32)
    inner = -np.inf
    for outer, intensity in SHELL:
        layer = (distance > inner) & (distance <= outer)
        shell[layer] = intensity * (marrow[layer] if intensity == MARROW else 1)
        inner = outer
    shell *= 1 + 0.08 * smooth_field(mask.shape, 6, seed=3)
    shell = ndimage.gaussian_filter(shell, 0.7)
    inside = ndimage.gaussian_filter(mask.astype(np.float32), 0.6)
    return Phantom(tissue, shell, inside, affine)


def on_grid(
    array: np.ndarray, affine: np.ndarray, target_affine: np.ndarray, shape: Sequence[int], order: int = 3
) -> np.ndarray:
    """Return the array, resampled to another grid (outside: 0).

    affine, target_affine : (4, 4), voxels to mm · shape : (3,) of the other grid · order : of the spline, 1: linear
    """
    to_source = np.linalg.inv(affine) @ target_affine
    return ndimage.affine_transform(array, to_source[:3, :3], to_source[:3, 3], tuple(shape), order=order, cval=0.0)


def add_noise(array: np.ndarray, sigma: float, seed: int) -> np.ndarray:
    """Return the magnitude of the image with Gaussian noise in both channels, as a scanner's noise is (Rician)."""
    rng = np.random.default_rng(seed)
    real = array + sigma * rng.standard_normal(array.shape, np.float32)
    return np.hypot(real, sigma * rng.standard_normal(array.shape, np.float32))


def tilted_affine(
    axes: str, voxel_mm: Sequence[float], degrees: Sequence[float], shape: Sequence[int], centre: Sequence[float]
) -> np.ndarray:
    """Affine with the given axis codes ("LIA") and voxel sizes (mm), turned by ``degrees`` (about x, y, z in turn),
    that puts the middle of a grid of ``shape`` at ``centre`` (mm).

    >>> tilted_affine("LPS", (1, 1, 5), (0, 0, 0), (201, 201, 21), (0, -20, 10)).round(6).tolist()[:2]
    [[-1.0, 0.0, 0.0, 100.0], [0.0, -1.0, 0.0, 80.0]]
    """
    turn = np.eye(3)
    for axis, degree in enumerate(degrees):
        c, s = np.cos(np.deg2rad(degree)), np.sin(np.deg2rad(degree))
        i, j = [k for k in range(3) if k != axis]
        step = np.eye(3)
        step[i, i], step[i, j], step[j, i], step[j, j] = c, -s, s, c
        turn = step @ turn
    orientation = nib.orientations.axcodes2ornt(axes)
    directions = np.zeros((3, 3))
    for column, (axis, sign) in enumerate(orientation):
        directions[int(axis), column] = sign
    affine = np.eye(4)
    affine[:3, :3] = turn @ directions * np.asarray(voxel_mm)
    affine[:3, 3] = np.asarray(centre) - affine[:3, :3] @ ((np.asarray(shape) - 1) / 2)
    return affine


def first_image(phantom: Phantom) -> nib.Nifti1Image:
    """sub-01: the template's grid (1 mm, RAS), uint8."""
    values = np.clip(add_noise(phantom.image(), 0.012, seed=11) * 200, 0, 255)
    return _image(np.rint(values).astype(np.uint8), phantom.affine)


def second_image(phantom: Phantom) -> nib.Nifti1Image:
    """sub-02: the same head on a grid with other axes (LIA), oblique, anisotropic voxels, int16 with a scale slope."""
    shape, voxel_mm, slope = (160, 236, 150), (1.2, 0.9, 1.5), 0.25
    affine = tilted_affine("LIA", voxel_mm, (6.0, -4.0, 5.0), shape, (2.0, -20.0, 14.0))
    values = on_grid(phantom.image(), phantom.affine, affine, shape)
    values = np.clip(values, 0, None) * (1 + 0.15 * smooth_field(shape, 90, seed=21))
    values = add_noise(values, 0.015, seed=22) * 500
    return _image(np.clip(np.rint(values / slope), 0, 32767).astype(np.int16), affine, slope)


def third_image(phantom: Phantom) -> nib.Nifti1Image:
    """sub-03: axial slices of 5 mm (LPS), noise, and a FLAIR-like contrast; int16."""
    # A slice averages what lies within it; this is done on the fine grid.
    contrast = ndimage.uniform_filter1d(phantom.image(FLAIR_TISSUE, FLAIR_SHELL), 5, axis=2)
    shape, voxel_mm = (208, 248, 36), (0.95, 0.95, 5.0)
    affine = tilted_affine("LPS", voxel_mm, (0.0, 0.0, 0.0), shape, (0.0, -18.0, 16.0))
    values = add_noise(np.clip(on_grid(contrast, phantom.affine, affine, shape), 0, None), 0.03, seed=31) * 1000
    return _image(np.rint(values).astype(np.int16), affine)


def axes(image: nib.Nifti1Image) -> str:
    """The axis codes of an image, "LIA"."""
    return "".join(nib.aff2axcodes(image.affine))


def _image(values, affine, slope=None):
    """NIfTI image that stores ``values`` as they are; with ``slope`` a reader sees ``slope * values``."""
    image = nib.Nifti1Image(values, affine)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, code=1)
    image.set_qform(affine, code=1)
    image.header["descrip"] = b"template-derived phantom, not a scan"
    if slope is not None:
        image.header.set_slope_inter(slope, 0)
    return image


# By subject of the demo cohort.
BUILDERS = {"01": first_image, "02": second_image, "03": third_image}
