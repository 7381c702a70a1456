"""A file in the place of a new result, of which nothing says what made it: it may be somebody's work, and is kept."""

import contextlib
import filecmp
import gzip
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

LABEL_MAPS = ("dseg", "dseg_native", "o", "native_grid")  # results that people correct by hand
ENDING = ".kept"  # no image's, so that a folder of scans does not gain one


def keep(path: str | Path) -> Path:
    """Give a file a second name beside it, so that it outlives its place; `settle` says what becomes of that.

    By a link; where the disk has none, by a copy. Raises OSError.
    """
    path = Path(path)
    for kept in _names(path):
        if not os.path.lexists(kept):
            break
        if _is_same_file(path, kept):
            return kept
    try:
        os.link(path, kept)
    except OSError:
        shutil.copy2(path, kept)
    return kept


def settle(path: str | Path) -> list[str]:
    """Take away what `keep` has kept where its place still has it, or what is new there says the same: the same bytes,
    or a label map of the same labels on the same grid.

    Returns a line for each that stays. What cannot be taken away stays, too.
    """
    path = Path(path)
    found = list(itertools.takewhile(os.path.lexists, _names(path)))
    for kept in found:
        if _is_same_file(path, kept) or _says_the_same(path, kept):
            with contextlib.suppress(OSError):
                kept.unlink()
    what = "another file lay there, and nothing says what made it"
    return [f"{path}: {what}: kept as {kept.name}" for kept in found if os.path.lexists(kept)]


def _names(path: Path) -> Iterator[Path]:
    """The names under which a file is kept: the first, and those for what came later."""
    yield path.with_name(f"{path.name}{ENDING}")
    yield from (path.with_name(f"{path.name}{ENDING}-{number}") for number in itertools.count(2))


def _is_same_file(path: Path, other: Path) -> bool:
    with contextlib.suppress(OSError):
        return os.path.samefile(path, other)  # noqa: PTH121
    return False


def _says_the_same(path: Path, other: Path) -> bool:
    """Whether two files are alike, or two label maps have the same labels on the same grid."""
    import nibabel as nib
    import numpy as np

    with contextlib.suppress(Exception):  # of a damaged or missing file, or no image; nibabel's kinds are many
        if filecmp.cmp(path, other, shallow=False):
            return True
        first = nib.load(path)
        if first.get_data_dtype().kind not in "iu":  # posteriors take gigabytes
            return False
        second = type(first).from_bytes(_unpacked(other.read_bytes()))  # its name would say nothing to nibabel
        return (
            first.shape == second.shape
            and np.allclose(first.affine, second.affine)
            and np.array_equal(np.asanyarray(first.dataobj), np.asanyarray(second.dataobj))
        )
    return False


def _unpacked(data: bytes) -> bytes:
    return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else data
