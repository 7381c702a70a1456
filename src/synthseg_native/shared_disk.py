"""What several machines may do in one folder: owners, locks, temporary folders, and what may be cleared away.

Standard library only. The rules, for every lock, cache, snapshot, environment and work folder of this project:

1. Everything that is in the making has an owner: host, boot, process space, process and when that process started. A
   process's number alone says nothing on a disk that other machines use too, nor after a restart.
2. An owner on this host has ended or has not. Of an owner elsewhere nothing can be known, so that nothing of its is
   touched: no lock is deleted, no finished environment removed. What does not work here is made beside it.
3. Cleared away is what can be made again and that nobody can be using: a temporary folder whose owner on this host has
   ended, or, of an owner elsewhere, in which nothing was written for `STALE_DAYS`.
4. Results are made under a name of their own and renamed. A lock saves double work; no result is wrong without it,
   because some shared file systems give every node locks of its own (Lustre with localflock, BeeGFS, NFS with nolock).
"""

import contextlib
import fcntl
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from synthseg_native.owners import Owner, is_alive, me, owners_of, text_of, unique

STALE_DAYS = 7.0  # without a change, after which a temporary folder of another host counts as left behind
STARTING_S = 24 * 3600.0  # in which a run that was called has begun to work, environments made and all
SIGN_OF_LIFE_S = 20.0  # how often the holder of a lock touches it, for those on other hosts
PATIENCE_S = 180.0  # without a sign, after which it holds no more; NFS shows a change after a minute at most
POLL_S = 0.2
OWNER = ".owner"  # ending of the file beside a temporary folder that says whose it is


# --- locks -----------------------------------------------------------------------------------------------------------


class Held(Exception):
    """Somebody else has the lock. owner: who, as far as it can be told."""

    def __init__(self, path: Path, owner: Owner | None):
        super().__init__(f"{path}: held by {owner or 'another process'}")
        self.owner = owner


def _flock(handle: int) -> bool | None:
    """Take the kernel's lock: whether it was free; None on a file system that has none."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _read(handle: int) -> list[Owner]:
    size = os.fstat(handle).st_size
    return owners_of(os.pread(handle, size, 0).decode(errors="replace"))


def _write(handle: int, owners: list[Owner]) -> None:
    os.ftruncate(handle, 0)
    os.pwrite(handle, "".join(map(text_of, owners)).encode(), 0)


def _ended(owner: Owner, locked: bool | None, here: Owner) -> bool | None:
    """Whether one who held a lock that is free now has ended: of the same kernel surely; None where nobody knows."""
    if locked and owner.boot == here.boot and owner.boot:
        return True
    alive = is_alive(owner, here)
    return None if alive is None else not alive


class _Watch:
    """Whether a lock of another host still gives signs of life, without comparing two machines' clocks."""

    def __init__(self, patience_s: float):
        self.patience_s, self.seen, self.at = patience_s, None, 0.0

    def silent(self, handle: int) -> bool:
        stamp, now = os.fstat(handle).st_mtime_ns, time.monotonic()
        if stamp != self.seen:
            self.seen, self.at = stamp, now
        return now - self.at >= self.patience_s


@contextlib.contextmanager
def hold(
    path: Path,
    wait_s: float | None = None,
    waiting: Callable[[], None] = lambda: None,
    patience_s: float = PATIENCE_S,
    here: Owner | None = None,
) -> Iterator[None]:
    """Hold a lock while the block runs; it ends with the process, however that ends.

    path: a file that stays. wait_s: how long to wait for another one, None for ever. waiting: called once where it has
    to wait. Where the file system has no locks, or every node its own, the owner in the file counts: one on this host
    until its process ends, one on another host as long as it touches the file (at least every `patience_s`).

    Raises Held after wait_s, OSError where the file cannot be written.
    """
    here, deadline, told = here or me(), None if wait_s is None else time.monotonic() + wait_s, False
    watch = _Watch(patience_s)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            locked, owners = _flock(handle), _read(handle)
            holder = owners[-1] if owners else None
            ended = None if holder is None else _ended(holder, locked, here)
            if locked is not False and (holder is None or ended or (ended is None and watch.silent(handle))):
                _write(handle, [here])
                if not locked:
                    time.sleep(POLL_S)  # of two who came at once, the later one to write has it
                if locked or _read(handle) == [here]:
                    break
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)
        if not told:
            waiting()
            told = True
        if deadline is not None and time.monotonic() > deadline:
            raise Held(path, holder)
        time.sleep(POLL_S)
    over = threading.Event()
    sign = threading.Thread(target=_give_signs, args=(handle, over), daemon=True)
    sign.start()
    try:
        yield
    finally:
        over.set()
        sign.join()
        with contextlib.suppress(OSError):
            if _read(handle) == [here]:
                os.ftruncate(handle, 0)
        os.close(handle)


