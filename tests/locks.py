"""Locks, as tests read them; and as a program: which wheels a Mac takes of them, written to envs/macos.tsv.

    .envs/dev-*/bin/python tests/locks.py    # as make locks does it

uv asks the package index which wheels there are, for every Python that may be there, and the order of pip's tags says
which is taken on every macOS. What is new in the table is fetched, by its hash, and looked into: its code says which
macOS it was built for. Nothing is installed.
"""

import csv
import functools
import os
import re
import struct
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.tags import Tag, compatible_tags, cpython_tags, mac_platforms
from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from synthseg_native.cohort import installers, interpreters  # noqa: E402

ENVS = ROOT / "envs"
TABLE = ENVS / "macos.tsv"
NAMES = sorted(path.stem for path in ENVS.glob("*.in"))
MAC = "aarch64-apple-darwin"  # in uv's words
MACOS = (11, 12, 13, 14, 15, 26)  # Apple's processors came with 11; 26 came after 15
MACH_O, FAT = b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe"  # how code for a Mac begins; the latter is also Java's
COLUMNS = ("package", "version", "macos", "code", "file", "sha256")


def pythons(name: str) -> list[str]:
    """The Python versions that an environment may be made from, "3.11" first."""
    (major, first), (_, last) = interpreters.PYTHONS.get(name, interpreters.PYTHONS_DEFAULT)
    return [f"{major}.{minor}" for minor in range(first, last + 1)]


def entries(text: str) -> list[tuple[Requirement, set[str]]]:
    """(requirement, SHA-256 of its files) per entry of a lock."""
    found = []
    for block in re.split(r"\n(?=[A-Za-z])", text.strip()):
        requirement = Requirement(block.split("\\\n")[0].strip())
        found.append((requirement, set(re.findall(r"--hash=sha256:([0-9a-f]{64})", block))))
    return found


def locked(name: str) -> list[tuple[Requirement, set[str]]]:
    """The entries of envs/<name>.txt."""
    return entries((ENVS / f"{name}.txt").read_text())


