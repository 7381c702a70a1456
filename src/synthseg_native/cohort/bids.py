"""Write a sample sheet from a BIDS dataset. Standard library only."""

import csv
import io
import os
import re
from collections.abc import Iterable
from os import PathLike
from pathlib import Path

from synthseg_native.cohort.samples import COLUMNS, SUFFIXES
from synthseg_native.errors import SynthSegError
from synthseg_native.files import write_text
from synthseg_native.scan.disguise import disguise

FOLDERS = ("anat", "ct")  # where images of a head are; "ct" is of the draft extension for CT
EXTENSIONS = (".nii.gz", ".nii")
SHEET_ENTITIES = ("sub", "ses", "acq", "run")
LINK = "the link leads nowhere (with git-annex or DataLad: get its content first)"
NOT_MAGNITUDE = ("phase", "real", "imag")


def find_images(dataset: str | PathLike) -> tuple[list[dict[str, str]], list[tuple[str, str]]]:
    """Return (rows, left_out) of the BIDS dataset.

    ``rows`` are dictionaries with the keys of the sample sheet, ``image`` being relative to the dataset;
    ``left_out`` are pairs (path relative to the dataset, reason). Raises SynthSegError ``usage`` if it is no dataset.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as dataset:
    ...     anat = Path(dataset, "sub-01", "anat")
    ...     anat.mkdir(parents=True)
    ...     for name in ("sub-01_T1w.nii.gz", "sub-01_rec-norm_T1w.nii.gz", "sub-01_bold.nii.gz"):
    ...         _ = (anat / name).write_bytes(bytes([31, 139]))  # as a gzip begins
    ...     rows, left_out = find_images(dataset)
    >>> [(row["participant_id"], row["suffix"], row["image"]) for row in rows]
    [('sub-01', 'T1w', 'sub-01/anat/sub-01_T1w.nii.gz')]
    >>> [path for path, reason in left_out]  # of two that the sheet cannot tell apart the plainer name stays
    ['sub-01/anat/sub-01_bold.nii.gz', 'sub-01/anat/sub-01_rec-norm_T1w.nii.gz']
    """
    dataset = Path(dataset)
    if not dataset.is_dir():
        raise SynthSegError("usage", f"{dataset}: no such folder: name the folder of a BIDS dataset")
    subjects = sorted(path for path in dataset.glob("sub-*") if path.is_dir() or path.is_symlink())
    if not subjects:
        raise SynthSegError("usage", f"{dataset}: no folder sub-*: name the folder of a BIDS dataset")
    left_out = [(f"{name}/", "skipped") for name in ("derivatives", "sourcedata") if (dataset / name).is_dir()]
    candidates = []
    for subject in subjects:
        images, others = _of_subject(subject)
        candidates += images
        left_out += [(f"{path.relative_to(dataset)}{'/' if path.is_dir() else ''}", why) for path, why in others]
    there = {subject.name for subject in subjects}
    left_out += [
        (name, "in participants.tsv, but has no folder") for name in _participants(dataset) if name not in there
    ]

    found = []
    for path in candidates:
        entities, suffix = _split(path.name)
        reason = _unsuitable(path, dataset, entities, suffix)
        if reason:
            left_out.append((str(path.relative_to(dataset)), reason))
        else:
            further = [key for key in entities if key not in SHEET_ENTITIES]
            found.append((len(further), str(path.relative_to(dataset)), entities, suffix))
    # The sheet has no column for the further entities (ce, rec, echo ...): of images that it cannot tell apart, the one
    # with the fewest of them comes first and stays.
    rows = {}
    for _, image, entities, suffix in sorted(found, key=lambda item: item[:2]):
        key = (*(entities.get(name, "") for name in SHEET_ENTITIES), suffix)
        if key in rows:
            left_out.append((image, f"cannot be told apart from {rows[key]['image']} by session, acq, run and suffix"))
            continue
        ct = "true" if suffix == "CT" else "false"
        rows[key] = dict(zip(COLUMNS, (f"sub-{key[0]}", *key[1:], image, ct), strict=True))
    return [rows[key] for key in sorted(rows)], sorted(left_out)


