"""What this machine gives, as one page to send back: golden cases by each engine, seconds, memory, devices.

    make prove                                           # llvm, torch where a GPU is seen, and what else is there
    make prove ARGS="--engines llvm --parts golden"      # some of it; environments that are missing are made
    benchmarks/device_check.sh                           # an NVIDIA GPU, with a Python that has PyTorch already

The page is build/prove.md. It has no name of a person, machine or folder in it. What fails stands in the page, and
makes the exit status 1.
"""

import argparse
import csv
import datetime
import getpass
import json
import os
import platform
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("src", "tests", "tests/golden")]

from golden_runs import GOLDEN, MODEL, THREADS  # noqa: E402
from test_golden import CASES  # noqa: E402
from test_other_engines import FEW  # noqa: E402
from test_v2_engines import CASES as V2_CASES  # noqa: E402
from test_v2_engines import EVERY, MODELS, UPSTREAM, V2  # noqa: E402

from parts import commit, run_tests  # noqa: E402
from synthseg_native import __version__, measure  # noqa: E402
from synthseg_native.cohort import environments, installers, ranking  # noqa: E402
from synthseg_native.cohort.benchmark import inputs  # noqa: E402
from synthseg_native.compare import compare_label_maps  # noqa: E402
from synthseg_native.engines import NAMES  # noqa: E402
from synthseg_native.errors import SynthSegError  # noqa: E402
from synthseg_native.results import record  # noqa: E402
from synthseg_native.verification import verify  # noqa: E402

PAGE = ROOT / "build/prove.md"
PARTS = ("golden", "speed", "full", "tests")
DEFAULT = ("golden", "speed", "tests")
QUICK = ("-m", "not slow and not docker", "-n", "2", "--dist", "loadfile", "tests")
LONGEST_S = 900  # that one scan may take
SCORES_WITHIN = 5e-4
# The command in a process that then says what PyTorch took of the GPU's memory at most, in MiB.
ON_GPU = """import sys
from pathlib import Path
told = Path(sys.argv.pop(1))
from synthseg_native.cli import main
status = main()
if "torch" in sys.modules and sys.modules["torch"].cuda.is_available():
    told.write_text(str(sys.modules["torch"].cuda.max_memory_reserved() >> 20))
sys.exit(status)
"""
# Columns, of golden cases and of the full size.
GOLDEN_COLUMNS = ("engine", "device", "case", "voxels that differ", "verdict", "wall s", "peak MiB", "GPU MiB")
FULL_COLUMNS = ("engine", "device", "voxels that differ", "verdict", "wall s", "peak MiB", "GPU MiB", "network s")


@dataclass
class Found:
    """What the page is made of. golden, speed, full : cells of tables, row by row · devices : by engine, as text
    failed : whether anything did"""

    golden: list[list[str]] = field(default_factory=list)
    speed: list[list[str]] = field(default_factory=list)
    full: list[list[str]] = field(default_factory=list)
    size: str = ""
    devices: dict[str, str] = field(default_factory=dict)
    tests: list[str] = field(default_factory=list)
    failed: bool = False


@dataclass(frozen=True)
class Case:
    """A scan, how it is segmented, and what it is compared with. labels, parcels : tables of what is compared
    scores : a table of quality scores as they should be, or None"""

    image: Path
    model: Path
    flags: list[str]
    expected: Path
    labels: Path
    parcels: Path | None = None
    scores: Path | None = None


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engines", nargs="+", choices=NAMES, help="default: see above")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=DEFAULT, help="full: a scan of full size by each "
                        "engine, compared with the first one's (weights: benchmarks/README.md)")  # fmt: skip
    parser.add_argument("--device", choices=("cpu", "gpu"), help="golden cases and slabs on this one alone; it must be "
                        "sound (default: the CPU, and a GPU that is)")  # fmt: skip
    parser.add_argument("--size", type=inputs.size_of, default=inputs.HEADLINE, metavar="XxYxZ", help="of the full one")
    parser.add_argument("--python", type=Path, help="an interpreter that has all packages, in place of environments")
    parser.add_argument("--page", type=Path, default=PAGE, help="default: build/prove.md")
    arguments = parser.parse_args(argv)
    begin, found = time.monotonic(), Found(size="x".join(map(str, arguments.size)))
    with tempfile.TemporaryDirectory() as folder:
        if arguments.python:
            lend(arguments.python, Path(folder))
        for engine in arguments.engines or wanted():
            prove(engine, arguments, Path(folder), found)
        if "tests" in arguments.parts:
            say("the quick tests")
            outcome = run_tests(QUICK, Path(folder, "tests.xml"))
            found.tests = [outcome.words, *(f"- `{line}`" for line in outcome.failed)]
            found.failed |= outcome.words.startswith("failed")
    arguments.page.parent.mkdir(parents=True, exist_ok=True)
    text = without_names(page_of(found, time.monotonic() - begin))
    arguments.page.write_text(text, encoding="utf-8")
    if "full" in arguments.parts:
        print(text)
    say(f"wrote {arguments.page}: look through it, then send it as it is")
    return int(found.failed)


