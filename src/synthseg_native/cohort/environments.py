"""Locked Python environments, and snapshots of the code.

Standard library only: this runs before anything is installed. Environments are deployment, not workflow steps: each
lies in `.envs/<name>-<hash>/`, is made beside its place and renamed when complete: it is there whole or not at all.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
if ROOT.parent.name == ".envs":  # this file lies in a snapshot
    ROOT = ROOT.parent.parent
LOCKS = ROOT / "envs"
ENVS = ROOT / ".envs"

# What the locks have wheels for.
PYTHONS = {"tensorflow": ((3, 11), (3, 11))}
PYTHONS_DEFAULT = ((3, 11), (3, 13))
# Snakemake needs one package that exists as source only (pure Python); for everything else a compiler is never needed.
SOURCE_ONLY = "connection-pool"
SIZES = {
    "tensorflow": "about 1.9 GB",
    "openvino": "about 0.6 GB",
    "torch": "several GB on Linux, with CUDA",
    "training": "several GB on Linux, with CUDA",
    "workflow": "about 0.4 GB",
    "dev": "about 0.6 GB",
    "demo": "about 0.5 GB",
}
NVIDIA = Path("/proc/driver/nvidia/version")  # there where Linux has loaded the driver
SNAPSHOTS_KEPT_S = 30 * 24 * 3600

_CHECK = (
    "import sys, platform; v = sys.version_info; print(v[0], v[1], platform.machine())\n"
    "if v >= (3, 11): import ensurepip, venv; print('venv')"
)


class SetupError(Exception):
    """An environment cannot be made; the message is one line that says what to do."""


def say(line: str) -> None:
    """Print one line of progress on stderr (stdout belongs to the command that is run)."""
    print(line, file=sys.stderr, flush=True)


def lock_file(name: str) -> Path:
    """Path of `envs/<name>.txt`; SetupError for a name that has no lock."""
    path = LOCKS / f"{name}.txt"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in LOCKS.glob("*.txt")))
        raise SetupError(f"{name}: no such environment: use one of {known}")
    return path


def lock_hash(name: str) -> str:
    """12 hexadecimal digits of what the lock says; comments, blank lines and indentation do not count.

    The same on every machine, so that it can be part of a rerun key.
    """
    lines = (line.strip() for line in lock_file(name).read_text().splitlines())
    text = "\n".join(line for line in lines if line and not line.startswith("#"))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def env_dir(name: str) -> Path:
    """Where the environment lies. Operating system and processor count too: cluster nodes may share one folder."""
    text = f"{lock_hash(name)} {sys.platform} {machine()}"
    return ENVS / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def python(name: str) -> Path:
    """The environment's interpreter, whether it has been made yet or not.

    Call scripts as `python -m NAME`; PATH is not needed.
    """
    return env_dir(name) / "bin" / "python"


def ensure(name: str, log: Callable[[str], None] = say) -> Path:
    """Make the environment where it is missing, and return its interpreter.

    Two processes that ask at once make it once. An environment that no longer works (Python was upgraded under it) is
    made anew. Raises SetupError: no suitable Python, no network, disk full.
    """
    interpreter = python(name)
    if _works(interpreter):
        return interpreter
    try:
        ENVS.mkdir(exist_ok=True)
        with _locked(ENVS / f"{name}.lock", lambda: log(f"waiting for another process that makes {name} ...")):
            if not _works(interpreter):
                _build(name, log)
    except OSError as error:
        raise SetupError(f"the {name} environment could not be made: {error}: {_room(error)}") from error
    return interpreter


def _room(error: OSError) -> str:
    """What to do where a file could not be written."""
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "use a copy of the project that you can write to"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space on its disk"
    return f"mend it, or remove {ENVS.name}/ of the project and try again"


def _works(interpreter: Path) -> bool:
    if not interpreter.exists():  # false for a dangling link too
        return False
    try:
        return subprocess.run([interpreter, "-I", "-c", "import pip"], capture_output=True).returncode == 0
    except OSError:  # made for another processor
        return False


def _build(name: str, log: Callable[[str], None]) -> None:
    """Make the environment beside its place, then rename it. The caller holds the lock."""
    for leftover in ENVS.glob(f"{name}-*.tmp-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    base = find_python(name)
    log(f"making the {name} environment ({SIZES.get(name, 'some MB')}, once) ...")
    start = time.monotonic()
    final = env_dir(name)
    beside = final.with_name(f"{final.name}.tmp-{os.getpid()}")
    output = ENVS / f"{name}.log"
    try:
        with output.open("wb") as stream:
            _call([base, "-m", "venv", beside], stream, name, output)
            pip = [beside / "bin" / "python", "-m", "pip", "install", "--no-input", "--progress-bar", "off"]
            wheels = ["--only-binary", ":all:", "--no-binary", SOURCE_ONLY]
            _call([*pip, *wheels, "--require-hashes", "-r", lock_file(name)], stream, name, output)
        _relocate(beside, final)
        shutil.rmtree(final, ignore_errors=True)  # only there when it no longer works
        beside.rename(final)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    log(f"made the {name} environment in {time.monotonic() - start:.0f} s")


def _call(command: list, stream, name: str, output: Path) -> None:
    env = {k: v for k, v in os.environ.items() if k not in ("PIP_USER", "PIP_TARGET", "PIP_PREFIX")}
    env = clean_environment(env) | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    stream.flush()
    done = subprocess.run([str(c) for c in command], stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=env)
    if done.returncode:
        where = os.path.relpath(output, ROOT)
        raise SetupError(f"the {name} environment could not be made: {_reason(output)} (all of it: {where})")


def _reason(output: Path) -> str:
    """One line from pip's output that tells what went wrong."""
    lines = [line.strip() for line in output.read_text(errors="replace").splitlines() if line.strip()]
    signs = ("NewConnectionError", "ConnectTimeout", "ProxyError", "SSLError", "NameResolution", "Max retries exceeded")
    if any(sign in line for line in lines for sign in signs):
        return (
            "the package index cannot be reached: check the network (behind a proxy: set https_proxy), then try again"
        )
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no output"])[-1].removeprefix("ERROR:").strip()


