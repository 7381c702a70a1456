"""Run one command and write down how long it took and how much memory it needed.

The same file measures native runs and runs inside a reference container, so that their numbers can be
compared; it is mounted into images with an old Python. It therefore imports the standard library only, needs
Python 3.8, and stands alone:

    python measure.py --out M.json [--timeout S] [--with-parent] [--cgroup] -- COMMAND ...

M.json: wall_s (seconds), peak_rss_mib (the largest resident set of any process of the command, from wait4),
cgroup_peak_mib (the control group's peak, with --cgroup, else null), returncode (128 + signal if a signal ended
it), signal (or null), timed_out, oom_kills (how often the kernel killed a process for memory meanwhile, on the
whole machine; null where the kernel does not count), started and finished (UTC).
The exit status is the command's. SIGTERM, SIGINT and whatever else batch systems and terminals end programs by end
everything that the command started; what ends this program itself ends the command too (Linux).
"""

from __future__ import annotations  # Python 3.8 knows no "str | None"

import argparse
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import datetime, timezone

GRACE_S = 10  # between SIGTERM and SIGKILL
ENDING = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU")
PR_SET_PDEATHSIG = 1


def _now():
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")  # noqa: UP017 (datetime.UTC is Python 3.11)


def _read(path):
    try:
        with open(path) as file:  # noqa: PTH123
            return file.read()
    except OSError:
        return ""


def oom_kills() -> int | None:
    """Count the processes that the kernel has killed for memory since boot; None where it does not tell."""
    for line in _read("/proc/vmstat").splitlines():
        if line.startswith("oom_kill "):
            return int(line.split()[1])
    return None


def cgroup_peak_mib() -> float | None:
    """Return the peak memory of this process's control group in MiB (its page cache included), or None."""
    paths = []
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            paths += ["/sys/fs/cgroup" + path.rstrip("/") + "/memory.peak", "/sys/fs/cgroup/memory.peak"]
        elif "memory" in controllers.split(","):  # version 1; its path is the host's where the namespace is shared
            paths += ["/sys/fs/cgroup/memory" + p + "/memory.max_usage_in_bytes" for p in (path.rstrip("/"), "")]
    for path in paths:
        text = _read(path).strip()
        if text.isdigit():
            return round(int(text) / 2**20, 1)
    return None


def _signal_group(pid, number):
    with contextlib.suppress(
        ProcessLookupError, PermissionError
    ):  # gone; a group of zombies is "not permitted" on macOS
        os.killpg(pid, number)


def _end_with_parent():
    """Before the command starts: have the kernel kill it with this process, should that be killed."""
    with contextlib.suppress(Exception):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def measure(
    command: list[str], timeout: float | None = None, with_parent: bool = False, cgroup: bool = False
) -> dict[str, object]:
    """Run `command` (a list) in a session of its own; return what the module's text lists, as a dict.

    timeout: seconds, then the command is ended. with_parent: end it also when this process's parent is gone.
    Raises OSError where the command cannot be started.

    >>> result = measure([sys.executable, "-c", "import sys; sys.exit(3)"])
    >>> result["returncode"], result["signal"], result["timed_out"], 0 < result["wall_s"] < 60
    (3, None, False, True)
    """
    parent, asked = os.getppid(), []
    done = threading.Event()
    outcome = []
    started, kills, clock = _now(), oom_kills(), time.monotonic()
    handlers = {}
    for number in (getattr(signal, name) for name in ENDING):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup
            handlers[number] = signal.signal(number, lambda number, frame: asked.append(number))
    last_words = _end_with_parent if sys.platform == "linux" else None
    try:
        child = subprocess.Popen(command, start_new_session=True, preexec_fn=last_words)

        def wait():
            _, status, usage = os.wait4(child.pid, 0)
            outcome.extend([status, usage, time.monotonic()])
            done.set()

        threading.Thread(target=wait, daemon=True).start()
        timed_out, deadline, ended_at = False, None if timeout is None else clock + timeout, None
        while not done.wait(0.2):
            now = time.monotonic()
            if ended_at is not None:
                if now > ended_at + GRACE_S:
                    _signal_group(child.pid, signal.SIGKILL)
                continue
            timed_out = deadline is not None and now > deadline
            orphaned = with_parent and os.getppid() != parent
            if asked or timed_out or orphaned:
                _signal_group(child.pid, signal.SIGINT if signal.SIGINT in asked else signal.SIGTERM)
                ended_at = now
        _signal_group(child.pid, signal.SIGKILL)  # whatever it left running
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    status, usage, end = outcome
    killed_by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    child.returncode = 0  # already waited for: subprocess must not try again
    return {
        "wall_s": round(end - clock, 3),
        "peak_rss_mib": round(usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10), 1),
        "cgroup_peak_mib": cgroup_peak_mib() if cgroup else None,
        "returncode": os.WEXITSTATUS(status) if killed_by is None else 128 + killed_by,
        "signal": killed_by,
        "timed_out": timed_out,
        "oom_kills": None if kills is None else oom_kills() - kills,
        "started": started,
        "finished": _now(),
    }


def main(argv: list[str] | None = None) -> int:
    """Measure the command of the command line and write the result; returns its exit status (127: not started)."""
    parser = argparse.ArgumentParser(description="Measure the time and memory of one command.")
    parser.add_argument("--out", required=True, metavar="JSON")
    parser.add_argument("--timeout", type=float, metavar="SECONDS")
    parser.add_argument("--with-parent", action="store_true", help="end the command when the caller is gone")
    parser.add_argument("--cgroup", action="store_true", help="also read the control group's peak (in a container)")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    args = parser.parse_args(argv)
    command = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not command:
        parser.error("no command given after --")
    try:
        result = measure(command, args.timeout, args.with_parent, args.cgroup)
    except OSError as error:
        print(f"{command[0]}: cannot be started: {error.strerror}", file=sys.stderr)
        return 127
    try:
        with open(args.out + ".part", "w") as file:  # noqa: PTH123
            json.dump(result, file, indent=1)
            file.write("\n")
        os.replace(args.out + ".part", args.out)  # noqa: PTH105
    except OSError as error:
        print(f"{args.out}: cannot be written: {error.strerror}", file=sys.stderr)
    return result["returncode"]


if __name__ == "__main__":
    sys.exit(main())
