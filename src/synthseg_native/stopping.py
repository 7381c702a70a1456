"""Signals that ask a process to end, heard in one way by every program of this project.

Standard library only. Python's own ways will not do: SIGINT as a traceback, and the others kill at once, so that what
was half written stays.
"""

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from synthseg_native.errors import FULL, of_system

# What terminals and batch systems send before they kill.
NUMBERS = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU),
)
MACHINE = (*FULL, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE)
Handler = Callable[[int, FrameType | None], None]


class Stopped(KeyboardInterrupt):
    """One of them arrived. number: of the signal."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """What shells say of a process that a signal ended.

        >>> Stopped(signal.SIGINT).exit_code, str(Stopped(signal.SIGTERM))
        (130, 'SIGTERM')
        """
        return 128 + self.number


_holding, _pending = 0, None  # blocks of `whole` around what runs now; a signal that came meanwhile


def _stop(number: int, frame: FrameType | None) -> None:
    global _pending
    if _holding:
        _pending = number
        return
    deafen()  # what is left to do is short, and a second Ctrl-C must not break it
    raise Stopped(number)


def end_at_once(number: int, frame: FrameType | None) -> None:
    """A handler for a program that has begun nothing yet, and still imports what it needs."""
    tell(Stopped(number))
    os._exit(128 + number)


def hear(handler: Handler = _stop) -> dict[int, object]:
    """Have a handler called for each of NUMBERS, by default one that raises `Stopped`; return the handlers before.

    What was ignored when the process began stays so (nohup, a shell's background). Elsewhere than in the main thread
    nothing is done: Python hears signals there alone.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in NUMBERS:
            if signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, NUMBERS)  # `become` has blocked them
    return before


def deafen() -> None:
    """Ignore them from now on, also in what this process starts."""
    hear(signal.SIG_IGN)


@contextlib.contextmanager
def hearing(handler: Handler = _stop) -> Iterator[None]:
    """`hear` for the time of the block."""
    before = hear(handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """Do the block whole, which must be short: a signal is heard when it has ended."""
    global _holding, _pending
    _holding += 1
    try:
        yield
    finally:
        _holding -= 1
        if _pending is not None and not _holding:
            number, _pending = _pending, None
            _stop(number, None)


def run(main: Callable[[], int | str | None]) -> int | str | None:
    """Call a program's main function; its exit status, or, after one line, that of the signal that ended it, or 4 where
    the machine did: a full disk, a folder that is closed. Any other error is raised, with its place: it is ours."""
    try:
        with hearing():
            return main()
    except Stopped as reason:
        tell(reason)
        return reason.exit_code
    except OSError as error:
        if error.errno not in MACHINE:
            raise
        say_at_once(f"synthseg-native: {of_system(error, 'a file').message}")
        return 4


def tell(reason: Stopped, what: str = "call again") -> None:
    """Say in one line what ended the program; where nobody can read it any more, it is let go."""
    say_at_once(f"synthseg-native: stopped by {reason}: {what}")


def say_at_once(line: str) -> None:
    """Print a line on stderr from within a handler: past what Python itself may just be printing."""
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode(errors="backslashreplace"))


def become(command: list[str], env: dict[str, str], hears: bool = True) -> None:
    """Become another program. hears: whether it is one that hears signals too (`hear`): then one that comes while it
    starts waits until it does."""
    signal.pthread_sigmask(signal.SIG_BLOCK if hears else signal.SIG_UNBLOCK, NUMBERS)
    try:
        os.execve(command[0], command, env)
    finally:  # it could not be started
        signal.pthread_sigmask(signal.SIG_UNBLOCK, NUMBERS)
