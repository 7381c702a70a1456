"""Rounds of whole commands: which runs are to be done, how long that will take, and each one kept as it is done."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np

from synthseg_native import memory
from synthseg_native.cohort.benchmark import report
from synthseg_native.cohort.benchmark.contestants import (
    REFERENCE,
    UPSTREAM,
    Contestant,
    Runner,
    Task,
    available_mib,
    compare,
)
from synthseg_native.cohort.tables import as_text, read_tsv, write_tsv
from synthseg_native.errors import SynthSegError
from synthseg_native.networks import cards

Say = Callable[[str], None]
# Thread-seconds per voxel of the padded volume, for the full-size network, and seconds of start: for the estimate of
# time where nothing was measured yet.
GUESSES = {
    "reference": (16e-6, 8),
    "upstream": (16e-6, 12),
    "tensorflow": (14e-6, 5),
    "llvm": (7e-6, 2),
    "torch": (14e-6, 4),
}
UPSTREAM_MEMORY = 1.1  # of the reference's
MEMORY_SHARE = 0.95
# Whose label map the others of a round are compared with: the first that is there.
BASELINES = (REFERENCE, "tensorflow")


@dataclass(frozen=True)
class Group:
    """Runs that are compared with one another: `pairs` rounds of all contestants on one task."""

    model: str
    task: Task
    contestants: tuple[Contestant, ...]
    pairs: int

    @property
    def size(self) -> str:
        """Voxels, as in the tables: 192x256x192."""
        return "x".join(map(str, self.task.size))

    @property
    def title(self) -> str:
        """Model, size and threads, for people."""
        return f"{self.model}, {self.size}, {_threads(self.task.threads)}"


def _threads(n: int) -> str:
    return "1 thread" if n == 1 else f"{n} threads"


class Runs:
    """The table of all runs: a row is on the disk as soon as its run is over."""

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.rows = []
        if not self.path.is_file():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("\t".join(report.RUN_COLUMNS) + "\n", encoding="utf-8")
            return
        text = self.path.read_text(encoding="utf-8")
        if not text.endswith("\n"):  # stopped in mid-row
            self.path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")
        if tuple(text.partition("\n")[0].split("\t")) != report.RUN_COLUMNS:
            raise SynthSegError("usage", f"{self.path}: the table of another version: move it away and call again")
        self.rows = [report.parse(row) for row in read_tsv(self.path)]

    def add(self, row: dict) -> dict:
        """Write a run to the table; return it as it is read from there."""
        line = "\t".join(as_text(row.get(name)) for name in report.RUN_COLUMNS)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        self.rows.append(report.parse(dict(zip(report.RUN_COLUMNS, line.split("\t"), strict=True))))
        return self.rows[-1]

    def forget(self, key: str) -> None:
        """Drop the rows of a key."""
        self.rows[:] = [row for row in self.rows if row["key"] != key]
        write_tsv(self.path, report.RUN_COLUMNS, self.rows)

    def done(self, group: Group, contestant: Contestant, number: int, key: str) -> dict | None:
        """The row of a finished run, or None. The last one counts."""
        asked = (key, group.model, group.size, group.task.threads, number, contestant.name, "ok")
        names = ("key", "model", "size", "threads", "round", "contestant", "status")
        return next((r for r in reversed(self.rows) if tuple(r[name] for name in names) == asked), None)


class Expectation:
    """Seconds and MiB that a run will take, from the nearest run measured so far, else a guess."""

    def __init__(self, rows: Sequence[dict]):
        self.rows = rows

    def __call__(self, group: Group, contestant: Contestant) -> tuple[float, float]:
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
        per_voxel, start = GUESSES.get(contestant.engine, GUESSES["tensorflow"])
        per_voxel *= cards.load(group.task.model).network.layers["features"] / 24
        if contestant.precision == "bf16":
            per_voxel /= 2
        return start + per_voxel * voxels / threads, predicted_mib(group.task, contestant)


def predicted_mib(task: Task, contestant: Contestant) -> float:
    """What the memory model says of a run."""
    networks = cards.load(task.model).needed(*(flag in task.flags for flag in ("--robust", "--parc", "--qc")))
    size = memory.size_of(cards.segmenting(networks), task.size, (1.0,) * 3, own_grid=False, networks=networks)
    if contestant.engine == UPSTREAM:
        return UPSTREAM_MEMORY * memory.predict(size, REFERENCE)
    return memory.predict(size, contestant.engine, contestant.precision, contestant.device)


def padded_voxels(task: Task) -> int:
    """Voxels of the volume that the network sees."""
    return int(np.prod(memory.padded_shape(cards.load(task.model).network, task.size, (1.0,) * 3)))


class Benchmark:
    """The plan, and its run from where the table of runs says that it stopped."""

    def __init__(
        self, groups: Sequence[Group], runner: Runner, runs: Runs, key: str, facts: dict, work: Path | str, say: Say
    ):
        self.groups, self.runner, self.runs, self.key, self.facts = groups, runner, runs, key, facts
        self.work, self.say = Path(work), say
        self.expect = Expectation(runs.rows)
        self.left_out: dict[tuple[str, str], str] = {}  # (title of a group, contestant's name): why

    def remaining(self) -> list[tuple[Group, Contestant, int]]:
        """(group, contestant, round) of all runs that are still to be done."""
        return [
            (group, contestant, number)
            for group in self.groups
            for number in range(1, group.pairs + 1)
            for contestant in group.contestants
            if (group.title, contestant.name) not in self.left_out
            and not self.runs.done(group, contestant, number, self.key)
        ]

    def left_s(self) -> float:
        """Seconds that they will take."""
        return sum(self.expect(group, contestant)[0] for group, contestant, _ in self.remaining())

    def check(self, tasks: Mapping[str, Task]) -> None:
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

    def run(self) -> None:
        """Do what remains."""
        for group in self.groups:
            for number in range(1, group.pairs + 1):
                self._round(group, number)

    def _round(self, group: Group, number: int) -> None:
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

    def _fits(self, group: Group, contestant: Contestant, number: int) -> bool:
        if (group.title, contestant.name) in self.left_out:
            return False
        why = too_large(self.expect(group, contestant)[1])
        if why is None:
            return True
        self.left_out[group.title, contestant.name] = why
        self.runs.add(self._about(group, contestant, number) | {"status": "left out", "error": why})
        self.say(f"{group.title}: {contestant.name} is left out: {why}")
        return False

    def _about(self, group: Group, contestant: Contestant, number: int) -> dict:
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

    def _tell(self, group: Group, number: int, row: dict) -> None:
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


def too_large(needed: float) -> str | None:
    """Why a run that needs so many MiB is left out; None where it fits."""
    there = available_mib()
    if there is None or needed <= MEMORY_SHARE * there:
        return None
    return f"needs about {needed / 1024:.0f} GiB, {there / 1024:.0f} GiB are free"
