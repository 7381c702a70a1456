"""The work folder of a run, who may publish from it, and the publishing: all files of a run or none."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from synthseg_native import shared_disk
from synthseg_native.cohort.runs.files import NATIVE_FILES, RECORD
from synthseg_native.files import sha256_of, write_text

PUBLISHER = "publisher"  # holds the name of the work folder that may publish


def root_of(record: Path) -> Path:
    """The folder, beside the outputs, that holds the work folders of all processes that make this run."""
    return record.parent / f".work-{record.name}"


def open_work(root: Path) -> Path:
    """Make a work folder of this process in `root`, let it publish, remove what processes that have ended left."""
    shared_disk.collect(root, "*@*")
    work = shared_disk.new_folder(root)
    write_text(root / PUBLISHER, work.name)
    return work


def may_publish(root: Path, work: Path) -> bool:
    """Whether no other process has started on the same outputs since."""
    try:
        return (root / PUBLISHER).read_text(encoding="utf-8") == work.name
    except OSError:
        return False


def close_work(root: Path, work: Path) -> None:
    """Remove the work folder, and the folder of all of them after the last one."""
    if may_publish(root, work):
        (root / PUBLISHER).unlink(missing_ok=True)
    shared_disk.discard(work)
    with contextlib.suppress(OSError):  # another process still works there
        root.rmdir()


def source_of(work: Path, name: str) -> Path:
    """Where an output, by the name that `places` has for it, lies in the work folder."""
    return work / {**NATIVE_FILES, "record": RECORD}[name]


def hashes(work: Path, places: Mapping[str, Path]) -> dict[str, str]:
    """{name: SHA-256} of what is about to be published, but for the record, which tells them."""
    return {name: sha256_of(source_of(work, name)) for name in places if name != "record"}


def publish(work: Path, places: Mapping[str, Path]) -> None:
    """Move a run's files from the work folder to their places: all of them, the record last, or none."""
    files = [(source_of(Path(work), name), path) for name, path in places.items()]
    files.sort(key=lambda pair: pair[0].name == RECORD)
    done = []
    try:
        for source, path in files:
            source.replace(path)
            done.append(path)
    except BaseException:
        for path in done:
            path.unlink(missing_ok=True)
        raise
