"""Who is measured, by which command, and what came out of one run."""

import contextlib
import os
import resource
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import nibabel as nib
import numpy as np

from synthseg_native import memory
from synthseg_native.cohort.runs import child
from synthseg_native.cohort.runs.failures import failure
from synthseg_native.cohort.runs.files import LOG
from synthseg_native.cohort.runs.reference import read_volumes_csv
from synthseg_native.compare import compare_label_maps
from synthseg_native.errors import SynthSegError
from synthseg_native.files import read_json
from synthseg_native.networks.cards import read_labels
from synthseg_native.results.hashes import labels_sha256

REFERENCE, UPSTREAM = "reference", "upstream"
PHASES = ("start", "read", "network", "postprocess", "write")
LONG_AGO_S = 2 * 24 * 3600
# The engines' promise (float32, bf16): fraction of the foreground, margin of a differing voxel, volume of a label.
EQUAL = {
    "float32": {"max_fraction_different": 1e-5, "max_margin": 1e-3},
    "bf16": {"max_fraction_different": 1e-3, "max_volume_difference_percent": 1.0, "max_volume_difference_mm3": 20.0},
}
# Names that NumPy 1.24 took away; upstream still uses them.
OLD_NAMES = (
    "import sys, runpy, numpy as np; np.int, np.float, np.bool, np.object = int, float, bool, object; "
    "sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)
# SynthSeg's folders that its command needs.
UPSTREAM_FOLDERS = ("SynthSeg", "ext", "scripts", "data/labels_classes_priors")


@dataclass(frozen=True)
class Contestant:
    """Something that segments a scan. engine : reference, upstream, or an engine's name
    checkout : of another state of this project, whose engine it is; "" for this one's
    """

    engine: str
    precision: str = "float32"
    device: str = "cpu"
    checkout: str = ""

    @classmethod
    def parse(cls, text: str) -> "Contestant":
        """From ENGINE[:PRECISION[:DEVICE]][@CHECKOUT].

        >>> Contestant.parse("openvino@../before").name
        'openvino float32 of before'
        """
        words, _, checkout = text.partition("@")
        return cls(*words.split(":"), checkout=checkout)

    @property
    def name(self) -> str:
        """In tables: reference, upstream, or "engine precision", the device where it is not the CPU, and the name of
        the checkout where it is another one."""
        if self.engine in (REFERENCE, UPSTREAM):
            return self.engine
        words = [self.engine, self.precision] + [self.device] * (self.device != "cpu")
        return " ".join(words + ["of", Path(self.checkout).name] * bool(self.checkout))

    @property
    def environment(self) -> str:
        """The environment whose interpreter runs it, with its checkout where that is another one."""
        name = "tensorflow" if self.engine in (REFERENCE, UPSTREAM) else self.engine
        return f"{name}@{self.checkout}" if self.checkout else name


@dataclass(frozen=True)
class Task:
    """One image, one model, one number of threads. model : its folder · weights : path · size : (X, Y, Z) voxels
    flags : of --robust, --parc, --qc · version : of SynthSeg that the model is like, 1 or 2
    """

    image: Path
    model: Path
    weights: Path
    size: tuple[int, int, int]
    threads: int
    flags: tuple[str, ...] = ()
    version: int = 1

    def words(self, work: Path) -> list[object]:
        """The flags as they are typed; the scores go into the folder `work`."""
        return [word for flag in self.flags for word in ((flag, work / "scores.csv") if flag == "--qc" else (flag,))]


def upstream_tree(checkout: Path | str, weights: Mapping[str, Path], folder: Path | str) -> Path:
    """A copy of what upstream's command needs, with these weights, by upstream's names, as its own; the checkout is not
    written to."""
    checkout, folder = Path(checkout), Path(folder)
    script = checkout / "scripts" / "commands" / "SynthSeg_predict.py"
    if not script.is_file():
        raise SynthSegError("usage", f"{script}: no such file: give --upstream a checkout of SynthSeg's repository")
    shutil.rmtree(folder, ignore_errors=True)
    for name in UPSTREAM_FOLDERS:
        shutil.copytree(checkout / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".git"))
    (folder / "models").mkdir()
    for name, path in weights.items():
        (folder / "models" / name).symlink_to(Path(path).resolve())
    return folder


