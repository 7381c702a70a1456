"""Locked Python environments, and snapshots of the code.

Standard library only: this runs before anything is installed. Environments are deployment, not workflow steps: each
lies in `.envs/<name>-<hash>/`, is made beside its place and renamed when complete: it is there whole or not at all.
None is ever removed here, for another machine may run from it (`shared_disk`).
"""

import contextlib
import errno
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from synthseg_native import shared_disk
from synthseg_native.cohort import installers, interpreters, variables
from synthseg_native.cohort.interpreters import SetupError, machine
from synthseg_native.errors import FULL
from synthseg_native.files import is_there

ROOT = Path(__file__).resolve().parents[3]
if ROOT.parent.name == ".envs":  # this file lies in a snapshot
    ROOT = ROOT.parent.parent
LOCKS = ROOT / "envs"
ENVS = ROOT / ".envs"

SIDE_BY_SIDE = 4  # environments made at once: each fetches, then unpacks
TELL_S = 10  # between two lines about how far one is
PIP_NEEDED = ("workflow", "dev")  # containers.py fetches the wheels of the reference's image with it
NVIDIA = Path("/proc/driver/nvidia/version")  # there where Linux has loaded the driver
SNAPSHOTS_KEPT_S = 30 * 24 * 3600


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
    """Where the environment lies, or is to be made.

    Operating system and processor count too: cluster nodes may share one folder. Where the Python that it was made from
    is not on this node, it is the one beside it that was made here (`_place_beside`).
    """
    text = f"{lock_hash(name)} {sys.platform} {machine()}"
    place = ENVS / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if not is_there(place) or _at_home(place):
        return place
    others = sorted(other for other in ENVS.glob(f"{place.name}-py*") if ".tmp-" not in other.name)
    return next(filter(_at_home, others), place)


def _at_home(place: Path) -> bool:
    """Whether the Python that an environment was made from is on this machine, and of the same version.

    Nothing is run: this is asked often. A dangling link is no Python; python3.12 under packages of 3.11 is another.
    """
    interpreter = place / "bin" / "python"
    if not is_there(interpreter):
        return False
    version = re.search(r"python\d+\.\d+$", interpreter.resolve().name)
    return version is None or (place / "lib" / version[0]).is_dir()


def _place_beside(place: Path, base: str) -> Path:
    """Where an environment goes whose place is taken by one that was made from a Python of another machine.

    base: the interpreter that it will be made from, which gives the name. Raises SetupError where it was made already.
    """
    ask = "import sys; print('%d.%d' % sys.version_info[:2], sys.base_prefix)"
    told = subprocess.run([base, "-I", "-c", ask], capture_output=True, text=True).stdout.strip()
    mark = hashlib.sha256(told.encode()).hexdigest()[:6]
    beside = place.with_name(f"{place.name}-py{told.partition(' ')[0]}-{mark}")
    for taken in (place, beside):
        if _at_home(taken):
            raise SetupError(f"{taken}: does not work any more: remove it when nothing runs from it, and call again")
    return beside


def python(name: str) -> Path:
    """The environment's interpreter, whether it has been made yet or not.

    Call scripts as `python -m NAME`; PATH is not needed.
    """
    return env_dir(name) / "bin" / "python"


def ensure(name: str, log: Callable[[str], None] = say) -> Path:
    """Make the environment where it is missing, and return its interpreter.

    Two processes that ask at once make it once. Where one does not work here (Python was upgraded under it, or it was
    made on a machine with another one), it stays, and one is made beside it. Raises SetupError: no suitable Python, no
    network, disk full.
    """
    if _works(python(name)):
        return python(name)
    try:
        ENVS.mkdir(exist_ok=True)
        lock = ENVS / f"{name}.lock"
        with shared_disk.hold(lock, waiting=lambda: log(f"waiting for another process that makes {name} ...")):
            if not _works(python(name)):
                _build(name, log)
    except OSError as error:
        raise SetupError(f"the {name} environment could not be made: {error}: {_room(error)}") from error
    return python(name)


