"""Files: written whole or not at all, and read back without a fault where they are damaged; what users write of paths
and text.

Standard library only.
"""

import codecs
import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

from synthseg_native import owners
from synthseg_native.errors import SynthSegError


def user_path(text: str) -> str:
    """A path as somebody writes it in a configuration: `at_home`, and what changes nothing is left out.

    >>> user_path("./results/"), user_path("a//b/../c"), user_path("")
    ('results', 'a/c', '')
    """
    return os.path.normpath(at_home(text)) if text else text


def at_home(text: str) -> str:
    """A path as somebody writes it anywhere, where ~ is the home.

    Raises SynthSegError("usage") for the home of a user that there is not, and for a zero byte.
    """
    if "\0" in text:
        raise SynthSegError("usage", f"{text}: no path holds a zero byte: write the path anew")
    try:
        return str(Path(text).expanduser()) if text.startswith("~") else text
    except RuntimeError:  # ~name
        raise SynthSegError("usage", f"{text}: there is no such user: write the whole path") from None


def read_text(path: str | PathLike) -> str:
    """Text that somebody wrote: UTF-8, with or without a mark at its beginning, or UTF-16, as spreadsheets save it.

    Raises OSError, and ValueError that says which encoding it is not.
    """
    data = Path(path).read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding, name = "utf-16", "UTF-16"
    elif b"\0" in data[:2] and len(data) % 2 == 0:  # an ASCII letter in UTF-16 without a mark
        encoding, name = ("utf-16-be" if data[:1] == b"\0" else "utf-16-le"), "UTF-16"
    else:
        encoding, name = "utf-8-sig", "UTF-8"
    return decoded(data, encoding, name)


def decoded(data: bytes, encoding: str = "utf-8", name: str = "UTF-8") -> str:
    """Text of its bytes. Raises ValueError that says which encoding they are not, from which line on, and maybe are.

    >>> decoded("a\\n\u00e4".encode("latin-1"))
    Traceback (most recent call last):
    ValueError: not UTF-8 text, maybe Latin-1 or Windows-1252 (line 2)
    """
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        line, kind = data.count(b"\n", 0, error.start) + 1, ", maybe Latin-1 or Windows-1252"
        if name != "UTF-8" or data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            kind = ", UTF-16" if name == "UTF-8" else ""
        raise ValueError(f"not {name} text{kind} (line {line})") from None


def is_there(path: str | PathLike) -> bool:
    """Whether there is such a file or folder; False also where nobody may look, which `Path.exists` raises for."""
    return os.path.exists(path)  # noqa: PTH110


def sha256_of(path: str | PathLike) -> str:
    """The hash of a file's bytes, in hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def seal_of(path: str | PathLike) -> str:
    """The digest that an object which is whole holds of itself, so that whatever is made from it can say of which it
    was made; "" where `read_sealed` has none."""
    found = read_json(path)
    return found[SEAL] if is_sealed(found) else ""


def _seal(value: dict) -> str:
    others = {name: entry for name, entry in value.items() if name != SEAL}
    return hashlib.sha256(json.dumps(others, sort_keys=True).encode()).hexdigest()[:16]


def write_text(path: str | PathLike, text: str) -> None:
    """`write_bytes` of text in UTF-8; line ends stay as given."""
    write_bytes(path, text.encode())


def write_bytes(path: str | PathLike, data: bytes) -> None:
    """Write a file beside its place, then rename it: it is there whole or not at all."""
    with writing(path) as part:
        part.write_bytes(data)


@contextlib.contextmanager
def writing(path: str | PathLike) -> Iterator[Path]:
    """Where to write what is to be at `path`: it is renamed at the end of the block, and gone where that fails."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = beside(path)
    try:
        yield part
        part.replace(path)
    except OSError as error:
        error.filename = str(path)  # writing to a full disk names none, and the other name says nothing to a user
        raise
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
