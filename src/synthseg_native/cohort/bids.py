"""Write a sample sheet from a BIDS dataset. Standard library only."""

import csv
import io
import os
import re
from collections.abc import Callable, Iterable
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from synthseg_native.cohort.samples import COLUMNS, LABEL, SUFFIXES
from synthseg_native.errors import SynthSegError
from synthseg_native.files import read_text, write_text
from synthseg_native.scan.disguise import disguise
from synthseg_native.scan.formats import image_extension

FOLDERS = ("anat", "ct")  # where images of a head are; "ct" is of the draft extension for CT
EXTENSIONS = (".nii.gz", ".nii")
OTHER_EXTENSIONS = (".img", ".hdr", ".dcm", ".nrrd", ".mnc")
SHEET_ENTITIES = ("sub", "ses", "acq", "run")
SKIPPED = ("derivatives", "sourcedata")
LINK = "the link leads nowhere (with git-annex or DataLad: get its content first)"
NO_IMAGE = "no image in it (a dataset of DataLad's: install it first, datalad get -n)"
NOT_MAGNITUDE = ("phase", "real", "imag")
SERIES = {  # suffixes of images that are made for others, and what a segmentation takes
    "MP2RAGE": "one inversion of an MP2RAGE: UNIT1 is the image made of them",
    "PDT2": "two contrasts in one file: take them apart, as PDw and T2w",
    **dict.fromkeys(("MEGRE", "MESE", "MPM", "MTS", "MTR", "VFA", "IRT1"), "one image of a series for a map: name it "
                    "as the weighted image that it is, T1w say, to have it segmented"),
}  # fmt: skip


class Found(NamedTuple):
    """What a dataset holds. rows : dictionaries with the keys of the sample sheet, ``image`` relative to the dataset
    left_out : (path relative to the dataset, or participant, and the reason) · without : participants without a row,
    each on the list"""

    rows: list[dict[str, str]]
    left_out: list[tuple[str, str]]
    without: list[str]

    def sum(self) -> str:
        """Where everything and everybody went, as a sum."""
        images = sum(bool(image_extension(path)) for path, _ in self.left_out)
        people = len({row["participant_id"] for row in self.rows})
        named = f" ({', '.join(self.without[:10])}{' ...' if len(self.without) > 10 else ''})" if self.without else ""
        return (
            f"images: {len(self.rows)} in the sheet + {images} left out = {len(self.rows) + images}; "
            f"participants: {people} in the sheet + {len(self.without)} left out{named} = {people + len(self.without)}"
        )


def find_images(dataset: str | PathLike) -> Found:
    """Look through a BIDS dataset: nobody in it, and none of its images, is left out without a word.

    Of images that the sheet cannot tell apart, because it has no column for what their names differ in (ce, rec, echo,
    part ...), one is taken: see `_preference`. Raises SynthSegError ``usage`` if it is no dataset.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as dataset:
    ...     anat = Path(dataset, "sub-01", "anat")
    ...     anat.mkdir(parents=True)
    ...     for name in ("sub-01_T1w.nii.gz", "sub-01_rec-norm_T1w.nii.gz", "sub-01_bold.nii.gz"):
    ...         _ = (anat / name).write_bytes(bytes([31, 139]))  # as a gzip begins
    ...     found = find_images(dataset)
    >>> [(row["participant_id"], row["suffix"], row["image"]) for row in found.rows]
    [('sub-01', 'T1w', 'sub-01/anat/sub-01_T1w.nii.gz')]
    >>> [path for path, reason in found.left_out]
    ['sub-01/anat/sub-01_bold.nii.gz', 'sub-01/anat/sub-01_rec-norm_T1w.nii.gz']
    >>> found.sum()
    'images: 1 in the sheet + 2 left out = 3; participants: 1 in the sheet + 0 left out = 1'
    """
    dataset = Path(dataset)
    if not dataset.is_dir():
        raise SynthSegError("usage", f"{dataset}: no such folder: name the folder of a BIDS dataset")
    try:
        here = sorted(dataset.iterdir())
    except OSError as error:
        raise SynthSegError("usage", f"{dataset}: may not be read ({error.strerror}): change its permissions") from None
    subjects = [path for path in here if path.name.startswith("sub-") and (path.is_dir() or path.is_symlink())]
    inside = [path for path in here if path not in subjects and _has_subjects(path)]
    if not subjects:
        hint = f"; {inside[0].name} holds some" if inside else ""
        raise SynthSegError("usage", f"{dataset}: no folder sub-*{hint}: name the folder of a BIDS dataset")
    others = [(dataset / name, "skipped") for name in SKIPPED if (dataset / name).is_dir()]
    others += [(path, "a dataset of its own: call for it, too") for path in inside if path.name not in SKIPPED]
    others += [(path, "outside of a folder sub-*") for path in here if path.name.endswith(EXTENSIONS)]
    candidates, ignored = [], _ignored(dataset)
    for subject in subjects:
        _look_through(subject, candidates, others)
    left_out = [(f"{path.relative_to(dataset)}{'/' if path.is_dir() else ''}", why) for path, why in others]
    found = []
    for path in candidates:
        entities, suffix = _split(path.name)
        image = str(path.relative_to(dataset))
        if reason := _unsuitable(path, dataset, entities, suffix) or ignored(image):
            left_out.append((image, reason))
        else:
            found.append((_preference(entities), image, entities, suffix))
    rows = {}
    for _, image, entities, suffix in sorted(found, key=lambda item: item[:2]):
        key = (*(entities.get(name, "") for name in SHEET_ENTITIES), suffix)
        if key in rows:
            left_out.append((image, f"cannot be told apart from {rows[key]['image']} by session, acq, run and suffix"))
            continue
        ct = "true" if suffix == "CT" else "false"
        rows[key] = dict(zip(COLUMNS, (f"sub-{key[0]}", *key[1:], image, ct), strict=True))
    return _with_everybody([rows[key] for key in sorted(rows)], left_out, subjects, dataset)


