"""Domain randomisation: an image of random shape, contrast and quality from a label map, with its segmentation.

The map is deformed on a grid finer than the network's, given intensities there, and then acquired: one matrix per axis
holds slice thickness, slice distance, blur and the resampling to the network's grid. Every sample is a function of its
seed alone, so that a training that resumes goes on as if it had not stopped.
"""

from dataclasses import dataclass

import numpy as np
import torch

from .contrast import means
from .maps import LABELS, MIRROR, OUTSIDE

KNOT_MM = 16.0  # distance of the control points of deformation and texture
FINE_MM = 1.0  # voxel size of the maps and of the grid on which intensities are drawn
PERCENTILES = (0.5, 99.5)  # as in the engine's image.rescale


@dataclass
class Sample:
    """image : (X, Y, Z) float32 in [0, 1] · target : (X, Y, Z) int64 channels · box : slices of the field of view"""

    image: torch.Tensor
    target: torch.Tensor
    box: tuple


def generate(label_map, channels, size, seed, settings, *, resolution=2.0, device="cpu") -> Sample:
    """Draw one sample.

    label_map : maps.LabelMap · channels : (K,) the network's channel per class · size : (3,) voxels of `resolution` mm
    seed : int or list of int · settings : the section `generation` of a configuration
    """
    rng = np.random.default_rng(seed)
    noise = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
    factor = round(resolution / FINE_MM)
    fine = [n * factor for n in size]

    mirror = rng.random() < settings["flip"]
    classes = _deformed(label_map, fine, mirror, rng, settings, device)
    if mirror:
        classes = _look_up(MIRROR, classes, torch.uint8)
    target = _majority(_look_up(channels, classes, torch.uint8), factor, len(channels))

    image = _intensities(classes, rng, noise, settings)
    image = _acquire(image, size, resolution, rng, settings["acquisition"])
    image *= _smooth_field(size, settings["bias_knots"], rng.uniform(0, settings["bias"]), rng, device).exp()
    image += torch.randn(image.shape, generator=noise, device=device) * rng.uniform(0, settings["noise"])

    box = _field_of_view(size, rng, settings["cut"])
    seen = torch.zeros_like(image)
    seen[box] = _rescale(image[box], rng, settings["percentile_jitter"])
    seen[box] = seen[box] ** float(np.exp(settings["gamma"] * rng.standard_normal()))
    inside = torch.zeros_like(target)
    inside[box] = target[box]
    return Sample(seen, inside, box)


