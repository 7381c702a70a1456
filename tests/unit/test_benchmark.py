"""The benchmark's order, its bookkeeping and its statistics, with runs that only pretend to take time."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from synthseg_native import shared_disk
from synthseg_native.cohort import demands
from synthseg_native.cohort.benchmark import COLUMNS, RUN_COLUMNS, run_benchmark, statistics_of
from synthseg_native.cohort.benchmark.in_turn import never_came_through
from synthseg_native.cohort.summary.terminal import benchmark_line
from synthseg_native.cohort.tables import as_text, read_tsv, write_tsv
from synthseg_native.errors import SynthSegError
from synthseg_native.results import record

ROOT = Path(__file__).parents[2]
SCANS = {"sub-01/anat/sub-01_T1w": "1.nii", "sub-02/anat/sub-02_T1w": "2.nii"}
FIRST = next(iter(SCANS))


def settings(scans=SCANS, repeats=2, warmups=1, reference="own", engines=("tensorflow",)):
    return {
        "repeats": repeats,
        "warmups": warmups,
        "threads": 2,
        "native": {scan: [{"engine": engine} for engine in engines] for scan in scans},
        "reference": {scan: {"kind": reference} for scan in scans} if reference else {},
    }


class Fake:
    """Pretends to run: gives the seconds in turn (the last for ever), None for a run that fails."""

    def __init__(self, name, seconds, calls=None, rss=(1000.0,)):
        self.name, self.seconds, self.rss, self.calls = (
            name,
            list(seconds),
            list(rss),
            calls if calls is not None else [],
        )

    def __call__(self, scan, image, options, work):
        assert work.is_dir() and not list(work.iterdir())
        (work / "dseg.nii.gz").write_text("")
        name = options.get("engine", "reference")
        self.calls.append((scan, image, name))
        seconds = self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0]
        failed = seconds is None
        reference = {"kind": "own", "runtime": "docker", "id": "sha256:1f", "emulated": True}
        return {
            "status": "failed" if failed else "ok",
            "error": {"code": "oom", "message": "out of memory", "transient": True} if failed else None,
            "wall_s": None if failed else seconds,
            "peak_rss_mib": self.rss.pop(0) if len(self.rss) > 1 else self.rss[0],
            "cgroup_peak_mib": None,
            "device": "cpu",
            "machine": {"cpu": "Zen", "system": "Linux", "arch": "x86_64", "emulated": False},
            "reference": reference if self.name == "reference" else None,
            "output": None if failed else {"labels_sha256": "aa"},
        }


def run(tmp_path, native_s, reference_s, **options):
    scans = {FIRST: SCANS[FIRST]}
    native, reference = Fake("native", native_s), Fake("reference", reference_s)
    return run_benchmark(scans, settings(scans, **options), native, reference, tmp_path, say=lambda line: None)


def test_order_alternates_and_every_run_is_kept(tmp_path):
    calls, lines = [], []
    native, reference = Fake("native", [10.0], calls), Fake("reference", [20.0], calls)
    rows = run_benchmark(SCANS, settings(repeats=3), native, reference, tmp_path / "work", say=lines.append)
    ours, theirs = (FIRST, "1.nii", "tensorflow"), (FIRST, "1.nii", "reference")
    warmup, first, second, third = [ours, theirs], [ours, theirs], [theirs, ours], [ours, theirs]
    assert calls[:8] == warmup + first + second + third and [call[1] for call in calls[8:]] == ["2.nii"] * 8
    assert len(rows) == len(lines) == 16 and sum(row["warmup"] for row in rows) == 4
    assert [row["pair"] for row in rows[:8]] == [1, 1, 1, 1, 2, 2, 3, 3]
    assert set(rows[0]) == set(RUN_COLUMNS) and rows[0]["reference_kind"] is None and rows[0]["emulated"] is False
    assert rows[1]["reference_id"] == "sha256:1f" and rows[1]["emulated"] is True
    assert lines[2] == f"benchmark: {FIRST} tensorflow, run 1 of 3: 10.0 s"
    assert list((tmp_path / "work").iterdir()) == [], "work folders are removed"


def test_statistics_by_hand(tmp_path):
    rows = run(tmp_path, [99.0, 8.0, 10.0, 12.0], [99.0, 16.0, 40.0, 24.0], repeats=3)
    native, reference, everything, _ = statistics_of(rows)
    expected = {
        "scan": FIRST,
        "engine": "tensorflow",
        "n": 3,
        "n_failed": 0,
        "median_wall_s": 10,
        "mean_wall_s": 10,
        "sd_wall_s": 2,
        "cv_wall": 0.2,
        "min_wall_s": 8,
        "max_wall_s": 12,
        "n_pairs": 3,
        "time_ratio_geomean": pytest.approx((2 * 4 * 2) ** (-1 / 3)),
        "time_ratio_median": pytest.approx(1 / 2),
        "time_ratio_ci95_low": None,
        "n_label_maps": 1,
        "threads": 2,
        "cpu": "Zen",
        "native_emulated": False,
        "reference_emulated": True,
        "reference_kind": "own",
        "reference_runtime": "docker",
        "reference_id": "sha256:1f",
    }
    assert {name: native[name] for name in expected} == expected
    assert reference["median_wall_s"] == 24 and "time_ratio_geomean" not in reference
    assert (reference["reference_kind"], reference["native_emulated"]) == ("own", False)
    assert everything["scan"] == "all" and everything["time_ratio_geomean"] == native["time_ratio_geomean"]


def test_interval_by_hand(tmp_path):
    logs = [0.1, 0.2, 0.3, 0.4, 0.5]  # mean 0.3, sd 0.158114; t(0.975, 4) = 2.776445; half width 0.196324
    rows = run(tmp_path, [math.exp(x) for x in logs], [1.0], repeats=5, warmups=0)
    native = statistics_of(rows)[0]
    assert native["time_ratio_geomean"] == pytest.approx(math.exp(0.3))
    assert native["time_ratio_ci95_low"] == pytest.approx(math.exp(0.3 - 0.196324), rel=1e-5)
    assert native["time_ratio_ci95_high"] == pytest.approx(math.exp(0.3 + 0.196324), rel=1e-5)


def test_over_images_the_spread_is_that_within_them(tmp_path):
    """Two images with ratios of 1/e and 1/e^2, each within 1 %: pooled, the interval would be e wide."""
    near = [0.99, 1.0, 1.0, 1.0, 1.01]
    native = Fake("native", near + near)
    reference = Fake("reference", [math.e] * 5 + [math.e**2])
    rows = run_benchmark(SCANS, settings(warmups=0, repeats=5), native, reference, tmp_path, say=lambda line: None)
    everything = statistics_of(rows)[4]
    assert (everything["scan"], everything["n_pairs"]) == ("all", 10)
    assert everything["time_ratio_geomean"] == pytest.approx(math.exp(-1.5), rel=1e-4)
    # By hand: sd of the logs 0.0070714, 8 degrees of freedom: t 2.306004; half width 2.306004 * 0.0070714 * sqrt(2/5)/2
    assert math.log(everything["time_ratio_ci95_high"]) == pytest.approx(-1.50002 + 0.0051566, abs=2e-5)
    assert math.log(everything["time_ratio_ci95_low"]) == pytest.approx(-1.50002 - 0.0051566, abs=2e-5)
    assert everything["cv_wall"] is None and everything["sd_wall_s"] == pytest.approx(0.0070711, abs=1e-6)
    five = statistics_of([row for row in rows if row["pair"] != 5 and row["pair"] != 4 and row["pair"] != 3])[4]
    assert (five["n_pairs"], five["time_ratio_ci95_low"]) == (4, None), "2 degrees of freedom"


def test_a_failing_run_in_the_middle_costs_its_pair_only(tmp_path):
    rows = run(tmp_path, [5.0, 10.0, None, 10.0], [5.0, 20.0, 70.0, 20.0], repeats=3)
    failed = [row for row in rows if row["status"] == "failed"]
    assert [(row["pair"], row["error_code"], row["error"]) for row in failed] == [(2, "oom", "out of memory")]
    native, reference, *_ = statistics_of(rows)
    assert (native["n"], native["n_failed"], native["n_pairs"]) == (2, 1, 2)
    assert native["time_ratio_geomean"] == pytest.approx(1 / 2) and reference["n"] == 3


def test_a_contestant_that_never_comes_through_costs_the_others_nothing(tmp_path):
    """Nor the images before it: the second image's reference fails in its warm-up, and is left out there."""
    calls, lines = [], []
    native, reference = Fake("native", [1.0], calls), Fake("reference", [4.0, 4.0, 4.0, None], calls)
    rows = run_benchmark(SCANS, settings(), native, reference, tmp_path, say=lines.append)
    assert [call[2] for call in calls[6:]] == ["tensorflow", "reference", "tensorflow", "tensorflow"]
    assert lines[8] == "benchmark: sub-02/anat/sub-02_T1w reference failed in all 1 warm-ups, and is left out there"
    table = {(row["scan"], row["engine"]): row for row in statistics_of(rows)}
    second = list(SCANS)[1]
    assert (table[second, "reference"]["n"], table[second, "reference"]["n_failed"]) == (0, 1)
    assert "median_wall_s" not in table[second, "reference"] and table[second, "tensorflow"]["n_pairs"] == 0
    assert table[FIRST, "tensorflow"]["n_pairs"] == table["all", "tensorflow"]["n_pairs"] == 2
    assert (table["all", "tensorflow"]["n"], table["all", "reference"]["n"]) == (4, 2)
    assert never_came_through(row for row in rows if row["scan"] == second) == {"reference": "oom"}
    text = {name: as_text(table[second, "reference"].get(name)) for name in COLUMNS}
    assert benchmark_line(text) == "Benchmark: reference failed in all 1 runs: benchmark_runs.tsv says why"