def ensure_all(names: Iterable[str], log: Callable[[str], None] = say) -> None:
    """Make those environments that are missing, side by side.

    One that fails leaves the others alone: they are made. Raises SetupError, with a line for each that failed.
    """
    missing = [name for name in dict.fromkeys(names) if not _works(python(name))]
    pool = ThreadPoolExecutor(SIDE_BY_SIDE)
    made = [pool.submit(ensure, name, log) for name in missing]
    try:
        failures = [error for future in made if (error := future.exception())]
    except BaseException:  # Ctrl-C: what is half made goes with its process
        _ENDING.set()
        for process in list(_RUNNING):
            process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    for error in failures:
        if not isinstance(error, SetupError):
            raise error
    if failures:
        raise SetupError("\n".join(map(str, failures)))


def _room(error: OSError) -> str:
    """What to do where a file could not be written."""
    if ENVS.is_dir() and not os.access(ENVS, os.R_OK | os.X_OK):
        return f"have its owner let you read it (chmod -R a+rX {ENVS}), or use a copy of the project of your own"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "use a copy of the project that you can write to"
    if error.errno in FULL:
        return "free some space on its disk"
    return f"mend it, or remove {ENVS.name}/ of the project and try again"


def _works(interpreter: Path) -> bool:
    if not is_there(interpreter):  # false for a dangling link too, and where nobody may look
        return False
    # Where Python was upgraded under it, the packages lie in the folder of the version before.
    ask = "import os, sysconfig; os.listdir(sysconfig.get_path('purelib'))"
    try:
        return subprocess.run([interpreter, "-I", "-c", ask], capture_output=True).returncode == 0
    except OSError:  # made for another processor
        return False


def _build(name: str, log: Callable[[str], None]) -> None:
    """Make the environment beside its place, then rename it. The caller holds the lock."""
    shared_disk.collect(ENVS, f"{name}-*.tmp-*")
    if why := installers.too_old(name):
        remedy = "update macOS, or use another engine" if name == "torch" else "update macOS"
        raise SetupError(f"the {name} environment {why}: {remedy}")
    base, uv = find_python(name), _uv()
    final = env_dir(name)
    if final.exists():
        final = _place_beside(final, base)
    log(f"making the {name} environment ({installers.size(name)}, once, with {'uv' if uv else 'pip'}) ...")
    start = time.monotonic()
    beside = shared_disk.new_folder(ENVS, f"{final.name}.tmp-")
    output = ENVS / f"{name}.log"
    try:
        with output.open("wb") as stream:
            _fill(name, base, uv, beside, stream, log)
        _relocate(beside, final)
        _rename(beside, final)
    finally:
        shared_disk.discard(beside)
    log(f"made the {name} environment in {time.monotonic() - start:.0f} s")


def _fill(name, base, uv, folder, stream, log):
    """Make a virtual environment with the packages of the lock; where uv cannot, with pip."""
    python = folder / "bin" / "python"
    if uv:
        _venv(name, base, folder, stream, *([] if name in PIP_NEEDED else ["--without-pip"]))
        try:
            return _call(installers.uv_command(uv, python, lock_file(name), os.environ), name, folder, stream, log)
        except SetupError as error:
            if _ENDING.is_set():
                raise
            log(f"{error}: now with pip")
            shutil.rmtree(folder, ignore_errors=True)
    _venv(name, base, folder, stream)
    (folder / "tmp").mkdir()
    env = clean_environment() | {"TMPDIR": str(folder / "tmp")}
    env |= installers.pip_settings(python, env)
    _call(installers.pip_command(python, lock_file(name)), name, folder, stream, log, env)
    shutil.rmtree(folder / "tmp", ignore_errors=True)


def _venv(name, base, folder, stream, *options):
    _call([base, "-m", "venv", *options, folder], name, folder, stream)


_RUNNING = set()  # the programs that make environments now
_ENDING = threading.Event()  # set when no more of them may start


