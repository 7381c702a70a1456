"""Measure whole commands, engines against reference.py (and upstream) in turn: make benchmark. See README.md here."""

import argparse
import hashlib
import os
import re
import signal
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import nibabel as nib
import numpy as np

from synthseg_native import memory
from synthseg_native.cohort import environments
from synthseg_native.cohort.benchmark import images, report, weights
from synthseg_native.cohort.benchmark.contestants import (
    REFERENCE,
    UPSTREAM,
    Contestant,
    Runner,
    Task,
    available_mib,
    compare,
    upstream_tree,
)
from synthseg_native.cohort.tables import as_text, read_tsv, write_tsv
from synthseg_native.errors import SynthSegError
from synthseg_native.networks import cards as models

ROOT = environments.ROOT
WORK = ROOT / "build" / "benchmark"
RESULTS = ROOT / "benchmarks" / "results"
SIZES = ((160, 160, 160), (192, 256, 192), (256, 256, 256))
HEADLINE = (192, 256, 192)
SMALL = (64, 64, 64)
ENGINES = ("tensorflow", "openvino", "openvino:bf16")
# Thread-seconds per voxel of the padded volume, for the full-size network, and seconds of start: for the estimate of
# time where nothing was measured yet.
GUESSES = {
    "reference": (16e-6, 8),
    "upstream": (16e-6, 12),
    "tensorflow": (14e-6, 5),
    "openvino": (7e-6, 2),
    "torch": (14e-6, 4),
}
UPSTREAM_MEMORY = 1.1  # of the reference's
MEMORY_SHARE = 0.95
BASELINES = (
    REFERENCE,
    "tensorflow",
)  # whose label map the others of a round are compared with: the first that is there
MEMORY_COLUMNS = (
    *("engine", "precision", "device", "model", "input_x", "input_y", "input_z", "voxel_mm"),
    *("padded_x", "padded_y", "padded_z", "native_grid", "peak_rss_mib"),
)
# For --memory: size, voxel size in mm, and whether the label map on the scan's own grid is asked for too.
MEMORY_SCANS = (
    *(((n, n, n), 1.0, False) for n in (128, 160, 192)),
    ((192, 256, 192), 1.0, False),
    ((256, 256, 256), 1.0, False),
    ((192, 256, 192), 1.0, True),
    ((320, 416, 320), 0.6, False),
    ((320, 416, 320), 0.6, True),
)


@dataclass(frozen=True)
class Group:
    """Runs that are compared with one another: `pairs` rounds of all contestants on one task."""

    model: str
    task: Task
    contestants: tuple
    pairs: int

    @property
    def size(self):
        return "x".join(map(str, self.task.size))

    @property
    def title(self):
        return f"{self.model}, {self.size}, {_threads(self.task.threads)}"


def _threads(n):
    return "1 thread" if n == 1 else f"{n} threads"


class Runs:
    """The table of all runs: a row is on the disk as soon as its run is over."""

    def __init__(self, path):
        self.path = Path(path)
        self.rows = []
        if not self.path.is_file():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("\t".join(report.RUN_COLUMNS) + "\n", encoding="utf-8")
            return
        text = self.path.read_text(encoding="utf-8")
        if not text.endswith("\n"):  # stopped in mid-row
            self.path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
        table = read_tsv(self.path)
        if tuple(table.columns) != report.RUN_COLUMNS:
            raise SynthSegError("usage", f"{self.path}: the table of another version: move it away and call again")
        self.rows = [report.parse(row) for row in table.to_dict("records")]

    def add(self, row):
        line = "\t".join(as_text(row.get(name)) for name in report.RUN_COLUMNS)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self.rows.append(report.parse(dict(zip(report.RUN_COLUMNS, line.split("\t"), strict=True))))
        return self.rows[-1]

    def forget(self, key):
        """Drop the rows of a key."""
        self.rows[:] = [row for row in self.rows if row["key"] != key]
        write_tsv(self.path, report.RUN_COLUMNS, self.rows)

    def done(self, group, contestant, number, key):
        """The row of a finished run, or None. The last one counts."""
        asked = (key, group.model, group.size, group.task.threads, number, contestant.name, "ok")
        names = ("key", "model", "size", "threads", "round", "contestant", "status")
        return next((r for r in reversed(self.rows) if tuple(r[name] for name in names) == asked), None)


