"""What a run that went wrong says: one line, with a code."""

import contextlib
import re
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

from synthseg_native.cohort.runs.files import LOG
from synthseg_native.errors import EXIT_CODES, SynthSegError, of_system
from synthseg_native.results import record as record_of
from synthseg_native.verification import verify

MEMORY_HINT = "not enough memory: close other programs, run fewer at once, or use a larger machine"
_DISK = re.compile(r"No space left on device|Disk quota exceeded|\[Errno 28\]|\[Errno 122\]")
_MEMORY = re.compile(r"MemoryError|ResourceExhausted|OOM when allocating|bad_alloc|Cannot allocate memory")
UNSAID = 120  # Python's status where its last words could not be written
LAST_SIGNAL = 31  # a status above 128 + this is no signal's: 255 is what container runtimes end with


def failure(status: int, measured: dict, log: str, image: Path | str, timeout: float | None = None) -> SynthSegError:
    """Say in one line, with a code, why a child failed.

    status: its exit status (of a signal: negative, or 128 and more); measured: the dict of measure.py or {};
    log: what it said; image: the file it was about; timeout: seconds that it had.

    >>> print(failure(-9, {"oom_kills": 0, "peak_rss_mib": 812.4}, "", "sub-01_T1w.nii.gz"))
    sub-01_T1w.nii.gz: ended by SIGKILL (it had reached 812 MiB): call again
    >>> print(failure(4, {}, "", "sub-01_T1w.nii.gz"))
    sub-01_T1w.nii.gz: what it had to say could not be written: make room on the disk and call again
    >>> print(failure(3, {}, "synthseg-native: scan.nii: 4 dimensions: give a 3-D image", "scan.nii"))
    scan.nii: 4 dimensions: give a 3-D image
    """
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    last = lines[-1] if lines else "it said nothing"
    number = measured.get("signal") or signal_of(status)
    peak = measured.get("peak_rss_mib")
    reached = f" (it had reached {peak:.0f} MiB)" if peak else ""
    if measured.get("timed_out"):
        return SynthSegError(
            "timeout", f"{image}: took longer than {timeout:.0f} s: give it more time, or more threads"
        )
    if status in (UNSAID, EXIT_CODES["disk"]) and not lines:
        what = "what it had to say could not be written: make room on the disk and call again"
        return SynthSegError("disk", f"{image}: {what}")
    if _DISK.search(log):
        return SynthSegError("disk", f"{image}: the disk is full: make room and call again")
    if _MEMORY.search(log) or (number == signal.SIGKILL and _memory_was_short(measured)):
        return SynthSegError("oom", f"{image}: {MEMORY_HINT}{reached}")
    if number is not None:
        return SynthSegError("killed", f"{image}: ended by {_signal_name(number)}{reached}: call again")
    for line in reversed(lines):
        # The two programs of this package say what is wrong in a line of their own.
        for start, code in (("synthseg-native: ", {2: "usage", 3: "bad_input"}), ("reference.py: ", {1: "bad_input"})):
            if line.startswith(start) and status in code:
                return SynthSegError(code[status], line.removeprefix(start))
    return SynthSegError("internal", f"{image}: the run ended with status {status}: {last}")


def signal_of(status: int) -> int | None:
    """The signal that ended a process, from its exit status as Python gives it (-9) or a shell (137); None for none.

    >>> signal_of(-9), signal_of(137), signal_of(3), signal_of(255)
    (9, 9, None, None)
    """
    if status < 0:
        return -status
    return status - 128 if 128 < status <= 128 + LAST_SIGNAL else None


def _memory_was_short(measured: dict) -> bool:
    """Whether a SIGKILL was the kernel's: it counts those on Linux; elsewhere only a process of most of the memory."""
    if measured.get("oom_kills") is not None:
        return measured["oom_kills"] > 0
    total = verify.memory_bytes() / 2**20
    return 0 < 0.6 * total < (measured.get("peak_rss_mib") or 0)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def unexpected(error: Exception, scan: str, work: Path) -> SynthSegError:
    """Any other exception as a SynthSegError; its traceback goes to the log of the run."""
    with contextlib.suppress(OSError), (work / LOG).open("a", encoding="utf-8") as stream:
        traceback.print_exception(error, file=stream)
    text = " ".join(str(error).split())[:500]
    return SynthSegError("internal", f"{scan}: {type(error).__name__}: {text}: please report this")


def attempt(record: dict, work: Path, run: Callable[[], None], scan: str) -> dict:
    """Call `run`, which fills the record; turn what it raises into the record's error. Return the record."""
    try:
        for left in work.iterdir():  # of an earlier run in the same folder
            if left.is_file():
                left.unlink()
        run()
        record.update(status="ok", error=None)
    except SynthSegError as error:
        record_of.fail(record, error)
    except MemoryError:
        record_of.fail(record, SynthSegError("oom", f"{scan}: {MEMORY_HINT}"))
    except OSError as error:
        record_of.fail(record, of_system(error, scan))
    except Exception as error:
        record_of.fail(record, unexpected(error, scan, work))
    record["finished"] = record["finished"] or record_of.now()
    return record
