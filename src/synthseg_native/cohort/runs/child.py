"""A command that is run to its end, and what was measured of it."""

import contextlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from synthseg_native import measure, memory
from synthseg_native.cohort import environments
from synthseg_native.cohort.runs.files import LOG, MEASURE, SOURCE
from synthseg_native.files import read_json
from synthseg_native.results import record as record_of

MEASURED = "measure.json"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def new_record(kind: str, scan: str, settings: dict) -> dict:
    """An empty run record with what the workflow knows before the run. kind: "native" or "reference"."""
    new = record_of.new(kind, [])
    new.update(scan=scan, key=settings, threads=settings.get("threads"), precision=settings.get("precision", "float32"))
    new["mode"] = settings.get("mode", "default")
    new["engine"]["name"] = settings.get("engine", "reference")
    return new


def environment_of(threads: int, source: Path = SOURCE) -> dict[str, str]:
    """The caller's variables, with this package alone on the path and one thread count for every library.

    source: the folder that holds the package.
    """
    return {
        **environments.clean_environment(),
        **dict.fromkeys(THREAD_VARIABLES, str(threads)),
        "PYTHONPATH": str(source),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def call(
    command: Sequence[object],
    log: Path,
    environment: dict[str, str] | None = None,
    limit: float | None = None,
    on_stop: Callable[[], None] | None = None,
    folder: Path | None = None,
) -> int:
    """Run a command to its end, in `folder`, with all it says in the file `log`; return its exit status.

    environment: its variables, without it the clean ones.
    If this process is told to stop meanwhile, or `limit` seconds have passed, `on_stop` is called and the command is
    ended before the exception goes on (of the limit: subprocess.TimeoutExpired).
    """
    with log.open("ab") as stream:
        words = [str(part) for part in command]
        child = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=environment or environments.clean_environment(),
            cwd=folder,
        )
        try:
            return child.wait(limit)
        except BaseException:
            if on_stop is not None:
                on_stop()
            child.terminate()
            try:
                child.wait(measure.GRACE_S + 5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            raise


def wrapped(command: Sequence[object], work: Path, timeout: float | None) -> list[object]:
    """The command under measure.py, which writes MEASURED to `work`. timeout: seconds."""
    wrapper = [sys.executable, MEASURE, "--out", work / MEASURED, "--with-parent"]
    wrapper += [] if timeout is None else ["--timeout", timeout]
    return [*wrapper, "--", *command]


def measured(
    record: dict, command: Sequence[object], work: Path, threads: int, timeout: float | None
) -> tuple[int, dict]:
    """Run a command of this machine under measure.py; return its exit status and what was measured."""
    record["command"] = [str(part) for part in command]
    status = call(wrapped(command, work, timeout), work / LOG, environment_of(threads))
    return status, take_measurement(record, work)


def take_measurement(record: dict, work: Path) -> dict:
    """Move what measure.py wrote into the record; return it ({} where it wrote nothing)."""
    found = read_json(work / MEASURED) or {}
    for name in ("wall_s", "peak_rss_mib", "cgroup_peak_mib", "started", "finished"):
        if found.get(name) is not None:
            record[name] = found[name]
    note_memory(record)
    return found


def note_memory(record: dict) -> None:
    """Say in the record where the peak was far from the prediction; not of an emulator's, which needs some itself."""
    if not record["machine"]["emulated"]:
        record["memory_remark"] = memory.remark(record["predicted_peak_mib"], record["peak_rss_mib"])


def log_of(work: Path) -> str:
    """All that a run said."""
    with contextlib.suppress(OSError):
        return (work / LOG).read_text(encoding="utf-8", errors="replace")
    return ""
