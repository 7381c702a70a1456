"""SynthSeg 1.0 and 2.0 (default, --fast, --crop, --autocrop, --ct), slow and obvious: the oracle of the tests.

Follows the behavioural specification of SynthSeg step by step, on whole arrays, with stock Keras layers. It shares no
code with the rest of the package and runs as a single file:

    python reference.py --i IMAGE --o DSEG.nii.gz --vol VOLUMES.csv --model MODEL_FOLDER

A model folder holds ``card.yaml`` (network size, resolution, padding), ``labels.tsv`` (one row per channel) and, unless
--weights names another file, the weights. No optimisation belongs in this file.
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


def load_model(folder: str | Path) -> tuple[dict, list[dict[str, str]]]:
    """Return the card's network (dict) and the rows of its label table (list of dict, in channel order)."""
    with Path(folder, "card.yaml").open(encoding="utf-8") as file:
        (network,) = yaml.safe_load(file)["networks"]
    with Path(folder, network["outputs"]["table"]).open(encoding="utf-8", newline="") as file:
        labels = list(csv.DictReader(file, delimiter="\t"))
    return network, labels


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


# Network -------------------------------------------------------------------------------------------------------------


def smooth(posteriors: Any, sigma: float) -> Any:
    """Gaussian of this sigma (voxels), zero padding, each channel by itself: one full 3-D kernel.

    posteriors: a tensor (1, X, Y, Z, N), as is the result.
    """
    import tensorflow as tf

    half = int(np.ceil(2.5 * sigma) / 2)
    line = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
    kernel = line[:, None, None] * line[None, :, None] * line[None, None, :]
    kernel = tf.constant((kernel / kernel.sum())[..., None, None], dtype=tf.float32)
    channels = [
        tf.nn.conv3d(posteriors[..., c : c + 1], kernel, strides=[1] * 5, padding="SAME")
        for c in range(posteriors.shape[-1])
    ]
    return tf.concat(channels, axis=-1)


def build_network(network: dict, channels: int, sigma: float) -> Any:
    """The U-Net with upstream's layer names, as a Keras model: (1, X, Y, Z, 1) -> smoothed posteriors.

    network : ``layers`` of a card · channels : of the result · sigma : of the smoothing
    """
    from tensorflow.keras import Model, layers

    levels, features = network["levels"], network["features"]
    convolutions, activation = network["convolutions_per_level"], network["activation"]

    def convolve(x, name, channels):
        return layers.Conv3D(channels, network["kernel"], padding="same", activation=activation, name=name)(x)

    # 5-D fused normalisation is not available on every device; the formula is the same.
    def normalise(x, name):
        return layers.BatchNormalization(fused=False, name=name)(x)

    x = image = layers.Input((None, None, None, 1), name="unet_input")
    skips = []
    for level in range(levels):
        for i in range(convolutions):
            x = convolve(x, f"unet_conv_downarm_{level}_{i}", features * 2**level)
        skips.append(x)  # before the normalisation
        x = normalise(x, f"unet_bn_down_{level}")
        if level < levels - 1:
            x = layers.MaxPooling3D(2, padding="same", name=f"unet_maxpool_{level}")(x)
    for i in range(levels - 1):
        level, number = levels - 2 - i, levels + i
        x = layers.UpSampling3D(2, name=f"unet_up_{number}")(x)
        x = layers.Concatenate(name=f"unet_merge_{number}")([skips[level], x])
        for j in range(convolutions):
            x = convolve(x, f"unet_conv_uparm_{number}_{j}", features * 2**level)
        x = normalise(x, f"unet_bn_up_{i}")
    x = layers.Conv3D(channels, 1, name="unet_likelihood")(x)
    x = layers.Softmax(axis=-1, name="unet_prediction")(x)
    x = layers.Lambda(smooth, arguments={"sigma": sigma}, name="smoothing")(x)
    return Model(image, x)


