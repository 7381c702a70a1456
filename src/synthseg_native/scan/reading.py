"""Reading a scan and checking it: what a header says, what is odd about it, what is refused.

Positions are in mm (RAS+), affines map voxel indices to them. The table of conditions is docs/input.md.
"""

import difflib
import errno
import gzip
import stat
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import nibabel as nib
import numpy as np

from synthseg_native.errors import SynthSegError
from synthseg_native.scan import values
from synthseg_native.scan.content import Content, seen
from synthseg_native.scan.disguise import disguise
from synthseg_native.scan.formats import IMAGE_EXTENSIONS, image_extension
from synthseg_native.scan.grid import ras_order, voxel_sizes

MAX_VOXELS = 2**30
MAX_BYTES = 8 * MAX_VOXELS
CHUNK = 1 << 22
MAX_BEHIND = 1 << 26  # bytes behind the voxels among which a compressed file's checksum is looked for
MAX_AXIS = 2**15 - 1  # what NIfTI-1 can hold
MIN_SLICES = 11  # upstream takes a last axis up to 10 for channels; here every axis is held to that
FEW_SLICES = 16
FIELD_OF_VIEW_MM = (10, 1000)
MAX_VOXEL_MM = 25  # no thicker slices show a head, and MIN_SLICES of them are longer than one
FARTHEST_MM = 1e6  # beyond it the float32 of a header no longer tells one voxel from the next
ROUNDING = 1e-4  # by which the squares of a qform's quaternion may add up to more than 1: float32, several times over
DAMAGED = (EOFError, zlib.error, gzip.BadGzipFile)

FLAGS = {
    "no_orientation": "nothing in the header tells left from right",
    "sform_zeros": "the sform is set, and all zeros; the qform was taken",
    "sform_qform_differ": "sform and qform differ by more than 1 mm within the image; the sform was taken",
    "sform_qform_mirrored": "sform and qform disagree about left and right; the sform was taken",
    "sheared": "the axes are not at right angles (gantry tilt); volumes are shear_volume_factor too large",
    "voxel_size_differs": "voxel sizes in the header and in the affine differ by more than 1 %",
    "negative_voxel_size": "a negative voxel size in the header; its sign was dropped",
    "units_not_mm": "the header names units other than mm; the values were taken as mm",
    "oblique": "an axis is more than 30 degrees away from right, front or top",
    "ambiguous_axes": "near 45 degrees: which axis is called left-right, front-back or up-down is a toss-up",
    "few_slices": f"an axis of fewer than {FEW_SLICES} voxels",
    "trailing_axes_of_length_1": "axes of length 1 behind the third were dropped",
    "constant_image": "all voxels have one value",
    "values_as_ct": "values as CT has them, air at -1000, and it was not segmented as CT (--ct; sheet: column ct)",
    "values_as_labels": "few whole numbers in large patches, as in a mask or a label map: is it the scan?",
}
ACCEPTABLE = ("no_orientation", "sform_qform_mirrored", "voxel_size_differs", "negative_voxel_size")


@dataclass
class Scan:
    """A checked scan.

    data : (X, Y, Z) as it is stored, in float64 where slope and intercept, or larger integers, ask for it
    affine : (4, 4) · header : as nibabel repairs it, for results: without NIfTI extensions
    voxel_mm : (3,) voxel sizes by the header · description : facts for the record, the key ``input`` of its schema
    """

    data: np.ndarray
    affine: np.ndarray
    header: object
    voxel_mm: np.ndarray
    description: dict


class _Refused(Exception):
    """What is wrong, and what to do."""


def check_accept(flags: Iterable[str], where: str = "--accept") -> None:
    """Raise SynthSegError("usage") for a flag that cannot be accepted, naming the nearest that can.

    >>> check_accept(["no_orientaton"])
    Traceback (most recent call last):
    synthseg_native.errors.SynthSegError: --accept no_orientaton: no such flag: did you mean no_orientation?
    """
    for flag in flags:
        if flag not in ACCEPTABLE:
            near = difflib.get_close_matches(flag, ACCEPTABLE, n=1)
            hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(ACCEPTABLE)}"
            raise SynthSegError("usage", f"{where} {flag}: no such flag: {hint}")