def _preference(entities: dict[str, str]) -> tuple:
    """The place of an image among those that the sheet cannot tell apart; the least is taken.

    Without contrast agent before with one (ce-); the image of all echoes before a single one (echo-1); of an MP2RAGE
    the combined before one inversion (inv-1); the magnitude as it is before a part (part-mag); as it was
    reconstructed before another reconstruction, defaced say (rec-); without magnetisation transfer before with it
    (mt-on); then the name with the fewest entities, and the first by its letters.
    """
    return (
        *(name in entities for name in ("ce", "echo", "inv", "part", "rec")),
        entities.get("mt") == "on",
        len(entities),
    )


def _with_everybody(rows: list, left_out: list, subjects: list[Path], dataset: Path) -> Found:
    """The result, with those of participants.tsv, and a word about everybody who has no row."""
    there, with_row = {subject.name for subject in subjects}, {row["participant_id"] for row in rows}
    try:
        named = _participants(dataset)
    except (OSError, ValueError, csv.Error) as error:
        named = []
        left_out.append(("participants.tsv", f"cannot be read ({error}), so that it is not known who is missing"))
    left_out += [(name, "in participants.tsv, but has no folder") for name in named if name not in there]
    without = sorted((there | set(named)) - with_row)
    told = {path.split("/")[0] for path, _ in left_out}
    left_out += [(name, NO_IMAGE) for name in without if name not in told]
    return Found(rows, sorted(left_out), without)


def _has_subjects(folder: Path) -> bool:
    try:
        return folder.is_dir() and any(path.name.startswith("sub-") and path.is_dir() for path in folder.iterdir())
    except OSError:
        return False


def _look_through(subject: Path, images: list[Path], others: list[tuple[Path, str]]) -> None:
    """Add files that may be images of a head to `images`, and to `others` what else is there with the reason why not:
    for a participant, and for each session, one of them at least."""

    def listed(folder):
        try:
            return sorted(folder.iterdir())
        except OSError as error:
            others.append((folder, f"may not be read ({error.strerror})" if folder.is_dir() else LINK))
            return []

    here = listed(subject)
    sessions = [path for path in here if path.name.startswith("ses-") and (path.is_dir() or path.is_symlink())]
    inside = {subject: [path for path in here if path not in sessions], **{path: listed(path) for path in sessions}}
    for place, paths in inside.items():
        before = len(images) + len(others)
        for path in paths:
            if path.is_dir() and path.name in FOLDERS:
                for file in listed(path):
                    if file.name.endswith(EXTENSIONS):
                        images.append(file)
                    elif file.is_dir():
                        others.append((file, f"a folder in {path.name}"))
                    elif image_extension(file) or file.name.lower().endswith(OTHER_EXTENSIONS):
                        others.append((file, f"BIDS has {' and '.join(EXTENSIONS)} alone: convert or rename it"))
            elif path.is_dir():
                others.append((path, "not a folder of anatomical images"))
            elif path.name.endswith(EXTENSIONS):
                others.append((path, f"outside of {' and '.join(FOLDERS)}"))
            elif path.is_symlink() and not path.exists():
                others.append((path, LINK))
        told = any(path == place or place in path.parents for path, _ in others)
        if len(images) + len(others) == before and not told and not (place == subject and sessions):
            others.append((place, NO_IMAGE))


