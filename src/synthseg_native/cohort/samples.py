"""The sample sheet: one row per image, named by BIDS entities."""

import csv
import difflib
import io
import os
import re
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from synthseg_native.errors import SynthSegError

ENTITIES = ("participant_id", "session_id", "acq", "run", "suffix")
COLUMNS = (*ENTITIES, "image", "ct")  # and "accept", which a sheet need not have
PREFIXES = {"participant_id": "sub-", "session_id": "ses-", "acq": "acq-", "run": "run-"}
SUFFIXES = ("T1w", "T2w", "FLAIR", "PDw", "T2starw", "CT", "inplaneT1", "inplaneT2", "UNIT1", "T1map", "T2map", "MTw")
EMPTY = ("", "n/a")
WRITTEN_EMPTY = ("na", "nan")  # how R and spreadsheets write an empty cell, of the columns that are known
TRUE, FALSE = ("true", "1", "yes"), ("false", "0", "no", *EMPTY)


@dataclass(frozen=True)
class Scan:
    """One row of the sheet.

    `entities` holds the label of each of ENTITIES ("" where it has none, without "sub-" and the like),
    `image` the path as the workflow opens it, `accept` the header faults in spite of which it is taken, `sheet` the
    further columns, `row` the row as it was written.
    """

    entities: dict
    image: str
    ct: bool
    accept: tuple = ()
    sheet: dict = field(default_factory=dict)
    row: dict = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The BIDS name without extension, "sub-01_ses-a_run-1_T1w"."""
        parts = [prefix + self.entities[key] for key, prefix in PREFIXES.items() if self.entities[key]]
        return "_".join([*parts, self.entities["suffix"]])

    @property
    def scan(self) -> str:
        """The path of a scan's results below an engine's folder.

        >>> entities = {"participant_id": "01", "session_id": "a", "acq": "", "run": "1", "suffix": "T1w"}
        >>> Scan(entities, "T1.nii.gz", ct=False).scan
        'sub-01/ses-a/anat/sub-01_ses-a_run-1_T1w'
        """
        folders = [PREFIXES[key] + self.entities[key] for key in ("participant_id", "session_id") if self.entities[key]]
        return "/".join([*folders, "anat", self.name])


def read_samples(sheet: str | PathLike) -> list[Scan]:
    """Read a tab-separated sample sheet; every mistake in it is reported at once, as `SynthSegError("usage")`."""
    sheet = Path(sheet)
    try:
        text = sheet.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise SynthSegError(
            "usage", f"{sheet}: no such sample sheet: write it, or set `samples:` in the config"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SynthSegError(
            "usage", f"{sheet}: cannot be read ({error}): save it as tab-separated UTF-8 text"
        ) from None
    if "\0" in text:
        raise SynthSegError("usage", f"{sheet}: holds zero bytes: save it as tab-separated UTF-8 text")
    # Of a pipe (/dev/stdin, <(...)) images start where the workflow works.
    folder = Path() if sheet.is_relative_to("/dev") or sheet.is_fifo() else sheet.parent
    lines = [line for line in io.StringIO(text) if line.strip() and not line.startswith("#")]
    try:
        header, *rows = csv.reader(lines, delimiter="\t", strict=True) if lines else [[]]
        header = _without_blank_end(header)
        rows = [_row(header, _without_blank_end(cells)) for cells in rows]
    except csv.Error as error:
        raise SynthSegError(
            "usage", f"{sheet}: not a tab-separated table ({error}): close every quotation mark"
        ) from None
    mistakes = _mistakes_in(header)
    if mistakes:
        hint = "; columns are separated by tabs" if len(header) == 1 else ""
        raise SynthSegError("usage", f"{sheet}: {'; '.join(mistakes)}: correct the first line{hint}")

    scans, seen = [], {}
    for number, row in enumerate(rows, start=1):
        try:
            scan = _scan(row, folder)
        except ValueError as error:
            mistakes.append(f"row {number}: {error}")
            continue
        key = scan.scan.casefold()  # results of names that differ in case only are the same files on a Mac
        first, name = seen.setdefault(key, (number, scan.name))
        if first != number and name == scan.name:
            mistakes.append(f"row {number}: {name} is row {first} again (tell them apart by session_id, acq or run)")
        elif first != number:
            mistakes.append(
                f"row {number}: {scan.name} differs from row {first}, {name}, in upper and lower case only, which some "
                "disks do not tell apart: rename one"
            )
        scans.append(scan)
    if mistakes:
        raise SynthSegError("usage", *(f"{sheet}: {mistake}" for mistake in mistakes))
    if not scans:
        raise SynthSegError("usage", f"{sheet}: no rows: add one line per image")
    return scans


def _without_blank_end(cells: list[str]) -> list[str]:
    """Spreadsheets end lines with tabs: the blank cells at the end stand for nothing.

    >>> _without_blank_end(["01", "", "a.nii", "", " "])
    ['01', '', 'a.nii']
    """
    while cells and not cells[-1].strip():
        cells = cells[:-1]
    return cells


def _row(header: list[str], cells: list[str]) -> dict:
    """The cells by column; what there is more of stands under ""."""
    more = {"": cells[len(header) :]} if len(cells) > len(header) else {}
    return dict(zip(header, [*cells, *[""] * len(header)], strict=False)) | more


def _mistakes_in(header: list[str]) -> list[str]:
    mistakes = []
    for name in ("participant_id", "image"):
        if name not in header:
            near = difflib.get_close_matches(name, header, n=1)
            mistakes.append(f"the column {name} is missing" + (f" (is it {near[0]!r}?)" if near else ""))
    mistakes += [f"the column {name} appears twice" for name in sorted({n for n in header if header.count(n) > 1})]
    for name in header:  # "Session-ID" would be carried along as a column of its own, and sessions not told apart
        meant = name.strip().lower().replace("-", "_").replace(" ", "_")
        if name != meant and meant in (*COLUMNS, "accept"):
            mistakes.append(f"the column {name!r} is not known; did you mean {meant}?")
    return mistakes


def _scan(row: dict, folder: Path) -> Scan:
    if "" in row:
        raise ValueError("more cells than columns")
    row = {key: value.strip() for key, value in row.items()}
    known = (*COLUMNS, "accept")
    row = {key: "" if key in known and value.lower() in WRITTEN_EMPTY else value for key, value in row.items()}
    entities = {key: _label(key, row.get(key, "")) for key in ENTITIES}
    if not entities["participant_id"]:
        raise ValueError("participant_id is empty")
    if row["image"] in EMPTY:
        raise ValueError("image is empty")
    ct = row.get("ct", "").lower()
    if ct in EMPTY and entities["suffix"] == "CT":
        ct = "true"
    if ct not in TRUE + FALSE:
        raise ValueError(f"ct is {row['ct']!r}: write true or false")
    further = {key: value for key, value in row.items() if key not in (*COLUMNS, "accept")}
    return Scan(entities, _image(row["image"], folder), ct in TRUE, _accept(row.get("accept", "")), further, row)


def _image(cell: str, folder: Path) -> str:
    if "\0" in cell:
        raise ValueError(f"image is {cell!r}: no path holds a zero byte")
    try:
        return openable(folder / Path(cell).expanduser())
    except RuntimeError:  # ~name of a user that there is not
        raise ValueError(f"image is {cell!r}: no such user") from None


def _accept(cell: str) -> tuple:
    """The flags of a cell, in one order whatever it has; ValueError for one that cannot be accepted."""
    flags = {flag.strip() for flag in cell.split(",")} - set(EMPTY)
    if flags:
        # Needs more than the standard library, which is all that bids_samples.py has.
        from synthseg_native.scan import reading

        try:
            reading.check_accept(sorted(flags), "accept:")
        except SynthSegError as error:
            raise ValueError(error.message) from None
    return tuple(sorted(flags))


def _label(key: str, value: str) -> str:
    """A BIDS label without its prefix; letters and digits only, so that it cannot leave the results folder."""
    value = "" if value in EMPTY else value.removeprefix(PREFIXES.get(key, ""))
    if key == "suffix":
        value = value or "T1w"
        if value not in SUFFIXES:
            raise ValueError(f"suffix is {value!r}: one of {', '.join(SUFFIXES)}")
    elif not re.fullmatch(r"[A-Za-z0-9]*", value):
        raise ValueError(f"{key} is {value!r}: only letters and digits")
    return value


def openable(path: Path) -> str:
    """The path relative to the working directory where it lies below it, so that a moved project stays current."""
    path = os.path.normpath(path)
    relative = os.path.relpath(path)
    if relative.startswith("-"):  # commands would take it for a flag
        return str(Path.cwd() / path)
    return path if relative.startswith("..") else relative