class Runner:
    """Runs contestants as whole commands under measure.py.

    code : folder with src/ (a snapshot) · pythons : {environment: interpreter} · upstream : of `upstream_tree`, or None
    cache : folder for compiled models · timeout : seconds per run
    """

    def __init__(
        self,
        code: Path | str,
        pythons: Mapping[str, Path],
        cache: Path | str,
        upstream: Path | None = None,
        timeout: float = 3600.0,
    ):
        self.source, self.pythons, self.cache = Path(code) / "src", pythons, Path(cache)
        self.upstream, self.timeout = upstream, timeout

    def command(self, contestant: Contestant, task: Task, work: Path, more: Sequence[object] = ()) -> list[object]:
        """Its words. more : of an engine, at the end"""
        python = self.pythons[contestant.environment]
        given = ["--i", task.image, "--o", work / "dseg.nii.gz", "--threads", task.threads]
        if contestant.engine == UPSTREAM:
            script = self.upstream / "scripts" / "commands" / "SynthSeg_predict.py"
            given += ["--vol", work / "volumes.csv", "--cpu", *["--v1"] * (task.version == 1), *task.words(work)]
            return [python, "-c", OLD_NAMES, script, *given]
        given += ["--model", task.model, "--weights", task.weights, *task.words(work)]
        if contestant.engine == REFERENCE:
            reference = self.source / "synthseg_native" / "reference.py"
            return [python, reference, *given, "--vol", work / "volumes.csv"]
        given += ["--engine", contestant.engine, "--precision", contestant.precision, "--device", contestant.device]
        given += ["--volumes-tsv", work / "volumes.tsv", "--margin", work / "margin.nii.gz"]
        return [python, "-m", "synthseg_native", *given, "--record", work / "record.json", *more]

    def run(self, contestant: Contestant, task: Task, work: Path | str, more: Sequence[object] = ()) -> dict:
        """Run it once, in the folder `work`, which is emptied; return what was measured.

        wall_s, peak_rss_mib : of measure.py · cpu_s : user and system, all processes · other_cpu_s : processor time
        that others used meanwhile, None off Linux · first_read_s : from start to the scan's first byte read, None where
        the file system keeps no access times · <phase>_s : of the run record · status, error
        """
        work = Path(work)
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        source = Path(contestant.checkout).absolute() / "src" if contestant.checkout else self.source
        variables = child.environment_of(task.threads, source) | {"XDG_CACHE_HOME": str(self.cache)}
        del variables["PYTHONDONTWRITEBYTECODE"]  # a user has compiled the package, too
        command = child.wrapped(self.command(contestant, task, work, more), work, self.timeout)
        opened = _unread(task.image)
        others, own = _processor_s(), _children_s()
        status = child.call(command, work / LOG, variables)
        own, others = _children_s() - own, None if others is None else _processor_s() - others
        measured = read_json(work / child.MEASURED) or {}
        row = {name: measured.get(name) for name in ("wall_s", "peak_rss_mib", "started")}
        row["cpu_s"], row["other_cpu_s"] = own, None if others is None else max(0.0, others - own)
        row["first_read_s"] = _first_read_s(task.image, opened, measured.get("started"))
        record = read_json(work / "record.json") or {}
        seconds = record.get("seconds") or {}
        row |= {f"{phase}_s": seconds.get(phase) for phase in PHASES}
        row["status"], row["error"] = "ok", None
        if status or not (work / "dseg.nii.gz").is_file():
            text = child.log_of(work)
            for folder in (task.image.parent, work, source, Path(self.pythons[contestant.environment]).parent):
                text = text.replace(f"{folder}{os.sep}", "")  # the table is for others too
            error = failure(status, measured, text, task.image.name, self.timeout)
            row["status"], row["error"] = error.code, error.message
        else:
            row["labels_sha256"] = labels_sha256(np.asarray(nib.load(work / "dseg.nii.gz").dataobj))
        return row