def on_a_mac(name: str, python: str) -> dict[tuple[str, str], set[str]]:
    """What a lock installs on macOS arm64 with a Python: (package, version) -> SHA-256 of the files that it allows."""
    there = {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix", "platform_machine": "arm64"}
    there |= {"python_version": python, "python_full_version": f"{python}.0", "implementation_name": "cpython"}
    return {
        (canonicalize_name(requirement.name), str(requirement.specifier).removeprefix("==")): hashes
        for requirement, hashes in locked(name)
        if not requirement.marker or requirement.marker.evaluate(there)
    }


def listed(lock: Path, platform: str, python: str, out: Path, macos: str | None = None) -> list[dict]:
    """What uv resolves a lock to for a platform: packages with "wheels" or "sdist", as PEP 751 has them.

    out : a file pylock.*.toml to write · macos : the version to resolve for, where it is not uv's own choice
    Raises ValueError with what uv says.
    """
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--format", "pylock.toml", "--output-file", out]
    # This interpreter builds what has no wheel; else uv looks for one of that version, for ten seconds.
    command += ["--python", sys.executable, "--python-platform", platform, "--python-version", python]
    command += ["--only-binary", ":all:", "--no-binary", installers.SOURCE_ONLY, lock]
    environment = dict(os.environ) | ({"MACOSX_DEPLOYMENT_TARGET": macos} if macos else {})
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(done.stderr.strip())
    return tomllib.loads(out.read_text())["packages"]


@functools.cache
def tags(python: str, macos: int) -> dict[Tag, int]:
    """The tags that pip accepts on an arm64 Mac, each with its rank: the lowest is taken first."""
    version, platforms = tuple(map(int, python.split("."))), list(mac_platforms((macos, 0), "arm64"))
    own = cpython_tags(version, platforms=platforms)
    whole = compatible_tags(version, f"cp{version[0]}{version[1]}", platforms)
    return {tag: rank for rank, tag in reversed(list(enumerate(chain(own, whole))))}


def taken(files: list[str], python: str, macos: int) -> str | None:
    """The wheel, of these names, that pip takes there; None where none fits."""
    accepted = tags(python, macos)
    ranked = [(min(accepted.get(tag, sys.maxsize) for tag in parse_wheel_filename(file)[3]), file) for file in files]
    rank, file = min(ranked, default=(sys.maxsize, ""))
    return file if rank < sys.maxsize else None


def oldest(files: list[str], python: str) -> int | None:
    """The oldest macOS that one of these wheels can be installed on; None for no macOS."""
    return next((macos for macos in MACOS if taken(files, python, macos)), None)


def read_table() -> list[dict[str, str]]:
    """The rows of envs/macos.tsv."""
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def needs(name: str, python: str, rows: list[dict[str, str]]) -> dict[str, int]:
    """The oldest macOS of every package that a lock installs on a Mac, by the rows of the table.

    Raises KeyError for a package, in this version, that no row has a fitting file for.
    """
    files: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        files.setdefault((row["package"], row["version"]), []).append(row["file"])
    found = {}
    for package, version in on_a_mac(name, python):
        if package == installers.SOURCE_ONLY:
            continue
        macos = oldest(files.get((package, version), []), python)
        if macos is None:
            raise KeyError(f"{package}=={version} for Python {python}")
        found[package] = macos
    return found


def choices(name: str, python: str, folder: Path) -> Iterator[tuple[str, ...]]:
    """(package, version, file, its SHA-256, the Python) of every wheel that some macOS takes; ValueError where a
    package has none that the lock allows."""
    lock, out = ENVS / f"{name}.txt", folder / f"pylock.{name}-{python.replace('.', '')}.toml"
    allowed = on_a_mac(name, python)
    for package in listed(lock, MAC, python, out, f"{MACOS[-1]}.0"):
        key = package["name"], package["version"]
        if package["name"] == installers.SOURCE_ONLY:
            if package["sdist"]["hashes"]["sha256"] not in allowed[key]:
                raise ValueError(f"{lock.name}: {key[0]}=={key[1]}: its source is not what the lock says")
            continue
        hashes = {wheel["url"].rpartition("/")[2]: wheel["hashes"]["sha256"] for wheel in package.get("wheels", ())}
        there = [file for file, digest in hashes.items() if digest in allowed[key]]
        files = {taken(there, python, macos) for macos in MACOS} - {None}
        if not files:
            raise ValueError(f"{lock.name}: {key[0]}=={key[1]}: no wheel for Python {python} on macOS arm64")
        for file in files:
            yield *key, file, hashes[file], python


def of_file(file: str) -> str:
    """The oldest macOS that a wheel's name allows, as the table has it: "any" for one without code."""
    platforms = {tag.platform for tag in parse_wheel_filename(file)[3]}
    if platforms == {"any"}:
        return "any"
    versions = [re.fullmatch(r"macosx_(\d+)_\d+_(?:arm64|universal2)", platform) for platform in platforms]
    return str(max(MACOS[0], min(int(version[1]) for version in versions if version)))


def asks_for(wheel: Path) -> int:
    """The oldest macOS that the code for arm64 in a wheel says it was built for, 0 where there is none in it."""
    with zipfile.ZipFile(wheel) as archive:
        return max((built_for(archive.read(name)) for name in archive.namelist() if is_code(archive, name)), default=0)


def is_code(archive: zipfile.ZipFile, name: str) -> bool:
    """Whether a file in a wheel is a program or library of a Mac."""
    with archive.open(name) as file:
        return file.read(4) in (MACH_O, FAT)


def built_for(code: bytes) -> int:
    """The oldest macOS in a Mach-O file's load commands, of its part for arm64; 0 for another file."""
    arm64, build_version, version_min = 0x0100000C, 0x32, 0x24
    if code[:4] == FAT:  # several processors in one file
        (count,) = struct.unpack_from(">I", code, 4)
        parts = [struct.unpack_from(">5I", code, 8 + 20 * number) for number in range(count)]
        code = next((code[start : start + size] for kind, _, start, size, _ in parts if kind == arm64), b"")
    if code[:4] != MACH_O:
        return 0
    _, kind, _, _, commands = struct.unpack_from("<5I", code)
    place, found = 32, 0
    for _ in range(commands if kind == arm64 else 0):
        command, size, first, second = struct.unpack_from("<4I", code, place)
        if command in (build_version, version_min):
            found = max(found, (second if command == build_version else first) >> 16)
        place += size
    return found


def fetch(row: dict[str, str], python: str, folder: Path) -> Path:
    """Fetch the wheel of a row, by its hash, as pip does it for a Mac with a Python; ValueError with what pip says."""
    asked = folder / f"{row['file']}.txt"
    asked.write_text(f"{row['package']}=={row['version']} --hash=sha256:{row['sha256']}\n")
    macos = MACOS[0] if row["macos"] == "any" else row["macos"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--only-binary", ":all:", "--platform", f"macosx_{macos}_0_arm64", "--implementation", "cp"]
    command += ["--python-version", python, "--disable-pip-version-check", "--dest", folder, "-r", asked]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not (folder / row["file"]).is_file():
        raise ValueError(f"{row['file']}: cannot be fetched: {installers.reason(done.stderr)}")
    return folder / row["file"]


def looked_into(row: dict[str, str], python: str, known: dict[str, str], folder: Path) -> dict[str, str]:
    """The row with the macOS that the code in its wheel was built for, "" for none. known : that, by SHA-256"""
    if row["sha256"] not in known:
        wheel = fetch(row, python, folder)
        row["code"] = str(asks_for(wheel) or "")
        wheel.unlink()
    return row | {"code": known.get(row["sha256"], row["code"])}


def table(known: Iterable[dict[str, str]]) -> list[dict[str, str]]:
    """The table's rows, made anew; what is known of a wheel is not looked up again. Raises ValueError."""
    cases = [(name, python) for name in NAMES for python in pythons(name)]
    codes = {row["sha256"]: row["code"] for row in known}
    with tempfile.TemporaryDirectory() as place, ThreadPoolExecutor(6) as pool:
        folder = Path(place)
        found = chain.from_iterable(pool.map(lambda case: list(choices(*case, folder)), cases))
        takers = {(package, version, file, digest): python for package, version, file, digest, python in found}
        rows = [
            {"package": package, "version": version, "macos": of_file(file), "code": "", "file": file, "sha256": digest}
            for package, version, file, digest in sorted(takers)
        ]
        python_of = {file: python for (_, _, file, _), python in takers.items()}
        return list(pool.map(lambda row: looked_into(row, python_of[row["file"]], codes, folder), rows))


def main() -> int:
    """Write the table; returns the exit status."""
    try:
        rows = table(read_table() if TABLE.exists() else [])
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"{TABLE.relative_to(ROOT)}: {len(rows)} wheels")
    return 0


if __name__ == "__main__":
    sys.exit(main())
