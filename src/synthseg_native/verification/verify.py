"""Environment verification: what this machine is, what its devices can do, and which one to use.

The finding is one JSON file per environment and kind of machine, recognised by its fingerprint. Standard library only
at import, because the workflow asks for the fingerprint whenever it is parsed.
"""

import contextlib
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib import metadata
from os import PathLike
from pathlib import Path

from synthseg_native import shared_disk
from synthseg_native.files import read_sealed, write_sealed
from synthseg_native.results import record

SCHEMA = 3  # of the finding; 2: with precisions, 3: TensorFlow with oneDNN
JUST_S = 600  # so long is a finding taken over by the step that writes it for the results
BACKENDS = {  # environment: the module that knows its runtime (`process`)
    "tensorflow": "tensorflow",
    "llvm": "llvm",
    "torch": "torch",
}

# The CPU features that decide which kernels a runtime picks.
_FEATURES = ("sse4", "avx", "fma", "f16c", "amx", "asimd", "neon", "sve", "bf16", "i8mm")


def machine() -> dict:
    """Operating system, CPU, memory and GPU driver, as far as the system tells without any package."""
    cpu = record._cpuinfo()
    flags = (cpu.get("flags") or cpu.get("Features") or "").split()
    return {
        "system": platform.system(),
        "release": platform.release(),
        "arch": platform.machine(),
        "cpu": record.cpu_model(),
        "cpu_features": sorted(flag for flag in flags if flag.startswith(_FEATURES)),
        "cpus": os.cpu_count(),
        "memory_gib": round(memory_bytes() / 2**30),
        "driver": driver(),
    }


def memory_bytes() -> int:
    """Physical memory of the machine, 0 where the system does not tell."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return int(record._sysctl("hw.memsize") or 0)


def driver() -> str:
    """The GPU driver on Linux, "" for none. On macOS it is part of the system."""
    for path in ("/proc/driver/nvidia/version", "/sys/module/amdgpu/version"):
        with contextlib.suppress(OSError, IndexError):
            return Path(path).read_text().splitlines()[0].strip()
    return ""


def fingerprint(environment: str) -> str:
    """16 hexadecimal digits of the machine and the environment's lock: when they change, verification is due again.

    The same from every interpreter on the machine; different between a cluster's kinds of nodes.
    """
    facts = {"environment": environment, "lock": _lock(environment), **machine()}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _lock(environment):
    """Hash of envs/<environment>.txt in the project; "" where this package is installed without the project."""
    root = Path(__file__).resolve().parents[3]
    if root.parent.name == ".envs":  # a snapshot of the code
        root = root.parent.parent
    try:
        return hashlib.sha256((root / "envs" / f"{environment}.txt").read_bytes()).hexdigest()[:12]
    except OSError:
        return ""


def ensure_verified(environment: str, folder: str | PathLike) -> dict | None:
    """The finding that fits this machine, from ``<environment>.json`` or ``<environment>-<fingerprint>.json``.

    None where there is none: then run scripts/verify_env.py with ``--out <folder>/<environment>-<8 digits>.json``.
    """
    wanted = fingerprint(environment)
    names = _names(environment, wanted)
    return next((finding for name in names if (finding := _read(Path(folder, name), wanted))), None)


def _names(environment: str, fingerprint: str) -> tuple[str, str]:
    """The files in which a finding may lie: the rule's, and that of a machine of another kind."""
    return f"{environment}.json", f"{environment}-{fingerprint[:8]}.json"


def _read(path: Path, wanted: str) -> dict | None:
    """The finding in a file, where it has the wanted fingerprint."""
    finding = read_sealed(path)
    fits = finding is not None and (finding.get("schema"), finding.get("fingerprint")) == (SCHEMA, wanted)
    return finding if fits else None


