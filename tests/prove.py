"""What this machine gives, as one page to send back: golden cases by each engine, seconds, memory, devices.

    make prove                                           # llvm, torch where a GPU is seen, and what else is there
    make prove ARGS="--engines llvm --parts golden"      # some of it; environments that are missing are made

The page is build/prove.md. It has no name of a person, machine or folder in it. What fails stands in the page, and
makes the exit status 1.
"""

import argparse
import datetime
import getpass
import json
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("src", "tests", "tests/golden")]

from golden_runs import GOLDEN, MODEL, THREADS  # noqa: E402
from test_golden import CASES  # noqa: E402
from test_other_engines import FEW  # noqa: E402

from parts import run_tests  # noqa: E402
from synthseg_native import __version__, measure  # noqa: E402
from synthseg_native.cohort import environments, installers, ranking  # noqa: E402
from synthseg_native.compare import compare_label_maps  # noqa: E402
from synthseg_native.engines import NAMES  # noqa: E402
from synthseg_native.errors import SynthSegError  # noqa: E402
from synthseg_native.results import record  # noqa: E402
from synthseg_native.verification import verify  # noqa: E402

PAGE = ROOT / "build/prove.md"
PARTS = ("golden", "speed", "tests")
QUICK = ("-m", "not slow and not docker", "-n", "2", "--dist", "loadfile", "tests")
LONGEST_S = 900  # that one small scan may take


@dataclass
class Found:
    """What the page is made of. golden, speed : rows of tables · devices : by engine, as text · failed : whether
    anything did"""

    golden: list[str] = field(default_factory=list)
    speed: list[str] = field(default_factory=list)
    devices: dict[str, str] = field(default_factory=dict)
    tests: list[str] = field(default_factory=list)
    failed: bool = False


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", nargs="+", choices=NAMES, help="default: see above")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--page", type=Path, default=PAGE, help="default: build/prove.md")
    arguments = parser.parse_args(argv)
    begin, found = time.monotonic(), Found()
    with tempfile.TemporaryDirectory() as folder:
        for engine in arguments.engines or wanted():
            prove(engine, arguments.parts, Path(folder), found)
        if "tests" in arguments.parts:
            say("the quick tests")
            outcome = run_tests(QUICK, Path(folder, "tests.xml"))
            found.tests = [outcome.words, *(f"- `{line}`" for line in outcome.failed)]
            found.failed |= outcome.words.startswith("failed")
    arguments.page.parent.mkdir(parents=True, exist_ok=True)
    arguments.page.write_text(without_names(page_of(found, time.monotonic() - begin)), encoding="utf-8")
    say(f"wrote {arguments.page}: look through it, then send it as it is")
    return int(found.failed)


def say(line: str) -> None:
    """Print a line at once."""
    print(f"prove: {line}", flush=True)


def wanted() -> list[str]:
    """llvm, torch where this machine has a GPU for it, as engine auto goes, and what has an environment already."""
    gpu = environments.gpu() and not installers.too_old("torch")
    return [name for name in NAMES if name == "llvm" or (name == "torch" and gpu) or environments.python(name).exists()]


def prove(engine: str, parts: tuple[str, ...], folder: Path, found: Found) -> None:
    """Verify one engine on this machine, and run the parts by it on each device that is sound."""
    say(f"{engine}: what its devices can do")
    try:
        finding = ranking.verified(engine, folder)
    except (environments.SetupError, SynthSegError) as error:
        found.devices[engine], found.failed = str(error), True
        return
    found.devices[engine], device = verify.table(finding), finding["decision"]["device"]
    found.failed |= device is None
    for place in dict.fromkeys(["cpu", device or "cpu"]):
        for case in (CASES if engine == "llvm" else FEW) if "golden" in parts else ():
            say(f"{engine} on the {place.upper()}: {case}")
            cells, good = golden(engine, place, case, folder)
            found.golden.append(f"| {engine} | {place} | `{case}` | {' | '.join(cells)} |")
            found.failed |= not good
        if "speed" in parts:
            say(f"{engine} on the {place.upper()}: a slab of a network of SynthSeg's size")
            try:
                seconds = f"{ranking.timed(engine, place, 'float32'):.2f}"
            except SynthSegError as error:
                seconds, found.failed = error.message, True
            found.speed.append(f"| {engine} | {place} | {seconds} |")