def _unread(path: Path) -> int:
    """Set the access time of a file back, so that the next read is noted (Linux and macOS note the first one after a
    change); return it."""
    changed = path.stat().st_mtime_ns
    before = changed - int(LONG_AGO_S * 1e9)
    os.utime(path, ns=(before, changed))
    return before


def _first_read_s(path: Path, before: int, started: str | None) -> float | None:
    """Seconds from the start to the first read since `_unread`, which returned `before`; None where none was noted."""
    accessed = path.stat().st_atime_ns
    if started is None or abs(accessed - before) < 1e9:
        return None
    return max(0.0, accessed / 1e9 - datetime.fromisoformat(started).timestamp())


def _children_s() -> float:
    """Processor seconds of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _processor_s() -> float | None:
    """Seconds that the machine's processors have been busy, or were taken by the host of this virtual machine."""
    with contextlib.suppress(OSError):
        user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
        return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")
    return None


def available_mib() -> float | None:
    """Memory that a new process can have, in MiB; None where the system does not tell."""
    limit = memory.limit_mib()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = int(next(line for line in lines if line.startswith("MemAvailable")).split()[1]) / 2**10
        return free if limit is None else min(free, limit)
    return limit


def compare(contestant: Contestant, work: Path, reference: Path, task: Task) -> dict:
    """How the label map in `work` differs from the one in the folder `reference`.

    Returns n_foreground, n_different, margin_max, n_margin_above, n_lost, n_contralateral, min_dice, min_dice_label,
    n_volumes_exceeded, labels ("index:Dice:difference of the soft volume in mm3:in %" for each) and equal: whether the
    promise for its precision is kept.
    """
    table = task.model / "labels.tsv"
    volumes = [_soft_volumes(folder, table) for folder in (work, reference)]
    margin = work / "margin.nii.gz"
    found = compare_label_maps(
        work / "dseg.nii.gz",
        reference / "dseg.nii.gz",
        table,
        margin if margin.is_file() else None,
        EQUAL[contestant.precision],
        *volumes,
        parcels_path=task.model / "parcels.tsv" if "--parc" in task.flags else None,
    )
    limits = found["thresholds"]
    fraction, above = found["fraction_different"], found["margin"]["n_above"]
    if contestant.precision == "bf16":  # beside the midline a voxel may well change side
        kept = found["labels_volume_exceeded"] == []
    else:
        kept = not above and not found["n_voxels_contralateral"]
    equal = (
        found["geometry_equal"] and fraction <= limits["max_fraction_different"] and not found["labels_lost"] and kept
    )
    labels = (
        f"{entry['index']}:{_text(entry['dice'])}:{_text(entry['soft_volume_difference_mm3'])}:"
        f"{_text(entry['soft_volume_difference_percent'])}"
        for entry in found["labels"]
    )
    return {
        "n_foreground": found["n_voxels_foreground"],
        "n_different": found["n_voxels_different"],
        "margin_max": found["margin"]["max"],
        "n_margin_above": above,
        "n_lost": len(found["labels_lost"]),
        "n_contralateral": found["n_voxels_contralateral"],
        "n_volumes_exceeded": len(found["labels_volume_exceeded"]),
        "min_dice": found["min_dice"],
        "min_dice_label": found["min_dice_label"],
        "labels": " ".join(labels),
        "equal": equal,
    }


def _text(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.5g}"


def _soft_volumes(folder: Path, table: Path) -> Path | None:
    """Path of a volumes.tsv of this run; made from its CSV where there is none. None where it has neither."""
    path, given = folder / "volumes.tsv", folder / "volumes.csv"
    if path.is_file() or not given.is_file():
        return path if path.is_file() else None
    volumes, labels = read_volumes_csv(given), read_labels(table)
    lines = ["index\tsoft_volume_mm3"]
    for index, name in zip(labels.index, labels.names, strict=True):
        lines.append(f"{index}\t{volumes.get(name, 'n/a')}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
