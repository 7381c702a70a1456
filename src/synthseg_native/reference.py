"""SynthSeg 1.0 and 2.0 in full (default, --fast, --robust, --parc, --qc, --crop, --autocrop, --ct), slow and obvious.

The oracle of the tests. Follows the behavioural specification of SynthSeg step by step, on whole arrays, with stock
Keras layers. It shares no code with the rest of the package and runs as a single file:

    python reference.py --i IMAGE --o DSEG.nii.gz --vol VOLUMES.csv --model MODEL_FOLDER

A model folder holds ``card.yaml`` (its networks, resolution, padding), the tables that it names (one row per channel)
and, unless --weights says where else they are, the weights. Networks of --parc and --qc that a card lacks are those of
the model folder beside it that the card names as its companions. No optimisation belongs in this file.

Where SynthSeg divides 0 by 0, which makes all volumes of a scan "nan", this gives numbers: a voxel without any
posterior is background and adds to no volume, and so is a voxel of the cortex without any parcel's posterior.
"""

import argparse
import csv
import os
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import scipy.interpolate
import scipy.ndimage
import yaml

# fmt: off
# Which posteriors each combination of flags takes, as SynthSeg does.
#   raw: as the softmax gives them · smoothed: these, blurred · averaged: half the sum of the smoothed ones of the image
#   and of its mirror image
#   labels: whence labels, --post and volumes come · cortex: whose cortex the parcellation reads
#   parcels: whence parcels and their volumes come · quality: whose labels the quality network reads
TAKEN = {
    # mode      --parc --qc      labels      cortex      parcels     quality
    ("default", False, False): ("averaged", None,       None,       None),
    ("default", True,  False): ("averaged", "averaged", "smoothed", None),
    ("default", False, True):  ("averaged", None,       None,       "averaged"),
    ("default", True,  True):  ("averaged", "averaged", "raw",      "averaged"),
    ("fast",    False, False): ("smoothed", None,       None,       None),
    ("fast",    True,  False): ("raw",      "smoothed", "smoothed", None),
    ("fast",    False, True):  ("raw",      None,       None,       "smoothed"),
    ("fast",    True,  True):  ("raw",      "smoothed", "raw",      "raw"),
    ("robust",  False, False): ("raw",      None,       None,       None),
    ("robust",  True,  False): ("raw",      "raw",      "smoothed", None),
    ("robust",  False, True):  ("raw",      None,       None,       "raw"),
    ("robust",  True,  True):  ("raw",      "raw",      "raw",      "raw"),
}
# fmt: on
LEFT_CORTEX, RIGHT_CORTEX = 3, 42  # labels
LEFT_WHITE_MATTER, RIGHT_WHITE_MATTER = 2, 41
CSF = 24
VOLUMES = ("cortex", "upstream-66342c1")  # what parcels' volumes add up to


def load_network(folder: str | Path, role: str, companions: str | Path | None = None) -> dict:
    """The network of this role on a model's card, or on that of its companions (parcellation, quality).

    companions : the folder of these, by themselves that of the name on the card, beside the model's.

    Besides what the card says it has ``folder``, that of its model, and where it has outputs with a table ``rows``, the
    rows of that table (list of dict, in channel order). Raises ValueError where there is no such network.
    """
    folder = Path(folder).absolute()
    card = yaml.safe_load((folder / "card.yaml").read_text(encoding="utf-8"))
    networks = [{**network, "folder": folder} for network in card["networks"]]
    if "companions" in card and role in ("parcellation", "quality"):
        companions = Path(companions or folder.parent / card["companions"]).absolute()
        others = yaml.safe_load((companions / "card.yaml").read_text(encoding="utf-8"))
        networks += [{**network, "folder": companions} for network in others["networks"]]
    network = next((network for network in networks if network["name"] == role), None)
    if network is None:
        raise ValueError(f"{folder / 'card.yaml'}: has no network {role}: take a model that has")
    if "table" in network["outputs"]:
        with (network["folder"] / network["outputs"]["table"]).open(encoding="utf-8", newline="") as file:
            network["rows"] = list(csv.DictReader(file, delimiter="\t"))
    return network