def test_natives_that_never_come_through_leave_the_reference(tmp_path):
    rows = run(tmp_path, [None], [1.0], repeats=2, warmups=0)
    native, reference, *_ = statistics_of(rows)
    assert (native["n"], native["n_failed"], reference["n"], reference["native_emulated"]) == (0, 2, 2, None)


def test_a_benchmark_in_which_nobody_comes_through_is_an_error(tmp_path):
    with pytest.raises(SynthSegError, match="none of 4 runs came through, the last: out of memory") as caught:
        run(tmp_path, [None], [None], repeats=2, warmups=0)
    assert caught.value.code == "oom" and list(tmp_path.iterdir()) == []


def test_a_stopped_benchmark_goes_on_after_its_last_whole_pair(tmp_path):
    kept, calls = [], []

    class Stop(Exception):
        pass

    def stop_at_the_sixth(row):
        kept.append(row)
        if len(kept) == 6:
            raise Stop

    fakes = lambda: (Fake("native", [1.0], calls), Fake("reference", [4.0], calls))  # noqa: E731
    with pytest.raises(Stop):
        run_benchmark(SCANS, settings(repeats=3), *fakes(), tmp_path, lambda line: None, keep=stop_at_the_sixth)
    kept += [{**kept[0], "pair": 3, "warmup": False}]  # half a pair, as a kill leaves it
    calls.clear()
    rows = run_benchmark(SCANS, settings(repeats=3), *fakes(), tmp_path, lambda line: None, known=json_again(kept))
    assert len(rows) == 16 and len(calls) == 16 - 6 and rows[:6] == kept[:6]


