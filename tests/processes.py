"""Processes that tests start and watch, and how much they do."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> bool:
    """Whether the condition holds before so many seconds have passed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and was not waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{pid}/status")
    return not (status.exists() and "State:\tZ" in status.read_text())


def hear_ctrl_c() -> None:
    """For `preexec_fn`: in a shell's background tests ignore what the keyboard sends, and so would what they start."""
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


@contextmanager
def counted_calls() -> Iterator[SimpleNamespace]:
    """How many functions the block calls, afterwards as `number`: as good as its time, and the same on any machine."""
    found = SimpleNamespace(number=0)

    def note(frame, event, argument):
        found.number += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(None)