def golden(engine: str, device: str, case: str, folder: Path) -> tuple[list[str], bool]:
    """One golden case by the whole command: (voxels that differ, verdict, seconds, peak MiB), whether it is good."""
    image, flags = CASES[case]
    out = folder / f"{engine}_{device}_{case}"
    out.mkdir()
    command = [environments.python(engine), "-m", "synthseg_native", "--i", GOLDEN / f"{image}_image.nii.gz"]
    command += ["--o", out / "dseg.nii.gz", "--margin", out / "margin.nii.gz", "--model", MODEL, "--threads", THREADS]
    command += ["--engine", engine, "--device", device, *flags]
    measured = [sys.executable, measure.__file__, "--out", out / "m.json", "--timeout", LONGEST_S, "--", *command]
    env = environments.clean_environment() | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([str(word) for word in measured], env=env, capture_output=True, text=True)
    if done.returncode:
        return ["", f"failed: {last_line(done.stderr or done.stdout)}", "", ""], False
    cost = json.loads((out / "m.json").read_text())
    expected, labels = GOLDEN / f"{case}_dseg.nii.gz", MODEL / "labels.tsv"
    result = compare_label_maps(out / "dseg.nii.gz", expected, labels, out / "margin.nii.gz")
    differ = f"{result['n_voxels_different']} of {result['n_voxels_foreground']}"
    good = result["verdict"] in ("identical", "equivalent")
    verdict = result["verdict"] if good else f"{result['verdict']}: {result['verdict_reason']}"
    return [differ, verdict, f"{cost['wall_s']:.1f}", f"{cost['peak_rss_mib']:.0f}"], good


def last_line(text: str) -> str:
    """What a program said last, for a cell of a table."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or ["it said nothing"]
    return lines[-1].replace("|", "/")[:300]


def machine() -> list[str]:
    """What this machine is, for people: a line each."""
    facts, about = verify.machine(), record.machine()
    if facts["system"] == "Darwin":
        system = f"macOS {platform.mac_ver()[0]}, {record._sysctl('hw.model') or 'unknown model'}"
    else:
        system = f"{facts['system']} {facts['release']}"
    kinds = [record._sysctl(f"hw.perflevel{level}.physicalcpu") for level in range(3)]
    cores = f" ({' + '.join(kind for kind in kinds if kind)}, quickest first)" if kinds[0] else ""
    translated = ", translated (Rosetta or QEMU)" * about["emulated"]
    return [
        f"{system}, {facts['arch']}{translated}",
        f"{facts['cpu']}, {facts['cpus']} processors{cores}, {facts['memory_gib']} GiB",
        f"GPU: {environments.gpu() or 'none that an engine could use'}"
        + f" ({facts['driver']})" * bool(facts["driver"]),
        f"Python {platform.python_version()}, synthseg-native {__version__} ({commit()})",
    ]


def commit() -> str:
    """The state of this project, as git names it."""
    try:
        done = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True)
    except OSError:
        return "no git here"
    return done.stdout.strip() or "no clone"


def page_of(found: Found, seconds: float) -> str:
    """The page, as Markdown."""
    lines = ["# What this machine gives", ""]
    lines += [f"Written by `make prove` on {datetime.date.today().isoformat()}, in {seconds / 60:.1f} minutes.", ""]
    lines += [f"- {line}" for line in machine()]
    if found.golden:
        lines += ["", "## Golden cases: SynthSeg's own label maps", ""]
        lines += [f"Whole commands with {THREADS} threads, the small trial network.", ""]
        lines += ["| engine | device | case | voxels that differ | verdict | wall s | peak MiB |"]
        lines += ["|---|---|---|---|---|---|---|", *found.golden]
    if found.speed:
        lines += ["", "## Speed: one slab of a network of SynthSeg's size, one thread", ""]
        lines += ["| engine | device | s |", "|---|---|---|", *found.speed]
    lines += ["", "## Devices: every operation, compared with NumPy or the CPU"]
    for engine, text in found.devices.items():
        lines += ["", f"### {engine}", "", "```", text, "```"]
    if found.tests:
        lines += ["", "## The quick tests", "", *found.tests]
    return "\n".join([*lines, ""])


def without_names(text: str) -> str:
    """Without the names of people, machines and folders.

    >>> without_names(f"{Path.home()}/a, {ROOT}/b")
    'HOME/a, PROJECT/b'
    """
    folders = {str(ROOT): "PROJECT", os.path.realpath(tempfile.gettempdir()): "TMP", tempfile.gettempdir(): "TMP"}
    folders |= {str(Path.home()): "HOME", os.path.realpath(Path.home()): "HOME"}
    for folder in sorted(folders, key=len, reverse=True):
        text = text.replace(folder, folders[folder]) if len(folder) > 1 else text
    host = socket.gethostname()
    names = {host: "HOST", host.partition(".")[0]: "HOST", user(): "USER"}
    for name in sorted(filter(None, names), key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", names[name], text) if name != "root" else text
    return text


def user() -> str:
    """This user's name; "" where the system has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


if __name__ == "__main__":
    sys.exit(main())