def json_again(rows):
    return json.loads(json.dumps(rows))


def test_a_benchmark_is_asked_for_all_the_time_that_it_may_take():
    plan = SimpleNamespace(
        config={"benchmark": {"repeats": 5, "warmups": 1}}, minutes=30, engines=["a", "b"], benchmarks_reference=True,
        benchmarked=["1", "2", "3", "4"]
    )  # fmt: skip
    assert demands.benchmark_minutes(plan) == 30 * 6 * 3 * 4 + 10


@pytest.mark.parametrize("reference", [None, "existing"])
def test_native_alone(tmp_path, reference):
    rows = run(tmp_path, [9.0, 2.0, 4.0], [1.0], reference=reference)
    assert {row["engine"] for row in rows} == {"tensorflow"}
    native = statistics_of(rows)[0]
    assert (native["median_wall_s"], native["n_pairs"], native.get("time_ratio_geomean")) == (3, 0, None)
    assert native["reference_kind"] is None and native["reference_emulated"] is None
    text = {name: as_text(native.get(name)) for name in COLUMNS}
    assert benchmark_line(text) == "Benchmark: tensorflow 3.0 s (median of 2, mean 3.0 ± 1.4 s), 2 threads, Zen"


def test_two_engines_each_pair_with_the_reference(tmp_path):
    class PerEngine(Fake):
        def __call__(self, scan, image, options, work):
            self.seconds = [2.0] if options["engine"] == "tensorflow" else [4.0]
            return super().__call__(scan, image, options, work)

    scans = {FIRST: "1.nii"}
    asked = settings(scans, engines=("tensorflow", "llvm"))
    rows = run_benchmark(scans, asked, PerEngine("native", [0]), Fake("reference", [8.0]), tmp_path, say=lambda line: 0)
    ratios = {row["engine"]: row.get("time_ratio_geomean") for row in statistics_of(rows) if row["scan"] == FIRST}
    assert ratios == {"tensorflow": pytest.approx(1 / 4), "llvm": pytest.approx(1 / 2), "reference": None}