def read(
    path: str | PathLike,
    accept: Iterable[str] = (),
    ct: bool = False,
    fits: Callable[["Extent"], None] = lambda extent: None,
    content: Content | None = None,
) -> Scan:
    """Read a 3-D image and refuse what cannot be segmented, by its header before any voxel is read.

    accept : flags of ACCEPTABLE, header faults in spite of which the image is taken · ct : values are Hounsfield units,
    and no surprise · fits : told how large the scan is before a voxel is read, to raise where that is too much
    content : of this path, where its bytes are read ahead
    Raises SynthSegError, one line ``path: what: what to do``: "bad_input" for what is wrong with the file, "usage" for
    an unknown flag, "read" for a drive that fails and for a file that changes meanwhile; what `fits` raises; and
    MemoryError.
    """
    check_accept(accept)
    with unchanged(path), _told(Path(path)) as path:
        return _read(path, accept, ct, fits, content or Content(path))


@contextmanager
def unchanged(path: str | PathLike) -> Iterator[None]:
    """Raise SynthSegError("read") where a file was changed or exchanged while the block read it, even for a moment.

    Its bytes may be read more than once, and another's hash would otherwise stand for what was segmented.
    """
    before = seen(path)
    yield
    if before is not None and seen(path) != before:
        raise SynthSegError("read", f"{path}: changed while it was read: call again")


@dataclass(frozen=True)
class Extent:
    """How large a scan is. shape : (3,) voxels · voxel_mm : (3,) by the header · bytes : of a voxel, as it is kept"""

    shape: tuple[int, int, int]
    voxel_mm: tuple[float, float, float]
    bytes: int


def extent(path: str | PathLike) -> Extent:
    """How large a scan is by its header, of which no more than the first kilobyte is read. Raises as `read` does."""
    with _told(Path(path)) as path:
        _check_file(path)
        header, raw_voxel_mm, _, _ = _header(Content(path))
        shape, _ = _shape(header)
        _check_voxel_sizes(raw_voxel_mm)
        found = _extent(header, shape)
        _check_field_of_view([n * size for n, size in zip(found.shape, found.voxel_mm, strict=True)])
        return found


def _check_field_of_view(extents_mm):
    for extent_mm in extents_mm:
        if not FIELD_OF_VIEW_MM[0] <= extent_mm <= FIELD_OF_VIEW_MM[1]:  # nor of NaN
            what = f"an axis of {extent_mm:.4g} mm"
            raise _Refused(what, "correct the voxel sizes in the header (they must be in mm)")


def _extent(header, shape):
    return Extent(shape, tuple(float(abs(size)) for size in header.get_zooms()[:3]), _kept_type(header).itemsize)


@contextmanager
def _told(path: Path) -> Iterator[Path]:
    """What goes wrong with the file in the block, in one line."""
    try:
        with _quiet():
            yield path
        return
    except _Refused as error:
        what, remedy = disguise(path) or error.args
    except DAMAGED:
        what, remedy = disguise(path) or ("the file is cut off or damaged", "copy or convert it again")
    except (FileNotFoundError, NotADirectoryError):
        what, remedy = disguise(path) or ("no such file", "correct the path")
    except PermissionError:
        what, remedy = "may not be read", "change its permissions"
    except OSError as error:
        what, remedy = f"cannot be read ({error.strerror or error})", "correct the path"
        if error.errno == errno.ENOMEM:
            raise MemoryError(str(error)) from error
        if error.errno not in (errno.ELOOP, errno.ENAMETOOLONG):
            raise SynthSegError("read", f"{path}: {what}: check the drive and call again") from error
    raise SynthSegError("bad_input", f"{path}: {what}: {remedy}")