class Expectation:
    """Seconds and MiB that a run will take, from the nearest run measured so far, else a guess."""

    def __init__(self, rows):
        self.rows = rows

    def __call__(self, group, contestant):
        voxels, threads = padded_voxels(group.task), group.task.threads
        like = [
            row
            for row in reversed(self.rows)  # the latest of those that are as near
            if (row["model"], row["contestant"], row["status"]) == (group.model, contestant.name, "ok")
        ]
        if like:
            near = min(like, key=lambda row: (abs(np.log(voxels / row["padded_voxels"])), row["threads"] != threads))
            scale = voxels / near["padded_voxels"]
            seconds = near["wall_s"] * scale * near["threads"] / threads
            return seconds, near["peak_rss_mib"] * max(1.0, scale)
        per_voxel, start = GUESSES[contestant.engine]
        per_voxel *= models.load(group.task.model).card["network"]["features"] / 24
        if contestant.precision == "bf16":
            per_voxel /= 2
        return start + per_voxel * voxels / threads, predicted_mib(group.task, contestant)


def _in_header(voxel_mm):
    """A voxel size as a header holds it, three times: a float32 a little above 0.6 mm makes a plane more."""
    return (float(np.float32(voxel_mm)),) * 3


def predicted_mib(task, contestant, voxel_mm=1.0, own_grid=False):
    """What the memory model says of a run."""
    size = memory.size_of(models.load(task.model).card, task.size, _in_header(voxel_mm), own_grid=own_grid)
    if contestant.engine == UPSTREAM:
        return UPSTREAM_MEMORY * memory.predict(size, REFERENCE)
    return memory.predict(size, contestant.engine, contestant.precision, contestant.device)


def padded_voxels(task):
    return int(np.prod(memory.padded_shape(models.load(task.model).card, task.size, (1.0,) * 3)))


