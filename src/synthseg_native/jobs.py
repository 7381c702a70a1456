"""Which scans a call is about, where the results of each go, and which of them are current.

Paths follow SynthSeg: an image, a folder of images, or a text file with one path per line. For a folder, and for a
single image with a folder for its results, names are derived: ``x.nii.gz`` gives ``x_synthseg.nii.gz``.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from .errors import SynthSegError
from .outputs import IMAGE_EXTENSIONS, image_extension
from .scan import sha256_of

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


@dataclass
class Job:
    """One scan. outputs : option ("o", "post", ...) -> path; of a list "vol" is one of them, a table per scan."""

    image: Path
    outputs: dict = field(default_factory=dict)

    @property
    def sidecars(self) -> dict:
        """Metadata beside the label maps, option -> path: what they are (BIDS), and, of "o", what made them."""
        maps = {option: self.outputs[option] for option in ("o", "native_grid") if option in self.outputs}
        return {o: path.with_name(_stem(path.name) + ".json") for o, path in maps.items()}


def _stem(name):
    return name[: len(name) - len(image_extension(name))]


def plan(wanted) -> list[Job]:
    """The jobs of a call. wanted : option -> path as given, or None; "i" and "o" are always there.

    Raises SynthSegError("usage") for what does not fit together, before anything is written, and
    SynthSegError("bad_input") where there is no image.
    """
    source = Path(wanted["i"])
    given = {option: wanted[option] for option in (*PER_SCAN, "vol") if wanted.get(option)}
    if source.suffix.lower() == ".txt":
        jobs = _of_list(source, given)
    else:
        for option, path in given.items():
            if path.lower().endswith(".txt"):
                raise _usage(path, f"a list for {flag(option)}, but --i is none", "give a file or a folder")
        jobs = _of_folder(source, given) if source.is_dir() else [_of_image(source, given)]
    _check_places(jobs)
    return jobs


def flag(option):
    return f"--{option.replace('_', '-')}"


def _usage(path, what, remedy):
    return SynthSegError("usage", f"{path}: {what}: {remedy}")


def _of_image(image, given):
    if not image_extension(image):
        what = "not an image file" if image.exists() else "no such file or folder"
        raise SynthSegError("bad_input", f"{image}: {what}: give an image ({' '.join(IMAGE_EXTENSIONS)}) or a folder")
    per_scan = {option: path for option, path in given.items() if option in PER_SCAN}
    return Job(image, {o: Path(p) if _names_file(o, p) else Path(p, _derived(image, o)) for o, p in per_scan.items()})


def _names_file(option, path):
    """Whether the path of a single scan's result names a file: it has a fitting extension; else it is a folder."""
    extension = PER_SCAN[option][1]
    return bool(image_extension(path)) if extension in (None, ".nii.gz") else path.lower().endswith(extension)


def _derived(image, option):
    mark, extension = PER_SCAN[option]
    return f"{_stem(image.name)}{mark}{extension or image_extension(image)}"


def _of_folder(folder, given):
    places = {option: path for option, path in given.items() if option in PER_SCAN}
    for option, path in places.items():
        if image_extension(path) or Path(path).is_file():
            raise _usage(path, f"a file for {flag(option)}, but --i is a folder", "give a folder")
    try:
        images = sorted(path for path in folder.iterdir() if image_extension(path) and not path.name.startswith("."))
    except OSError as error:
        raise SynthSegError("bad_input", f"{folder}: {error.strerror}: change its permissions") from error
    jobs = [Job(image, {o: Path(p, _derived(image, o)) for o, p in places.items()}) for image in images]
    # Results may lie in the same folder: they are no scans of the next call.
    made = {path.absolute() for job in jobs for path in job.outputs.values()}
    jobs = [job for job in jobs if job.image.absolute() not in made]
    if not jobs:
        raise SynthSegError(
            "bad_input",
            f"{folder}: no images in it ({' '.join(IMAGE_EXTENSIONS)}): name the folder that holds them itself",
        )
    return jobs


def _of_list(source, given):
    jobs = [Job(Path(line)) for line in _lines(source)]
    if not jobs:
        raise SynthSegError("bad_input", f"{source}: no paths in it: write one per line")
    for option, path in given.items():
        if not path.lower().endswith(".txt"):
            raise _usage(
                path, f"not a list, but --i is one, so {flag(option)} must be", "give a .txt, one path per line"
            )
        lines = _lines(Path(path))
        if len(lines) != len(jobs):
            raise _usage(path, f"{len(lines)} paths for {len(jobs)} images", "write one line per image, in their order")
        for job, line in zip(jobs, lines, strict=True):
            job.outputs[option] = Path(line)
    return jobs


def _lines(path):
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise SynthSegError("bad_input", f"{path}: {reason}: give a text file with one path per line") from error
    return [line.removesuffix("\r") for line in text.split("\n") if line.strip()]


def _check_places(jobs):
    """No two results in one place, none in the place of a scan, no name whose format cannot be written."""
    images, taken = {job.image.absolute() for job in jobs}, {}
    for job in jobs:
        for option, path in job.outputs.items():
            extension = PER_SCAN[option][1] if option in PER_SCAN else ".csv"
            fits = image_extension(path) if extension is None else path.name.lower().endswith(extension)
            if not fits:
                endings = " ".join(IMAGE_EXTENSIONS) if extension is None else extension
                raise _usage(path, f"not a file name for {flag(option)}", f"end it in {endings}")
        for path in [*job.outputs.values(), *job.sidecars.values()]:
            place = path.absolute()
            if place in images:
                raise _usage(path, "a result would overwrite a scan", "choose another place")
            if place in taken:
                raise _usage(path, f"a result of {job.image} and one of {taken[place]}", "choose other names")
            taken[place] = job.image


# What is current -----------------------------------------------------------------------------------------------------


def note(settings, input_sha256, made, volumes) -> dict:
    """What the sidecar of "o" remembers: the settings of the call, the scan's hash, and what it gave.

    made : option -> where the result lies now · volumes : from which the tables of a call are written without a run
    """
    hashes = {option: sha256_of(path) for option, path in made.items()}
    return {"Settings": settings, "InputSHA256": input_sha256, "ResultsSHA256": hashes, "Volumes": volumes}


def current(job, settings):
    """The volumes that an earlier run noted, if its results are those that this call would make; else None."""
    try:
        found = json.loads(job.sidecars["o"].read_text(encoding="utf-8"))["SynthSegNative"]
        made = found["ResultsSHA256"]
        same = (
            found["Settings"] == settings
            and all(path.is_file() for path in [*job.outputs.values(), *job.sidecars.values()])
            and found["InputSHA256"] == sha256_of(job.image)
            and all(made[option] == sha256_of(path) for option, path in job.outputs.items() if option != "record")
        )
        return found["Volumes"] if same else None
    except (OSError, ValueError, KeyError, TypeError):  # no note, or not one of ours
        return None
