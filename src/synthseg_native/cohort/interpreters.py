"""The Python that an environment is made with: found where people have them, and really run before it is trusted.

Standard library only: this runs before anything is installed.
"""

import contextlib
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

# What the locks have wheels for.
PYTHONS = {"tensorflow": ((3, 11), (3, 11))}
PYTHONS_DEFAULT = ((3, 11), (3, 13))

_CHECK = (
    "import sys, platform; v = sys.version_info; print(v[0], v[1], platform.machine())\n"
    "if v >= (3, 11): import ensurepip, venv; print('venv')"
)


class SetupError(Exception):
    """An environment cannot be made; the message is one line that says what to do."""


def find(name: str, uv: str | None = None) -> str:
    """Path or name of an interpreter that fits the lock of `name` and can make environments.

    For TensorFlow (3.11 exactly): $SYNTHSEG_PYTHON311, python3.11, the running interpreter, python3, python, uv's. For
    the others: the running interpreter first. SetupError, one line with what to install, when there is none.
    """
    low, high = PYTHONS.get(name, PYTHONS_DEFAULT)
    versions = [f"{high[0]}.{minor}" for minor in range(high[1], low[1] - 1, -1)]
    wanted = f"Python {versions[-1]}" if low == high else f"Python {versions[-1]} to {versions[0]}"
    named = [f"python{version}" for version in versions]
    exact = low == high
    if exact and (given := os.environ.get("SYNTHSEG_PYTHON311")):
        if problem := _problem(given, low, high):
            raise SetupError(f"SYNTHSEG_PYTHON311={given}: {problem}: name a working {wanted}, or unset it")
        return given
    candidates = [*named, sys.executable] if exact else [sys.executable, *named]
    without_venv = None
    for candidate in [*candidates, "python3", "python"]:
        problem = _problem(candidate, low, high)
        if not problem:
            return candidate
        if problem == "has no venv":
            without_venv = without_venv or candidate
    for version in versions:
        if (candidate := _uv_python(uv, version)) and not _problem(candidate, low, high):
            return candidate
    if without_venv:
        fix = f"sudo apt-get install {Path(without_venv).name}-venv" if shutil.which("apt-get") else "install it"
        raise SetupError(f"the {name} environment needs {wanted}; {without_venv} is there, but without venv: {fix}")
    raise SetupError(f"the {name} environment needs {wanted}, and none was found: {_how_to_install(name, versions[0])}")


def _problem(candidate: str, low: tuple[int, int], high: tuple[int, int]) -> str | None:
    """Why this interpreter cannot be used, or None. It is really run: a pyenv shim can exist and fail."""
    command = [candidate, "-I", "-c", _CHECK]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return "does not run"
    answer = re.match(r"(\d+) (\d+) (\S+)\s+(venv)?", done.stdout)
    if not answer:
        return "does not run"
    version, processor = (int(answer[1]), int(answer[2])), answer[3]
    if not low <= version <= high:
        return f"is Python {version[0]}.{version[1]}"
    if processor != machine():
        return f"is built for {processor}, this machine is {machine()}"
    return None if answer[4] else "has no venv"


def machine() -> str:
    """The processor, also under Rosetta, where Python says x86_64 on an Apple-silicon Mac."""
    if sys.platform == "darwin" and platform.machine() == "x86_64":
        with contextlib.suppress(OSError):
            done = subprocess.run(["sysctl", "-n", "hw.optional.arm64"], capture_output=True, text=True)
            if done.stdout.strip() == "1":
                return "arm64"
    return platform.machine()


def _uv_python(uv: str | None, version: str) -> str | None:
    """An interpreter that uv knows of; nothing is downloaded."""
    if not uv:
        return None
    try:
        command = [uv, "python", "find", "--no-config", "--no-project", "--no-python-downloads", version]
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() or None


def _how_to_install(name: str, version: str) -> str:
    package = {
        "apt-get": f"sudo apt-get install python{version}-venv",
        "dnf": f"sudo dnf install python{version}",
        "brew": f"brew install python@{version}",
        "zypper": f"sudo zypper install python{version.replace('.', '')}",
    }
    ways = [command for tool, command in package.items() if shutil.which(tool)][:1]
    with contextlib.suppress(SetupError):
        if name == "tensorflow" and find("dev"):  # uv lies in the environment dev
            ways.append("make python311 (no root needed; fetches one with uv)")
    return " or ".join(ways) or "install one with your system's package manager"