class Benchmark:
    """The plan, and its run from where the table of runs says that it stopped."""

    def __init__(self, groups, runner, runs, key, facts, work, say):
        self.groups, self.runner, self.runs, self.key, self.facts = groups, runner, runs, key, facts
        self.work, self.say = Path(work), say
        self.expect = Expectation(runs.rows)
        self.left_out = {}  # (title of a group, contestant's name): why

    def remaining(self):
        """(group, contestant, round) of all runs that are still to be done."""
        return [
            (group, contestant, number)
            for group in self.groups
            for number in range(1, group.pairs + 1)
            for contestant in group.contestants
            if (group.title, contestant.name) not in self.left_out
            and not self.runs.done(group, contestant, number, self.key)
        ]

    def left_s(self):
        return sum(self.expect(group, contestant)[0] for group, contestant, _ in self.remaining())

    def check(self, tasks):
        """Run every contestant once on a small image, so that a long run does not end on a missing library.

        tasks : {"upstream": Task, "others": Task}. What fails is left out, with the reason.
        """
        everyone = dict.fromkeys(c for group in self.groups for c in group.contestants)
        for contestant in everyone:
            task = tasks["upstream" if contestant.engine == UPSTREAM else "others"]
            row = self.runner.run(contestant, task, self.work / "check")
            if row["status"] == "ok":
                self.say(f"check: {contestant.name} works ({row['wall_s']:.1f} s on a small image)")
                continue
            self.say(f"check: {contestant.name} is left out: {row['error']}")
            for group in self.groups:
                self.left_out[group.title, contestant.name] = row["error"]

    def run(self):
        for group in self.groups:
            for number in range(1, group.pairs + 1):
                self._round(group, number)

    def _round(self, group, number):
        folder = self.work / "rounds" / re.sub(r"\W+", "-", group.title) / f"{self.key}-{number}"
        baseline = None
        # What ran just before matters (README.md, "New pages"): every second round goes backwards after the first.
        first, *others = group.contestants
        for contestant in (first, *(others if number % 2 else others[::-1])):
            work = folder / contestant.name.replace(" ", "-")
            kept = (work / "dseg.nii.gz").is_file()
            needed = baseline is None and contestant.engine in BASELINES
            if self.runs.done(group, contestant, number, self.key) and (kept or not needed):
                baseline = (contestant, work) if needed else baseline
                continue
            if not self._fits(group, contestant, number):
                continue
            row = self.runner.run(contestant, group.task, work)
            row |= self._about(group, contestant, number)
            if row["status"] == "ok":
                if baseline:
                    row |= compare(contestant, work, baseline[1], group.task)
                    row["compared_with"] = baseline[0].name
                elif needed:
                    baseline = contestant, work
            else:
                self.left_out[group.title, contestant.name] = row["error"]
            self._tell(group, number, self.runs.add(row))

    def _fits(self, group, contestant, number):
        if (group.title, contestant.name) in self.left_out:
            return False
        why = too_large(self.expect(group, contestant)[1])
        if why is None:
            return True
        self.left_out[group.title, contestant.name] = why
        self.runs.add(self._about(group, contestant, number) | {"status": "left out", "error": why})
        self.say(f"{group.title}: {contestant.name} is left out: {why}")
        return False

    def _about(self, group, contestant, number):
        return {
            **self.facts,
            "key": self.key,
            "model": group.model,
            "size": group.size,
            "padded_voxels": padded_voxels(group.task),
            "threads": group.task.threads,
            "round": number,
            "contestant": contestant.name,
            "engine": contestant.engine,
            "precision": contestant.precision,
            "device": contestant.device,
        }

    def _tell(self, group, number, row):
        if row["status"] == "ok":
            what = f"{row['wall_s']:.1f} s, {row['peak_rss_mib'] / 1024:.2f} GiB"
            if row["n_foreground"] is not None:
                what += f", {row['n_different']} of {row['n_foreground']} voxels differ from the {row['compared_with']}"
        else:
            what = f"failed, left out from here on: {row['error']}"
        if row["other_cpu_s"] and row["wall_s"] and row["other_cpu_s"] > report.DISTURBED * row["wall_s"]:
            what += f" (others used {row['other_cpu_s']:.0f} s of the processors meanwhile)"
        left = timedelta(seconds=round(self.left_s()))
        self.say(f"{group.title}, round {number} of {group.pairs}: {row['contestant']}: {what} · about {left} left")


def measure_memory(runner, contestants, tasks, path, say):
    """Run each contestant once per entry of `tasks`: (Task, voxel_mm, own grid or not); append rows to `path`."""
    path = Path(path)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\t".join(MEMORY_COLUMNS) + "\n", encoding="utf-8")
    have = {tuple(row.values())[:-1] for row in read_tsv(path).to_dict("records")}
    for task, voxel_mm, own_grid in tasks:
        model = models.load(task.model)
        name = "synthseg1" if model.name == "synthseg1size" else model.name
        shape = memory.padded_shape(model.card, task.size, _in_header(voxel_mm))
        for contestant in contestants:
            row = (contestant.engine, contestant.precision, contestant.device, name, *task.size, voxel_mm, *shape)
            row = tuple(map(as_text, (*row, own_grid)))
            if row in have or (own_grid and contestant.engine == REFERENCE):  # which has the network's grid alone
                continue
            about = f"{name}, {'x'.join(map(str, task.size))} voxels of {voxel_mm:g} mm, {contestant.name}"
            if why := too_large(predicted_mib(task, contestant, voxel_mm, own_grid)):
                say(f"{about}: left out: {why}")
                continue
            work = runner.cache.parent / "memory"
            more = ["--native-grid", work / "native.nii.gz"] if own_grid else []
            found = runner.run(contestant, task, work, more)
            if found["status"] != "ok":
                say(f"{about}: failed: {found['error']}")
                continue
            with path.open("a", encoding="utf-8") as stream:
                stream.write("\t".join((*row, as_text(found["peak_rss_mib"]))) + "\n")
            say(f"{about}: {found['peak_rss_mib']:.0f} MiB, {found['wall_s']:.1f} s")