def _call(command: list, name: str, folder: Path, stream, log=None, env: dict[str, str] | None = None) -> None:
    """Run a program that prints to the log file `stream`; every few seconds a line for `log` says how far it is.

    env: its variables, without it the clean ones.
    """
    stream.flush()
    begin, output = stream.tell(), Path(stream.name)

    def printed():
        return output.read_bytes()[begin:].decode(errors="replace")

    words = [str(word) for word in command]
    if _ENDING.is_set():
        raise SetupError(f"the {name} environment could not be made: stopped")
    pipes = {"stdin": subprocess.DEVNULL, "stdout": stream, "stderr": stream}
    # In the project's folder: uv looks for settings and versions where it is called.
    with subprocess.Popen(words, **pipes, env=env or clean_environment(), cwd=ROOT) as process:
        _RUNNING.add(process)
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(TELL_S)
                    break
                if log:
                    log(installers.progress(name, printed(), folder))
        finally:
            _RUNNING.discard(process)
            if process.poll() is None:
                process.terminate()
    stream.seek(0, os.SEEK_END)
    if process.returncode:
        where, why = os.path.relpath(output, ROOT), installers.reason(printed())
        raise SetupError(f"the {name} environment could not be made: {why} (all of it: {where})")


def _relocate(beside: Path, final: Path) -> None:
    """Write the final path into the scripts, which name their interpreter in full."""
    for script in (beside / "bin").iterdir():
        if script.is_file() and not script.is_symlink():
            data = script.read_bytes()
            if str(beside).encode() in data:
                script.write_bytes(data.replace(str(beside).encode(), str(final).encode()))


def _rename(beside: Path, final: Path) -> None:
    """Give a folder that is complete its name, unless another process was first."""
    try:
        beside.rename(final)
    except OSError:
        if not final.is_dir():
            raise


def clean_environment(env: dict[str, str] | None = None) -> dict[str, str]:
    """The variables of a program that is started: of the process's (or `env`) those that `variables` lets through.

    No Python takes modules from the user's folders or the one that one stands in, and each reads and writes UTF-8.
    """
    env = dict(os.environ if env is None else env)
    kept = variables.let_through(env)
    if libraries := _libraries(env.get("LD_LIBRARY_PATH", "")):
        kept["LD_LIBRARY_PATH"] = libraries
    # Without the second, python -m imports a random.py, a yaml.py of the folder that one stands in.
    return kept | {"PYTHONNOUSERSITE": "1", "PYTHONSAFEPATH": "1", "PYTHONUTF8": "1"}


def _libraries(path: str) -> str:
    """Of LD_LIBRARY_PATH the folders of an NVIDIA driver, which a container may have there alone; all of it where this
    Python, a module system's, does not start without. scripts/launch.sh does the same before there is a Python."""
    if not path or not _starts_alone():
        return path
    return ":".join(folder for folder in path.split(":") if folder and Path(folder, "libcuda.so.1").exists())


@functools.cache
def _starts_alone() -> bool:
    """Whether this Python starts, with what it is linked to, without LD_LIBRARY_PATH."""
    command = [sys.executable, "-I", "-c", "import ctypes, ssl"]
    return subprocess.run(command, env={}, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0


def find_python(name: str) -> str:
    """Path or name of an interpreter that fits the lock of `name`; see `interpreters.find`."""
    return interpreters.find(name, _uv())


def _uv() -> str | None:
    """uv, on the path or in the environment dev."""
    if uv := shutil.which("uv"):
        return uv
    if (LOCKS / "dev.txt").is_file() and (env_dir("dev") / "bin" / "uv").exists():
        return str(env_dir("dev") / "bin" / "uv")
    return None


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
    shared_disk.refresh(final)  # and every step does that runs from it: `cohort.runs.steps`
    shared_disk.collect(ENVS, "code.tmp-*")
    for old in ENVS.glob("code-*"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > SNAPSHOTS_KEPT_S:
                shutil.rmtree(old, ignore_errors=True)
    return final


def _snapshot() -> Path:
    final = ENVS / f"code-{_tree_hash(ROOT)}"
    if final.is_dir() and f"code-{_tree_hash(final)}" != final.name:
        say(f"{ENVS.name}/{final.name}: not the copy of the code that it was: made again")
        shutil.rmtree(final)
    if not final.is_dir():
        ENVS.mkdir(exist_ok=True)
        with shared_disk.temporary_folder(ENVS, "code.tmp-") as beside:
            for file in _code_files(ROOT):
                copy = beside / file.relative_to(ROOT)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(file, copy)
            final = ENVS / f"code-{_tree_hash(beside)}"  # of the copy: the source may have been edited meanwhile
            _rename(beside, final)
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