def _participants(dataset: Path) -> list[str]:
    """The participants that participants.tsv names, with their sub-; none where there is no such file. Raises OSError,
    and ValueError for a file that is no such table."""
    path = dataset / "participants.tsv"
    if not os.path.lexists(path):
        return []
    rows = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter="\t")
    if "participant_id" not in (rows.fieldnames or []):
        raise ValueError("no column participant_id")
    names = dict.fromkeys((row["participant_id"] or "").strip() for row in rows)
    return [name if name.startswith("sub-") else f"sub-{name}" for name in names if name and name != "n/a"]


def _ignored(dataset: Path) -> Callable[[str], str | None]:
    """A function that says of an image that .bidsignore names it. Not of CT: as a draft it has to stand there."""
    try:
        lines = [line.strip() for line in read_text(dataset / ".bidsignore").splitlines()]
    except (OSError, ValueError):
        lines = []
    rules = [(not line.startswith("!"), _pattern(line.removeprefix("!"))) for line in lines if line and line[0] != "#"]

    def reason(image: str) -> str | None:
        hit = [ignore for ignore, pattern in rules if pattern.match(image)]
        return "named in .bidsignore" if hit and hit[-1] and image.split("/")[-2] != "ct" else None

    return reason


def _pattern(line: str) -> re.Pattern:
    """A line of .bidsignore, which is as one of .gitignore, as an expression for paths below the dataset.

    >>> [bool(_pattern("*_T2w.nii*").match(f"sub-1/anat/sub-1_{end}")) for end in ("T2w.nii.gz", "T1w.nii.gz")]
    [True, False]
    >>> [bool(_pattern(line).match("sub-1/anat/a.nii")) for line in ("sub-*/anat/", "/anat", "**/a.nii", "sub-*.nii")]
    [True, False, True, False]
    """
    bare = line.rstrip("/")
    words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    parts = (words.get(part, re.escape(part)) for part in re.split(r"(\*\*/|\*\*|\*|\?)", bare.lstrip("/")))
    return re.compile(("" if "/" in bare else "(?:.*/)?") + "".join(parts) + "(?:/.*)?$", re.DOTALL)


def _split(name: str) -> tuple[dict[str, str], str]:
    """Entities (in the order of the name; "" as value where there is no label) and suffix of a BIDS file name."""
    stem = name.removesuffix(".gz").removesuffix(".nii")
    *parts, suffix = stem.split("_")
    return {key: value for key, _, value in (part.partition("-") for part in parts)}, suffix


def _unsuitable(path: Path, dataset: Path, entities: dict[str, str], suffix: str) -> str | None:
    """Why the file cannot be a row, or None."""
    folders = path.relative_to(dataset).parts[:-2]
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8, and cannot stand in a sheet: rename it"
    if [f"{key}-{entities[key]}" for key in ("sub", "ses") if key in entities] != list(folders):
        return f"the name does not fit the folder {'/'.join(folders)}"
    if not all(re.fullmatch(f"{LABEL}+", value) for value in entities.values()):
        return "not a BIDS name (entity-label pairs of letters and digits)"
    if suffix not in SUFFIXES:
        return SERIES.get(suffix, f"suffix {suffix} is not one of {', '.join(SUFFIXES)}")
    if entities.get("part") in NOT_MAGNITUDE:
        return f"part-{entities['part']} is not a magnitude image"
    try:
        if path.is_dir():
            return "a folder, not an image"
        if not path.exists():
            return LINK
        if not path.is_file():
            return "not an ordinary file"
        if path.stat().st_size == 0:
            return "the file is empty"
        with path.open("rb"):
            pass
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
    except UnicodeEncodeError:
        raise SynthSegError("usage", f"{root}: not UTF-8, and no path for a sheet: rename the folder") from None


def _has_no_rows(sheet):
    """Whether the file is a sample sheet of a header only, as config/samples.tsv is at first."""
    try:
        lines = [line for line in read_text(sheet).splitlines() if line.strip()]
    except (OSError, ValueError):
        return False
    return len(lines) == 1 and "participant_id" in lines[0].split("\t")
