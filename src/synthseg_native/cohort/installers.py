"""How the packages of a lock come into an environment: with uv or with pip, how far that is, and why it failed.

Both are held to the same rules: every file by its hash, wheels only; of the user's settings those that say where files
are fetched. Standard library only: this runs before anything is installed.
"""

import ast
import contextlib
import os
import platform
import re
import subprocess
from pathlib import Path

from synthseg_native.cohort import variables

# Snakemake needs one package that exists as source only (pure Python); for everything else a compiler is never needed.
SOURCE_ONLY = "connection-pool"
# MB to fetch, and on the disk afterwards; measured on Linux x86-64.
SIZES = {
    "tensorflow": (620, 2000),
    "llvm": (140, 530),
    "workflow": (110, 550),
    "dev": (160, 660),
    "demo": (90, 430),
}
# The oldest macOS that there are wheels for. A test holds it against envs/macos.tsv, which names them all.
OLDEST_MACOS = {"torch": 14, "training": 14}
OLDEST_MACOS_DEFAULT = 12
LARGE = {"torch": "several GB on Linux, with CUDA", "training": "several GB on Linux, with CUDA"}
UNITS = {"K": 2**10 / 1e6, "M": 2**20 / 1e6, "G": 2**30 / 1e6}  # MB


def size(name: str) -> str:
    """How large an environment is, for people."""
    return f"about {SIZES[name][1]} MB" if name in SIZES else LARGE.get(name, "some MB")


def oldest_macos(name: str) -> int:
    """The oldest macOS that an environment can be made on."""
    return OLDEST_MACOS.get(name, OLDEST_MACOS_DEFAULT)


def too_old(name: str) -> str | None:
    """Why this macOS is too old for an environment; None where it is not, or this is none."""
    version = platform.mac_ver()[0]
    # To a Python that was built for an old one every newer macOS calls itself 10.16.
    if version and 11 <= int(version.partition(".")[0]) < oldest_macos(name):
        return f"needs macOS {oldest_macos(name)} or newer, and this is macOS {version}"
    return None


def pip_command(interpreter: Path, lock: Path) -> list:
    """The call of the environment's own pip."""
    pip = [interpreter, "-m", "pip", "install", "--no-input", "--progress-bar", "off", "--require-hashes"]
    return [*pip, "--only-binary", ":all:", "--no-binary", SOURCE_ONLY, "-r", lock]


def pip_settings(interpreter: Path, env: dict[str, str]) -> dict[str, str]:
    """Variables for pip instead of the user's files: what those say of where files are fetched, and nothing else.

    Such a file may also say user = true or target = ..., which no environment can. interpreter: one that has pip; env:
    its variables.
    """
    command = [interpreter, "-m", "pip", "config", "list"]
    told = subprocess.run(command, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True).stdout
    found = {}
    for section in ("global", "install", ":env:"):  # pip's order: the later one counts
        for name, value in re.findall(rf"^{section}\.([\w-]+)=('.*'|\".*\")$", told, re.M):
            variable = f"PIP_{name.upper().replace('-', '_')}"
            if variable in variables.NAMES:
                found[variable] = ast.literal_eval(value)
    return found | {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def uv_command(uv: str, interpreter: Path, lock: Path, env: dict[str, str]) -> list:
    """The call of uv, told what the variables in `env` tell pip about indexes."""
    # Bytecode: jobs do not write it, so that without it every one of them would compile all that it imports.
    install = [uv, "pip", "install", "--no-config", "--python", interpreter, "--require-hashes", "--compile-bytecode"]
    install += ["--only-binary", ":all:", "--no-binary", SOURCE_ONLY, "-r", lock]
    if env.get("PIP_NO_INDEX", "0") not in ("", "0", "false", "no"):
        install.append("--no-index")
    for variable, option in (("PIP_INDEX_URL", "--index-url"), ("PIP_EXTRA_INDEX_URL", "--extra-index-url")):
        install += [word for url in env.get(variable, "").split() for word in (option, url)]
    if env.get("PIP_EXTRA_INDEX_URL"):
        install += ["--index-strategy", "unsafe-best-match"]  # as pip looks; the hashes decide what is taken
    return install + [word for place in env.get("PIP_FIND_LINKS", "").split() for word in ("--find-links", place)]


def progress(name: str, output: str, folder: Path) -> str:
    """One line: what is being done and how far it is.

    output: what uv or pip have printed so far; folder: the environment, in which pip has its temporary files in `tmp`.
    """
    fetch, whole = SIZES.get(name, (None, None))
    announced = re.findall(r"^Downloading (\S+) \(([\d.]+)([KMG])iB\)", output, re.M)  # uv's; pip's are indented
    if announced:
        sizes = {package: float(number) * UNITS[unit] for package, number, unit in announced}
        there = sum(sizes.get(package, 0) for package in re.findall(r"^ Downloaded (\S+)", output, re.M))
        if "\nPrepared " not in output:
            return f"making {name}: fetched {there:.0f} of {sum(sizes.values()):.0f} MB"
    elif not re.search(r"Installing collected packages|^Resolved \d+ packages", output, re.M):  # pip's, uv's
        return f"making {name}: fetched {_megabytes(folder / 'tmp'):.0f}{_of(fetch)} MB"
    return f"making {name}: unpacked {_megabytes(folder, without='tmp'):.0f}{_of(whole)} MB"


def _of(megabytes):
    return f" of about {megabytes}" if megabytes else ""


def _megabytes(folder: Path, without: str = "") -> float:
    """What lies in a folder that others write to."""
    total = 0
    for place, folders, files in os.walk(folder):
        if without in folders and Path(place) == folder:
            folders.remove(without)
        for file in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(place, file)).st_size  # noqa: PTH118 (tens of thousands of files)
    return total / 1e6


def reason(output: str) -> str:
    """One line from the output of pip or uv that tells what went wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    signs = ("NewConnectionError", "ConnectTimeout", "ProxyError", "SSLError", "NameResolution", "Max retries exceeded")
    signs += ("dns error", "tcp connect error", "error sending request")
    if any(sign in line for line in lines for sign in signs):
        return (
            "the package index cannot be reached: check the network (behind a proxy: set https_proxy), then try again"
        )
    errors = [line for line in lines if line.startswith(("ERROR:", "error:"))]
    return (errors or lines or ["no output"])[-1].removeprefix("ERROR:").removeprefix("error:").strip()
