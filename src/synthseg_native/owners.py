"""Who makes something on a disk: a process, told from every other one, also on other machines and after a restart.

Standard library only. What may be done with what an owner has made: `shared_disk`.
"""

import contextlib
import json
import os
import re
import secrets
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Owner:
    """A process, so that it can be told from every other one, also on other machines and after a restart.

    host: the machine · boot: its start, as the kernel numbers it · space: the process numbers' (a container has its
    own) · started: of the process, in the system's own words, "" where it does not tell · since: seconds of the epoch
    """

    host: str
    boot: str
    space: str
    pid: int
    started: str
    since: float = field(default=0.0, compare=False)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host.partition('/')[0]}"


@cache
def _host() -> str:
    """Name and number of this machine: names repeat, in virtual machines and containers numbers do."""
    name = os.uname().nodename
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        with contextlib.suppress(OSError):
            if number := Path(path).read_text(encoding="ascii").strip():
                return f"{name}/{number[:8]}"
    import uuid  # rarely needed, and every command would wait for it

    return f"{name}/{uuid.getnode():x}"


@cache
def _boot() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    with contextlib.suppress(OSError):
        told = subprocess.run(["sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True, check=False)
        return told.stdout.strip()
    return ""


def _space() -> str:
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 (not the name of a file)
    return ""


def _started(pid: int) -> str | None:
    """When a process started, "" where the system does not tell; None where it has ended (and only waits to be
    collected)."""
    with contextlib.suppress(OSError):
        # state and, 19 fields on, ticks since the boot; the name before them may hold anything
        words = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if words[0] in "ZX" else words[19]
    if sys.platform == "darwin":
        plain = os.environ | {"LC_ALL": "C", "TZ": "UTC"}  # else in the language and at the hour of who asks
        with contextlib.suppress(OSError):
            command = ["ps", "-o", "lstart=", "-p", str(pid)]
            return subprocess.run(command, env=plain, capture_output=True, text=True, check=False).stdout.strip()
    return ""


def me() -> Owner:
    """This process."""
    return Owner(_host(), _boot(), _space(), os.getpid(), _started(os.getpid()) or "", time.time())


def is_alive(owner: Owner, here: Owner | None = None) -> bool | None:
    """Whether a process still runs; None where this machine cannot know.

    here: who asks, for another than this process.

    >>> is_alive(me())
    True
    >>> from dataclasses import replace
    >>> is_alive(replace(me(), boot="before the restart"))
    False
    >>> print(is_alive(replace(me(), host="node7", boot="its own")))
    None
    """
    here = here or me()
    if owner.boot != here.boot or not owner.boot:
        return False if owner.host == here.host and owner.boot and here.boot else None
    if owner.space != here.space:
        return None
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    started = _started(owner.pid)
    return started is not None and (not started or not owner.started or started == owner.started)


def _parse(line: str) -> Owner | None:
    try:
        given = json.loads(line)
        return Owner(**{**given, "pid": int(given["pid"]), "since": float(given["since"])})
    except (ValueError, TypeError, KeyError):
        return None


def owners_of(text: str) -> list[Owner]:
    """The owners in the text of a lock, one a line; what is no owner (cut off, of an older version) is passed over.

    >>> owners_of(text_of(me()) + "4711") == [me()]
    True
    """
    return [owner for line in text.splitlines() if (owner := _parse(line))]


def text_of(owner: Owner) -> str:
    """A line, with its end, that `owners_of` reads."""
    return json.dumps(asdict(owner)) + "\n"


def unique(here: Owner | None = None) -> str:
    """A part of a name that nothing else on the disk has, and that says which process made it: 4711@node7-0a1b2c3d."""
    pid, host = (here.pid, here.host) if here else (os.getpid(), _host())
    return f"{pid}@{host.partition('/')[0]}-{secrets.token_hex(4)}"


def has_ended(name: str) -> bool:
    """Whether a name that `unique` begins is of a process of this machine that runs no more.

    >>> gone = replace(me(), pid=2**22 + 1)
    >>> has_ended(unique() + "-a.nii"), has_ended(unique(gone) + "-a.nii"), has_ended("7@x-a.nii")
    (False, True, False)
    """
    found = re.match(rf"(\d+)@{re.escape(_host().partition('/')[0])}-[0-9a-f]{{8}}(-|$)", name)
    return found is not None and is_alive(replace(me(), pid=int(found[1]), started="")) is False