def test_all_images_together_and_memory(tmp_path):
    native, reference = Fake("native", [1.0, 1.0, 4.0, 4.0], rss=[9.0, 5.0, 7.0, 2.0]), Fake("reference", [8.0])
    asked = settings(warmups=0, repeats=2)
    rows = statistics_of(run_benchmark(SCANS, asked, native, reference, tmp_path, say=lambda line: None))
    assert [(row["scan"], row["engine"]) for row in rows][4:] == [("all", "tensorflow"), ("all", "reference")]
    both = rows[4]
    assert (both["n"], both["n_pairs"], both["mean_wall_s"], both["n_label_maps"]) == (4, 4, 2.5, 2)
    assert both["time_ratio_geomean"] == pytest.approx(1 / 4) and both["time_ratio_median"] == pytest.approx(5 / 16)
    assert (both["median_peak_rss_mib"], both["max_peak_rss_mib"]) == (6, 9)


def test_tables_say_na_for_what_is_missing(tmp_path):
    rows = run(tmp_path, [1.0, None, 1.0], [1.0])
    write_tsv(tmp_path / "runs.tsv", RUN_COLUMNS, rows)
    table = read_tsv(tmp_path / "runs.tsv")
    assert [(row["warmup"], row["pair"]) for row in table[:3]] == [("true", "1"), ("true", "1"), ("false", "1")]
    assert (table[2]["wall_s"], table[2]["error"]) == ("n/a", "out of memory")


FAKED_RUNS = """
import runpy, sys, time
from synthseg_native.cohort.runs import native, reference
def run(scan, image, settings, python, model, weights, *rest):
    work = next(part for part in rest if "run-" in str(part))
    (work / "started").write_text("")
    assert python == settings.get("engine", "tensorflow") + " python"
    time.sleep({sleep})
    return {{"status": "ok", "wall_s": 2.0 if "engine" in settings else 3.0, "peak_rss_mib": None}}
native.run_native = reference.run_reference = run
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def start_script(tmp_path):
    """Start scripts/benchmark.py with runs that sleep and then report 2 s (native) or 3 s (reference)."""
    children = []

    def start(sleep):
        asked = settings([FIRST], engines=("tensorflow", "llvm"))
        options = {"order": tmp_path / "benchmark-1.json"}
        options["order"].write_text(json.dumps({"settings": asked, "scans": {FIRST: "1.nii"}}))
        options["pythons"] = json.dumps({"tensorflow": "tensorflow python", "llvm": "llvm python"})
        options |= {name: tmp_path / name for name in ("model", "weights", "verification", "work", "runs", "out")}
        before = replace(shared_disk.me(), boot="before the restart")
        shared_disk.new_folder(tmp_path / "work", "run-", before)  # a killed benchmark's
        command = [sys.executable, "-c", FAKED_RUNS.format(sleep=sleep), ROOT / "scripts" / "benchmark.py"]
        for name, value in options.items():
            command += [f"--{name}", value]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
        children.append(subprocess.Popen(list(map(str, command)), env=environment, stdout=subprocess.PIPE, text=True))
        return children[0]

    yield start
    for child in children:
        child.kill()
        child.communicate()


@pytest.mark.slow
def test_script_writes_both_tables_and_goes_on_where_it_was_stopped(tmp_path, start_script):
    here = dict.fromkeys(RUN_COLUMNS) | {"scan": FIRST, "warmup": True, "pair": 1, "status": "ok", "wall_s": 1.0}
    here["cpu"] = record.cpu_model()
    kept = [here | {"engine": engine} for engine in ("tensorflow", "llvm", "reference")]
    kept.append(here | {"engine": "tensorflow", "warmup": False, "cpu": "of another machine"})
    (tmp_path / "work").mkdir()
    text = "".join(json.dumps(row) + "\n" for row in kept)
    (tmp_path / "work/benchmark-1.jsonl").write_text(text + text[:50])  # a kill cut the last line
    (tmp_path / "work/benchmark-2.jsonl").write_text(text)  # of other settings
    out, _ = start_script(sleep=0).communicate(timeout=60)
    assert out.splitlines()[0] == "benchmark: 3 runs of an earlier call are kept"
    assert len(out.splitlines()) == 1 + 6 and "warm-up" not in out
    assert out.splitlines()[-1] == f"benchmark: {FIRST} tensorflow, run 2 of 2: 2.0 s"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["benchmark-1.json", "out", "runs"]
    table = read_tsv(tmp_path / "out")
    assert list(table[0]) == list(COLUMNS)
    assert [row["time_ratio_geomean"] for row in table] == ["0.666667", "0.666667", "n/a"] * 2
    assert len(read_tsv(tmp_path / "runs")) == 9


@pytest.mark.slow
def test_script_that_is_stopped_leaves_nothing(tmp_path, start_script):
    child, deadline = start_script(sleep=60), time.monotonic() + 60
    while not list(tmp_path.glob("work/run-*/started")):
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    assert child.wait(20) == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["benchmark-1.json"], "no table, no work folder"
