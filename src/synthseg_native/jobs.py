"""Which scans a call is about, where the results of each go, and which of them are current.

Paths follow SynthSeg: an image, a folder of images, or a text file with one path per line. For a folder, and for a
single image with a folder for its results, names are derived: ``x.nii.gz`` gives ``x_synthseg.nii.gz``.
"""

import contextlib
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from synthseg_native.errors import SynthSegError
from synthseg_native.files import SEAL, at_home, is_sealed, read_json, read_text, sealed, sha256_of
from synthseg_native.identity import current, stages
from synthseg_native.results.kept import LABEL_MAPS
from synthseg_native.scan.content import Content
from synthseg_native.scan.formats import IMAGE_EXTENSIONS, image_extension

# Results of one scan: option -> (what is put behind the image's name, extension where it is not the image's).
PER_SCAN = {
    "o": ("_synthseg", None),
    "native_grid": ("_native", None),
    "post": ("_posteriors", None),
    "resample": ("_resampled", None),
    "margin": ("_margin", ".nii.gz"),
    "picture": ("_qc", ".png"),
    "record": ("_run", ".json"),
}
TABLES = {"vol": ".csv", "qc": ".csv", "volumes_tsv": ".tsv"}
CSV = ("vol", "qc")  # of these SynthSeg's own, of which a list has one per scan
ROWS = {"vol": "csv", "qc": "qc"}  # what `note` calls a scan's row in these
NOT_WRITTEN = (".hdr", ".img", ".npz", ".gz", ".dcm", ".mnc", ".png", ".json")  # no folder is meant by these
OTHER_IMAGES = (".img", ".img.gz", ".mnc", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".nii.bz2", ".nii.xz", ".nii.zst")
NOTE = "SynthSegNative"


@dataclass
class Job:
    """One scan. outputs : option ("o", "post", ...) -> path; of a list CSV are among them, a table per scan.

    alike : another scan of the call has the same name up to the extension · same : up to capitals of the extension
    refused : why it may not be segmented · content : the image's bytes, which may be read ahead
    """

    image: Path
    outputs: dict = field(default_factory=dict)
    alike: bool = False
    same: bool = False
    refused: SynthSegError | None = None
    content: Content | None = field(default=None, compare=False, repr=False)

    def __post_init__(self):
        self.content = self.content or Content(self.image)

    @property
    def sidecars(self) -> dict:
        """Metadata beside the label maps, option -> path: what they are (BIDS), and, of "o", what made them."""
        maps = {option: self.outputs[option] for option in ("o", "native_grid") if option in self.outputs}
        return {
            o: path.with_name((path.name if self.alike else _stem(path.name)) + ".json") for o, path in maps.items()
        }


@dataclass
class Call:
    """jobs · tables : option ("vol", "volumes_tsv") -> path of one table over all scans · single : --i is an image
    results : images in the folder of --i that an earlier call made, and which are no scans
    remarks : lines about where results go"""

    jobs: list
    tables: dict
    single: bool = False
    results: list = field(default_factory=list)
    remarks: list = field(default_factory=list)


def plan(wanted: dict) -> Call:
    """What a call is to do. wanted : option -> path as given, or None; "i" and "o" are always there.

    Raises SynthSegError("usage") for what does not fit together, before anything is written, and
    SynthSegError("bad_input") where there is no image.
    """
    source = Path(at_home(wanted["i"]))
    given = {option: at_home(wanted[option]) for option in (*PER_SCAN, *TABLES) if wanted.get(option)}
    try:
        if _is_list(source):
            call = _of_list(source, given)
        else:
            for option, path in given.items():
                if _is_list(path):
                    raise _usage(path, f"a list for {flag(option)}, but --i is none", "give a file or a folder")
            call = _of_folder(source, given) if source.is_dir() else _of_image(source, given)
        for option in TABLES:
            if option in given and option not in call.jobs[0].outputs:
                call.tables[option] = _table(option, given[option])
        lists = [Path(path) for path in (str(source), *given.values()) if _is_list(path)]
        _check_places(call, lists)
    except OSError as error:  # of a path that no file system takes
        raise SynthSegError("bad_input", f"{error.filename or source}: {error.strerror}: correct the path") from error
    return call


