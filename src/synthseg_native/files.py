"""Files: written whole or not at all, and read back without a fault where they are damaged.

Standard library only.
"""

import contextlib
import json
from os import PathLike
from pathlib import Path
from typing import Any

from synthseg_native import owners


def read_json(path: str | PathLike) -> Any:
    """The contents of a JSON file; None where it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_text(path: str | PathLike, text: str) -> None:
    """`write_bytes` of text in UTF-8; line ends stay as given."""
    write_bytes(path, text.encode())


def write_bytes(path: str | PathLike, data: bytes) -> None:
    """Write a file beside its place, then rename it: it is there whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = beside(path)
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


_CLEARED: set[Path] = set()  # folders in which this process has looked


def beside(path: Path) -> Path:
    """Where to write what is to be at `path`: beside it, by a name that nothing else has, of the same ending.

    What processes of this machine that were killed have left in that folder is cleared away, once.
    """
    if path.parent not in _CLEARED:
        _CLEARED.add(path.parent)
        for left in path.parent.glob(".part-*@*"):
            if owners.has_ended(left.name.removeprefix(".part-")):
                with contextlib.suppress(OSError):
                    left.unlink()
    return path.with_name(f".part-{owners.unique()}-{path.name[-60:]}")


def write_json(path: str | PathLike, value: object) -> None:
    """Write strict JSON (no NaN) whole or not at all."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