def too_large(needed):
    """Why a run that needs so many MiB is left out; None where it fits."""
    there = available_mib()
    if there is None or needed <= MEMORY_SHARE * there:
        return None
    return f"needs about {needed / 1024:.0f} GiB, {there / 1024:.0f} GiB are free"


def parser():
    p = argparse.ArgumentParser(prog="benchmarks/run.py", description=__doc__)
    p.add_argument("--sizes", nargs="+", type=_size, default=SIZES, metavar="XxYxZ", help="in voxels of 1 mm")
    p.add_argument("--threads", nargs="+", type=int, default=[2, 1], metavar="N")
    p.add_argument("--engines", nargs="+", type=Contestant.parse, default=[*map(Contestant.parse, ENGINES)],
                   metavar="ENGINE[:PRECISION[:DEVICE]]", help=f"default: {' '.join(ENGINES)}")  # fmt: skip
    p.add_argument("--pairs", type=int, default=6, metavar="N",
                   help="rounds at 192x256x192 with the first number of threads, and of compact2mm (6)")  # fmt: skip
    p.add_argument("--pairs-elsewhere", type=int, default=2, metavar="N", help="rounds of all else (default 2)")
    p.add_argument("--weights", type=Path, metavar="H5", help="weights of SynthSeg 1.0's size (default: "
                   "$SYNTHSEG_GOLDEN_FULL/weights.h5, else made)")  # fmt: skip
    p.add_argument("--image", type=Path, metavar="NIFTI", help="a head at 1 mm, cut or padded to the sizes "
                   "(default: a phantom)")  # fmt: skip
    p.add_argument("--upstream", type=Path, metavar="CHECKOUT", help="a checkout of SynthSeg's repository, to be "
                   "measured too")  # fmt: skip
    p.add_argument("--python", action="append", default=[], metavar="ENVIRONMENT=PATH", help="an interpreter to use")
    p.add_argument("--no-reference", action="store_true", help="leave reference.py out")
    p.add_argument("--timeout-min", type=float, default=60.0, metavar="MINUTES", help="limit of one run (default 60)")
    p.add_argument("--fresh", action="store_true", help="forget what was measured of this code, and begin again")
    p.add_argument("--quick", action="store_true", help="one round of compact2mm on 64x64x64, to try the machinery")
    p.add_argument("--memory", action="store_true", help="only measure peak memory at several sizes: memory.tsv")
    p.add_argument("--report", action="store_true", help="only write table and plot again, of what was measured")
    p.add_argument("--name", help="of the machine, for the names of the files (default: its CPU)")
    p.add_argument("--results", type=Path, default=RESULTS, metavar="DIR")
    p.add_argument("--work", type=Path, default=WORK, metavar="DIR", help="for images, weights and label maps")
    return p


