"""What is current, and why the rest is not: the identity that a result recorded against the one that is wanted.

An identity is a dict for JSON: `form`, `code` ({stage: digest}) and the settings that `stages` lists. It may hold more
than counts. The command and the workflow both ask here; there is no second place.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from synthseg_native.files import SEAL, is_sealed, is_there, read_json, read_sealed
from synthseg_native.identity import stages
from synthseg_native.identity.contents import Contents
from synthseg_native.results.kept import LABEL_MAPS

CURRENT, STALE, EDITED, MISSING, FAILED = "current", "stale", "edited", "missing", "failed"
PUBLISHED_S = 60  # within which results lie in their places when their run has ended
NOT_RUN = "has not run"

WHY = {
    "environment": "its environment changed",
    "model": "the model changed",
    "key": "the reference's image changed",
    "weights": "the weights changed",
    "content": "the image changed",
    "existing": "your label map changed",
    "display": "names or colours of the labels changed",
}
EARLIER = "made by an earlier version, which did not note all that made it"


@dataclass(frozen=True)
class State:
    """word : current, stale, edited, missing or failed · why : reasons in words, none where it is current
    seal : of the run record of a run that is current, which tells it from any other run
    """

    word: str
    why: tuple[str, ...] = ()
    seal: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.word}: {', '.join(self.why)}" if self.why else self.word


def identity(names: Iterable[str], package: Path = stages.PACKAGE, **settings: object) -> dict:
    """What the stages named make of these settings, by the source in `package`."""
    return {"form": stages.FORM, **settings, "code": stages.codes(names, settings.get("engine", ""), package)}


def differences(recorded: dict | None, wanted: dict) -> list[str]:
    """Why what was made is not what is wanted, in words; nothing where it is.

    A setting of which the wanted value is not known (None: an image that is not there) decides nothing, where it is
    the hash of a file.
    """
    recorded = recorded or {}
    if recorded.get("form") != wanted["form"] or not isinstance(recorded.get("code"), dict):
        return [EARLIER]
    code, found = wanted["code"], []
    # Where other networks are asked for, that is why, and not that theirs are other weights.
    networks = any(recorded.get(name) != wanted.get(name) for name in ("parcels", "scores"))
    networks = networks or (recorded.get("mode") == "robust") != (wanted.get("mode") == "robust")
    for name in sorted(stages.counted(code, wanted.get("engine", ""))):
        old, new = recorded.get(name), wanted.get(name)
        told = networks and name in ("model", "weights")
        if old != new and not told and not (new is None and name in ("content", "existing")):
            found.append(WHY.get(name, f"{name}: {_said(old)} to {_said(new)}"))
    changed = [name for name in {**code, **recorded["code"]} if code.get(name) != recorded["code"].get(name)]
    if found:  # a setting that changed says why a stage is there, or gone
        changed = [name for name in changed if name in code and name in recorded["code"]]
    return found + ([f"the code changed ({', '.join(changed)})"] if changed else [])


def _said(value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None or value in ([], "") else str(value)


def recorded_identity(record: dict) -> dict:
    """What a run record says made its results: the identity it was asked for, with the hashes of what it really read.

    A file may be exchanged between the plan and the run: then the results are those of the bytes that were read.
    """
    found = record.get("key")
    if not isinstance(found, dict):
        return {}
    networks = _at(record, "model", "networks")
    weights = list(networks.values()) if isinstance(networks, dict) else [_at(record, "model", "weights_sha256")]
    read = {"content": [_at(record, "input", "sha256")], "weights": weights}
    said = {name: " ".join(dict.fromkeys(str(each)[:12] for each in these if each)) for name, these in read.items()}
    return found | {name: text for name, text in said.items() if text and name in found}


def run_state(files: dict[str, str], wanted: dict, contents: Contents, failure: str | Path | None = None) -> State:
    """The state of a run of the workflow; see `run_read`."""
    return run_read(files, wanted, contents, failure)[0]


def run_read(
    files: dict[str, str], wanted: dict, contents: Contents, failure: str | Path | None = None
) -> tuple[State, dict]:
    """The state of a run of the workflow, from what its results say, and its record, {} unless it is current.

    files: its results, name -> path, "record" among them; wanted: its identity; failure: where the record of a failed
    attempt would lie. Files that nobody touched since they were made are not read; see `Contents.is_as_made`.
    """
    closed = None
    try:
        about = Path(files["record"]).stat()
        record = read_json(files["record"])
    except OSError as error:
        record = None
        closed = f"its results may not be looked at ({error.strerror})" if isinstance(error, PermissionError) else None
    failed = read_sealed(failure) if failure else None
    if failed and _finished(failed) >= _finished(record):
        return State(FAILED, (_at(failed, "error", "message") or "it did not say why",)), {}
    if not isinstance(record, dict) or record.get("status") != "ok":
        if is_there(files["record"]):
            return State(STALE, (f"{Path(files['record']).name} is not as it was made",)), {}
        others = any(is_there(path) for name, path in files.items() if name != "record")
        return State(MISSING, (closed or ("its run record is missing" if others else NOT_RUN),)), {}
    times = about if _is_of_its_run(about.st_mtime, record) else None
    as_made = lambda path, sha256: contents.is_as_made(path, sha256, times)  # noqa: E731
    made, whole = record.get("files"), is_sealed(record)
    recorded = recorded_identity(record) if whole else None
    found = state_of(files, made if isinstance(made, dict) else {}, recorded, wanted, as_made)
    if found.word == STALE and SEAL in record and not whole:
        return State(STALE, (f"{Path(files['record']).name} is not as it was made",)), {}
    return (replace(found, seal=record[SEAL]), record) if found.word == CURRENT and whole else (found, {})


def state_of(
    files: dict[str, str | Path],
    made: dict[str, str],
    recorded: dict | None,
    wanted: dict | None,
    as_made: Callable[[str | Path, str], bool],
) -> State:
    """The state of results that are there.

    files: {name: path}; made: {name: SHA-256 of the file that was made}; recorded, wanted: identities (wanted None: it
    cannot be said, and what is there is no longer current); as_made(path, sha256) looks whether a file still is that.
    A label map that was changed comes first, whatever else is to be said: nothing may overwrite it without a word. One
    that can no longer be read was cut or damaged, and nobody's work.
    """
    names = {name: Path(path).name for name, path in files.items()}
    there = [name for name, path in files.items() if is_there(path)]
    changed = [name for name in there if name in made and not as_made(files[name], made[name])]
    if edited := [name for name in changed if name in LABEL_MAPS and _is_image(files[name])]:
        return State(EDITED, tuple(f"{names[name]} was changed since it was made" for name in edited))
    if missing := [name for name in files if name not in there]:
        return State(MISSING, tuple(f"{names[name]} is missing" for name in missing))
    why = [f"{names[name]} is not as it was made" for name in changed]
    why += [] if wanted is None else differences(recorded, wanted)
    return State(STALE, tuple(why)) if why or wanted is None else State(CURRENT)


def unvouched(files: dict[str, str | Path], made: object) -> list[Path]:
    """The label maps among these files of which nothing says what made them: they may be somebody's work.

    files: {name: path}; made: {name: SHA-256}, what a record or a note says, if it says anything.
    """
    known = made if isinstance(made, dict) else {}
    maps = [Path(path) for name, path in files.items() if name in LABEL_MAPS and name not in known]
    return [path for path in maps if is_there(path) and _is_image(path)]


def counts(states: Iterable[State]) -> dict[str, int]:
    """How many are stale for which known reasons, {reasons in one text: number}, the most first."""
    return dict(Counter(", ".join(state.why) for state in states if state.word == STALE and state.why).most_common())


# What a cohort should not mix: what of a run record changes its numbers, and where it stands there.
HOMOGENEOUS = {
    "model": ("model", "name"),
    "weights_sha256": ("model", "weights_sha256"),
    "mode": ("mode",),
    "crop": ("key", "crop"),
    "interpolation": ("key", "interpolation"),
    "engine": ("engine", "name"),
    "engine_version": ("engine", "version"),
    "onednn": ("engine", "onednn"),
    "package_version": ("engine", "package_version"),
    "precision": ("precision",),
    "device": ("device",),
    "threads": ("threads",),
    "environment": ("key", "environment"),
    "code": ("key", "code"),
    "cpu": ("machine", "cpu"),
}


def made_by(record: dict) -> dict:
    """What of a run record a cohort should not mix, {name of HOMOGENEOUS: value}; the code as one digest.

    Without the number of threads for an engine that gives the same for any number of them.
    """
    from synthseg_native import engines
    from synthseg_native.identity import keys

    found = {name: _at(record, *place) for name, place in HOMOGENEOUS.items()}
    found["code"] = keys.digest(keys.settings_json(**found["code"])) if isinstance(found["code"], dict) else None
    if found["engine"] in engines.ANY_THREADS:
        del found["threads"]
    return found


def _is_of_its_run(modified_s: float, record: dict) -> bool:
    """Whether a record was written when its run ended, and neither copied without its times nor touched since."""
    try:
        return abs(datetime.fromisoformat(_finished(record)).timestamp() - modified_s) < PUBLISHED_S
    except ValueError:
        return False


def _finished(record) -> str:
    """When a run ended, as ISO 8601; "" where nobody knows."""
    return str(_at(record, "finished") or "")


def _is_image(path: str | Path) -> bool:
    """Whether a label map can be read to its end."""
    import nibabel as nib

    try:
        nib.load(path).get_fdata(dtype="float32")
    except Exception:  # nibabel's kinds of errors are many
        return False
    return True


def _at(record, *names):
    for name in names:
        record = record.get(name) if isinstance(record, dict) else None
    return record
