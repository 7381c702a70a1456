"""Files of one run that appear together, when all of them are written."""

import contextlib
import errno
import os
from collections.abc import Collection, Iterable
from pathlib import Path

from synthseg_native import stopping
from synthseg_native.errors import FULL, SynthSegError
from synthseg_native.files import beside


class Staged:
    """Collects files beside their destinations and moves them there together when the block ends well.

    ``with Staged() as staged: write(staged.path(destination))``. A failure removes what was not published; where one of
    them cannot be moved, the earlier files of those that were are put back. So it is all of them or none, unless the
    process is killed between two renames: then each is whole, the old or the new. A full or read-only disk raises
    SynthSegError("disk").
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

    def publish(self, destinations: Collection[Path], outdated: Iterable[Path] = ()) -> None:
        """Move some of the files to their places already: whatever happens to the others, they stay.

        outdated : what is removed first, so that nothing of an earlier run stands beside them
        """
        for path in outdated:
            with _disk_errors(path):
                path.unlink(missing_ok=True)
        self._move([move for move in self._moves if move[1] in destinations])

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        try:
            if kind is None:
                self._move(list(self._moves))
            elif isinstance(error, OSError):
                with _disk_errors(self._moves[-1][1] if self._moves else "output"):
                    raise error
        finally:
            self._remove(part for part, _ in self._moves)

    @staticmethod
    def _remove(paths):
        for path in paths:
            with contextlib.suppress(OSError):  # of a disk that became read-only; what went wrong first is told
                path.unlink(missing_ok=True)

    def _move(self, moves):
        before = []
        with stopping.whole():
            try:
                for part, destination in moves:
                    with _disk_errors(destination):
                        before.append((self._keep(part, destination), destination))
                        part.replace(destination)
                self._moves = [move for move in self._moves if move not in moves]
            except BaseException:
                for kept, destination in reversed(before):
                    with contextlib.suppress(OSError):
                        kept.replace(destination) if kept else destination.unlink(missing_ok=True)
                raise
            finally:
                self._remove(kept for kept, _ in before if kept)

    @staticmethod
    def _keep(part: Path, destination: Path) -> Path | None:
        """Give what is at a destination a second name, until all are moved; None where there is nothing.

        By a link, so that it never is away; where the disk has none, by moving it aside.
        """
        kept = part.with_name(f"{part.name}.before")
        if not os.path.lexists(destination):
            return None
        if destination.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder is in its place")
        kept.unlink(missing_ok=True)
        try:
            os.link(destination, kept, follow_symlinks=False)
        except OSError:
            destination.replace(kept)
        return kept


class _disk_errors:
    def __init__(self, path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, OSError):
            if error.errno == errno.ENAMETOOLONG:  # of this file alone: the next may be written
                raise SynthSegError("bad_input", f"{self.path}: {error.strerror}: choose a shorter name") from error
            full = error.errno in FULL
            remedy = "make room" if full else "choose a place that can be written to"
            raise SynthSegError("disk", f"{self.path}: {error.strerror or error}: {remedy}") from error
