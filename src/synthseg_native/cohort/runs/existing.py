"""A reference that the user has: label maps found by a pattern, taken as they are."""

import zlib
from glob import glob
from pathlib import Path

import nibabel as nib
import numpy as np

from synthseg_native.cohort.runs.files import REFERENCE_FILES
from synthseg_native.errors import SynthSegError
from synthseg_native.files import sha256_of
from synthseg_native.results import images

REMEDY = "correct reference.pattern"


def find_existing(pattern: str, scan: object) -> list[str]:
    """The user's label maps for a scan: every file that fits the pattern, sorted.

    pattern: a path with {participant_id} {session_id} {acq} {run} (with their prefixes, "sub-01"), {suffix} and {scan}
    ("sub-01_ses-a_T1w"), and with * ? [] ** as in the shell. scan: a sample sheet's Scan, or its name. Raises
    SynthSegError for a pattern that holds anything else.
    """
    name = Path(getattr(scan, "scan", scan)).name
    *parts, suffix = name.split("_")
    found = {part.split("-")[0]: part for part in parts}
    places = {"participant_id": "sub", "session_id": "ses", "acq": "acq", "run": "run"}
    values = {place: found.get(key, "") for place, key in places.items()} | {"suffix": suffix, "scan": name}
    try:
        path = pattern.format(**values)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError):  # the last two: {scan.x}, {scan[0]}
        known = " ".join(f"{{{key}}}" for key in values)
        raise SynthSegError("usage", f"reference.pattern: {pattern!r} is not understood: it may hold {known}") from None
    matches = glob(str(Path(path).expanduser()), recursive=True)  # noqa: PTH207 (the pattern may be absolute)
    return sorted(match for match in matches if Path(match).is_file())


def take_existing(record: dict, settings: dict, scan: str, work: Path) -> None:
    """Write the user's label map (3-D, whole numbers from 0) as int32 on its own grid, and say in the record whose.

    Raises SynthSegError where the pattern does not name one file, or that is no label map.
    """
    pattern = settings.get("pattern")
    if not pattern:
        raise SynthSegError("usage", "reference.pattern: missing: say where your label maps are")
    matches = find_existing(pattern, scan)
    if len(matches) != 1:
        what = "no file fits" if not matches else f"{len(matches)} files fit ({matches[0]}, {matches[1]} ...)"
        raise SynthSegError("bad_input", f"{pattern}: {what} {scan}: correct reference.pattern or the files")
    path = Path(matches[0])
    image, data = _load(path)
    if data.ndim != 3 or not np.isfinite(data).all() or (data != np.rint(data)).any() or (data < 0).any():
        raise SynthSegError("bad_input", f"{path}: not a label map (3-D, integers from 0): {REMEDY}")
    images.save_labels(work / REFERENCE_FILES["dseg"], data, image.affine, None)
    record["engine"].update(name="existing label map", version=None, package_version=None)
    record.update(threads=None, device=None, device_reason=None, mode=None, precision=None)
    record["reference"].update(runtime="none", id=f"sha256:{sha256_of(path)}")
    record["machine"] = dict.fromkeys(record["machine"])


def _load(path: Path) -> tuple[nib.spatialimages.SpatialImage, np.ndarray]:
    """An image and its values, without axes of length 1."""
    try:
        image = nib.load(path)
    except (OSError, ValueError, EOFError, nib.filebasedimages.ImageFileError) as error:
        raise SynthSegError("bad_input", f"{path}: cannot be read ({' '.join(str(error).split())}): {REMEDY}") from None
    try:
        return image, np.squeeze(np.asanyarray(image.dataobj))
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise SynthSegError("bad_input", f"{path}: damaged ({error}): copy it again") from None
