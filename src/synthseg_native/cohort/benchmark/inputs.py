"""What is segmented, and with what: images of the sizes asked for, and a model of full size, made where missing."""

import argparse
import os
from collections.abc import Collection, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np

from synthseg_native.cohort import environments
from synthseg_native.cohort.benchmark import images, weights
from synthseg_native.errors import SynthSegError
from synthseg_native.files import sha256_of

Size = tuple[int, int, int]  # voxels
Grid = tuple[Size, float]  # and the voxels' size in mm
HEADLINE = (192, 256, 192)


def size_of(text: str) -> Size:
    """A size as it is typed, for argparse.

    >>> size_of("192x256x192"), size_of("64")
    ((192, 256, 192), (64, 64, 64))
    """
    numbers = [int(n) for n in text.split("x")]
    if len(numbers) not in (1, 3) or min(numbers) < 16 or max(numbers) > 512:
        raise argparse.ArgumentTypeError(f"{text}: give one or three numbers from 16 to 512, as 192x256x192")
    return tuple(numbers * (3 // len(numbers)))


def full_model(given: Path | None, work: Path) -> tuple[Path, str]:
    """The model folder of the full-size network, and what its weights are.

    given : the user's weights, else those of $SYNTHSEG_GOLDEN_FULL, else they are made. Raises SynthSegError.
    """
    kind = "weights of the user"
    if given is None and (folder := os.environ.get("SYNTHSEG_GOLDEN_FULL")):
        given, kind = Path(folder) / "weights.h5", "stand-in weights of the golden case"
    if given is not None and not given.is_file():
        raise SynthSegError("usage", f"{given}: no such weights file: correct the path")
    if given is None:
        kind = "weights made by benchmarks/weights.py"
    return weights.make_model(work / "model", environments.ROOT / "models", given), kind


def make_images(
    given: Path | None, wanted: Collection[tuple[Size, float]], work: Path
) -> dict[tuple[Size, float], Path]:
    """{(size, voxel_mm): path} of the images that are wanted, made where they are missing.

    given : the user's image, or None for a phantom.
    """
    found = {}
    for voxel_mm in sorted({voxel_mm for _, voxel_mm in wanted}):
        sizes = sorted(size for size, mm in wanted if mm == voxel_mm)
        folder = work / "images" / image_key(given)
        paths = {size: folder / f"{'x'.join(map(str, size))}_{voxel_mm:g}mm.nii.gz" for size in sizes}
        missing = [size for size in sizes if not paths[size].is_file()]
        made = cut(given, missing) if given else images.make(missing, voxel_mm) if missing else ()
        for size, image in made:
            images.save(image, paths[size])
        found |= {(size, voxel_mm): path for size, path in paths.items()}
    return found


def image_key(given: Path | None) -> str:
    """12 digits for the image of the user, or for how the phantom is made."""
    if given and not given.is_file():
        raise SynthSegError("usage", f"{given}: no such image: correct the path")
    return sha256_of(given or images.__file__)[:12]


def cut(path: Path, sizes: Collection[Size]) -> Iterator[tuple[Size, nib.Nifti1Image]]:
    """The user's image, cut or padded to each size."""
    try:
        image = nib.as_closest_canonical(nib.load(path))
        data = np.asanyarray(image.dataobj)
    except (OSError, nib.filebasedimages.ImageFileError) as error:
        raise SynthSegError("usage", f"{path}: cannot be read ({error}): give a NIfTI image") from error
    if data.ndim != 3 or np.abs(np.array(image.header.get_zooms()[:3]) - 1).max() > 0.05:
        raise SynthSegError("usage", f"{path}: not a 3-D image with voxels of 1 mm: give one")
    for size in sizes:
        start = [(n - have) // 2 for n, have in zip(size, data.shape, strict=True)]
        out = np.zeros(size, data.dtype)
        sizes_and_starts = [*zip(start, size, data.shape, strict=True)]
        here = tuple(slice(max(s, 0), max(s, 0) + min(n, have)) for s, n, have in sizes_and_starts)
        there = tuple(slice(max(-s, 0), max(-s, 0) + min(n, have)) for s, n, have in sizes_and_starts)
        out[here] = data[there]
        affine = image.affine.copy()
        affine[:3, 3] -= affine[:3, :3] @ start
        yield size, nib.Nifti1Image(out, affine)
