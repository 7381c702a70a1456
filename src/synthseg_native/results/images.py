"""Images that a run leaves: label maps, posteriors, resampled scans, margins."""

import struct
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.openers import ImageOpener
from nibabel.spatialimages import SpatialHeader
from numpy.typing import DTypeLike

from synthseg_native.networks.cards import Labels
from synthseg_native.scan.formats import image_extension

MARGIN_STEP = 1e-6


def save_image(
    path: str | Path,
    data: np.ndarray,
    affine: np.ndarray,
    header: SpatialHeader | None,
    dtype: DTypeLike = None,
    tags: bytes = b"",
) -> None:
    """Save (X, Y, Z[, N]) data in the format that the name asks for, with the header of the input where it fits.

    Without a dtype the header's own is kept, so that a resampled int16 scan is int16 again, as SynthSeg saves it (with
    a slope where its values are no whole numbers). Where the grid is the input's, its sform, qform and codes stay; on a
    new grid nibabel sets the sform alone. tags : what stands behind the voxels of an .mgz.
    """
    if dtype is None:
        as_in_header = data.astype(header.get_data_dtype())
        data = as_in_header if np.array_equal(as_in_header, data) else data
    kind = nib.MGHImage if image_extension(path) in (".mgz", ".mgh") else nib.Nifti1Image
    image = kind(data, affine, header)
    if dtype is not None:
        image.set_data_dtype(dtype)
        if kind is nib.Nifti1Image:  # the range in which to show the scan, in which labels are black
            image.header["cal_min"], image.header["cal_max"] = 0, 0
    if not tags:
        nib.save(image, path)
        return
    with ImageOpener(path, "wb") as file:
        file.write(image.to_bytes() + tags)


def save_labels(
    path: str | Path,
    labels: np.ndarray,
    affine: np.ndarray,
    header: SpatialHeader | None,
    color_table: Labels | None = None,
) -> None:
    """Save int32 labels (X, Y, Z) with the input's header, as SynthSeg does.

    color_table : cards.Labels to embed, as FreeSurfer does; not in formats other than .mgz and .mgh, which hold none.
    """
    can_hold = color_table is not None and image_extension(path) in (".mgz", ".mgh")
    tags = color_table_tag(color_table) if can_hold else b""
    save_image(path, np.asarray(labels, dtype=np.int32), affine, header, np.int32, tags)


def color_table_tag(labels: Labels) -> bytes:
    """FreeSurfer's tag 1 of an .mgz file: version -2, size, no file name, then per label its value, name and colour."""
    entries = b""
    for index, name, color in zip(labels.index.tolist(), labels.freesurfer_names, labels.colors, strict=True):
        text = name.encode() + b"\0"
        red, green, blue = bytes.fromhex(color.removeprefix("#"))
        entries += struct.pack(">2i", index, len(text)) + text + struct.pack(">4i", red, green, blue, 0)
    return struct.pack(">5i", 1, -2, int(labels.index.max()) + 1, 0, len(labels)) + entries


def save_margin(path: str | Path, margin: np.ndarray, affine: np.ndarray, header: SpatialHeader | None) -> None:
    """Save margins (X, Y, Z) in [0, 0.0655] as uint16 steps of 1e-6 on the grid of the label map."""
    steps = margin / MARGIN_STEP
    image = nib.Nifti1Image(np.rint(steps, out=steps).astype(np.uint16), affine, header)
    image.set_data_dtype(np.uint16)
    image.header["cal_min"], image.header["cal_max"] = 0, 0
    image.header.set_slope_inter(MARGIN_STEP, 0)  # nibabel then stores the integers as they are
    nib.save(image, path)