def say(line: str) -> None:
    """Print a line at once."""
    print(f"prove: {line}", flush=True)


def wanted() -> list[str]:
    """llvm, torch where this machine has a GPU for it, as engine auto goes, and what has an environment already."""
    gpu = environments.gpu() and not installers.too_old("torch")
    return [name for name in NAMES if name == "llvm" or (name == "torch" and gpu) or environments.python(name).exists()]


def lend(python: Path, folder: Path) -> None:
    """Let an interpreter stand for every environment, with the modules that PYTHONPATH adds to it now."""
    environments.ENVS = folder / "envs"
    more = os.environ.get("PYTHONPATH", "")
    for name in NAMES:
        place = environments.python(name)
        place.parent.mkdir(parents=True)
        path, program = shlex.quote(more), shlex.quote(str(python.absolute()))
        place.write_text(f'#!/bin/sh\nPYTHONPATH={path}${{PYTHONPATH:+:$PYTHONPATH}} exec {program} "$@"\n')
        place.chmod(0o755)


def prove(engine: str, arguments: argparse.Namespace, folder: Path, found: Found) -> None:
    """Verify one engine on this machine, and run the parts by it on each device that is sound."""
    parts, only = arguments.parts, arguments.device
    say(f"{engine}: what its devices can do")
    try:
        finding = ranking.verified(engine, folder)
    except (environments.SetupError, SynthSegError) as error:
        found.devices[engine], found.failed = str(error), True
        return
    found.devices[engine], device = verify.table(finding), finding["decision"]["device"]
    found.failed |= device is None
    sound = list(dict.fromkeys([device or "cpu", "cpu"]))  # what a GPU gives is told first
    if only and only not in sound and engine not in ranking.CPU_ONLY:
        say(f"{engine}: device {only}: {finding['decision']['reason']}")
        found.failed = True
    for place in sound:
        here = only in (None, place)
        for case in (*(CASES if engine == "llvm" else FEW), EVERY) if "golden" in parts and here else ():
            say(f"{engine} on the {place.upper()}: {case}")
            cells, good = segmented(engine, place, golden(case), folder / f"{engine}_{place}_{case}")
            say(", ".join(filter(None, cells)))
            found.golden.append([engine, place, f"`{case}`", *cells[:-1]])
            found.failed |= not good
        if "speed" in parts and here:
            say(f"{engine} on the {place.upper()}: a slab of a network of SynthSeg's size")
            try:
                seconds = f"{ranking.timed(engine, place, 'float32'):.2f}"
            except SynthSegError as error:
                seconds, found.failed = error.message, True
            found.speed.append([engine, place, seconds])
        if "full" in parts and place == sound[0]:
            say(f"{engine} on the {place.upper()}: a scan of {found.size} voxels")
            out, first = folder / f"{engine}_{place}_full", folder / "first.nii.gz"
            cells, good = segmented(engine, place, full(arguments.size, first), out, os.cpu_count())
            if good and not first.exists():
                (out / "dseg.nii.gz").rename(first)
            say(", ".join(filter(None, cells)))
            found.full.append([engine, place, *cells])
            found.failed |= not good


def golden(name: str) -> Case:
    """A golden case by its name."""
    if name in CASES:
        image, flags = CASES[name]
        expected = GOLDEN / f"{name}_dseg.nii.gz"
        return Case(GOLDEN / f"{image}_image.nii.gz", MODEL, flags, expected, MODEL / "labels.tsv")
    image, model, flags = V2_CASES[name]
    tables = MODELS / model / "labels.tsv", MODELS / "golden2/parcels.tsv", V2 / f"{name}_qc.csv"
    flags = [word for flag in flags for word in ([flag, "scores.csv"] if flag == "--qc" else [flag])] + UPSTREAM
    return Case(GOLDEN / f"{image}_image.nii.gz", MODELS / model, flags, V2 / f"{name}_dseg.nii.gz", *tables)


def full(size: inputs.Size, first: Path) -> Case:
    """A phantom of this size, and a network of SynthSeg's. first : the label map to compare with, once it is there"""
    work = ROOT / "build/benchmark"
    model, _ = inputs.full_model(None, work)
    image = inputs.make_images(None, {(size, 1.0)}, work)[size, 1.0]
    return Case(image, model, [], first, model / "labels.tsv")


