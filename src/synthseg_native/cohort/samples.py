"""The sample sheet: one row per image, named by BIDS entities."""

import csv
import difflib
import hashlib
import io
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from synthseg_native.errors import SynthSegError, few, printable
from synthseg_native.files import at_home, read_text
from synthseg_native.scan.formats import image_extension

ENTITIES = ("participant_id", "session_id", "acq", "run", "suffix")
COLUMNS = (*ENTITIES, "image", "ct")  # and "accept", which a sheet need not have
PREFIXES = {"participant_id": "sub-", "session_id": "ses-", "acq": "acq-", "run": "run-"}
SUFFIXES = ("T1w", "T2w", "FLAIR", "PDw", "T2starw", "CT", "inplaneT1", "inplaneT2", "UNIT1", "T1map", "T2map", "MTw",
            "T2star", "FLASH", "PD")  # fmt: skip
LABEL = "[A-Za-z0-9+]"  # plus signs: BIDS 1.11
EMPTY = ("", "n/a", "na", "nan", "null", "#n/a", "<na>")  # as BIDS, R, spreadsheets and databases write it, any case
TRUE, FALSE = ("true", "1", "yes"), ("false", "0", "no", "")
LONGEST = 140  # characters of a composed name: with what names of results, and of files on the way, add, 255 hold it


@dataclass(frozen=True)
class Scan:
    """One row of the sheet.

    `entities` holds the label of each of ENTITIES ("" where it has none, without "sub-" and the like),
    `image` the path as the workflow opens it, `accept` the header faults in spite of which it is taken, `sheet` the
    further columns, `row` the row as it was written, `refused` why it cannot be run whatever lies on the disk: then its
    run says so and fails, alone.
    """

    entities: dict
    image: str
    ct: bool
    accept: tuple = ()
    sheet: dict = field(default_factory=dict)
    row: dict = field(default_factory=dict)
    refused: str = ""

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
        text = read_text(sheet)
    except FileNotFoundError:
        raise SynthSegError(
            "usage", f"{sheet}: no such sample sheet: write it, or set `samples:` in the config"
        ) from None
    except IsADirectoryError:
        raise SynthSegError("usage", f"{sheet}: a folder, not a sample sheet: name the sheet in it") from None
    except (OSError, ValueError) as error:
        raise SynthSegError(
            "usage", f"{sheet}: cannot be read ({error}): save it as tab-separated UTF-8 text"
        ) from None
    # Of a pipe (/dev/stdin, <(...)) images start where the workflow works.
    folder = Path() if sheet.is_relative_to("/dev") or sheet.is_fifo() else sheet.parent
    text = text if "\n" in text else text.replace("\r", "\n")  # as spreadsheets on a Mac once ended lines
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
    """The scan of a row. ValueError for what is written wrongly; what cannot be run for all that, is `refused`."""
    if "" in row:
        raise ValueError("more cells than columns")
    row = {key: value.strip() for key, value in row.items()}
    known = (*COLUMNS, "accept")
    row = {key: "" if key in known and value.lower() in EMPTY else value for key, value in row.items()}
    entities = {key: _label(key, row.get(key, "")) for key in ENTITIES}
    if not entities["participant_id"]:
        raise ValueError("participant_id is empty")
    ct = row.get("ct", "").lower()
    if not ct and entities["suffix"] == "CT":
        ct = "true"
    if ct not in TRUE + FALSE:
        raise ValueError(f"ct is {row['ct']!r}: write true or false")
    further = {key: value for key, value in row.items() if key not in known}
    image, refused = _image(row["image"], folder)
    scan = Scan(entities, image, ct in TRUE, _accept(row.get("accept", "")), further, row, refused)
    return scan if len(scan.name) <= LONGEST else _shortened(scan)


def _image(cell: str, folder: Path) -> tuple[str, str]:
    """The path of the image, and why it can be none ("": it can)."""
    if not cell:
        return openable(folder / "n/a"), "the sheet names no image for this row: name one, or leave the row out"
    try:
        return openable(folder / at_home(cell)), ""
    except SynthSegError as error:
        return openable(folder / printable(cell)), error.message


def _shortened(scan: Scan) -> Scan:
    """A row whose results no disk could name, under a name that one can; its run is refused."""
    label = {key: f"{value[:8]}x" if len(value) > 8 and key != "suffix" else value
             for key, value in scan.entities.items()}  # fmt: skip
    label["participant_id"] += hashlib.sha256(scan.name.encode()).hexdigest()[:8]
    number = len(scan.name)
    refused = f"{scan.name[:40]}...: a name of {number} characters, more than files may have: use at most {LONGEST}"
    return Scan(label, scan.image, scan.ct, scan.accept, scan.sheet, scan.row, refused)


