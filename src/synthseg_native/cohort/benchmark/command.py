"""Measure whole commands, engines against reference.py (and upstream) in turn. See benchmarks/README.md."""

import argparse
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import numpy as np

from synthseg_native.cohort import environments
from synthseg_native.cohort.benchmark import inputs, report, weights
from synthseg_native.cohort.benchmark.contestants import REFERENCE, UPSTREAM, Contestant, Runner, Task, upstream_tree
from synthseg_native.cohort.benchmark.rounds import Benchmark, Group, Runs
from synthseg_native.errors import SynthSegError
from synthseg_native.files import sha256_of
from synthseg_native.networks import cards

ROOT = environments.ROOT
WORK = ROOT / "build" / "benchmark"
RESULTS = ROOT / "benchmarks" / "results"
SIZES = ((160, 160, 160), (192, 256, 192), (256, 256, 256))
HEADLINE = inputs.HEADLINE
SMALL = (64, 64, 64)
SYNTHSEG2 = (("--robust",), ("--parc", "--qc"))  # what is measured of SynthSeg 2.0's networks
ENGINES = ("tensorflow", "llvm")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="benchmarks/run.py", description=__doc__)
    p.add_argument("--sizes", nargs="+", type=inputs.size_of, default=SIZES, metavar="XxYxZ", help="in voxels of 1 mm")
    p.add_argument("--threads", nargs="+", type=int, default=[2, 1], metavar="N")
    p.add_argument("--engines", nargs="+", type=Contestant.parse, default=[*map(Contestant.parse, ENGINES)],
                   metavar="ENGINE[:PRECISION[:DEVICE]][@CHECKOUT]", help="of this project, or of a checkout of "
                   f"another state of it (default: {' '.join(ENGINES)})")  # fmt: skip
    p.add_argument("--pairs", type=int, default=6, metavar="N",
                   help="rounds at 192x256x192 with the first number of threads, and of compact2mm (6)")  # fmt: skip
    p.add_argument("--pairs-elsewhere", type=int, default=2, metavar="N", help="rounds of all else (default 2)")
    p.add_argument("--weights", type=Path, metavar="H5", help="weights of SynthSeg 1.0's size (default: "
                   "$SYNTHSEG_GOLDEN_FULL/weights.h5, else made)")  # fmt: skip
    p.add_argument("--image", type=Path, metavar="NIFTI", help="a head at 1 mm, cut or padded to the sizes "
                   "(default: a phantom)")  # fmt: skip
    p.add_argument("--upstream", type=Path, metavar="CHECKOUT", help="a checkout of SynthSeg's repository, to be "
                   "measured too")  # fmt: skip
    p.add_argument("--synthseg2", action="store_true", help="measure --robust and --parc --qc too, with networks of "
                   "SynthSeg 2.0's size and random weights, at 192x256x192")  # fmt: skip
    p.add_argument("--python", action="append", default=[], metavar="ENVIRONMENT=PATH", help="an interpreter to use")
    p.add_argument("--no-reference", action="store_true", help="leave reference.py out")
    p.add_argument("--timeout-min", type=float, default=60.0, metavar="MINUTES", help="limit of one run (default 60)")
    p.add_argument("--fresh", action="store_true", help="forget what was measured of this code, and begin again")
    p.add_argument("--quick", action="store_true", help="one round of compact2mm on 64x64x64, to try the machinery")
    p.add_argument("--report", action="store_true", help="only write table and plot again, of what was measured")
    p.add_argument("--name", help="of the machine, for the names of the files (default: its CPU)")
    p.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    p.add_argument("--work", type=Path, default=WORK, metavar="DIR", help="for images, weights and label maps")
    return p


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def main(argv: list[str] | None = None) -> int:
    """The command; return its exit status."""
    arguments = parser().parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    try:
        return benchmark(arguments)
    except (SynthSegError, environments.SetupError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 2)


def _stop(number: int, frame: object) -> None:
    print("benchmark: stopped: what is measured is kept, call again to go on", file=sys.stderr, flush=True)
    raise SystemExit(128 + number)  # as an exception it also ends the run that is measured