def segmented(engine: str, device: str, case: Case, out: Path, threads: int = THREADS) -> tuple[list[str], bool]:
    """A case by the whole command: (voxels that differ, verdict, seconds, peak MiB, of the GPU, seconds of the
    network), whether it is good."""
    out.mkdir()
    begin = ["-m", "synthseg_native"] if device == "cpu" else ["-c", ON_GPU, out / "gpu"]
    command = [environments.python(engine), *begin, "--i", case.image, "--record", out / "run.json"]
    command += ["--o", out / "dseg.nii.gz", "--margin", out / "margin.nii.gz", "--model", case.model]
    command += ["--threads", threads, "--engine", engine, "--device", device, *case.flags]
    measured = [sys.executable, measure.__file__, "--out", out / "m.json", "--timeout", LONGEST_S, "--", *command]
    env = environments.clean_environment() | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([str(word) for word in measured], env=env, capture_output=True, text=True, cwd=out)
    if done.returncode:
        return ["", f"failed: {last_line(done.stderr or done.stdout)}", "", "", "", ""], False
    cost, seconds = json.loads((out / "m.json").read_text()), json.loads((out / "run.json").read_text())["seconds"]
    differ, verdict, good = "", "compared with", True
    if case.expected.exists():
        tables = {"labels_path": case.labels, "margin_path": out / "margin.nii.gz", "parcels_path": case.parcels}
        result = compare_label_maps(out / "dseg.nii.gz", case.expected, **tables)
        differ = f"{result['n_voxels_different']} of {result['n_voxels_foreground']}"
        good = result["verdict"] in ("identical", "equivalent")
        verdict = result["verdict"] if good else f"{result['verdict']}: {result['verdict_reason']}"
    if case.scores:
        ours, theirs = (list(csv.reader(path.open(newline="")))[1][1:] for path in (out / "scores.csv", case.scores))
        off = max(abs(float(one) - float(other)) for one, other in zip(ours, theirs, strict=True))
        verdict, good = f"{verdict}, scores within {off:.4f}", good and off <= SCORES_WITHIN
    gpu = (out / "gpu").read_text() if (out / "gpu").exists() else ""
    costs = [f"{cost['wall_s']:.1f}", f"{cost['peak_rss_mib']:.0f}", gpu, f"{seconds['network']:.1f}"]
    return [differ, verdict, *costs], good


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


def page_of(found: Found, seconds: float) -> str:
    """The page, as Markdown."""
    lines = ["# What this machine gives", ""]
    lines += [f"Written by `make prove` on {datetime.date.today().isoformat()}, in {seconds / 60:.1f} minutes.", ""]
    lines += [f"- {line}" for line in machine()]
    if found.golden:
        lines += ["", "## Golden cases: SynthSeg's own label maps", ""]
        lines += [f"Whole commands with {THREADS} threads, small trial networks.", ""]
        lines += table_of(GOLDEN_COLUMNS, found.golden)
    if found.speed:
        lines += ["", "## Speed: one slab of a network of SynthSeg's size, one thread", ""]
        lines += table_of(("engine", "device", "s"), found.speed)
    if found.full:
        lines += ["", f"## A scan of {found.size} voxels, a network of SynthSeg's size", ""]
        lines += [f"Whole commands with {os.cpu_count()} threads. Compared with the first one's label map.", ""]
        lines += table_of(FULL_COLUMNS, found.full)
        lines += ["", "One row for the project's table:", "", *one_row(found)]
    lines += ["", "## Devices: every operation, compared with NumPy or the CPU"]
    for engine, text in found.devices.items():
        lines += ["", f"### {engine}", "", "```", text, "```"]
    if found.tests:
        lines += ["", "## The quick tests", "", *found.tests]
    return "\n".join([*lines, ""])


def table_of(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, line by line."""
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]


def one_row(found: Found) -> list[str]:
    """What was found on the GPU, else on the last device, as a table of one row."""
    row = next((row for row in found.full if row[1] == "gpu"), found.full[-1])
    engine, device, differ, verdict, wall, peak, gpu, network = row
    first = " on the ".join(found.full[0][:2]) if len(found.full) > 1 else "nothing"
    golden = [row for row in found.golden if row[:2] == [engine, device]]
    good = sum(row[4].startswith(("identical", "equivalent")) for row in golden)
    where = [line.partition(": ")[2] for line in machine() if device == "gpu" and line.startswith("GPU")]
    names = re.findall(r"\(([^()]*)\) passed every probe", found.devices[engine])
    cells = [*(names or where or [record.cpu_model()]), f"{engine} on the {device}", f"{good} of {len(golden)}"]
    cells += [wall, network, peak, gpu, f"{differ} ({verdict}, {first})" if differ else ""]
    columns = ("machine", "what", "golden cases equal", f"{found.size}: wall s", "network s", "peak MiB", "GPU MiB")
    return table_of((*columns, "voxels that differ"), [cells])


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
