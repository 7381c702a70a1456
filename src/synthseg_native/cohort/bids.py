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

FOLDERS = ("anat", "ct")  # where images of a head are; "ct" is of the draft extension for CT
EXTENSIONS = (".nii.gz", ".nii")
SHEET_ENTITIES = ("sub", "ses", "acq", "run")
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
    ...         _ = (anat / name).write_bytes(b"an image")
    ...     rows, left_out = find_images(dataset)
    >>> [(row["participant_id"], row["suffix"], row["image"]) for row in rows]
    [('sub-01', 'T1w', 'sub-01/anat/sub-01_T1w.nii.gz')]
    >>> [path for path, reason in left_out]  # of two that the sheet cannot tell apart the plainer name stays
    ['sub-01/anat/sub-01_bold.nii.gz', 'sub-01/anat/sub-01_rec-norm_T1w.nii.gz']
    """
    dataset = Path(dataset)
    if not dataset.is_dir():
        raise SynthSegError("usage", f"{dataset}: no such folder: name the folder of a BIDS dataset")
    subjects = sorted(path for path in dataset.glob("sub-*") if path.is_dir())
    if not subjects:
        raise SynthSegError("usage", f"{dataset}: no folder sub-*: name the folder of a BIDS dataset")
    left_out = [(f"{name}/", "skipped") for name in ("derivatives", "sourcedata") if (dataset / name).is_dir()]
    candidates = []
    for subject in subjects:
        for place in (subject, *sorted(path for path in subject.glob("ses-*") if path.is_dir())):
            for folder in sorted(path for path in place.iterdir() if path.is_dir()):
                if folder.name in FOLDERS:
                    candidates += [path for path in folder.iterdir() if path.name.endswith(EXTENSIONS)]
                elif not folder.name.startswith("ses-"):
                    left_out.append((f"{folder.relative_to(dataset)}/", "not a folder of anatomical images"))

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
    if not path.is_file():
        return "the link leads nowhere (with git-annex or DataLad: get its content first)"
    if path.stat().st_size == 0:
        return "the file is empty"
    return None


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
