"""The run record: what ran, on what, with what, and how long it took. One schema for native and reference runs."""

import platform
import time
from contextlib import contextmanager
from datetime import UTC, datetime

from synthseg_native import __version__
from synthseg_native.errors import SynthSegError

SCHEMA = 1
PHASES = ("start", "read", "network", "postprocess", "write")


def new(kind: str, command: list[str]) -> dict:
    """An empty record of a run that starts now. What is not known yet, or never will be here, is None.

    kind : "native" or "reference" · command : list of str, without folders of the user where possible
    """
    return {
        "schema": SCHEMA,
        "kind": kind,
        "status": "failed",
        "error": None,
        "scan": None,
        "command": list(command),
        "engine": {"name": None, "version": None, "onednn": None, "package_version": __version__},
        "model": {"name": None, "research_grade": None, "weights_sha256": None},
        "mode": "default",
        "precision": None,
        "device": None,
        "device_reason": None,
        "threads": None,
        "input": None,
        "output": None,
        "files": None,
        "machine": machine(),
        "seconds": dict.fromkeys((*PHASES, "total")),
        "wall_s": None,
        "predicted_peak_mib": None,
        "peak_rss_mib": None,
        "memory_remark": None,
        "cgroup_peak_mib": None,
        "reference": None,
        "key": None,
        "started": now(),
        "finished": None,
    }


def fail(record: dict, error: SynthSegError) -> None:
    """Note a SynthSegError."""
    record["status"] = "failed"
    record["error"] = {"code": error.code, "message": error.message, "transient": error.transient}
    record["finished"] = now()


def succeed(record: dict) -> None:
    """Note that all went well."""
    record["status"], record["error"] = "ok", None
    record["finished"] = now()


def now() -> str:
    """UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def machine() -> dict:
    """CPU model, system and architecture; whether this process runs translated (Rosetta or QEMU)."""
    return {
        "cpu": cpu_model(),
        "system": platform.system(),
        "arch": platform.machine(),
        "emulated": emulated(),
    }


def cpu_model() -> str:
    """The CPU's name as the system gives it; Linux on Arm often has numbers only (its implementer and part)."""
    if platform.system() == "Darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.machine()
    info = _cpuinfo()
    if not info.get("model name") and info.get("CPU implementer"):
        return f"ARM implementer {info['CPU implementer']} part {info.get('CPU part', 'unknown')}"
    return info.get("model name") or platform.processor() or platform.machine()


def emulated() -> bool:
    """True where this process runs translated: Rosetta 2, or QEMU's user mode, as far as the system shows it."""
    if platform.system() == "Darwin":
        return _sysctl("sysctl.proc_translated") == "1"
    info = _cpuinfo()
    # Under QEMU the file describes the CPU of the host; Rosetta in a Linux guest gives a vendor of its own.
    if platform.machine() == "aarch64":
        return "vendor_id" in info
    return platform.machine() == "x86_64" and (info.get("vendor_id") == "VirtualApple" or "CPU implementer" in info)


def _cpuinfo() -> dict:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:  # noqa: PTH123
            first = file.read().split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _sysctl(name):
    import subprocess

    try:
        done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


class Clock:
    """Seconds per phase: ``with clock("read"): ...``. A phase may run in several parts."""

    def __init__(self):
        self._start = time.perf_counter()
        self.seconds = dict.fromkeys(PHASES, 0.0)

    @contextmanager
    def __call__(self, phase):
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] += time.perf_counter() - begin

    def report(self) -> dict:
        """Seconds per phase and in all, to the millisecond."""
        seconds = {**self.seconds, "total": time.perf_counter() - self._start}
        return {phase: round(value, 3) for phase, value in seconds.items()}
