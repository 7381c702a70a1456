"""Standard output and standard error that may go away under a program. Standard library only."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO


class Lasting:
    """A stream by which nothing ends.

    Where nobody reads on (a pipe that was closed, a terminal that is gone, a full disk), what is said from then on is
    let go, also by what is started later: no scan is lost for a line.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text, or let it go; returns its length."""
        try:
            self._stream.write(text)
        except OSError:
            self._let_go()
        return len(text)

    def flush(self) -> None:
        """Write what waits, or let it go."""
        try:
            self._stream.flush()
        except OSError:
            self._let_go()

    def _let_go(self) -> None:
        with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())  # what waits in the buffer goes there too
            self._stream.flush()

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def lasting(stream: TextIO) -> TextIO:
    """The stream, as `Lasting`."""
    return stream if isinstance(stream, Lasting) else Lasting(stream)


@contextlib.contextmanager
def outlived() -> Iterator[None]:
    """Have standard output and standard error lasting for the time of the block, and told whatever names hold."""
    before = sys.stdout, sys.stderr
    for stream in before:
        if hasattr(stream, "reconfigure"):  # no name of a file may end a run, whatever the terminal can show
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = map(lasting, before)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before