def flag(option: str) -> str:
    """An option as it is typed.

    >>> flag("native_grid")
    '--native-grid'
    """
    return f"--{option.replace('_', '-')}"


def _usage(path, what, remedy):
    return SynthSegError("usage", f"{path}: {what}: {remedy}")


def _stem(name):
    return name[: len(name) - len(image_extension(name))]


def _table(option, path):
    ending = TABLES[option]
    if Path(path).exists() and not Path(path).is_file():
        what = f"a folder, in the place of a result ({flag(option)})" if Path(path).is_dir() else "no ordinary file"
        raise _usage(path, what, f"name a file that ends in {ending}")
    if option in CSV and not path.lower().endswith(ending):
        path += ending  # as SynthSeg does
    if not path.lower().endswith(ending):
        raise _usage(path, f"not a file name for {flag(option)}", f"end it in {ending}")
    return Path(path)


def _of_image(image, given):
    if not image_extension(image):
        what = "not an image file" if image.exists() else "no such file or folder"
        raise SynthSegError("bad_input", f"{image}: {what}: give an image ({' '.join(IMAGE_EXTENSIONS)}) or a folder")
    job = Job(image)
    for option, path in given.items():
        if option in PER_SCAN:
            job.outputs[option] = Path(path) if _names_file(option, path) else Path(path, _derived(job, option))
    return Call([job], {}, single=True)


def _names_file(option, path):
    """Whether the path of a single scan's result names a file: it has a fitting extension; else it is a folder."""
    extension = PER_SCAN[option][1]
    fits = image_extension(path) if extension in (None, ".nii.gz") else path.lower().endswith(extension)
    other = Path(path).suffix.lower()
    if not fits and not Path(path).is_dir() and (other in NOT_WRITTEN or (extension and other)):
        endings = " ".join(IMAGE_EXTENSIONS) if extension is None else extension
        raise _usage(path, f"not a file name for {flag(option)}", f"end it in {endings}, or name a folder")
    return bool(fits)


def _derived(job, option):
    mark, extension = PER_SCAN[option]
    start = job.image.name if job.same or (job.alike and extension) else _stem(job.image.name)
    return f"{start}{mark}{extension or image_extension(job.image)}"


def _of_folder(folder, given):
    places = {option: path for option, path in given.items() if option in PER_SCAN}
    for option, path in places.items():
        if image_extension(path) or Path(path).is_file():
            raise _usage(path, f"a file for {flag(option)}, but --i is a folder", "give a folder")
    files = sorted(folder.iterdir())
    images = [path for path in files if image_extension(path) and not path.name.startswith(".")]
    stems = Counter(_stem(image.name) for image in images)
    others = [path.name for path in files if path.name.lower().endswith(OTHER_IMAGES)]
    jobs = [Job(image, alike=stems[_stem(image.name)] > 1) for image in images]
    remarks = _tell_apart(jobs)
    if others:
        number = "1 image" if len(others) == 1 else f"{len(others)} images"
        what = f"{number} of other formats ({others[0]}) left out: convert to .nii.gz"
        remarks.append(f"{folder}: {what}")
    for job in jobs:
        job.outputs = {option: Path(path, _derived(job, option)) for option, path in places.items()}
    made = {_place(path) for job in jobs for path in job.outputs.values()}
    # What an earlier call made, with other options maybe, is told by the note beside its label map.
    for job in jobs:
        if _note(Job(job.image, {"o": folder / _derived(job, "o")}, job.alike).sidecars["o"]):
            made |= {_place(folder / _derived(job, option)) for option in PER_SCAN}
    results = [job.image for job in jobs if _place(job.image) in made]
    left_out = set(results)
    jobs = [job for job in jobs if job.image not in left_out]
    if not jobs:
        endings = " ".join(IMAGE_EXTENSIONS)
        raise SynthSegError(
            "bad_input", f"{folder}: no images in it ({endings}): name the folder that holds them itself"
        )
    return Call(jobs, {}, results=results, remarks=remarks)


