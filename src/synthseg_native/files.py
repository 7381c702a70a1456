"""Files: written whole or not at all, and read back without a fault where they are damaged.

Standard library only.
"""

import hashlib
import json
from os import PathLike
from pathlib import Path
from typing import Any

from synthseg_native import owners

SEAL = "seal"  # the entry of a JSON object that holds the digest of all others


def read_json(path: str | PathLike) -> Any:
    """The contents of a JSON file; None where it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_sealed(path: str | PathLike) -> dict | None:
    """The object that `write_sealed` wrote; None where it is missing, damaged, of an earlier version or was edited."""
    found = read_json(path)
    return {name: entry for name, entry in found.items() if name != SEAL} if is_sealed(found) else None


def is_sealed(value: object) -> bool:
    """Whether what was read back is what `write_sealed` wrote, in every entry."""
    return isinstance(value, dict) and SEAL in value and value[SEAL] == _seal(value)


def _seal(value: dict) -> str:
    others = {name: entry for name, entry in value.items() if name != SEAL}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()[:16]


def write_text(path: str | PathLike, text: str) -> None:
    """`write_bytes` of text in UTF-8; line ends stay as given."""
    write_bytes(path, text.encode())


def write_bytes(path: str | PathLike, data: bytes) -> None:
    """Write a file beside its place, then rename it: it is there whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{owners.unique()}")
    try:
        beside.write_bytes(data)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path: str | PathLike, value: object) -> None:
    """Write strict JSON (no NaN) whole or not at all."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_sealed(path: str | PathLike, value: dict) -> None:
    """`write_json` of an object with a digest of itself, so that whoever reads numbers back knows that they are those.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_sealed(f"{folder}/run.json", {"n": 1})
    ...     read_sealed(f"{folder}/run.json")
    ...     write_json(f"{folder}/run.json", read_json(f"{folder}/run.json") | {"n": 2})
    ...     read_sealed(f"{folder}/run.json")
    {'n': 1}
    """
    write_json(path, sealed(value))


def sealed(value: dict) -> dict:
    """An object with a digest of itself, for `is_sealed`."""
    as_read = json.loads(json.dumps(value, allow_nan=False))  # names of entries are text then, whatever they were
    return as_read | {SEAL: _seal(as_read)}
