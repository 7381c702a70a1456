"""What a file really is, where it is not the image that its name promises. Standard library only."""

import gzip
from os import PathLike
from pathlib import Path

HEAD = 512  # bytes that are looked at
GZIP = b"\x1f\x8b"


def disguise(path: str | PathLike) -> tuple[str, str] | None:
    """What the file is and what to do about it, by its first bytes; None for what may be an image, and for no file.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "sub-01_T1w.nii.gz")
    ...     _ = file.write_text("/annex/objects/MD5E-s9--0.nii.gz")
    ...     disguise(file)
    ('a pointer of git-annex, not the image', 'get its content first (git annex get, datalad get)')
    """
    path = Path(path)
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError:
        return None
    name, text = path.name.lower(), head.lstrip().lower()
    if head.startswith((b"/annex/objects/", b"../.git/annex/objects/")):
        return "a pointer of git-annex, not the image", "get its content first (git annex get, datalad get)"
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of git LFS, not the image", "get its content first (git lfs pull)"
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page, not an image", "download it again, maybe after logging in"
    if head.startswith(b"PK\x03\x04"):
        return "a zip archive, not an image", "unpack it"
    if head[128:132] == b"DICM":
        return "a DICOM file", "convert the series to NIfTI, for example with dcm2niix"
    if head and name.endswith((".gz", ".mgz")) and not head.startswith(GZIP):
        return "not compressed, though its name says so", f"compress it, or name it {_other_name(path.name)}"
    if head.startswith(GZIP) and name.endswith((".nii", ".mgh")) and _opens(path):
        return "compressed, though its name does not say so", f"name it {_other_name(path.name)}"
    return None


def _other_name(name: str) -> str:
    """The name with, or without, the ending of compressed files."""
    lower = name.lower()
    if lower.endswith(".mgz"):
        return f"{name[:-4]}.mgh"
    if lower.endswith(".mgh"):
        return f"{name[:-4]}.mgz"
    return name[:-3] if lower.endswith(".gz") else f"{name}.gz"


def _opens(path: Path) -> bool:
    """Whether it really is a gzip, not two bytes by chance."""
    try:
        with gzip.open(path) as file:
            file.read(1)
    except (OSError, EOFError):
        return False
    return True
