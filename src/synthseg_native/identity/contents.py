"""The contents of files, as hashes that are remembered, so that a cohort is read once."""

import json
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

from synthseg_native.files import read_json, sha256_of, write_text

SAY_AFTER_S = 5.0  # of reading, before a line says so
SAVE_EVERY_S = 60.0  # while files are read: what is killed then loses a minute's work


class Contents:
    """SHA-256 of files by path, remembered by size, modification time, change time and inode.

    Size and modification time alone are not enough: uncompressed scans of one grid have one size, and `cp -p`, `touch
    -r`, tar and zip bring old times along. The change time is the kernel's, and nobody can set it. Of a file that
    vanished the last hash stands: that is no reason to run anything again.

    memory: the file that remembers, or None for this process alone; it is written by `save` and, once `begin_saving`
    was called, every minute while files are read. say: gets a line where that takes its time.
    """

    def __init__(self, memory: Path | None = None, say: Callable[[str], None] = lambda line: None):
        self.memory = memory and Path(memory)
        self.say = say
        self.known: dict[str, list] = {}
        if self.memory:
            found = read_json(self.memory)
            found = found.items() if isinstance(found, dict) else ()
            self.known = {name: entry for name, entry in found if _is_entry(entry)}
        self._saving = self._changed = False
        self._read_files = self._read_bytes = 0
        self._read_s, self._next_line_s = 0.0, SAY_AFTER_S
        self._saved = time.monotonic()

    def sha256(self, path: str | os.PathLike) -> str | None:
        """Of a file's contents; of a file that cannot be read now the last one, None where there never was one."""
        path = os.fspath(path)
        known = self.known.get(path)
        try:
            about = os.stat(path)  # noqa: PTH116
            if not stat.S_ISREG(about.st_mode):  # a pipe, a device: reading it may never end
                return None
            seen = [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]
            if not known or known[:-1] != seen:
                self._remember(path, [*seen, self._read(path, about.st_size)])
        except (OSError, ValueError):  # ValueError: a zero byte in the path
            pass
        known = self.known.get(path)
        return known[-1] if known and len(known) == 5 else None

    def digest(self, path: str | os.PathLike) -> str | None:
        """The first 12 hexadecimal digits of `sha256`, as identities hold it."""
        return (self.sha256(path) or "")[:12] or None

    def is_as_made(self, path: str | os.PathLike, sha256: str, record: os.stat_result | None) -> bool:
        """Whether a result still has the contents that its record names.

        Results are published together, the record last. So a file that neither was changed nor moved since, by both of
        its times, is not read; any other is. record: what the file system says of the record; None where its times say
        nothing, because the record itself was copied or touched since.
        """
        try:
            about = os.stat(path)  # noqa: PTH116 (asked of every file of a cohort; a Path takes as long as the look itself)
        except OSError:
            return False
        if record and about.st_mtime_ns <= record.st_mtime_ns and about.st_ctime_ns <= record.st_ctime_ns:
            return True
        return self.sha256(path) == sha256

    def kept(self, name: str, value: str | None) -> str | None:
        """A value under a name, for what is made of several files; None gives the one kept before."""
        if value is not None and self.known.get(name) != [value]:
            self._remember(name, [value])
        return self.known.get(name, [None])[-1]

    def begin_saving(self) -> None:
        """From now on the memory is written every minute while files are read."""
        self._saving = True

    def save(self) -> None:
        """Write the memory, whole or not at all, where it has changed."""
        if not self.memory or not self._changed:
            return
        write_text(self.memory, json.dumps(self.known, indent=0, sort_keys=True) + "\n")
        self._changed, self._saved = False, time.monotonic()

    def _remember(self, name: str, entry: list) -> None:
        self.known[name] = entry
        self._changed = True
        if self._saving and time.monotonic() - self._saved > SAVE_EVERY_S:
            self.save()

    def _read(self, path: str, size: int) -> str:
        start = time.monotonic()
        found = sha256_of(path)
        self._read_files, self._read_bytes = self._read_files + 1, self._read_bytes + size
        self._read_s += time.monotonic() - start
        if self._read_s > self._next_line_s:
            self._next_line_s = self._read_s + SAVE_EVERY_S
            self.say(f"reading files to know them by their content: {self._read_files} so far, "
                     f"{self._read_bytes / 1e9:.1f} GB; each is read once")  # fmt: skip
        return found


def _is_entry(entry: object) -> bool:
    """Whether an entry of the memory is as `Contents` writes it: what was seen of a file and its hash, or one value."""
    if not isinstance(entry, list) or len(entry) not in (1, 5) or not isinstance(entry[-1], str):
        return False
    return all(isinstance(number, int) for number in entry[:-1])