def _tell_apart(jobs: list[Job]) -> list[str]:
    """Mark the jobs whose results would be named as another's, T1.NII.GZ beside T1.nii.gz; a line about each."""
    remarks, taken = [], {}
    # The usual name goes to the file that is written as usual.
    for job in sorted(jobs, key=lambda job: (not job.image.name.endswith(IMAGE_EXTENSIONS), job.image)):
        first = taken.setdefault((_stem(job.image.name), image_extension(job.image)), job)
        if first is not job:
            job.same = True
            remarks.append(
                f"{job.image} differs from {first.image.name} in capitals alone: its results are named "
                f"{_derived(job, 'o')} and the like"
            )
    return remarks


def _of_list(source, given):
    jobs = [Job(line) for line in _lines(source)]
    if not jobs:
        raise SynthSegError("bad_input", f"{source}: no paths in it: write one per line")
    for option, path in given.items():
        if option == "volumes_tsv":  # one table, whatever --i is
            continue
        if not _is_list(path):
            raise _usage(
                path, f"not a list, but --i is one, so {flag(option)} must be", "give a .txt, one path per line"
            )
        lines = _lines(Path(path))
        if len(lines) != len(jobs):
            raise _usage(path, f"{len(lines)} paths for {len(jobs)} images", "write one line per image, in their order")
        for job, line in zip(jobs, lines, strict=True):
            job.outputs[option] = _table(option, str(line)) if option in TABLES else line
    return Call(jobs, {})


def _is_list(path):
    """Whether a path names a list: a text file, or what a shell makes of <(ls scans/*), which can be read once."""
    path = Path(path)
    pipe = str(path).startswith(("/dev/fd/", "/dev/stdin")) or path.is_fifo()
    return path.suffix.lower() == ".txt" or (pipe and not image_extension(path))


def _lines(path: Path) -> list[Path]:
    """The paths of a list. Blanks around them, one pair of quotation marks, empty lines and comments (#) stand for
    nothing: ``./#1.nii`` and ``"a .nii "`` name files that are called so."""
    try:
        text = read_text(path)
        if "\0" in text:
            raise ValueError("holds zero bytes")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        remedy = "give a text file in UTF-8, with one path per line"
        raise SynthSegError("bad_input", f"{path}: {reason}: {remedy}") from error
    lines = [line.strip() for line in (text if "\n" in text else text.replace("\r", "\n")).split("\n")]
    return [Path(at_home(_unquoted(line))) for line in lines if line and not line.startswith("#")]


def _unquoted(line: str) -> str:
    """A line without one pair of quotation marks around it.

    >>> _unquoted('"a b.nii"'), _unquoted("'a.nii'"), _unquoted('"a.nii'), _unquoted('"')
    ('a b.nii', 'a.nii', '"a.nii', '"')
    """
    return line[1:-1] if len(line) > 2 and line[0] == line[-1] and line[0] in "\"'" else line


def _place(path):
    """What two names of one file have in common: symbolic links, ``..`` and capitals do not count."""
    try:
        about = path.stat()
        return about.st_dev, about.st_ino
    except OSError:  # not there yet, or not to be opened, which is told later, of this scan alone
        try:
            return path.resolve()
        except (OSError, RuntimeError):
            return path.absolute()