def _size(text):
    numbers = [int(n) for n in text.split("x")]
    if len(numbers) not in (1, 3) or min(numbers) < 16 or max(numbers) > 512:
        raise argparse.ArgumentTypeError(f"{text}: give one or three numbers from 16 to 512, as 192x256x192")
    return tuple(numbers * (3 // len(numbers)))


def say(line):
    print(line, flush=True)


def main(argv=None):
    arguments = parser().parse_args(argv)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    try:
        return benchmark(arguments)
    except (SynthSegError, environments.SetupError) as error:
        print(f"benchmark: {error}", file=sys.stderr)
        return getattr(error, "exit_code", 2)


def _stop(number, frame):
    print("benchmark: stopped: what is measured is kept, call again to go on", file=sys.stderr, flush=True)
    raise SystemExit(128 + number)  # as an exception it also ends the run that is measured


def benchmark(arguments):
    machine = report.machine()
    name = arguments.name or report.machine_name(machine)
    runs = None if arguments.memory else Runs(arguments.results / f"{name}_runs.tsv")
    if arguments.report:
        if not runs.rows:
            raise SynthSegError("usage", f"{runs.path}: no runs: measure first")
        return _report(runs, runs.rows[-1]["key"], {}, arguments.results, name)
    code = environments.snapshot()
    pythons, missing = _interpreters(arguments)
    work = arguments.work
    say("making weights and images")
    full, kind = _full_model(arguments, work)
    compact = models.load(ROOT / "models" / "compact2mm")
    heads = _images(arguments, work)
    upstream = arguments.upstream and upstream_tree(arguments.upstream, full / "weights.h5", work / "upstream")
    runner = Runner(code, pythons, work / "cache", upstream, 60 * arguments.timeout_min)

    def task(size, model, threads, voxel_mm=1.0):
        file = full / "weights.h5" if model == "full" else compact.folder / compact.card["weights"]["file"]
        return Task(heads[size, voxel_mm], full if model == "full" else compact.folder, file, size, threads)

    engines = [c for c in arguments.engines if c.environment in pythons]
    base = [] if arguments.no_reference or "tensorflow" not in pythons else [Contestant(REFERENCE)]
    if arguments.memory:
        scans = [(model, *scan) for model in ("full", "compact2mm") for scan in MEMORY_SCANS]
        tasks = [(task(size, model, arguments.threads[0], mm), mm, own_grid) for model, size, mm, own_grid in scans]
        measure_memory(runner, [*base, *engines], tasks, arguments.results.parent / "memory.tsv", say)
        return 0

    above = [Contestant(UPSTREAM)] if upstream and base else []
    groups = plan(arguments, task, (*base, *engines), (*base, *above, *engines))
    facts = {
        **machine,
        "code": code_of(code),
        "weights": f"{kind} {weights.sha256(full / 'weights.h5')[:12]}",
        "image": f"{arguments.image.name if arguments.image else 'phantom'} {_image_key(arguments)}",
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


def code_of(folder):
    """12 digits for the code that a command runs. Left out are the cohort's, which it does not run, and memory.py,
    whose table is fitted to such measurements."""
    package = Path(folder) / "src" / "synthseg_native"
    files = {path for path in package.rglob("*.py") if "cohort" not in path.relative_to(package).parts}
    found = hashlib.sha256()
    for path in sorted(files - {package / "memory.py"}):
        found.update(f"{path.relative_to(package)} {weights.sha256(path)}\n".encode())
    return found.hexdigest()[:12]


def plan(arguments, task, small, full) -> list[Group]:
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


def _report(runs, key, left_out, results, name):
    rows = [row for row in runs.rows if row["key"] == key]
    if not any(row["status"] == "ok" for row in rows):
        raise SynthSegError("internal", f"{runs.path}: nothing could be measured: see the lines above")
    for path in report.write(rows, left_out, results, name):
        say(f"wrote {os.path.relpath(path)}")
    return 0


def _interpreters(arguments):
    """{environment: interpreter}, and {contestant's name: why it has none}."""
    given = dict(text.split("=", 1) for text in arguments.python if "=" in text)
    if not all("=" in text for text in arguments.python):
        raise SynthSegError("usage", "--python: not understood: give NAME=PATH, as openvino=.venv/bin/python")
    contestants = [*arguments.engines] + ([] if arguments.no_reference else [Contestant(REFERENCE)])
    pythons, missing = {}, {}
    for contestant in contestants:
        name = contestant.environment
        if name in given:
            if not Path(given[name]).is_file():
                raise SynthSegError("usage", f"{given[name]}: no such interpreter: correct --python {name}=")
            pythons[name] = Path(given[name]).absolute()
        elif name not in pythons:
            try:
                pythons[name] = environments.ensure(name)
            except environments.SetupError as error:
                missing[contestant.name] = str(error)
                say(f"{contestant.name} is left out: {error}")
    return pythons, missing


def _versions(pythons):
    """What the interpreters run, as one line."""
    import subprocess

    code = (
        "import platform, sys\nfrom importlib.metadata import version, PackageNotFoundError\nfound = []\n"
        "for name in ('tensorflow', 'openvino', 'torch', 'numpy', 'scipy'):\n"
        "    try: found.append(name + ' ' + version(name))\n"
        "    except PackageNotFoundError: pass\n"
        "print(', '.join(found), 'on Python', platform.python_version())"
    )
    told = {}
    for name, python in sorted(pythons.items()):
        done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True)
        told[name] = done.stdout.strip() or "unknown"
    return "; ".join(f"{name}: {text}" for name, text in told.items())


def _full_model(arguments, work):
    """The model folder of the full-size network, and what its weights are."""
    given, kind = arguments.weights, "weights of the user"
    if given is None and (folder := os.environ.get("SYNTHSEG_GOLDEN_FULL")):
        given, kind = Path(folder) / "weights.h5", "stand-in weights of the golden case"
    if given is not None and not given.is_file():
        raise SynthSegError("usage", f"{given}: no such weights file: correct the path")
    if given is None:
        kind = "weights made by benchmarks/weights.py"
    return weights.make_model(work / "model", ROOT / "models", given), kind


def _images(arguments, work):
    """{(size, voxel_mm): path} of the images that are needed, made where they are missing."""
    wanted = {(SMALL, 1.0)}
    if arguments.memory:
        wanted |= {(size, voxel_mm) for size, voxel_mm, _ in MEMORY_SCANS}
    elif not arguments.quick:
        wanted |= {(size, 1.0) for size in arguments.sizes}
    found = {}
    for voxel_mm in sorted({voxel_mm for _, voxel_mm in wanted}):
        sizes = sorted(size for size, mm in wanted if mm == voxel_mm)
        folder = work / "images" / _image_key(arguments)
        paths = {size: folder / f"{'x'.join(map(str, size))}_{voxel_mm:g}mm.nii.gz" for size in sizes}
        missing = [size for size in sizes if not paths[size].is_file()]
        made = _cut(arguments.image, missing) if arguments.image else images.make(missing, voxel_mm) if missing else ()
        for size, image in made:
            images.save(image, paths[size])
        found |= {(size, voxel_mm): path for size, path in paths.items()}
    return found


def _image_key(arguments):
    """12 digits for the image of the user, or for how the phantom is made."""
    if arguments.image and not arguments.image.is_file():
        raise SynthSegError("usage", f"{arguments.image}: no such image: correct the path")
    return weights.sha256(arguments.image or images.__file__)[:12]


def _cut(path, sizes):
    """The user's image, cut or padded to each size."""
    try:
        image = nib.as_closest_canonical(nib.load(path))
        data = np.asanyarray(image.dataobj)
    except (OSError, nib.filebasedimages.ImageFileError) as error:
        raise SynthSegError("usage", f"{path}: cannot be read ({error}): give a NIfTI image") from error
    if data.ndim != 3 or np.abs(np.array(image.header.get_zooms()[:3]) - 1).max() > 0.05:
        raise SynthSegError("usage", f"{path}: not a 3-D image with voxels of 1 mm: give one")
    for size in sizes:
        start = [(n - have) // 2 for n, have in zip(size, data.shape, strict=True)]
        out = np.zeros(size, data.dtype)
        sizes_and_starts = [*zip(start, size, data.shape, strict=True)]
        here = tuple(slice(max(s, 0), max(s, 0) + min(n, have)) for s, n, have in sizes_and_starts)
        there = tuple(slice(max(-s, 0), max(-s, 0) + min(n, have)) for s, n, have in sizes_and_starts)
        out[here] = data[there]
        affine = image.affine.copy()
        affine[:3, 3] -= affine[:3, :3] @ start
        yield size, nib.Nifti1Image(out, affine)