def verify(environment: str, find_devices: Callable[[], tuple[dict, list, list]] | None = None) -> dict:
    """Probe the devices of an environment's runtime and decide. Runs in that environment's interpreter.

    find_devices: returns versions, the devices seen, the devices to probe (`probes.Device`); the runtime's by default.
    The finding's "precisions" are those that the decided device has and passed. Never raises for a device's sake: what
    fails is in the finding. It holds no time stamps: the same machine gives the same finding.
    """
    finding = {"schema": SCHEMA, "environment": environment, "fingerprint": fingerprint(environment)}
    finding |= {"machine": machine(), "versions": _versions(), "devices": [], "probes": []}
    finding["precisions"] = []
    devices = []
    try:
        from synthseg_native.verification import probes, process

        if find_devices is None:
            versions, finding["devices"], devices = process.find_devices(BACKENDS[environment])
        else:
            versions, finding["devices"], devices = find_devices()
        finding["versions"] |= versions
        baseline = {}
        for device in sorted(devices, key=lambda device: device.kind != "cpu"):  # the CPU first: it is the measure
            finding["probes"] += probes.examine(device, baseline)
        finding["decision"] = probes.decide(finding["probes"], devices)
        for device in devices:
            if device.kind == finding["decision"]["device"]:
                finding["precisions"] = probes.sound_precisions(finding["probes"], device)
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        finding["decision"] = {"device": None, "reason": reason}
    finally:
        for device in devices:
            if hasattr(device, "close"):
                device.close()
    return finding


def _versions():
    versions = {"python": platform.python_version()}
    for name in ("numpy", "scipy", "h5py", "nibabel"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def write(finding: dict, path: str | PathLike) -> None:
    """Write the finding as JSON, whole or not at all."""
    write_sealed(path, finding)


def table(finding: dict) -> str:
    """The finding for people: machine, versions, one aligned line per probe, the decision."""
    m = finding["machine"]
    lines = [
        f"{m['system']} {m['release']} {m['arch']} · {m['cpu']} · {m['cpus']} CPUs · {m['memory_gib']} GiB",
        " · ".join(f"{name} {version}" for name, version in finding["versions"].items()),
        "",
    ]
    rows = [("device", "probe", "ran on", "ok", "difference", "")]
    for row in finding["probes"]:
        difference = "" if row["max_difference"] is None else f"{row['max_difference']:.1e}"
        verdict = "yes" if row["ok"] else "no" if row["needed"] else "no (not needed)"
        rows.append((row["device"], row["probe"], row["ran_on"] or "", verdict, difference, row["error"] or ""))
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    decision = finding["decision"]
    lines += ["", f"device: {decision['device'] or 'none'} ({decision['reason']})"]
    return "\n".join([*lines, f"precisions: {', '.join(finding['precisions']) or 'none'}"])


def just_made(environment: str, out: str | PathLike) -> dict | None:
    """The finding that another process left beside `out` a moment ago, as the same run began; else None.

    The rule's own file, where it is asked for, is to be made anew.
    """
    wanted = fingerprint(environment)
    for path in (Path(out).with_name(name) for name in _names(environment, wanted)):
        if path.name == f"{environment}.json" == Path(out).name:
            continue
        with contextlib.suppress(OSError):
            new = 0 <= time.time() - path.stat().st_mtime < JUST_S
            if new and (found := _read(path, wanted)):
                return found
    return None


def main(environment: str, out: str | PathLike) -> int:
    """Verify, write, tell. Returns the exit status: 0, or 1 with one line on stderr when no device works.

    Of several processes that ask at once for one folder, one verifies, and the others take its finding.
    """
    folder = Path(out).parent
    folder.mkdir(parents=True, exist_ok=True)
    with shared_disk.hold(folder / f".{environment}.lock"):
        finding = just_made(environment, out) or verify(environment)
        write(finding, out)
    print(table(finding), flush=True)
    if finding["decision"]["device"] is None:
        print(
            f"synthseg-native: {environment}: no device works here: {finding['decision']['reason']}: "
            "see the table, or use another machine",
            file=sys.stderr,
        )
        return 1
    return 0