def _check_places(call, lists):
    """No two results in one place, none in the place of what is read or of somebody else's metadata."""
    read = {_place(job.image): "a scan" for job in call.jobs}
    read |= {_place(path): "a list" for path in lists}
    taken = {}
    for job in call.jobs:
        for option, path in job.outputs.items():
            extension = PER_SCAN[option][1] if option in PER_SCAN else TABLES[option]
            fits = image_extension(path) if extension is None else path.name.lower().endswith(extension)
            if not fits:
                endings = " ".join(IMAGE_EXTENSIONS) if extension is None else extension
                raise _usage(path, f"not a file name for {flag(option)}", f"end it in {endings}")
        for option, path in job.sidecars.items():
            if os.path.isfile(path) and not _ours(path, job.outputs[option]):  # noqa: PTH113 (as below)
                what = "not of this command, where the metadata of the label map belongs"
                line = f"{path}: {what}: remove it, or choose another name"
                job.refused = SynthSegError("usage" if call.single else "bad_input", line)
        if job.refused and call.single:
            raise job.refused
    metadata = [(path, "the metadata beside a label map") for job in call.jobs for path in job.sidecars.values()]
    results = [(path, flag(option)) for job in call.jobs for option, path in job.outputs.items()]
    for path, what in [*results, *metadata, *((path, flag(option)) for option, path in call.tables.items())]:
        place = _place(path)
        if os.path.isdir(path):  # noqa: PTH112 (Path's raises for a name that is too long, which is its scan's trouble)
            raise _usage(path, f"a folder, in the place of a result ({what})", "choose another name")
        if place in read:
            raise _usage(path, f"{what} would overwrite {read[place]}", "choose another place")
        if place in taken:
            raise _usage(
                path, f"{what} and {taken[place]} have one place", "choose names that differ before the extension"
            )
        taken[place] = what


# What is current -----------------------------------------------------------------------------------------------------


def note(job: Job, identity: dict, made: dict[str, Path], volumes: dict, notes: dict) -> dict:
    """What the sidecar of "o" remembers: what made the results (`identity.command.wanted`), the scan's name, and what
    it gave, sealed.

    made : option -> where the result lies now · volumes : from which the tables of a call are written without a run
    notes : the run record, of which it keeps what a later call says again
    """
    about = {
        "Identity": identity,
        "Input": job.image.name,
        "ResultsSHA256": {option: sha256_of(path) for option, path in made.items()},
        "Volumes": volumes,
        "Remarks": {"output": {"qc": notes["output"]["qc"]}, "input": {"header_flags": notes["input"]["header_flags"]}},
    }
    return sealed(about)


def state(job: Job, wanted: dict | None) -> current.State:
    """What the results of a job are now, by the note that an earlier call left.

    wanted : the identity of what this call would make, None where that cannot be said (no weights, say)
    """
    found = _note(job.sidecars["o"])
    if isinstance(found, dict) and not is_sealed(found):
        return _earlier(job, found)
    try:
        made, source, recorded = (found[name] for name in ("ResultsSHA256", "Input", "Identity"))
        files = {**job.outputs, **{f"sidecar of {option}": path for option, path in job.sidecars.items()}}
        result = current.state_of(files, made, recorded, wanted, lambda path, sha256: sha256_of(path) == sha256)
        more = [
            f"{path.name} is of another call"
            for option, path in job.outputs.items()
            if option not in made and option != "record"
        ]
        if source != job.image.name:
            more.append(f"made from another scan, {source}")
        if "record" in job.outputs and (read_json(job.outputs["record"]) or {}).get("status") != "ok":
            more.append("the last run failed")
    except OSError as error:
        return current.State(current.MISSING, (f"{error.filename}: {error.strerror}",))
    except (KeyError, TypeError, AttributeError):  # no note, or not as ours are
        return current.State(current.MISSING, ("there is no note of how it was made",))
    if more and wanted and result.word in (current.CURRENT, current.STALE):
        return current.State(current.STALE, (*result.why, *more))
    return result