def column(network: dict, name: str) -> np.ndarray:
    """A column of whole numbers of a network's table (N,)."""
    return np.array([int(row[name]) for row in network["rows"]], dtype=np.int32)


# Reading, resampling, orientation ------------------------------------------------------------------------------------


def read_image(path: str | Path) -> tuple[np.ndarray, np.ndarray, nib.spatialimages.SpatialHeader, np.ndarray]:
    """Return data (float64, 3-D), affine (4, 4), header and voxel sizes as the header states them (3,)."""
    image = nib.load(path)
    data = np.squeeze(image.get_fdata())
    if data.ndim != 3:
        raise ValueError(f"{path}: {data.ndim} dimensions: give a single 3-D image")
    return data, image.affine, image.header, np.array(image.header.get_zooms()[:3], dtype=np.float64)


def resample(data: np.ndarray, affine: np.ndarray, resolution: float) -> tuple[np.ndarray, np.ndarray]:
    """Blur and resample linearly to isotropic voxels of `resolution` mm; return data and affine.

    The blur has a sigma of 1/4 of the new voxel size, along axes that do not get more samples than before.
    """
    voxel_size = np.sqrt(np.sum(affine[:3, :3] ** 2, axis=0))
    factor = voxel_size / resolution  # above 1: more samples than before

    sigma = 0.25 / factor
    sigma[factor > 1] = 0
    blurred = scipy.ndimage.gaussian_filter(data, sigma)

    positions = []
    for axis in range(3):
        start = -(factor[axis] - 1) / (2 * factor[axis])
        step = 1.0 / factor[axis]
        # The float arange may give one sample more or fewer than the ceiling says; upstream does the same.
        position = np.arange(start, start + step * np.ceil(data.shape[axis] * factor[axis]), step)
        positions.append(np.clip(position, 0, data.shape[axis] - 1))
    grid = np.meshgrid(*positions, indexing="ij", sparse=True)
    interpolate = scipy.interpolate.RegularGridInterpolator([np.arange(n) for n in data.shape], blurred)
    resampled = interpolate(tuple(grid))

    new_affine = np.array(affine, dtype=np.float64)
    new_affine[:3, :3] = affine[:3, :3] / factor
    new_affine[:3, 3] = affine[:3, 3] - new_affine[:3, :3] @ (0.5 * (factor - 1))
    return resampled, new_affine


def ras_axes(affine: np.ndarray) -> np.ndarray:
    """For each world axis (x, y, z), the voxel axis that follows it most closely."""
    axes = np.argmax(np.abs(np.linalg.inv(affine)[:3, :3]), axis=0)
    for missing in range(3):
        if missing not in axes:
            duplicates = [a for a in range(3) if np.count_nonzero(axes == a) > 1]
            axes[np.flatnonzero(axes == duplicates[0])[-1]] = missing
    return axes