def _of_subject(subject: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Files that may be images of a head, and what else is there with the reason why not: never nothing at all."""
    images, others = [], []

    def listed(folder):
        try:
            return sorted(folder.iterdir())
        except OSError as error:
            others.append((folder, f"may not be read ({error.strerror})" if folder.is_dir() else LINK))
            return []

    here = listed(subject)
    sessions = [path for path in here if path.is_dir() and path.name.startswith("ses-")]
    for place in ([path for path in here if path not in sessions], *map(listed, sessions)):
        for path in place:
            if path.is_dir() and path.name in FOLDERS:
                images += [file for file in listed(path) if file.name.endswith(EXTENSIONS)]
            elif path.is_dir():
                others.append((path, "not a folder of anatomical images"))
            elif path.name.endswith(EXTENSIONS):
                others.append((path, f"outside of {' and '.join(FOLDERS)}"))
            elif path.is_symlink() and not path.exists():
                others.append((path, LINK))
    if not images and not others:
        others.append((subject, "no image in it (a dataset of DataLad's: install it first, datalad get -n)"))
    return images, others


def _participants(dataset: Path) -> list[str]:
    """The participants that participants.tsv names, with their sub-; none where there is no such file."""
    try:
        text = (dataset / "participants.tsv").read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return []
    names = [row.get("participant_id") or "" for row in csv.DictReader(io.StringIO(text), delimiter="\t")]
    return [name if name.startswith("sub-") else f"sub-{name}" for name in names if name]


def _split(name):
    """Entities (dict, in the order of the name; "" as value where there is no label) and suffix of a BIDS file name."""
    stem = name.removesuffix(".gz").removesuffix(".nii")
    *parts, suffix = stem.split("_")
    return {key: value for key, _, value in (part.partition("-") for part in parts)}, suffix


def _unsuitable(path, dataset, entities, suffix):
    """Why the file cannot be a row, or None."""
    folders = path.relative_to(dataset).parts[:-2]
    if [f"{key}-{entities[key]}" for key in ("sub", "ses") if key in entities] != list(folders):
        return f"the name does not fit the folder {'/'.join(folders)}"
    if not all(re.fullmatch("[A-Za-z0-9]+", value) for value in entities.values()):
        return "not a BIDS name (entity-label pairs of letters and digits)"
    if suffix not in SUFFIXES:
        return f"suffix {suffix} is not one of {', '.join(SUFFIXES)}"
    if entities.get("part") in NOT_MAGNITUDE:
        return f"part-{entities['part']} is not a magnitude image"
    try:
        if not path.is_file():
            return LINK
        if path.stat().st_size == 0:
            return "the file is empty"
    except OSError as error:
        return f"may not be read ({error.strerror})"
    found = disguise(path)
    return ": ".join(found) if found else None


def write_sheet(
    rows: Iterable[dict[str, str]], dataset: str | PathLike, sheet: str | PathLike, force: bool = False
) -> None:
    """Write the rows of `find_images` as a sample sheet, whole or not at all.

    Image paths are relative to the sheet where one of the two folders holds the other, else absolute.
    Raises SynthSegError ``usage`` if the sheet exists, has rows and ``force`` is false, or cannot be written.
    """
    sheet = Path(sheet)
    if not force and sheet.exists() and not _has_no_rows(sheet):
        raise SynthSegError("usage", f"{sheet}: exists: choose another --out, or overwrite it with --force")
    root, home = Path(dataset).resolve(), sheet.resolve().parent
    near = root.is_relative_to(home) or home.is_relative_to(root)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        path = root / row["image"]
        writer.writerow({**row, "image": os.path.relpath(path, home) if near else str(path)})
    try:
        write_text(sheet, text.getvalue())
    except OSError as error:
        raise SynthSegError("usage", f"{sheet}: cannot be written ({error}): choose another --out") from error


def _has_no_rows(sheet):
    """Whether the file is a sample sheet of a header only, as config/samples.tsv is at first."""
    try:
        lines = [line for line in sheet.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        return False
    return len(lines) == 1 and "participant_id" in lines[0].split("\t")