def _earlier(job, found) -> current.State:
    """The state of results whose note was changed, or is of an earlier version: their label maps may be edited too."""
    made = found.get("ResultsSHA256")
    made = made if isinstance(made, dict) else {}
    files = {option: path for option, path in job.outputs.items() if option in job.sidecars}
    as_made = lambda path, sha256: sha256_of(path) == sha256  # noqa: E731
    result = current.state_of(files, made, None, {"form": stages.FORM}, as_made)
    if result.word == current.STALE and SEAL in found:
        return current.State(current.STALE, (f"{job.sidecars['o'].name} is not as it was made",))
    return result


def unvouched(job: Job) -> list[Path]:
    """What lies in the places of this job's results and is, as far as anybody can say, not of this command's making."""
    found = _note(job.sidecars["o"])
    made = found.get("ResultsSHA256") if isinstance(found, dict) else None
    known = made if isinstance(made, dict) else {}
    others = {o: path for o, path in job.outputs.items() if o not in LABEL_MAPS and o not in known}
    return current.unvouched(job.outputs, made) + [path for o, path in others.items() if _is_foreign(o, path)]


def _is_foreign(option: str, path: Path) -> bool:
    """Whether a file that no note knows is none of this command's, by what it says of itself."""
    from synthseg_native.results import picture

    try:
        if not path.is_file() or not path.stat().st_size:
            return False
        if option == "record":
            content = read_json(path)
            return not (isinstance(content, dict) and {"schema", "kind", "status"} <= set(content))
        with path.open("rb") as file:
            return option != "picture" or picture.made_by_of(file.read(1024)) is None
    except OSError:  # it cannot be read, and is somebody's
        return True


def remembered(job: Job) -> tuple[dict, dict]:
    """What the note of a job with current results keeps: its volumes, and of the record what is worth a remark."""
    found = _note(job.sidecars["o"])
    return found["Volumes"], found["Remarks"]


def row_before(job: Job, option: str = "vol") -> tuple[str, ...]:
    """The row of a table of CSV that the results of an earlier call have left of this scan; () without any."""
    try:
        return tuple(_note(job.sidecars["o"])["Volumes"][ROWS[option]] or ())
    except (KeyError, TypeError):
        return ()


def rows_of_other_calls(jobs: list[Job], option: str, table: Path, rows: set[tuple[str, ...]]) -> dict:
    """Of the rows of a table those that another call made of a scan of these jobs, into another label map, in another
    mode say: row -> the note beside that label map. Notes are looked for beside the label maps of these jobs, beside
    the table, and in the folders beside that."""
    scans = {job.image.name: job.image for job in jobs}
    folders = {job.outputs["o"].parent for job in jobs} | {table.parent}
    own, found = {job.sidecars["o"] for job in jobs}, {}  # `row_before` reads these
    with contextlib.suppress(OSError):
        folders |= {path for path in table.parent.iterdir() if path.is_dir()}
    for path in sorted({path for folder in folders for path in folder.glob("*.json")} - own):
        try:
            note = _note(path)
            volumes, image = note["Volumes"], scans[note["Input"]]
            row = tuple(volumes[ROWS[option]] or ())
            if row in rows and note["Identity"]["content"] == sha256_of(image)[:12]:
                found[row] = path
        except (KeyError, TypeError, OSError):  # no note, or of a scan that is none of these
            continue
    return found


def row_name(job: Job) -> str:
    """What the scan is called in SynthSeg's table."""
    return job.image.name.replace(".nii.gz", "")


def _note(sidecar):
    """What an earlier call remembered in a sidecar; None without one."""
    content = read_json(sidecar)
    return content.get(NOTE) if isinstance(content, dict) else None


def _ours(sidecar, label_map):
    """Whether a JSON file is the metadata of a label map, and may be replaced: beside one a damaged file was that."""
    content = read_json(sidecar)
    if not isinstance(content, dict):
        return label_map.is_file()
    return NOTE in content or content.get("Type") == "Discrete"
