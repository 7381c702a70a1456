"""Reading a scan and checking it: what a header says, what is odd about it, what is refused.

Positions are in mm (RAS+), affines map voxel indices to them.
"""

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.openers import ImageOpener

from .errors import SynthSegError

EXTENSIONS = (".nii", ".nii.gz", ".mgz", ".mgh")
MAX_VOXELS = 2**31
MIN_SLICES = 11  # upstream takes a last axis up to 10 for channels; here every axis is held to that
FIELD_OF_VIEW_MM = (10, 1000)


@dataclass
class Scan:
    """A checked scan: data (X, Y, Z) float64, affine (4, 4), header as read, voxel sizes by the header (mm), facts."""

    data: np.ndarray
    affine: np.ndarray
    header: object
    voxel_mm: np.ndarray
    description: dict


def read(path) -> Scan:
    """Read a 3-D image and refuse what cannot be segmented, by its header before any voxel is read.

    Raises SynthSegError("bad_input"), one line ``path: what: what to do``.
    """
    path = Path(path)

    def bad(what, remedy, cause=None):
        raise SynthSegError("bad_input", f"{path}: {what}: {remedy}") from cause

    if not path.exists():
        bad("no such file", "correct the path")
    if path.is_dir() or not path.name.lower().endswith(EXTENSIONS):
        bad("not an image file", f"give one of {' '.join(EXTENSIONS)}")
    if path.stat().st_size == 0:
        bad("the file is empty", "copy or convert it again")

    damaged = (EOFError, zlib.error, gzip.BadGzipFile)
    try:
        _check_gzip(path)
    except damaged as error:
        bad("the file is cut off or damaged", "copy or convert it again", error)
    except PermissionError as error:
        bad("may not be read", "change its permissions", error)
    try:
        with nib.imageglobals.LoggingOutputSuppressor():  # its repairs are reported here, as errors or flags
            image = nib.load(path)
            raw = _raw_voxel_sizes(path, image)
    except (nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError, ValueError, OSError) as error:
        bad("not an image that can be read", "convert it to NIfTI, for example with dcm2niix", error)

    dtype = image.get_data_dtype()
    if dtype.fields:
        bad("a colour (RGB) image", "give a grey-scale image")
    if dtype.kind == "c":
        bad("complex values", "give the magnitude image")
    shape = tuple(int(n) for n in image.shape)
    squeezed = len(shape) > 3
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 3:
        bad(f"{int(np.prod(shape[3:], dtype=object))} frames", "give one 3-D image, for example one frame or the mean")
    if len(shape) < 3:
        bad(f"a {len(shape)}-D image", "give a 3-D image")
    size = " x ".join(str(n) for n in shape)
    if np.prod(shape, dtype=object) > MAX_VOXELS:
        bad(f"the header claims {size} voxels", "correct it or convert the image again")
    if min(shape) < MIN_SLICES:
        bad(f"{size} voxels, too few slices", f"give an image with at least {MIN_SLICES} in every direction")

    if not np.all(np.isfinite(raw)) or np.any(raw == 0):
        bad("a voxel size of zero in the header" if np.all(np.isfinite(raw)) else "voxel sizes that are no numbers",
            "correct the header")  # fmt: skip
    affine = np.asarray(image.affine, dtype=np.float64)
    lengths = np.sqrt(np.sum(affine[:3, :3] ** 2, axis=0))
    if not np.all(np.isfinite(affine)) or abs(np.linalg.det(affine[:3, :3])) <= 1e-3 * np.prod(lengths):
        bad("the affine is singular", "correct the header (sform, qform)")
    voxel_mm = np.array(image.header.get_zooms()[:3])
    for extent in (*(lengths * shape), *(voxel_mm * shape)):
        if not FIELD_OF_VIEW_MM[0] <= extent <= FIELD_OF_VIEW_MM[1]:
            bad(f"an axis of {extent:.4g} mm", "correct the voxel sizes in the header (they must be in mm)")

    try:
        data = image.get_fdata(caching="unchanged").reshape(shape)
    except (*damaged, OSError, ValueError) as error:
        bad("the file is cut off or damaged", "copy or convert it again", error)
    strange = data.size - np.count_nonzero(np.isfinite(data))
    if strange:
        bad(f"{strange} voxels are NaN or infinite", "replace them, for example by 0")
    if not data.any():
        bad("all voxels are zero", "give an image with contents")

    description = describe(path, image, raw)
    if squeezed:
        description["header_flags"].append("trailing_axes_of_length_1")
    if data.min() == data.max():
        description["header_flags"].append("constant_image")
    return Scan(data, affine, image.header, voxel_mm, description)


def _check_gzip(path):
    """Decompress to the end: only there stands the checksum, and readers of a header or of voxels stop before."""
    if path.name.lower().endswith("gz"):
        with gzip.open(path) as file:
            while file.read(1 << 22):
                pass


def _raw_voxel_sizes(path, image) -> np.ndarray:
    """Voxel sizes as the file states them; nibabel turns zeros into ones and drops signs."""
    if not isinstance(image.header, nib.Nifti1Header):
        return np.asarray(image.header["delta"], dtype=np.float64)
    with ImageOpener(path) as file:
        header = type(image.header).from_fileobj(file, check=False)
    return np.asarray(header["pixdim"][1 : 1 + min(3, len(image.shape))], dtype=np.float64)


def describe(path, image, raw=None) -> dict:
    """Facts about an image for the record: the key ``input`` of its schema. The name only, no folders.

    header_flags: no_orientation (neither sform nor qform is set), sform_qform_differ (by more than 1 mm within the
    image), sheared (axes not at right angles), voxel_size_differs (header and affine, by more than 1 %),
    negative_voxel_size, units_not_mm.
    """
    path = Path(path)
    header, affine = image.header, np.asarray(image.affine, dtype=np.float64)
    directions = affine[:3, :3] / np.sqrt(np.sum(affine[:3, :3] ** 2, axis=0))
    zooms = np.array(header.get_zooms()[:3], dtype=np.float64)
    flags = []
    if isinstance(header, nib.Nifti1Header):
        sform, qform = header.get_sform(coded=True)[0], header.get_qform(coded=True)[0]
        if sform is None and qform is None:
            flags.append("no_orientation")
        elif sform is not None and qform is not None:
            corners = np.array(np.meshgrid(*[(0, n - 1) for n in image.shape[:3]])).reshape(3, -1)
            moved = (sform - qform)[:3, :3] @ corners + (sform - qform)[:3, 3:]
            if np.sqrt(np.sum(moved**2, axis=0)).max() > 1:
                flags.append("sform_qform_differ")
        if header.get_xyzt_units()[0] in ("meter", "micron"):
            flags.append("units_not_mm")
    if np.abs(directions.T @ directions - np.eye(3)).max() > 1e-3:
        flags.append("sheared")
    if np.any(np.abs(np.sqrt(np.sum(affine[:3, :3] ** 2, axis=0)) / zooms - 1) > 0.01):
        flags.append("voxel_size_differs")
    if raw is not None and np.any(raw < 0):
        flags.append("negative_voxel_size")
    return {
        "name": path.name,
        "sha256": sha256_of(path),
        "shape": [int(n) for n in image.shape],
        "voxel_mm": [round(float(z), 6) for z in zooms],
        "orientation": "".join(nib.aff2axcodes(affine)),
        "obliquity_deg": round(float(np.degrees(nib.affines.obliquity(affine).max())), 3),
        "header_flags": flags,
    }


def sha256_of(path) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
