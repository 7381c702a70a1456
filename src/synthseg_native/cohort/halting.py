"""How the workflow ends when a signal asks it to: within `LAST_S` seconds, in one line, with nothing left behind.

Snakemake's own ways will not do (docs/snakemake.md): its handler of SIGTERM may wait for ever for a lock that the
interrupted thread holds, and else waits until every running job is done; at Ctrl-C it waits for those too. So this
process ends its steps, lets Snakemake unwind, whose `onerror` writes the summary, and where that takes too long ends
everything by force.

Standard library only, but for psutil, which Snakemake needs itself.
"""

import atexit
import contextlib
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from synthseg_native import stopping, streams

LAST_S = 25.0  # from the signal to the end of the process; batch systems kill after 30
STEPS_S = 15.0  # of these, for steps to end: a run's engine has 10 after SIGTERM (measure.py)
KEPT = "what is finished is kept, call again to go on"

_lock = threading.Lock()  # never taken by the handler
_stopped: stopping.Stopped | None = None
_deadline = 0.0
_release: Callable[[], object] | None = None


def prepare(release: Callable[[], object] | None = None, scheduler: object = None) -> None:
    """Hear signals in Snakemake's process.

    release: gives its lock of the folder back, should it not come to that itself. scheduler: Snakemake's, which has
    taken SIGTERM for itself since the last call, and may have heard one.
    """
    global _release
    if _stopped is None:
        _release = release
        atexit.unregister(_end)
        atexit.register(_end)
        stopping.hear(_stop)  # one may be waiting
        if getattr(scheduler, "_user_kill", None):
            signal.raise_signal(signal.SIGTERM)


def stopped() -> bool:
    """Whether a signal has asked this process to end."""
    return _stopped is not None


def seconds_left() -> float:
    """How long what follows a signal may still take."""
    return max(0.0, _deadline - time.monotonic())


def _stop(number: int, frame: FrameType | None) -> None:
    """The handler: say it, end the steps, and leave the main thread by an exception."""
    global _stopped, _deadline
    if _stopped is None:
        _stopped, _deadline = stopping.Stopped(number), time.monotonic() + LAST_S
        stopping.say_at_once(f"synthseg-native: stopped by {_stopped}: {KEPT}")
        # What Snakemake says of jobs that were ended: a stack of its own and the whole command of each.
        logging.getLogger("snakemake.logging").disabled = True
        sys.excepthook = lambda kind, error, trace: None
        threading.Thread(target=_see_it_through, args=(number,), daemon=True).start()
    if _swallows(frame):
        return  # the thread asks again
    stopping.deafen()
    raise _stopped


def _swallows(frame: FrameType | None) -> bool:
    """Whether the exception would be lost: the handler that prints Snakemake's lines takes it for its own."""
    while frame:
        if frame.f_globals.get("__name__") in ("snakemake.logging", "logging"):
            return True
        frame = frame.f_back
    return False


def _see_it_through(number: int) -> None:
    """A thread's work: end the steps, and after the last second everything, this process too."""
    tell_steps()
    while seconds_left():
        time.sleep(0.2)
        if signal.getsignal(number) == _stop:  # the main thread could not be left yet
            os.kill(os.getpid(), number)
    for process in _descendants():
        with contextlib.suppress(Exception):
            process.kill()
    with contextlib.suppress(Exception):
        if _release:
            _release()
    os._exit(_stopped.exit_code)


def _descendants() -> list:
    with contextlib.suppress(Exception):  # gone meanwhile; no psutil
        import psutil

        return psutil.Process().children(recursive=True)
    return []


def _steps() -> list:
    """The steps that run: not their shells, nor what keeps their logs, which end with them."""
    found = []
    for process in _descendants():
        with contextlib.suppress(Exception):
            if any(Path(word).parts[-2:-1] == ("scripts",) and word.endswith(".py") for word in process.cmdline()):
                found.append(process)
    return found


def tell_steps() -> None:
    """Tell all running steps to end: they end what they have started, and clear up."""
    for process in _steps():
        with contextlib.suppress(Exception):
            process.terminate()


def wait_for_steps() -> None:
    """Wait until all steps have ended, `STEPS_S` at most."""
    end = time.monotonic() + min(STEPS_S, seconds_left())
    while _steps() and time.monotonic() < end:
        time.sleep(0.1)


def _end() -> None:
    """The last thing that this process does: give the status that a shell expects of a signal."""
    if _stopped is not None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(_stopped.exit_code)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether Snakemake's line says more than the step that failed has said itself: not its stack and whole command."""
    failed = getattr(record, "exception", None) == "RuleException"
    return not (failed and re.search(r"returned non-zero exit status [1-4]\.", record.getMessage()))


def outlive_the_terminal() -> None:
    """Let no job of Snakemake's end because nobody reads what it says any more; and have failures said once."""
    sys.stdout, sys.stderr = streams.lasting(sys.stdout), streams.lasting(sys.stderr)
    logger = logging.getLogger("snakemake.logging")
    logger.addFilter(_is_news)
    for handler in logger.handlers:
        if type(handler) is not logging.FileHandler and isinstance(handler, logging.StreamHandler):
            handler.setStream(streams.lasting(handler.stream))