def remarks(description: dict) -> list[str]:
    """What is odd about a scan in sentences, from its `Scan.description`, maybe of an old record.

    >>> remarks({"header_flags": ["few_slices"]})
    ['an axis of fewer than 16 voxels']
    """
    factor = description.get("shear_volume_factor")
    sentences = [FLAGS.get(flag, flag) for flag in description.get("header_flags") or []]
    return [sentence.replace("shear_volume_factor", f"{factor or 1:.2f} times") for sentence in sentences]


class _Silence:
    """No warning and no remark of nibabel's while somebody reads. Both are settings of the whole process: the first of
    several threads that read at once makes them, the last one puts them back."""

    def __init__(self):
        self._lock, self._readers = threading.Lock(), 0

    def __enter__(self):
        with self._lock:
            self._readers += 1
            if self._readers > 1:
                return
            self._was_disabled, nib.imageglobals.logger.disabled = nib.imageglobals.logger.disabled, True
            self._warnings = warnings.catch_warnings()
            self._warnings.__enter__()
            warnings.simplefilter("ignore")

    def __exit__(self, *error):
        with self._lock:
            self._readers -= 1
            if not self._readers:
                self._warnings.__exit__(None, None, None)
                nib.imageglobals.logger.disabled = self._was_disabled


_SILENCE = _Silence()


@contextmanager
def _quiet():
    """nibabel's and numpy's remarks are reported here, as errors or flags."""
    with _SILENCE, np.errstate(all="ignore"):
        yield


def _check_voxel_sizes(raw_voxel_mm):
    if not np.all(np.isfinite(raw_voxel_mm)):
        raise _Refused("voxel sizes that are no numbers", "correct the header")
    if np.any(raw_voxel_mm == 0):
        raise _Refused("a voxel size of zero in the header", "correct the header")


def _read(path, accept, ct, fits, content) -> Scan:
    _check_file(path)
    header, raw_voxel_mm, flags, no_orientation = _header(content)
    shape, squeezed = _shape(header)
    _check_voxel_sizes(raw_voxel_mm)
    voxel_mm = np.abs(header.get_zooms()[:3])
    affine = _affine(header)
    lengths = voxel_sizes(affine)
    _check_field_of_view((*(lengths * shape), *(voxel_mm * shape)))
    largest = max(*lengths, *voxel_mm)
    if largest > MAX_VOXEL_MM:
        raise _Refused(f"voxels of {largest:.4g} mm", "correct the voxel sizes in the header (they must be in mm)")

    # A word for each fault that stops a run unless it is accepted: what is wrong, and how to mend it.
    faults = {}
    if no_orientation:
        faults["no_orientation"] = no_orientation
    if np.any(raw_voxel_mm < 0):
        faults["negative_voxel_size"] = ("a negative voxel size in the header", "make it positive")
    difference = np.abs(lengths / voxel_mm - 1).max()
    if difference > 0.01:
        flags.add("voxel_size_differs")
    if difference > 0.05:
        what = f"voxels of {_sizes_text(voxel_mm)} mm by the header, of {_sizes_text(lengths)} mm by the affine"
        faults["voxel_size_differs"] = (what, "correct the wrong one")
    if isinstance(header, nib.Nifti1Header):
        if header["xyzt_units"] & 7 not in (0, 2):  # unknown, mm
            flags.add("units_not_mm")
        if header["sform_code"] and header["qform_code"]:
            flags |= _compare_forms(header, shape)
    if "sform_qform_mirrored" in flags:
        what = "sform and qform disagree about left and right"
        faults["sform_qform_mirrored"] = (what, "correct the wrong one")
    flags |= faults.keys()
    open_faults = [fault for fault in faults if fault not in accept]
    if open_faults:
        what, remedies = ("; ".join(dict.fromkeys(faults[fault][i] for fault in open_faults)) for i in range(2))
        take = f"or take it as it is with --accept {','.join(open_faults)} (sheet: column accept)"
        raise _Refused(what, f"{remedies}, {take}")

    if min(shape) < FEW_SLICES:
        flags.add("few_slices")
    if squeezed:
        flags.add("trailing_axes_of_length_1")
    directions = affine.copy()
    directions[:3, :3] /= lengths
    cosines = np.abs(directions[:3, :3])
    obliquity = np.degrees(np.arccos(np.minimum(cosines.max(axis=1), 1))).max()
    if obliquity > 30:
        flags.add("oblique")
    if np.abs(directions[:3, :3].T @ directions[:3, :3] - np.eye(3)).max() > 1e-3:
        flags.add("sheared")
    # The axes are chosen after resampling to isotropic voxels, or on the image as it is where it counts as such.
    for used in (directions, affine) if np.ptp(voxel_mm) <= 0.1 else (directions,):
        if _ambiguous(used):
            flags.add("ambiguous_axes")
        if _mirrored(used):
            raise _Refused("so sheared that left and right would be swapped", "resample it to axes at right angles")

    fits(_extent(header, shape))
    data = _voxels(content, header, shape)
    flags |= values.flags(data, ct)
    description = {
        "name": path.name,
        "sha256": content.sha256(),
        "shape": [int(n) for n in header.get_data_shape()],
        "voxel_mm": [round(float(size), 6) for size in voxel_mm],
        "orientation": _orientation(directions),
        "obliquity_deg": round(float(obliquity), 3),
        "shear_volume_factor": round(float(1 / abs(np.linalg.det(directions))), 4),
        "header_flags": [flag for flag in FLAGS if flag in flags],
    }
    return Scan(data, affine, _for_results(header, voxel_mm), voxel_mm, description)