def benchmark(arguments: argparse.Namespace) -> int:
    """Measure what is asked for and not measured yet, and write the report. Raises SynthSegError."""
    machine = report.machine()
    name = arguments.name or report.machine_name(machine)
    runs = Runs(arguments.results / f"{name}_runs.tsv")
    if arguments.report:
        if not runs.rows:
            raise SynthSegError("usage", f"{runs.path}: no runs: measure first")
        return _report(runs, runs.rows[-1]["key"], {}, arguments.results, name)
    code = environments.snapshot()
    pythons, missing = _interpreters(arguments)
    work = arguments.work
    say("making weights and images")
    full, kind = inputs.full_model(arguments.weights, work)
    compact = cards.load(ROOT / "models" / "compact2mm")
    heads = inputs.make_images(arguments.image, _wanted(arguments), work)
    family = weights.make_family(work / "family", ROOT / "models") if arguments.synthseg2 else None
    files = {"synthseg_1.0.h5": full / "weights.h5"}
    files |= {path.name: path for path in family.glob("*.h5")} if family else {}
    upstream = arguments.upstream and upstream_tree(arguments.upstream, files, work / "upstream")
    runner = Runner(code, pythons, work / "cache", upstream, 60 * arguments.timeout_min)

    def task(size: inputs.Size, model: str, threads: int) -> Task:
        file = full / "weights.h5" if model == "full" else compact.folder / compact.weights.file
        return Task(heads[size, 1.0], full if model == "full" else compact.folder, file, size, threads)

    engines = [c for c in arguments.engines if c.environment in pythons]
    base = [] if arguments.no_reference or "tensorflow" not in pythons else [Contestant(REFERENCE)]
    above = [Contestant(UPSTREAM)] if upstream and Contestant(UPSTREAM).environment in pythons else []
    groups = plan(arguments, task, (*base, *engines), (*base, *above, *engines))
    groups += [
        Group(
            " ".join(["synthseg2size", *flags]),
            Task(heads[HEADLINE, 1.0], family, family, HEADLINE, arguments.threads[0], flags, version=2),
            (*base, *above, *engines),
            arguments.pairs_elsewhere,
        )
        for flags in (SYNTHSEG2 if family else ())
    ]
    facts = {
        **machine,
        "code": code_of(code),
        "weights": f"{kind} {sha256_of(full / 'weights.h5')[:12]}",
        "image": f"{arguments.image.name if arguments.image else 'phantom'} {inputs.image_key(arguments.image)}",
        "versions": _versions(pythons),
    }
    key = report.key_of(facts)
    if arguments.fresh:
        runs.forget(key)
    bench = Benchmark(groups, runner, runs, key, facts, work, say)
    for contestant, why in missing.items():
        for group in groups:
            bench.left_out[group.title, contestant] = why
    todo = bench.remaining()
    say(f"{len(todo)} runs to do, about {timedelta(seconds=round(bench.left_s()))}; each is kept as soon as it is done")
    if todo:
        if not arguments.quick:
            small = task(SMALL, "compact2mm", arguments.threads[0])
            bench.check({"others": small, "upstream": task(SMALL, "full", arguments.threads[0])})
        bench.run()
    return _report(runs, key, bench.left_out, arguments.results, name)


def code_of(folder: Path | str) -> str:
    """12 digits for the code that a command runs. Left out are the cohort's, which it does not run, and memory.py,
    whose table is fitted to such measurements."""
    package = Path(folder) / "src" / "synthseg_native"
    files = {path for path in package.rglob("*.py") if "cohort" not in path.relative_to(package).parts}
    found = hashlib.sha256()
    for path in sorted(files - {package / "memory.py"}):
        found.update(f"{path.relative_to(package)} {sha256_of(path)}\n".encode())
    return found.hexdigest()[:12]


def _wanted(arguments: argparse.Namespace) -> set[inputs.Grid]:
    """Size and voxel size in mm of the images that are needed."""
    wanted = {(SMALL, 1.0)}
    if not arguments.quick:
        wanted |= {(size, 1.0) for size in arguments.sizes}
    wanted |= {(HEADLINE, 1.0)} if arguments.synthseg2 else set()
    return wanted