def predict(model: Any, volume: np.ndarray, flip: np.ndarray | None) -> np.ndarray:
    """Posteriors (X, Y, Z, N) of a padded volume; with a flip table, averaged with those of the mirror image.

    flip: (N,), for each channel that of the same structure on the other side.
    """
    posteriors = model.predict(volume[None, ..., None].astype(np.float32), verbose=0)[0]
    if flip is None:
        return posteriors
    mirrored = model.predict(volume[::-1][None, ..., None].astype(np.float32), verbose=0)[0]
    return np.float32(0.5) * (posteriors + mirrored[::-1][..., flip])


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

    with np.errstate(invalid="ignore"):  # a voxel without any posterior becomes background
        return posteriors / np.sum(posteriors, axis=-1)[..., None]


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


def save_volumes(path: str | Path, subject: str, names: list[str], volumes: np.ndarray) -> None:
    """Save volumes (mm3) as SynthSeg does: a row of names, a row of numbers."""
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)  # its line ends are CR LF, like upstream's
        writer.writerow(["subject", *names])
        writer.writerow([subject, *(str(volume) for volume in volumes)])


def segment(arguments: argparse.Namespace) -> None:
    """One image in, one label map out, and what else the command line asks for. ValueError for what is no 3-D image."""
    network, labels = load_model(arguments.model)
    resolution = network["grid"]["resolution_mm"]
    multiple = network["grid"]["pad_multiple"]
    min_size = [network["grid"]["min_size"]] * 3
    weights = arguments.weights or Path(arguments.model, network["weights"]["file"])
    values = np.array([int(row["index"]) for row in labels], dtype=np.int32)
    flip = np.array([int(row["flip_channel"]) for row in labels])
    topology = np.array([int(row["topology_class"]) for row in labels])

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

    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"  # on every processor: alone TensorFlow takes them with AVX-512 only
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_HOME"] = os.devnull  # no keras.json, which may ask for another order of axes or precision
    import tensorflow as tf

    tf.config.set_visible_devices([], "GPU")
    tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
    tf.config.threading.set_inter_op_parallelism_threads(arguments.threads)
    outputs = network["outputs"]
    model = build_network(network["layers"], outputs["channels"], outputs["smoothing_sigma"])
    model.load_weights(str(weights), by_name=True)

    posteriors = predict(model, volume, None if arguments.fast else flip)
    posteriors = postprocess(posteriors, box, topology, outputs["threshold"], arguments.fast)

    segmentation = np.zeros(ras_shape, dtype=np.int32)
    segmentation[cropped] = values[np.argmax(posteriors, axis=-1)]
    soft = np.sum(posteriors, axis=(0, 1, 2), dtype=np.float64)[1:] * np.prod(voxel_size, dtype=np.float64)
    names = [row["name"] for row in labels[1:]]
    if 24 in values:  # models that know the fluid around the brain, SynthSeg 2.0, also give the whole cavity
        names, soft = ["total intracranial", *names], np.array([soft.sum(), *soft])

    save_image(from_ras(segmentation, affine), affine, header, arguments.o, np.int32)
    if arguments.post:
        whole = np.zeros((*ras_shape, len(labels)))
        whole[..., 0] = 1  # outside a crop all is background
        whole[cropped] = posteriors
        save_image(from_ras(whole, affine), affine, header, arguments.post, np.float32)
    if arguments.vol:
        subject = Path(arguments.i).name.replace(".nii.gz", "")
        save_volumes(arguments.vol, subject, names, np.round(soft, 3))


def main() -> None:
    """The command; one line on stderr and exit status 1 where a file cannot be read, used or written."""
    parser = argparse.ArgumentParser(description="SynthSeg, slow and obvious: one image in, one label map out.")
    parser.add_argument("--i", required=True, help="image")
    parser.add_argument("--o", required=True, help="label map to write")
    parser.add_argument("--vol", help="CSV of volumes in mm3 to write")
    parser.add_argument("--model", required=True, help="model folder with card.yaml and labels.tsv")
    parser.add_argument("--weights", help="weights (default: the file that the card names, in the model folder)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ct", action="store_true", help="CT in Hounsfield units: clip to 0..80")
    parser.add_argument("--fast", action="store_true", help="no flip averaging, no topology step")
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