def to_ras(data: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Permute and flip the axes so that they point right, anterior, superior. No rotation."""
    axes = ras_axes(affine)
    data = np.transpose(data, axes)
    for world in range(3):
        if affine[world, axes[world]] < 0:
            data = np.flip(data, world)
    return data


def from_ras(data: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Undo `to_ras` for an image with this affine."""
    axes = ras_axes(affine)
    for world in range(3):
        if affine[world, axes[world]] < 0:
            data = np.flip(data, world)
    return np.transpose(data, (*np.argsort(axes), *range(3, data.ndim)))


# Intensities and size ------------------------------------------------------------------------------------------------


def round_up(size: float, multiple: int) -> int:
    """The smallest multiple that is no less than size.

    >>> round_up(181, 32)
    192
    """
    return int(np.ceil(size / multiple)) * multiple


def crop_box(shape: tuple[int, ...], size: list[int]) -> tuple[slice, ...]:
    """Slices of the central box of this size, no larger than the image."""
    box = []
    for n, c in zip(shape, size, strict=True):
        low = max(int((n - c) / 2), 0)
        box.append(slice(low, min(low + c, n)))
    return tuple(box)


def bright_box(data: np.ndarray, multiple: int) -> tuple[slice, ...]:
    """FreeSurfer's --autocrop: slices of the box around all voxels above 0, rounded up to a multiple."""
    positions = np.argwhere(data > 0)
    box = []
    for axis, n in enumerate(data.shape):
        first, last = np.min(positions[:, axis]), np.max(positions[:, axis])
        length = last - first + 2
        size = round_up(length, multiple)
        low = max(first - (size - length) // 2, 0)
        box.append(slice(low, min(low + size, n)))
    return tuple(box)


def scale(data: np.ndarray) -> np.ndarray:
    """Clip to the 0.5 and 99.5 percentiles and scale to [0, 1]; a constant image becomes zeros."""
    low, high = np.percentile(data, 0.5), np.percentile(data, 99.5)
    if low == high:
        return np.zeros(data.shape)
    return (np.clip(data, low, high) - low) / (high - low)


def pad(data: np.ndarray, multiple: int, min_size: list[int]) -> tuple[np.ndarray, tuple[slice, ...]]:
    """Pad with zeros to a multiple, at least min_size per axis; return data and the slices of the image in it."""
    margins, box = [], []
    for n, smallest in zip(data.shape, min_size, strict=True):
        missing = max(round_up(n, multiple), round_up(smallest, multiple)) - n
        low = missing // 2
        margins.append((low, missing - low))
        box.append(slice(low, low + n))
    return np.pad(data, margins), tuple(box)


# Networks ------------------------------------------------------------------------------------------------------------


def build_network(network: dict, inputs: int, outputs: int, end: str = "softmax") -> Any:
    """A network with upstream's layer names, as a Keras model: (1, X, Y, Z, inputs) -> (1, X, Y, Z, outputs).

    network : ``layers`` of a card · end : "softmax" for a U-Net; "mean" for an encoder, whose result is (1, outputs)
    """
    from tensorflow.keras import Model, layers

    prefix, levels, features = network.get("prefix", "unet"), network["levels"], network["features"]
    convolutions, activation = network["convolutions_per_level"], network["activation"]

    def convolve(x, name, channels, size=network["kernel"], activation=activation):
        name = f"{prefix}_{name}"
        return layers.Conv3D(channels, size, padding="same", activation=activation, name=name)(x)

    # 5-D fused normalisation is not available on every device; the formula is the same.
    def normalise(x, name):
        return layers.BatchNormalization(fused=False, name=f"{prefix}_{name}")(x)

    def pool(x, level):
        return layers.MaxPooling3D(2, padding="same", name=f"{prefix}_maxpool_{level}")(x)

    x = image = layers.Input((None, None, None, inputs), name=f"{prefix}_input")
    if network.get("form", "unet") == "encoder":
        if end != "mean":
            raise ValueError(f"{prefix}: an encoder ends with the mean")
        for level in range(levels):
            channels = features * 2**level
            y = x
            for i in range(convolutions):
                last = i == convolutions - 1  # whose activation comes after the sum
                y = convolve(y, f"conv_downarm_{level}_{i}", channels, activation=None if last else activation)
            if x.shape[-1] != channels:
                x = convolve(x, f"expand_down_merge_{level}", channels)
            x = layers.Add(name=f"{prefix}_res_down_merge_{level}")([x, y])
            x = layers.Activation(activation, name=f"{prefix}_res_down_merge_act_{level}")(x)
            x = normalise(x, f"bn_down_{level}")
            x = pool(x, level)  # at the last level, too
        x = convolve(x, "final_conv_0", outputs)
        x = convolve(x, "final_conv_1", outputs)
        return Model(image, layers.GlobalAveragePooling3D(name=f"{prefix}_final_pred")(x))

    skips = []
    for level in range(levels):
        for i in range(convolutions):
            x = convolve(x, f"conv_downarm_{level}_{i}", features * 2**level)
        skips.append(x)  # before the normalisation
        x = normalise(x, f"bn_down_{level}")
        if level < levels - 1:
            x = pool(x, level)
    for i in range(levels - 1):
        level, number = levels - 2 - i, levels + i
        x = layers.UpSampling3D(2, name=f"{prefix}_up_{number}")(x)
        if level >= network.get("levels_without_skip", 0):
            x = layers.Concatenate(name=f"{prefix}_merge_{number}")([skips[level], x])
        for j in range(convolutions):
            x = convolve(x, f"conv_uparm_{number}_{j}", features * 2**level)
        x = normalise(x, f"bn_up_{i}")
    x = convolve(x, "likelihood", outputs, size=1, activation=None)
    return Model(image, layers.Softmax(axis=-1, name=f"{prefix}_prediction")(x))


def load(network: dict, inputs: int, weights: str | Path | None = None) -> Any:
    """The Keras model of a card's network with its weights.

    inputs : channels that it reads · weights : a file, or a folder with the file that the card names (default: the
    folder of the network's model). Raises ValueError where the file lacks a layer or has one of another shape.
    """
    import h5py

    outputs = network["outputs"]
    weights = Path(network["folder"] if weights is None else weights)
    if weights.is_dir():
        weights = weights / network["weights"]["file"]
    model = build_network(network["layers"], inputs, outputs["channels"], outputs["end"])
    with h5py.File(weights) as file:  # Keras passes over a layer that the file lacks
        for layer in model.layers:
            for weight in layer.weights:
                found = file.get(f"{layer.name}/{weight.name}")
                if found is None or found.shape != weight.shape:
                    raise ValueError(
                        f"{weights}: layer {layer.name} is missing or another: give those of {network['name']}"
                    )
    model.load_weights(str(weights), by_name=True)
    return model


def predict(model: Any, channels: np.ndarray) -> np.ndarray:
    """What a network gives for (X, Y, Z, C): raw posteriors (X, Y, Z, N), or scores (N,); float32."""
    return model.predict(channels[None].astype(np.float32), verbose=0)[0]


def smooth(posteriors: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian of this sigma (voxels, 0: none), zero padding, each channel by itself: one full 3-D kernel.

    posteriors: (X, Y, Z, N) float32, as is the result.
    """
    import tensorflow as tf

    if sigma == 0:
        return posteriors
    half = int(np.ceil(2.5 * sigma) / 2)
    line = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
    kernel = line[:, None, None] * line[None, :, None] * line[None, None, :]
    kernel = tf.constant((kernel / kernel.sum())[..., None, None], dtype=tf.float32)
    smoothed = np.empty_like(posteriors)
    for c in range(posteriors.shape[-1]):
        channel = posteriors[None, ..., c : c + 1]
        smoothed[..., c : c + 1] = tf.nn.conv3d(channel, kernel, strides=[1] * 5, padding="SAME")[0]
    return smoothed


def one_hot(indices: np.ndarray, channels: int) -> np.ndarray:
    """(X, Y, Z) whole numbers as (X, Y, Z, channels) float32, 1 in the channel of that number, 0 in the others."""
    return (indices[..., None] == np.arange(channels)).astype(np.float32)


# From one network to the next -----------------------------------------------------------------------------------------
# volume: (X, Y, Z), the padded image. Maps are whole numbers (X, Y, Z) on the same frame.


def averaged_posteriors(model: Any, volume: np.ndarray, flip: np.ndarray, sigma: float) -> np.ndarray:
    """Default mode: smoothed posteriors (X, Y, Z, N), averaged with those of the mirror image.

    flip: (N,), for each channel that of the same structure on the other side.
    """
    straight = smooth(predict(model, volume[..., None]), sigma)
    mirrored = smooth(predict(model, volume[::-1][..., None]), sigma)
    return np.float32(0.5) * (straight + mirrored[::-1][..., flip])


def groups_of_image(model: Any, volume: np.ndarray) -> np.ndarray:
    """--robust, first network: map of the groups."""
    return np.argmax(predict(model, volume[..., None]), axis=-1)


def denoised_groups(model: Any, groups: np.ndarray) -> np.ndarray:
    """--robust, second network: the same groups, mended. It does not see the image."""
    return np.argmax(predict(model, one_hot(groups, model.input_shape[-1])), axis=-1)


def robust_posteriors(model: Any, volume: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """--robust, third network: raw posteriors (X, Y, Z, N) of the image and the denoised groups."""
    channels = one_hot(groups, model.input_shape[-1] - 1)
    return predict(model, np.concatenate([volume[..., None], channels], axis=-1))


def cortex_of(posteriors: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Map of the cortex, 0 or 1, as the posteriors have it before any post-processing. values: (N,), labels"""
    return np.isin(values[np.argmax(posteriors, axis=-1)], (LEFT_CORTEX, RIGHT_CORTEX)).astype(int)


def parcel_posteriors(model: Any, volume: np.ndarray, cortex: np.ndarray) -> np.ndarray:
    """--parc: raw posteriors (X, Y, Z, N) of background and parcels."""
    return predict(model, np.concatenate([volume[..., None], one_hot(cortex, 2)], axis=-1))


def quality_box(indices: np.ndarray, edge: int) -> np.ndarray:
    """The cube of this edge that the quality network reads of a map of channel indices (X, Y, Z); outside it is 0.

    Its middle is that of the box around all voxels but those of index 0 and 24. (Label 24, the fluid, was meant;
    channel 24 is the right cerebellum's cortex, in SynthSeg 1.0 the right thalamus.) Without any such voxel it is that
    of a box at the origin, as large as the map and no larger than the cube.
    """
    shape = np.array(indices.shape)
    inside = np.argwhere((indices != 0) & (indices != 24))
    if len(inside):
        low, high = inside.min(axis=0), inside.max(axis=0) + 1
    else:
        low, high = np.zeros(3, dtype=int), np.minimum(shape, edge)
    missing = edge - (high - low)  # below 0 where the box is too long
    low = low - np.ceil(missing / 2).astype(int)
    high = high + np.floor(missing / 2).astype(int)
    start, stop = np.maximum(low, 0), np.minimum(high, shape)
    cut = indices[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))]
    return np.pad(cut, list(zip(start - low, high - stop, strict=True)))


def quality_scores(model: Any, indices: np.ndarray, groups: np.ndarray, edge: int) -> np.ndarray:
    """--qc: scores (M,) as the network gives them, that of the background first.

    indices : map of channels · groups : (N,), the quality group of each channel · edge : of the cube, in voxels
    """
    return predict(model, one_hot(groups[quality_box(indices, edge)], model.input_shape[-1]))


# Post-processing -----------------------------------------------------------------------------------------------------


def largest_component(mask: np.ndarray) -> np.ndarray:
    """The largest 6-connected part of a mask, the first one on a tie; an empty mask stays as it is.

    >>> largest_component(np.array([[[1, 0, 1, 1, 0, 1, 1]]], bool)).astype(int).ravel().tolist()
    [0, 0, 1, 1, 0, 0, 0]
    """
    components, n = scipy.ndimage.label(mask)
    if n == 0:
        return mask
    sizes = np.bincount(components.ravel())
    return components == 1 + np.argmax(sizes[1:])


def postprocess(
    posteriors: np.ndarray, box: tuple[slice, ...], topology: np.ndarray, threshold: float, fast: bool
) -> np.ndarray:
    """Keep the brain, then each structure's largest part; un-pad, normalise. Return posteriors (x, y, z, N).

    posteriors: (X, Y, Z, N) of the padded volume, changed in place. topology: (N,), the class of each channel, 0: none.
    """
    if fast:
        posteriors = posteriors[box]

    brain = largest_component(np.sum(posteriors[..., 1:], axis=-1) > threshold)
    posteriors[~brain, 1:] = 0

    if fast:
        posteriors[..., 1:] *= posteriors[..., 1:] > 0.2
    else:
        above = posteriors > threshold
        for group in np.unique(topology[topology > 0]):
            channels = np.flatnonzero(topology == group)
            part = largest_component(np.any(above[..., channels], axis=-1))
            for channel in channels:
                posteriors[..., channel] *= part
        posteriors = posteriors[box]

    return normalise(posteriors)


def normalise(posteriors: np.ndarray) -> np.ndarray:
    """Divide (x, y, z, N) by the sum over channels; a voxel without any posterior keeps none."""
    total = np.sum(posteriors, axis=-1)
    return posteriors / np.where(total == 0, np.float32(1), total)[..., None]


def label_parcels(labels: np.ndarray, posteriors: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Put parcels in place of the cortex; return labels (x, y, z) and the normalised posteriors (x, y, z, N).

    posteriors : (x, y, z, N) of background and parcels, un-padded · values : (N,), their labels. Any parcel may win in
    any hemisphere's cortex; background may not, but where there is no posterior at all.
    """
    cortex = np.isin(labels, (LEFT_CORTEX, RIGHT_CORTEX))
    posteriors = posteriors.copy()
    posteriors[..., 0] = ~cortex
    posteriors = normalise(posteriors)
    return np.where(cortex, values[np.argmax(posteriors, axis=-1)], labels), posteriors


# Volumes -------------------------------------------------------------------------------------------------------------


def soft_sums(posteriors: np.ndarray) -> np.ndarray:
    """Sums of posteriors (x, y, z, N) over voxels, float64 (N,)."""
    return np.sum(posteriors, axis=(0, 1, 2), dtype=np.float64)


def scale_parcels(sums: np.ndarray, sides: list[str], structures: dict[int, float], form: str = "cortex") -> np.ndarray:
    """Volumes of the parcels (N,), from the sums of their posteriors over the whole box, also outside the cortex.

    sums : (N,), without the background · sides : N times "left" or "right" · structures : volume per label

    cortex : the parcels of a hemisphere add up to its cortex. upstream-66342c1 : all of them together add up to both
    cortices in SynthSeg 1.0, in 2.0 by a mistake to the white matter.

    >>> volumes = {2: 500.0, 41: 300.0, 3: 30.0, 42: 60.0}
    >>> scale_parcels(np.array([1.0, 2.0, 4.0]), ["left", "left", "right"], volumes).tolist()
    [10.0, 20.0, 60.0]
    >>> scale_parcels(np.array([1.0, 2.0, 5.0]), ["left", "left", "right"], {**volumes, 24: 9.0}, VOLUMES[1]).tolist()
    [100.0, 200.0, 500.0]
    """
    if form == "upstream-66342c1":
        both = (LEFT_WHITE_MATTER, RIGHT_WHITE_MATTER) if CSF in structures else (LEFT_CORTEX, RIGHT_CORTEX)
        parts = [(np.ones(len(sums), dtype=bool), sum(structures[label] for label in both))]
    else:
        parts = [
            (np.array(sides) == side, structures[label])
            for side, label in (("left", LEFT_CORTEX), ("right", RIGHT_CORTEX))
        ]
    volumes = np.zeros(len(sums))
    for part, total in parts:
        if sums[part].sum() > 0:  # else there is nothing to share out
            volumes[part] = sums[part] / sums[part].sum() * total
    return volumes


# Saving --------------------------------------------------------------------------------------------------------------


def save_image(
    data: np.ndarray,
    affine: np.ndarray,
    header: nib.spatialimages.SpatialHeader,
    path: str | Path,
    dtype: type | None = None,
) -> None:
    """Save with the input's header. Without a dtype the header's own is kept, as upstream does for --resample."""
    image = nib.Nifti1Image(data if dtype is None else data.astype(dtype), affine, header)
    if dtype is not None:
        image.set_data_dtype(dtype)
    nib.save(image, path)


def save_row(path: str | Path, subject: str, names: list[str], values: list[str]) -> None:
    """Save volumes or scores as SynthSeg does: a row of names, a row of numbers."""
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)  # its line ends are CR LF, like upstream's
        writer.writerow(["subject", *names])
        writer.writerow([subject, *values])


def segment(arguments: argparse.Namespace) -> None:
    """One image in, one label map out, and what else the command line asks for. ValueError for what is no 3-D image."""
    mode = "robust" if arguments.robust else "fast" if arguments.fast else "default"
    for_labels, for_cortex, for_parcels, for_quality = TAKEN[mode, arguments.parc, bool(arguments.qc)]

    first = load_network(arguments.model, "segmentation")
    network = load_network(arguments.model, "robust") if mode == "robust" else first
    resolution = first["grid"]["resolution_mm"]
    multiple = first["grid"]["pad_multiple"]
    min_size = [first["grid"]["min_size"]] * 3
    values, flip, topology = (column(network, name) for name in ("index", "flip_channel", "topology_class"))

    data, affine, header, voxel_size = read_image(arguments.i)
    if np.any(voxel_size < resolution - 0.05) or np.any(voxel_size > resolution + 0.05):
        data, affine = resample(data, affine, resolution)
        voxel_size = np.full(3, resolution)
        if arguments.resample:
            save_image(data, affine, header, arguments.resample)
    data = to_ras(data, affine)
    ras_shape = data.shape
    cropped = (slice(None),) * 3
    if arguments.crop:
        size = arguments.crop * 3 if len(arguments.crop) == 1 else arguments.crop
        min_size = [round_up(s, multiple) for s in size]
        cropped = crop_box(data.shape, min_size)
        data = data[cropped]
    if arguments.ct:
        data = np.clip(data, 0, 80)
    data = scale(data)
    if arguments.autocrop and np.any(data > 0):
        cropped = bright_box(data, multiple)
        data = data[cropped]
    volume, box = pad(data, multiple, min_size)

    start_tensorflow(arguments.threads)
    files = arguments.weights if arguments.weights and Path(arguments.weights).is_dir() else None
    sigma = network["outputs"]["smoothing_sigma"]
    found = {}  # posteriors (X, Y, Z, N), by the names of TAKEN
    if mode == "default":
        found["averaged"] = averaged_posteriors(load(network, 1, arguments.weights), volume, flip, sigma)
    elif mode == "fast":
        found["raw"] = predict(load(network, 1, arguments.weights), volume[..., None])
        found["smoothed"] = smooth(found["raw"], sigma)
    else:
        step1, step2 = (load_network(arguments.model, role) for role in ("groups", "denoised"))
        n = step1["outputs"]["channels"]
        groups = groups_of_image(load(step1, 1, arguments.weights), volume)
        groups = denoised_groups(load(step2, n, arguments.weights), groups)
        found["raw"] = robust_posteriors(load(network, 1 + n, arguments.weights), volume, groups)

    if arguments.parc:
        parcellation = load_network(arguments.model, "parcellation", arguments.companions)
        parcels = parcel_posteriors(load(parcellation, 3, files), volume, cortex_of(found[for_cortex], values))
        if for_parcels == "smoothed":
            parcels = smooth(parcels, parcellation["outputs"]["smoothing_sigma"])
    if arguments.qc:
        quality = load_network(arguments.model, "quality", arguments.companions)
        indices = np.argmax(found[for_quality], axis=-1)
        model = load(quality, quality["outputs"]["channels"], files)
        scores = quality_scores(model, indices, column(network, "qc_group"), quality["grid"]["box"])

    posteriors = postprocess(found[for_labels], box, topology, network["outputs"]["threshold"], mode != "default")
    labels = values[np.argmax(posteriors, axis=-1)]
    cubic_mm = np.prod(voxel_size, dtype=np.float64)
    soft = soft_sums(posteriors) * cubic_mm
    structures = dict(zip(values.tolist(), soft, strict=True))
    names, volumes = [row["name"] for row in network["rows"][1:]], soft[1:]
    if CSF in values:  # models that know the fluid around the brain, SynthSeg 2.0, also give the whole cavity
        names, volumes = ["total intracranial", *names], np.array([volumes.sum(), *volumes])
    if arguments.parc:
        rows = parcellation["rows"][1:]
        labels, parcels = label_parcels(labels, parcels[box], column(parcellation, "index"))
        sides = [row["hemisphere"] for row in rows]
        scaled = scale_parcels(soft_sums(parcels)[1:] * cubic_mm, sides, structures, arguments.parcel_volumes)
        names, volumes = [*names, *(row["name"] for row in rows)], np.array([*volumes, *scaled])

    segmentation = np.zeros(ras_shape, dtype=np.int32)
    segmentation[cropped] = labels
    save_image(from_ras(segmentation, affine), affine, header, arguments.o, np.int32)
    if arguments.post:
        whole = np.zeros((*ras_shape, len(values)))
        whole[..., 0] = 1  # outside a crop all is background
        whole[cropped] = posteriors
        save_image(from_ras(whole, affine), affine, header, arguments.post, np.float32)
    subject = Path(arguments.i).name.replace(".nii.gz", "")
    if arguments.vol:
        save_row(arguments.vol, subject, names, [str(volume) for volume in np.round(volumes, 3)])
    if arguments.qc:
        groups = [row["name"] for row in quality["rows"]]
        clipped = np.round(np.clip(scores, 0, 1), 4)
        save_row(arguments.qc, subject, groups[1:], [f"{score:.4f}" for score in clipped[1:]])


def start_tensorflow(threads: int) -> None:
    """Import TensorFlow, set for this program: on the CPU, with so many threads."""
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"  # on every processor: alone TensorFlow takes them with AVX-512 only
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_HOME"] = os.devnull  # no keras.json, which may ask for another order of axes or precision
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def main() -> None:
    """The command; one line on stderr and exit status 1 where a file cannot be read, used or written."""
    parser = argparse.ArgumentParser(description="SynthSeg, slow and obvious: one image in, one label map out.")
    parser.add_argument("--i", required=True, help="image")
    parser.add_argument("--o", required=True, help="label map to write")
    parser.add_argument("--vol", help="CSV of volumes in mm3 to write")
    parser.add_argument("--model", required=True, help="model folder with card.yaml and its tables")
    parser.add_argument(
        "--weights",
        help="weights of what segments, or a folder with all files of weights that the cards name (default: in the "
        "model folders)",
    )
    parser.add_argument("--companions", help="folder of the model whose networks --parc and --qc use (default: beside)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ct", action="store_true", help="CT in Hounsfield units: clip to 0..80")
    parser.add_argument("--fast", action="store_true", help="no flip averaging, no topology step")
    parser.add_argument("--robust", action="store_true", help="SynthSeg-robust: three networks, no flip averaging")
    parser.add_argument("--parc", action="store_true", help="parcels of the cortex in place of its labels")
    parser.add_argument("--qc", help="CSV of scores to write: what Dice to expect, per group of structures")
    parser.add_argument(
        "--parcel-volumes", choices=VOLUMES, default=VOLUMES[0],
        help="what volumes of parcels add up to: each hemisphere's cortex, or what SynthSeg at that commit takes",
    )  # fmt: skip
    parser.add_argument("--crop", type=int, nargs="+", help="one or three sizes in voxels, in RAS order")
    parser.add_argument("--autocrop", action="store_true", help="leave out dark margins, as FreeSurfer does")
    parser.add_argument("--resample", help="where to save the resampled image")
    parser.add_argument("--post", help="where to save the posteriors")
    arguments = parser.parse_args()
    if arguments.crop and len(arguments.crop) not in (1, 3):
        parser.error("--crop takes one or three integers")
    if arguments.crop and arguments.autocrop:
        parser.error("--crop and --autocrop exclude each other")
    try:
        segment(arguments)
    except (OSError, ValueError) as error:
        sys.exit(f"reference.py: {error}")


if __name__ == "__main__":
    main()
