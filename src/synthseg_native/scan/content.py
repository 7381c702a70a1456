"""The bytes of a scan's file: read once, while the command still imports what computes with them, or when asked for.

Standard library only: it runs before anything else is imported.
"""

import gzip
import hashlib
import io
import os
import stat
import threading
from pathlib import Path
from typing import BinaryIO

from synthseg_native.files import sha256_of
from synthseg_native.scan.formats import image_extension

LIMIT = 2**27  # bytes that are read ahead at most: whether the memory is there for the scan is not known yet


def seen(path: str | os.PathLike) -> tuple | None:
    """What tells one state of a file from any other; None where there is none.

    Nobody can set the time of change, and a file that comes back has another inode.
    """
    try:
        about = Path(path).stat()
    except (OSError, ValueError):  # ValueError: a zero byte in the path
        return None
    return about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns


class Content:
    """The bytes of one file. What was read ahead counts only while the path names that very file, unchanged."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self._thread: threading.Thread | None = None
        self._ahead: tuple | None = None  # (what was `seen`, bytes, their SHA-256)

    def read_ahead(self) -> None:
        """Begin to read in a thread, if it is an ordinary file with an image's name. What fails is told by `open`."""
        if image_extension(self.path):
            self._thread = threading.Thread(target=self._read, daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # no more threads are allowed here
                self._thread = None

    def open(self) -> BinaryIO:
        """The file from its first byte, unpacked where its name says that it is packed. Raises OSError."""
        packed = self.path.name.lower().endswith("gz")
        if ahead := self._read_before():
            stream = io.BytesIO(ahead[1])
            return gzip.GzipFile(fileobj=stream) if packed else stream
        return gzip.open(self.path) if packed else self.path.open("rb")

    def sha256(self) -> str:
        """Of the file as it is stored, in hexadecimal digits. Raises OSError."""
        ahead = self._read_before()
        return ahead[2] if ahead else sha256_of(self.path)

    def let_go(self) -> None:
        """Give back the memory of what was read ahead."""
        self._ahead = None

    def _read(self) -> None:
        try:
            if not stat.S_ISREG(self.path.stat().st_mode):
                return
            before = seen(self.path)
            with self.path.open("rb") as file:
                data = file.read(LIMIT + 1)
            if len(data) <= LIMIT and seen(self.path) == before:
                self._ahead = before, data, hashlib.sha256(data).hexdigest()
        except (OSError, ValueError, MemoryError):
            pass

    def _read_before(self) -> tuple | None:
        if self._thread:
            self._thread.join()
            self._thread = None
        return self._ahead if self._ahead and seen(self.path) == self._ahead[0] else None