def _give_signs(handle: int, over: threading.Event) -> None:
    while not over.wait(SIGN_OF_LIFE_S):
        with contextlib.suppress(OSError):
            os.utime(handle)


def claim(path: Path, at_rest: bool, here: Owner | None = None) -> list[Owner]:
    """Lock a file for as long as this process lives, whatever it becomes; return who else may be at work.

    Children do not inherit the lock. at_rest: whether nothing else shows that somebody is at work. The file lists those
    who claimed it. Raises Held where another process on this host has it. Returned are those on other hosts, where the
    kernel's lock may not reach, without the ones that came longer than `STARTING_S` ago and left no trace of work.
    """
    here = here or me()
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    locked, owners = _flock(handle), [owner for owner in _read(handle) if owner != here]
    if locked is False:
        os.close(handle)
        raise Held(path, owners[-1] if owners else None)
    ended = {owner: _ended(owner, locked, here) for owner in owners}
    if alive := [owner for owner in owners if ended[owner] is False]:
        os.close(handle)
        raise Held(path, alive[-1])
    others = [owner for owner in owners if not ended[owner]]
    if at_rest:
        others = [owner for owner in others if abs(here.since - owner.since) < STARTING_S]
    _write(handle, [*others, here])
    os.set_inheritable(handle, True)  # through exec; programs that Python starts do not get it
    return others


# --- temporary folders -----------------------------------------------------------------------------------------------


def new_folder(parent: Path, prefix: str = "", here: Owner | None = None) -> Path:
    """Make a temporary folder that nobody else has, in `parent` (made where it is missing), with its owner beside it.

    `discard` removes it, `collect` what a killed process has left.
    """
    here = here or me()
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / f"{prefix}{unique(here)}"
    _owner_file(folder).write_text(text_of(here), encoding="utf-8")
    folder.mkdir()
    return folder


def _owner_file(path: Path) -> Path:
    return path.with_name(path.name + OWNER)


def discard(path: Path) -> None:
    """Remove a temporary folder or file, or what is left of it where it was renamed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        _owner_file(path).unlink(missing_ok=True)


@contextlib.contextmanager
def temporary_folder(parent: Path, prefix: str = "") -> Iterator[Path]:
    """A folder for the time of the block."""
    folder = new_folder(parent, prefix)
    try:
        yield folder
    finally:
        discard(folder)


def collect(parent: Path, pattern: str, days: float = STALE_DAYS, here: Owner | None = None) -> list[Path]:
    """Remove temporary folders and files that nobody can be using; return their paths.

    pattern: of their names in `parent`. Removed are those whose owner has ended on this host and, where that cannot be
    known (another host, no owner told), those below which nothing was written for `days`. Never for what is finished.
    """
    here, gone = here or me(), []
    for path in sorted({path.with_name(path.name.removesuffix(OWNER)) for path in parent.glob(pattern)}):
        try:
            owners = owners_of(_owner_file(path).read_text(encoding="utf-8", errors="replace"))
        except OSError:
            owners = []
        alive = is_alive(owners[-1], here) if owners else None
        if alive is False or (alive is None and _idle_s(path) > days * 86400):
            discard(path)
            gone.append(path)
    return gone


def _idle_s(path: Path) -> float:
    """Seconds since anything was written below a folder, or to a file, or to the file that names its owner."""
    latest = 0.0
    for place in (path, _owner_file(path), *path.rglob("*")):
        with contextlib.suppress(OSError):
            latest = max(latest, place.lstat().st_mtime)
    return time.time() - latest


def refresh(path: Path) -> None:
    """Note that something that is kept while it is used (a snapshot of the code) is used now."""
    with contextlib.suppress(OSError):
        os.utime(path)


# --- what may be trusted ---------------------------------------------------------------------------------------------


def is_private(path: Path) -> bool:
    """Whether a file, and the folder that it lies in, are this user's and nobody else can write there.

    A check of its content is worth nothing otherwise: who can write the file can write the check.

    >>> from tempfile import NamedTemporaryFile, TemporaryDirectory
    >>> with TemporaryDirectory() as folder, NamedTemporaryFile(dir=folder) as file:
    ...     before = is_private(Path(file.name))
    ...     os.chmod(folder, 0o777)
    ...     before, is_private(Path(file.name))
    (True, False)
    """
    try:
        told = [place.lstat() for place in (path, path.parent)]
    except OSError:
        return False
    return all(map(is_mine, told))


def is_mine(about: os.stat_result) -> bool:
    """Whether this is of a file or folder that is this user's and that nobody else can write to."""
    return about.st_uid == os.geteuid() and not about.st_mode & 0o022


def make_private(folder: Path) -> None:
    """Make a folder that this user alone can write to, or take the others' right to write from one of this user's."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    about = folder.stat()
    if about.st_uid == os.geteuid() and about.st_mode & 0o022:
        folder.chmod(about.st_mode & 0o7755)