def contradictions(scans: Iterable[Scan]) -> str | None:
    """One line about rows that are named otherwise than the file of their image; None where there are none.

    >>> entities = {"participant_id": "1", "session_id": "", "acq": "", "run": "", "suffix": "T1w"}
    >>> print(contradictions([Scan(entities, "in/sub-01_T1w.nii.gz", ct=False)]))
    1 row of the sheet is named otherwise than its file (sub-1_T1w: sub-01_T1w.nii.gz): where a spreadsheet dropped \
leading zeros, write them again, and save the column as text
    """
    found = [f"{scan.name}: {printable(Path(scan.image).name)}" for scan in scans if _contradicts(scan)]
    if not found:
        return None
    rows = "1 row of the sheet is" if len(found) == 1 else f"{len(found)} rows of the sheet are"
    files = "its file" if len(found) == 1 else "their files"
    remedy = "where a spreadsheet dropped leading zeros, write them again, and save the column as text"
    return f"{rows} named otherwise than {files} ({few(found)}): {remedy}"


def shared_images(scans: Iterable[Scan]) -> str | None:
    """One line about rows that have one image, as a copied line of a sheet has it; None where there are none.

    >>> entities = {"participant_id": "1", "session_id": "", "acq": "", "run": "", "suffix": "T1w"}
    >>> rows = [Scan(entities | {"participant_id": name}, "in/a.nii.gz", ct=False) for name in ("1", "2")]
    >>> print(shared_images(rows))
    2 rows of the sheet have the image of another: in/a.nii.gz (sub-1_T1w, sub-2_T1w): is that meant?
    """
    rows: dict[tuple[str, bool], list[str]] = {}
    for scan in scans:
        if scan.image and not scan.refused:
            rows.setdefault((scan.image, scan.ct), []).append(scan.name)
    found = {image: names for (image, _), names in rows.items() if len(names) > 1}
    if not found:
        return None
    number, said = sum(map(len, found.values())), [f"{printable(image)} ({few(n)})" for image, n in found.items()]
    return f"{number} rows of the sheet have the image of another: {few(said)}: is that meant?"


def _contradicts(scan: Scan) -> bool:
    """Whether the name of a file says another participant, session, acquisition, run or suffix than its row."""
    name = Path(scan.image).name
    *parts, suffix = name[: len(name) - len(image_extension(name))].split("_")
    of_file = dict(part.split("-", 1) for part in parts if "-" in part)
    pairs = [(scan.entities[key], of_file.get(prefix.rstrip("-"))) for key, prefix in PREFIXES.items()]
    pairs += [(scan.entities["suffix"], suffix if "sub" in of_file and suffix in SUFFIXES else None)]
    return any(ours and theirs and ours != theirs for ours, theirs in pairs)


def _accept(cell: str) -> tuple:
    """The flags of a cell, in one order whatever it has; ValueError for one that cannot be accepted."""
    flags = {flag.strip() for flag in cell.split(",")} - {""}
    if flags:
        # Needs more than the standard library, which is all that bids_samples.py has.
        from synthseg_native.scan import reading

        try:
            reading.check_accept(sorted(flags), "accept:")
        except SynthSegError as error:
            raise ValueError(error.message) from None
    return tuple(sorted(flags))


def _label(key: str, value: str) -> str:
    """A BIDS label without its prefix; letters, digits and + only, so that it cannot leave the results folder."""
    value = value.removeprefix(PREFIXES.get(key, ""))
    value = re.sub(r"^(\d+)\.0$", r"\1", value)  # how pandas writes the numbers of a column with empty cells
    if key == "suffix":
        value = value or "T1w"
        if value not in SUFFIXES:
            raise ValueError(f"suffix is {value!r}: one of {', '.join(SUFFIXES)}")
    elif not re.fullmatch(f"{LABEL}*", value):
        raise ValueError(f"{key} is {value!r}: only letters and digits")
    return value


def openable(path: Path) -> str:
    """The path relative to the working directory where it lies below it, so that a moved project stays current."""
    path = os.path.normpath(path)
    relative = os.path.relpath(path)
    if relative.startswith("-"):  # commands would take it for a flag
        return str(Path.cwd() / path)
    return path if relative.startswith("..") else relative