# The file ------------------------------------------------------------------------------------------------------------


def _check_file(path):
    try:
        about = path.stat()
    except ValueError:  # a zero byte in the path
        raise FileNotFoundError from None
    if stat.S_ISDIR(about.st_mode) or not image_extension(path):
        raise _Refused("not an image file", f"give one of {' '.join(IMAGE_EXTENSIONS)}")
    if not stat.S_ISREG(about.st_mode):  # reading a pipe could wait for ever
        raise _Refused("not an ordinary file", "save the image in one")
    if about.st_size == 0:
        raise _Refused("the file is empty", "copy or convert it again")


def _header(content):
    """The header, checked and repaired by nibabel and `_mend_forms`; voxel sizes (3,) as the file states them; flags;
    where it has no orientation, what to say.

    Header objects are made of bytes: nibabel's readers of files believe sizes that a header claims.
    """
    with content.open() as file:
        block = file.read(nib.Nifti2Header.sizeof_hdr)
    if image_extension(content.path) in (".mgz", ".mgh"):
        kind, size = nib.MGHImage.header_class, nib.freesurfer.mghformat.DATA_OFFSET
    else:
        second = 540 in (int.from_bytes(block[:4], order) for order in ("little", "big"))
        kind = nib.Nifti2Header if second else nib.Nifti1Header
        size = kind.sizeof_hdr
    if len(block) < size:
        raise EOFError
    try:
        raw, header = (kind(block[:size], check=check) for check in (False, True))
        header.get_data_dtype(), header.get_slope_inter()
    except (nib.spatialimages.HeaderDataError, ValueError, LookupError, ArithmeticError) as error:
        raise _Refused("not an image that can be read", "convert it to NIfTI, for example with dcm2niix") from error

    if not isinstance(header, nib.Nifti1Header):
        set_flag = int.from_bytes(block[28:30], "big")
        unset = "goodRASFlag is not set, so left and right and the voxel sizes are unknown"
        return (
            header,
            raw["delta"].astype(float),
            set(),
            None if set_flag else (unset, "set the geometry with mri_convert"),
        )
    if raw["magic"].item() != kind.single_magic or not kind.single_vox_offset <= raw["vox_offset"] <= MAX_BYTES:
        raise _Refused("not a NIfTI file with header and voxels in one", "convert it, for example with dcm2niix")
    flags = _mend_forms(header)
    unset = "neither sform nor qform is set, so left and right are unknown"
    oriented = header["sform_code"] or header["qform_code"]
    return header, raw["pixdim"][1:4].astype(float), flags, None if oriented else (unset, "set the sform or the qform")


