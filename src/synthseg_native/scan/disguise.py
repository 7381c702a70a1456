"""What a file really is, where it is not the image that its name promises. Standard library only."""

import gzip
import zlib
from os import PathLike
from pathlib import Path

HEAD = 512  # bytes that are looked at
GZIP = b"\x1f\x8b"
MGH = b"\0\0\0\1"  # its version
CONVERT = "convert it to NIfTI"
STARTS = {  # of files that are something else, and what to do
    b"PK\x03\x04": ("a zip archive, not an image", "unpack it"),
    b"BZh": ("compressed by bzip2", "unpack it (bunzip2), and compress it with gzip"),
    b"\xfd7zXZ\0": ("compressed by xz", "unpack it (unxz), and compress it with gzip"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "unpack it (unzstd), and compress it with gzip"),
    b"7z\xbc\xaf": ("a 7-zip archive, not an image", "unpack it"),
    b"\0\x05\x16\x07": ("what macOS keeps beside a file (._NAME), not the image", "take the file without ._"),
    b"NRRD": ("an NRRD file", CONVERT),
    b"\x89HDF": ("an HDF5 or MINC file", CONVERT),
    b"CDF\x01": ("a MINC file", CONVERT),
    b"\x89PNG": ("a PNG picture, not an image of voxels", "give the scan itself"),
    b"\xff\xd8\xff": ("a JPEG picture, not an image of voxels", "give the scan itself"),
    b"%PDF": ("a PDF document, not an image", "give the scan itself"),
}


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
            return _empty_link(path)
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
    for start, said in STARTS.items():
        if head.startswith(start):
            return said
    if head[128:132] == b"DICM":
        return "a DICOM file", "convert the series to NIfTI, for example with dcm2niix"
    if head and name.endswith((".gz", ".mgz")) and head.isascii() and b"\0" not in head:
        return "text, not an image", "copy or convert the image again"
    if head and name.endswith((".gz", ".mgz")) and not head.startswith(GZIP):
        return "not compressed, though its name says so", f"compress it, or name it {_other_name(path.name)}"
    if head.startswith(GZIP) and name.endswith((".nii", ".mgh")) and _unpacked(path):
        return "compressed, though its name does not say so", f"name it {_other_name(path.name)}"
    return _inside(path, name, head)


def _empty_link(path: Path) -> tuple[str, str] | None:
    """What to say of a link of git-annex whose content is elsewhere."""
    if path.is_symlink() and "annex/objects/" in path.readlink().as_posix():
        return "a link of git-annex, and the content is not here", "get it first (git annex get, datalad get)"
    return None


def _inside(path: Path, name: str, head: bytes) -> tuple[str, str] | None:
    """What unpacked contents are that do not fit the name."""
    if head.startswith(GZIP):
        head = _unpacked(path)
    if head.startswith(GZIP):
        return "compressed twice", f"unpack it once (gunzip < {path.name} > OTHER)"
    if head[257:262] == b"ustar":
        return "a tar archive, not an image", "unpack it (tar -xf)"
    nifti = head[344:347] in (b"n+1", b"ni1") or head[4:7] in (b"n+2", b"ni2")
    ending = ".gz" * name.endswith("gz")
    if nifti and name.endswith((".mgz", ".mgh")):
        return "a NIfTI file, though its name does not say so", f"name it {path.name[:-4]}.nii{ending}"
    if head.startswith(MGH) and not nifti and name.endswith((".nii", ".nii.gz")):
        stem = path.name[: -len(f".nii{ending}")]
        return "an MGH file, though its name does not say so", f"name it {stem}.{'mgz' if ending else 'mgh'}"
    return None


def _other_name(name: str) -> str:
    """The name with, or without, the ending of compressed files."""
    lower = name.lower()
    if lower.endswith(".mgz"):
        return f"{name[:-4]}.mgh"
    if lower.endswith(".mgh"):
        return f"{name[:-4]}.mgz"
    return name[:-3] if lower.endswith(".gz") else f"{name}.gz"


def _unpacked(path: Path) -> bytes:
    """The first bytes of what a gzip holds; none where it is none, but begins so by chance."""
    try:
        with gzip.open(path) as file:
            return file.read(HEAD)
    except (OSError, EOFError, zlib.error):
        return b""
