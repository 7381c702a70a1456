"""Processes that tests start and watch, and how much they do."""

import ctypes
import functools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest


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


def ignore_ctrl_c() -> None:
    """For `preexec_fn`: as the shell of a step of the workflow has it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


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


@contextmanager
def bound_by_modes() -> Iterator[None]:
    """As somebody whom file modes bind, also where this is root (without two capabilities of root's, on Linux)."""
    if os.geteuid() != 0:
        yield
        return
    if sys.platform != "linux":
        pytest.skip("file modes do not bind root")
    libc = ctypes.CDLL(None, use_errno=True)
    head, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    assert libc.capget(head, data) == 0
    before = data[0]
    data[0] = before & ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(head, data) == 0
    access = os.access
    os.access = functools.partial(access, effective_ids=True)  # by itself it asks about the real user
    try:
        yield
    finally:
        os.access = access
        data[0] = before
        assert libc.capset(head, data) == 0