def plan(
    arguments: argparse.Namespace,
    task: Callable[[inputs.Size, str, int], Task],
    small: Sequence[Contestant],
    full: Sequence[Contestant],
) -> list[Group]:
    """What is measured. task(size, model, threads) · small, full : contestants for compact2mm, for the full size."""
    first = arguments.threads[0]
    if arguments.quick:
        return [Group("compact2mm", task(SMALL, "compact2mm", first), small, 1)]
    size = HEADLINE if HEADLINE in arguments.sizes else arguments.sizes[0]
    groups = [Group("compact2mm", task(size, "compact2mm", first), small, arguments.pairs)]
    for threads in arguments.threads:
        for size in sorted(arguments.sizes, key=np.prod):  # the small ones tell whether the large ones will fit
            headline = size == HEADLINE and threads == first
            pairs = arguments.pairs if headline else arguments.pairs_elsewhere
            groups.append(Group("synthseg1size", task(size, "full", threads), full, pairs))
    return groups


def _report(runs: Runs, key: str, left_out: dict, results: Path, name: str) -> int:
    rows = [row for row in runs.rows if row["key"] == key]
    if not any(row["status"] == "ok" for row in rows):
        raise SynthSegError("internal", f"{runs.path}: nothing could be measured: see the lines above")
    for path in report.write(rows, left_out, results, name):
        say(f"wrote {os.path.relpath(path)}")
    return 0


def _interpreters(arguments: argparse.Namespace) -> tuple[dict[str, Path], dict[str, str]]:
    """{environment: interpreter}, and {contestant's name: why it has none}."""
    given = dict(text.split("=", 1) for text in arguments.python if "=" in text)
    if not all("=" in text for text in arguments.python):
        raise SynthSegError("usage", "--python: not understood: give NAME=PATH, as llvm=.venv/bin/python")
    contestants = [*arguments.engines] + ([] if arguments.no_reference else [Contestant(REFERENCE)])
    contestants += [Contestant(UPSTREAM)] * (arguments.upstream is not None)
    pythons, missing = {}, {}
    for contestant in contestants:
        name = contestant.environment
        if name in given:
            if not Path(given[name]).is_file():
                raise SynthSegError("usage", f"{given[name]}: no such interpreter: correct --python {name}=")
            pythons[name] = Path(given[name]).absolute()
        elif contestant.checkout:
            pythons[name] = _made_in(contestant)
        elif name not in pythons:
            try:
                pythons[name] = environments.ensure(name)
            except environments.SetupError as error:
                missing[contestant.name] = str(error)
                say(f"{contestant.name} is left out: {error}")
    return pythons, missing


def _made_in(contestant: Contestant) -> Path:
    """The interpreter of an engine that its checkout has made."""
    found = sorted(Path(contestant.checkout).glob(f".envs/{contestant.engine}-*/bin/python"))
    if not found:
        raise SynthSegError(
            "usage",
            f"{contestant.checkout}: has no {contestant.engine} environment: make it there, with "
            f"sh scripts/launch.sh ensure {contestant.engine}",
        )
    return found[-1].absolute()


def _versions(pythons: dict[str, Path]) -> str:
    """What the interpreters run, as one line."""
    code = (
        "import platform, sys\nfrom importlib.metadata import version, PackageNotFoundError\nfound = []\n"
        "for name in ('tensorflow', 'llvmlite', 'openvino', 'torch', 'numpy', 'scipy'):\n"
        "    try: found.append(name + ' ' + version(name))\n"
        "    except PackageNotFoundError: pass\n"
        "print(', '.join(found), 'on Python', platform.python_version())"
    )
    told = {}
    for name, python in sorted(pythons.items()):
        done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True)
        engine, _, checkout = name.partition("@")
        told[f"{engine} of {Path(checkout).name}" if checkout else engine] = done.stdout.strip() or "unknown"
    return "; ".join(f"{name}: {text}" for name, text in told.items())