def render(label_map, channels, kind, slice_mm, seed, settings, resolution=2.0):
    """A scan of a map as it is, 1 x 1 x slice_mm mm, and its segmentation on the network's grid.

    kind : of contrast, see contrast.means · settings : as of `generate`; shape, field of view and acquisition are not
    drawn · Returns image (X, Y, S) float32 and channels (x, y, z) uint8 of `resolution` mm voxels, whose outer faces
    coincide. Sizes are rounded up to multiples of 20 mm, with air, so that slices of 1, 2, 4, 5 and 10 mm fit.
    """
    rng = np.random.default_rng(seed)
    noise = torch.Generator().manual_seed(int(rng.integers(2**62)))
    missing = [-n % 20 for n in label_map.classes.shape]
    classes = torch.from_numpy(np.pad(label_map.classes, [(m // 2, m - m // 2) for m in missing]))
    target = _majority(_look_up(channels, classes, torch.uint8), round(resolution / FINE_MM), len(channels))

    image = _intensities(classes, rng, noise, settings | {"contrasts": {kind: 1}})
    _, profile = slices_along(image.shape[2], slice_mm, slice_mm / 2.355)
    if slice_mm > FINE_MM:
        image = image @ torch.from_numpy(profile.astype(np.float32)).T
    image = image * _smooth_field(image.shape, settings["bias_knots"], settings["bias"] / 2, rng, "cpu").exp()
    image += torch.randn(image.shape, generator=noise) * settings["noise"]
    return image.clamp_(0).numpy(), target.to(torch.uint8).numpy()


# Shape ---------------------------------------------------------------------------------------------------------------


def _deformed(label_map, shape, mirror, rng, settings, device):
    """Class numbers (X, Y, Z) uint8 of the map seen through a random affine and elastic deformation."""
    deform = settings["deformation"]
    angles = np.deg2rad(rng.uniform(-1, 1, 3) * deform["rotation_deg"])
    scale = np.exp(rng.uniform(-1, 1, 3) * deform["scaling"] + rng.uniform(-1, 1) * deform["size"])
    shear = np.eye(3)
    shear[~np.eye(3, dtype=bool)] = rng.uniform(-1, 1, 6) * deform["shear"]
    matrix = _rotation(angles) @ shear @ np.diag(scale)
    if mirror:
        matrix = matrix @ np.diag([-1, 1, 1])
    centre = label_map.centre + np.array(deform["offset_mm"]) + rng.uniform(-1, 1, 3) * deform["shift_mm"]

    # Cubic B-splines reproduce linear functions, so affine and elastic part are one set of control points.
    bases, knots = zip(*(_spline_basis(n, KNOT_MM / FINE_MM) for n in shape), strict=True)
    grid = np.stack(np.meshgrid(*[k - n / 2 for k, n in zip(knots, shape, strict=True)], indexing="ij"))
    control = np.einsum("ij,jxyz->ixyz", matrix, grid) + centre[:, None, None, None]
    control += rng.standard_normal(control.shape) * rng.uniform(0, deform["elastic_mm"])
    coarse = rng.standard_normal((3, 4, 4, 4)) * rng.uniform(0, deform["elastic_wide_mm"])
    wide = [np.linspace(0, 1, n)[:, None] * 3 for n in control.shape[1:]]
    control += np.einsum("cijk,xi,yj,zk->cxyz", coarse, *[np.clip(1 - abs(w - np.arange(4)), 0, 1) for w in wide])

    source = torch.from_numpy(np.pad(label_map.classes, 1)).to(device)  # the rim of air stands for all that is beyond
    index = None
    for axis, n in enumerate(source.shape):
        position = _expand(control[axis], bases, device).add_(1.5).clamp_(0, n - 1).to(torch.int32)
        index = position if index is None else index.mul_(n).add_(position)
    return source.flatten()[index.flatten()].reshape(index.shape)


def _rotation(angles):
    matrix = np.eye(3)
    for axis, angle in enumerate(angles):
        turn, (a, b) = np.eye(3), [k for k in range(3) if k != axis]
        turn[a, a] = turn[b, b] = np.cos(angle)
        turn[a, b], turn[b, a] = -np.sin(angle), np.sin(angle)
        matrix = matrix @ turn
    return matrix


def _spline_basis(n, spacing):
    """Cubic B-splines (n, K) at the middles of n voxels, and their centres (K,) in voxels."""
    centres = np.arange(-1, int(np.ceil(n / spacing)) + 2) * spacing
    t = abs(np.arange(n)[:, None] + 0.5 - centres) / spacing
    basis = np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.where(t < 2, (2 - t).clip(0) ** 3 / 6, 0))
    return basis, centres


def _expand(control, bases, device):
    """Values (X, Y, Z) of a spline with these control points."""
    field = torch.from_numpy(np.asarray(control, dtype=np.float32)).to(device)
    return _along_axes(field, [basis.astype(np.float32) for basis in bases])


def _along_axes(volume, matrices):
    """Apply one matrix (out, in) per axis."""
    for axis in range(3):
        matrix = torch.from_numpy(np.ascontiguousarray(matrices[axis], dtype=np.float32)).to(volume.device)
        if axis == 0:
            volume = (matrix @ volume.flatten(1)).unflatten(1, volume.shape[1:])
        elif axis == 1:
            volume = matrix @ volume
        else:
            volume = volume @ matrix.T
    return volume


def _smooth_field(size, knots, sd, rng, device):
    """A smooth random field (X, Y, Z): a spline over about this number of control points per axis."""
    bases = [_spline_basis(n, n / knots)[0] for n in size]
    return _expand(rng.standard_normal([b.shape[1] for b in bases]) * sd, bases, device)


def _look_up(table, classes, dtype):
    return torch.as_tensor(np.asarray(table), device=classes.device).to(dtype)[classes.int()]


def _majority(labels, factor, count):
    """The most frequent of the labels (uint8) in each block of factor**3 voxels, as int64; the lowest on a tie."""
    if factor == 1:
        return labels.long()
    x, y, z = (n // factor for n in labels.shape)
    blocks = labels.reshape(x, factor, y, factor, z, factor).permute(0, 2, 4, 1, 3, 5).reshape(x * y * z, factor**3)
    target = blocks[:, 0].long()
    mixed = torch.nonzero((blocks != blocks[:, :1]).any(dim=1))[:, 0]
    votes = torch.zeros((len(mixed), count), device=labels.device)
    votes.scatter_add_(1, blocks[mixed].long(), torch.ones((), device=labels.device).expand(len(mixed), factor**3))
    target[mixed] = votes.argmax(dim=1)
    return target.reshape(x, y, z)


# Intensities ---------------------------------------------------------------------------------------------------------


def _intensities(classes, rng, noise, settings):
    """One Gaussian per class, with a smooth texture within classes, and sometimes without what is around the brain."""
    kinds = settings["contrasts"]
    kind = rng.choice(list(kinds), p=np.array(list(kinds.values())) / sum(kinds.values()))
    mean = means(str(kind), rng, settings["contrast_jitter"])
    if rng.random() < settings["invert"]:
        mean = 255 - mean
    sd = rng.uniform(*settings["sd"], len(mean))
    if rng.random() < settings["quiet"]:
        sd *= 0.3
    outside = np.isin(LABELS, OUTSIDE)
    texture = np.where(outside, settings["texture_outside"], settings["texture"]) * rng.uniform(0, 1, len(mean))
    texture[0] = 0
    if rng.random() < settings["stripped"]:
        gone = outside | (np.isin(LABELS, [24]) & (rng.random() < 0.5))
        mean, sd, texture = (np.where(gone, 0, values) for values in (mean, sd, texture))

    table = torch.tensor(np.stack([mean, sd, texture], axis=1), dtype=torch.float32, device=classes.device)
    index = classes.int().flatten()
    image = torch.randn(index.shape, generator=noise, device=classes.device).mul_(table[:, 1].contiguous()[index])
    image.add_(table[:, 0].contiguous()[index])
    image = image.reshape(classes.shape)
    if texture.any():
        bases = [_spline_basis(n, settings["texture_mm"] / FINE_MM)[0] for n in classes.shape]
        field = _expand(1.5 * rng.standard_normal([b.shape[1] for b in bases]), bases, classes.device)
        image.add_(field.mul_(table[:, 2].contiguous()[index].reshape(classes.shape)))
    return image.clamp_(0, 300)


# Acquisition ---------------------------------------------------------------------------------------------------------


def _acquire(image, size, resolution, rng, settings):
    """Slices of random thickness along one axis and blur along all, resampled to the network's grid."""
    spacing = np.full(3, FINE_MM) if rng.random() < settings["fine"] else rng.uniform(*settings["voxel_mm"], 3)
    blur = np.full(3, rng.uniform(*settings["blur_mm"]))
    thickness = spacing.copy()
    if rng.random() < settings["thick"]:
        axis = rng.integers(3)
        spacing[axis] = rng.uniform(*settings["slice_mm"])
        thickness[axis] = spacing[axis] * rng.uniform(*settings["thickness"])
    matrices = [
        acquisition_matrix(n, resolution, spacing[axis], np.hypot(thickness[axis] / 2.355, blur[axis]), rng.random())
        for axis, n in enumerate(size)
    ]
    return _along_axes(image, matrices)


def slices_along(length, spacing, sigma, phase=0.5):
    """Slices over a length in mm: their middles (S,) in mm and what each takes of the fine voxels (S, fine voxels).

    spacing : mm between slices · sigma : of the slice profile in mm · phase : of the first, in parts of the spacing
    """
    fine = (np.arange(round(length / FINE_MM)) + 0.5) * FINE_MM
    middles = np.arange(phase * spacing, length, spacing)
    profile = np.exp(-((middles[:, None] - fine) ** 2) / (2 * max(sigma, 0.3 * FINE_MM) ** 2))
    return middles, profile / profile.sum(axis=1, keepdims=True)


def acquisition_matrix(n, resolution, spacing, sigma, phase=0.5) -> np.ndarray:
    """From a line of fine voxels by slices to n voxels of `resolution` mm, linear between slices: (n, fine voxels)."""
    if spacing < resolution:
        sigma = np.hypot(sigma, 0.25 * resolution)  # the engine's blur before it takes resolution away
    middles, profile = slices_along(n * resolution, spacing, sigma, phase)
    out = (np.arange(n) + 0.5) * resolution
    return np.stack([np.interp(out, middles, one) for one in np.eye(len(middles))], axis=1) @ profile


def _field_of_view(size, rng, settings):
    """Slices of the box that is seen: now and then some planes are missing at some faces."""
    box = []
    for n in size:
        low, high = (
            int(n * rng.uniform(0, settings["share"])) if rng.random() < settings["chance"] else 0 for _ in range(2)
        )
        box.append(slice(low, n - high))
    return tuple(box)


def _rescale(image, rng, jitter):
    """As the engine's image.rescale, with the upper percentile now and then elsewhere: how much air is in it varies."""
    low, high = PERCENTILES
    high -= rng.uniform(0, jitter)
    values, n = image.flatten(), image.numel()
    low, high = (float(values.kthvalue(max(1, round(n * p / 100))).values) for p in (low, high))
    if low == high:
        return torch.zeros_like(image)
    return image.clamp(low, high).sub_(low).div_(high - low)
