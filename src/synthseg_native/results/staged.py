"""Files of one run that appear together, when all of them are written."""

import contextlib
import errno
from pathlib import Path

from synthseg_native import stopping
from synthseg_native.errors import SynthSegError
from synthseg_native.files import beside


class Staged:
    """Collects files beside their destinations and moves them there together when the block ends well.

    ``with Staged() as staged: write(staged.path(destination))``. A failure removes what was written. A full or
    read-only disk raises SynthSegError("disk").
    """

    def __init__(self):
        self._moves = []

    def path(self, destination: str | Path) -> Path:
        """Where to write what is to be at `destination`. Raises SynthSegError("disk") where nothing can be."""
        destination = Path(destination)
        with _disk_errors(destination):
            if destination.is_dir():
                raise IsADirectoryError(errno.EISDIR, "a folder is in its place")
            destination.parent.mkdir(parents=True, exist_ok=True)
            part = beside(destination)
            part.touch()  # where nothing can be written is known before the work, not after it
            part.unlink()
        self._moves.append((part, destination))
        return part

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        try:
            if kind is None:
                with stopping.whole():
                    for part, destination in self._moves:
                        with _disk_errors(destination):
                            part.replace(destination)
            elif isinstance(error, OSError):
                with _disk_errors(self._moves[-1][1] if self._moves else "output"):
                    raise error
        finally:
            for part, _ in self._moves:
                with contextlib.suppress(OSError):  # of a disk that became read-only; what went wrong first is told
                    part.unlink(missing_ok=True)


class _disk_errors:
    def __init__(self, path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            remedy = "make room" if full else "choose a place that can be written to"
            raise SynthSegError("disk", f"{self.path}: {error.strerror or error}: {remedy}") from error