def _mend_forms(header) -> set:
    """Take an sform of zeros for none, and let a qform that is off a rotation by rounding be one; flags."""
    quaternion = [f"quatern_{part}" for part in "bcd"]
    squares = sum(float(header[part]) * float(header[part]) for part in quaternion)
    # What is left for the fourth number of the quaternion. Where nibabel would refuse it, others scale the three.
    if -ROUNDING <= 1 - squares < header.quaternion_threshold:
        for part in quaternion:
            header[part] = header[part] / np.sqrt(squares)
    if header["sform_code"] and not np.any(header.get_sform()[:3, :3]):
        header["sform_code"] = 0
        return {"sform_zeros"} if header["qform_code"] else set()
    return set()


def _shape(header):
    """Three axes, and whether there were more, of length 1; refuses what is no 3-D image of real numbers."""
    dtype = header.get_data_dtype()
    if dtype.fields:
        raise _Refused("a colour (RGB) image", "give a grey-scale image")
    if dtype.kind == "c":
        raise _Refused("complex values", "give the magnitude image")
    stored = shape = tuple(int(n) for n in header.get_data_shape())
    size = " x ".join(str(n) for n in shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if any(n < 1 for n in shape):
        raise _Refused(f"the header claims {size} voxels", "correct it or convert the image again")
    if len(shape) > 3:
        frames = int(np.prod(shape[3:], dtype=object))
        raise _Refused(f"{frames} frames", "give one 3-D image, for example one frame or the mean")
    if len(shape) < 3:
        raise _Refused(f"a {len(shape)}-D image", "give a 3-D image")
    n_voxels = int(np.prod(shape, dtype=object))
    if n_voxels > MAX_VOXELS or n_voxels * dtype.itemsize > MAX_BYTES or max(shape) > MAX_AXIS:
        raise _Refused(f"the header claims {size} voxels", "correct it or convert the image again")
    if min(shape) < MIN_SLICES:
        raise _Refused(f"{size} voxels, too few slices", f"give an image with at least {MIN_SLICES} in every direction")
    return shape, shape != stored


def _kept_type(header) -> np.dtype:
    """In what type voxels are kept: as they are stored where all that is done with them in float64 is the same."""
    dtype = header.get_data_dtype()
    exact = dtype.itemsize <= {"i": 4, "u": 4, "f": 8}.get(dtype.kind, 0)
    return dtype.newbyteorder("=") if exact and _scaling(header) == (1, 0) else np.dtype(np.float64)


def _scaling(header) -> tuple[np.float64, np.float64]:
    slope, intercept = header.get_slope_inter()
    return np.float64(1 if slope is None else slope), np.float64(intercept or 0)


def _voxels(content, header, shape) -> np.ndarray:
    """Values (X, Y, Z) with slope and intercept applied, in `_kept_type`; all are numbers and not all of them zero."""
    stored = _stored(content, header, shape)
    data, scaling = stored, _scaling(header)
    if scaling != (1, 0):
        data = np.empty(shape, dtype=np.float64, order="F")
        for plane, values_ in zip(np.moveaxis(data, 2, 0), np.moveaxis(stored, 2, 0), strict=True):
            plane[...] = nib.volumeutils.apply_read_scaling(values_, *scaling)
    data = data.astype(_kept_type(header), copy=False)
    del stored
    low, high = float(data.min()), float(data.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        strange = sum(plane.size - np.count_nonzero(np.isfinite(plane)) for plane in data)
        raise _Refused(f"{strange} voxels are NaN or infinite", "replace them, for example by 0")
    if high / 2 - low / 2 > np.finfo(np.float64).max / 2:
        raise _Refused(f"values from {low:.3g} to {high:.3g}, too large to compute with", "correct them")
    if low == high == 0:
        raise _Refused("all voxels are zero", "give an image with contents")
    return data


def _stored(content, header, shape) -> np.ndarray:
    """Voxels (X, Y, Z) as the file has them: nothing of it is kept but they, however much lies before and behind."""
    dtype, offset = header.get_data_dtype(), int(header.get_data_offset())
    needed, voxels = int(np.prod(shape, dtype=object)) * dtype.itemsize, bytearray()
    with content.open() as file:
        skipped = 0
        while skipped < offset and (chunk := file.read(min(CHUNK, offset - skipped))):
            skipped += len(chunk)
        while len(voxels) < needed and (chunk := file.read(min(CHUNK, needed - len(voxels)))):
            voxels += chunk
        if len(voxels) < needed:
            length = skipped + len(voxels)
            what = f"the file is cut off: {length} bytes, and the header wants {offset + needed}"
            raise _Refused(what, "copy or convert it again")
        if isinstance(file, gzip.GzipFile):
            _look_for_checksum(file)
    return np.ndarray(shape, dtype, voxels, order="F")


def _look_for_checksum(file: gzip.GzipFile) -> None:
    """Read on to where a compressed file has its checksum, unless that is far away. What lies behind the stream, and is
    no gzip, other readers do not look at."""
    behind = 0
    try:
        while behind <= MAX_BEHIND and (chunk := file.read(CHUNK)):
            behind += len(chunk)
    except gzip.BadGzipFile as error:
        if "CRC" in str(error) or "length" in str(error):
            raise


def _for_results(header, voxel_mm):
    """A header that a NIfTI-1 file can be made of without nibabel's finding fault with it."""
    if not isinstance(header, nib.Nifti1Header):
        header["delta"] = voxel_mm  # without signs
        return header
    header.set_data_offset(0)  # the writer sets it
    header.set_xyzt_units("mm")  # the values were taken as mm, whatever the scan says
    header["intent_code"], header["intent_name"] = 0, b""
    return nib.Nifti1Header.from_header(header)


# Where it lies -------------------------------------------------------------------------------------------------------


def _affine(header) -> np.ndarray:
    """The affine (4, 4) that nibabel and upstream take: sform, else qform, else none of them but voxel sizes."""
    try:
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    except ValueError as error:
        raise _Refused("the qform is no rotation", "correct the header") from error
    if not np.abs(affine).max() <= FARTHEST_MM:
        raise _Refused("an affine that is no position in mm", "correct the header (sform, qform)")
    volume = abs(np.linalg.det(affine[:3, :3] / voxel_sizes(affine)))
    if not volume > 1e-3:
        raise _Refused("the affine is singular", "correct the header (sform, qform)")
    return affine


def _compare_forms(header, shape) -> set:
    """Flags where sform and qform, both set, contradict each other. A qform that is no rotation contradicts."""
    sform = header.get_sform()
    try:
        qform = header.get_qform()
    except ValueError:
        return {"sform_qform_differ"}
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape])).reshape(3, -1)
    moved = (sform - qform)[:3, :3] @ corners + (sform - qform)[:3, 3:]
    flags = set() if np.sqrt(np.sum(moved**2, axis=0)).max() <= 1 else {"sform_qform_differ"}
    if np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0:
        flags.add("sform_qform_mirrored")
    return flags


def _ambiguous(affine) -> bool:
    """Whether another choice of axes than that of `grid.ras_order` has nearly, or more than, its weight."""
    weight = np.abs(np.linalg.inv(affine)[:3, :3])
    axes, _ = ras_order(affine)
    chosen = weight[axes, np.arange(3)]
    weight[axes, np.arange(3)] = 0
    return bool(np.any(weight.max(axis=0) > 0.9 * chosen))


def _mirrored(affine) -> bool:
    """Whether turning to RAS by `grid.ras_order` would make a mirror image.

    No rotation does. Shear can: the axes are chosen by the inverse of the affine, their directions by the affine.
    """
    axes, flipped = ras_order(affine)
    turned = affine[:3, axes] * np.where(flipped, -1, 1)
    return bool(np.linalg.det(turned) < 0)


def _orientation(affine) -> str:
    """Where each voxel axis points, "RAS" and the like, by the choice of `grid.ras_order`."""
    axes, flipped = ras_order(affine)
    codes = np.where(flipped, list("LPI"), list("RAS"))
    return "".join(codes[np.argsort(axes)])


def _sizes_text(sizes) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes)