def _relocate(beside: Path, final: Path) -> None:
    """Write the final path into the scripts, which name their interpreter in full."""
    for script in (beside / "bin").iterdir():
        if script.is_file() and not script.is_symlink():
            data = script.read_bytes()
            if str(beside).encode() in data:
                script.write_bytes(data.replace(str(beside).encode(), str(final).encode()))


@contextlib.contextmanager
def _locked(path: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold an exclusive lock that dies with the process."""
    with path.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(stream, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: the final rename still keeps environments whole
            pass
        yield


def clean_environment(env: dict[str, str] | None = None) -> dict[str, str]:
    """The process's variables without those that would let foreign packages in."""
    env = dict(os.environ if env is None else env)
    for key in ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "__PYVENV_LAUNCHER__"):
        env.pop(key, None)
    return env | {"PYTHONNOUSERSITE": "1"}


def find_python(name: str) -> str:
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
        if (candidate := _uv_python(version)) and not _problem(candidate, low, high):
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


def _uv_python(version: str) -> str | None:
    """An interpreter that uv knows of; nothing is downloaded."""
    uv = shutil.which("uv")
    if not uv and (LOCKS / "dev.txt").is_file() and (env_dir("dev") / "bin" / "uv").exists():
        uv = str(env_dir("dev") / "bin" / "uv")
    if not uv:
        return None
    try:
        done = subprocess.run([uv, "python", "find", "--no-python-downloads", version], capture_output=True, text=True)
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
        if name == "tensorflow" and find_python("dev"):  # uv lies in the environment dev
            ways.append("make python311 (no root needed; fetches one with uv)")
    return " or ".join(ways) or "install one with your system's package manager"


def gpu() -> str | None:
    """The kind of GPU that torch could use, "NVIDIA" or "Apple", as far as the system shows it without a package."""
    if sys.platform == "darwin" and machine() == "arm64":
        return "Apple"
    return "NVIDIA" if NVIDIA.exists() else None


def snapshot() -> Path:
    """Copy `src/` and `scripts/` to `.envs/code-<hash>/`, once per content, and return that folder.

    Steps run from the copy, so that an edit in mid-cohort cannot mix two versions of the code. A snapshot that is
    there already needs no right to write. Raises SetupError where it cannot be made.
    """
    try:
        final = _snapshot()
    except OSError as error:
        raise SetupError(f"the code could not be copied to {ENVS.name}/: {error}: {_room(error)}") from error
    with contextlib.suppress(OSError):
        os.utime(final)
    for old in ENVS.glob("code*"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > SNAPSHOTS_KEPT_S:
                shutil.rmtree(old, ignore_errors=True)
    return final


def _snapshot() -> Path:
    final = ENVS / f"code-{_tree_hash(ROOT)}"
    if not final.is_dir():
        ENVS.mkdir(exist_ok=True)
        beside = ENVS / f"code.tmp-{os.getpid()}"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        for file in _code_files(ROOT):
            copy = beside / file.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, copy)
        final = ENVS / f"code-{_tree_hash(beside)}"  # of the copy: the source may have been edited meanwhile
        try:
            beside.rename(final)
        except OSError:  # another process was first
            shutil.rmtree(beside, ignore_errors=True)
            if not final.is_dir():
                raise
    return final


def snapshot_place() -> Path:
    """Where the snapshot of this run lies or will lie; makes nothing."""
    return Path(os.environ.get("SYNTHSEG_NATIVE_CODE") or ENVS / f"code-{_tree_hash(ROOT)}")


def run_snapshot() -> Path:
    """The snapshot of this run, the same for the jobs that a cluster starts: they inherit the variable."""
    if not os.environ.get("SYNTHSEG_NATIVE_CODE"):
        os.environ["SYNTHSEG_NATIVE_CODE"] = str(snapshot())
    return Path(os.environ["SYNTHSEG_NATIVE_CODE"])


def _code_files(root: Path) -> list[Path]:
    """The tracked kinds of files below src and scripts, sorted; no caches."""
    files = (p for top in ("src", "scripts") for p in (root / top).rglob("*") if p.is_file())
    return sorted(p for p in files if "__pycache__" not in p.parts and not any(".egg-info" in part for part in p.parts))


def _tree_hash(root: Path) -> str:
    digest = hashlib.sha256()
    for file in _code_files(root):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(f"{file.relative_to(root).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:12]
