"""The benchmark's machinery: plan, rounds, resuming, comparison and reports, with stand-ins for the engines."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from synthseg_native.cohort.benchmark import command as run
from synthseg_native.cohort.benchmark import contestants, inputs, pages, report, rounds
from synthseg_native.cohort.benchmark.contestants import Contestant, Runner, Task
from synthseg_native.cohort.tables import read_tsv
from synthseg_native.errors import SynthSegError

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
COMPACT = ROOT / "models" / "compact2mm"
# Called as an interpreter would be; notes its calls, fails or changes voxels where it is told to.
STAND_IN = """#!{python} -IS
import gzip, json, os, struct, sys
from pathlib import Path
arguments = sys.argv[1:]
if arguments[:1] == ["-I"]:
    print("stand-in 1 on Python 3")
    sys.exit()
value = dict(zip(arguments, arguments[1:]))
who = value.get("--engine", "upstream" if arguments[0] == "-c" else "reference")
who += "" if value.get("--precision", "float32") == "float32" else " " + value["--precision"]
told = json.loads(Path({told!r}).read_text()).get(who, {{}})
with gzip.open(value["--i"]) as stream:
    header = bytearray(stream.read(352))
x, y, z = struct.unpack_from("<3h", header, 42)
with open({calls!r}, "a") as stream:
    stream.write(f"{{who}} {{x}}x{{y}}x{{z}} {{value['--threads']}} {{os.environ['OMP_NUM_THREADS']}}\\n")
if told.get("fails"):
    print("synthseg-native: scan.nii:", told["fails"], file=sys.stderr)
    sys.exit(2)

def save(path, code, bits, slope, data):
    struct.pack_into("<2h", header, 70, code, bits)
    struct.pack_into("<2f", header, 112, slope, 0)
    Path(path).write_bytes(gzip.compress(bytes(header) + data, 1))

labels = bytearray(4 * x * y * z)
for start, label in ((0, 2), (16, 41)):
    for k in range(start, start + 16):
        for j in range(8, 24):
            struct.pack_into("<16i", labels, 4 * (8 + x * (j + y * k)), *[label] * 16)
for (i, j, k), label in told.get("voxels", []):
    struct.pack_into("<i", labels, 4 * (i + x * (j + y * k)), label)
save(value["--o"], 8, 32, 1, labels)
if "--vol" in value:
    names = "left cerebral white matter,right cerebral white matter"
    Path(value["--vol"]).write_text(f"subject,{{names}}\\na,4096.0,4096.0\\n")
if "--margin" in value:
    save(value["--margin"], 512, 16, 1e-4, b"\\1\\0" * (x * y * z))
    volumes = "index\\tsoft_volume_mm3\\n2\\t%s\\n41\\t4096.0\\n" % told.get("volume", 4096.0)
    Path(value["--volumes-tsv"]).write_text(volumes)
    seconds = dict(start=0.5, read=0.25, network=2.0, postprocess=0.125, write=0.125)
    Path(value["--record"]).write_text(json.dumps({{"seconds": seconds}}))
"""


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A benchmark in a folder of its own: bench(arguments) runs it; bench.told, bench.calls() and the like."""
    interpreter, calls, told = tmp_path / "python", tmp_path / "calls", tmp_path / "told.json"
    text = STAND_IN.format(python=sys.executable, calls=str(calls), told=str(told))
    interpreter.write_text(text)
    interpreter.chmod(0o755)
    told.write_text("{}")
    made = []

    def make(sizes, voxel_mm=1.0):
        for size in sizes:
            made.append((size, voxel_mm))
            values = np.zeros(size, np.int16)
            yield size, nib.Nifti1Image(values, np.diag([voxel_mm] * 3 + [1.0]))

    def make_model(folder, models, weights=None):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("card.yaml", "labels.tsv"):
            shutil.copy(models / "synthseg1" / name, folder)
        (folder / "weights.h5").write_bytes(b"weights")
        return folder

    monkeypatch.setattr(inputs.weights, "make_model", make_model)
    monkeypatch.setattr(inputs.images, "make", make)
    monkeypatch.setattr(report.plots, "plot", lambda table, path: path.write_text(f"{len(table)} rows"))
    monkeypatch.setattr(rounds, "available_mib", lambda: 64 * 1024.0)
    monkeypatch.delenv("SYNTHSEG_GOLDEN_FULL", raising=False)
    monkeypatch.setattr(run.environments, "snapshot", lambda: tmp_path / "code")
    monkeypatch.setattr(contestants.child.environments, "clean_environment", lambda: dict(os.environ))
    for name in ("segment.py", "memory.py", "engines/llvm.py", "cohort/summary.py"):
        path = tmp_path / "code" / "src" / "synthseg_native" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")

    class Bench:
        folder, results = tmp_path, tmp_path / "benchmarks" / "results"
        images = made

        def __call__(self, *arguments):
            given = ["--results", self.results, "--work", tmp_path / "work", "--name", "here"]
            given += ["--python", f"tensorflow={interpreter}", "--python", f"llvm={interpreter}"]
            return run.benchmark(run.parser().parse_args(list(map(str, (*given, *arguments)))))

        def tell(self, **what):
            told.write_text(json.dumps({name.replace("_", " "): value for name, value in what.items()}))

        def calls(self):
            """Who was called since the last time: "who size threads OMP_NUM_THREADS"."""
            text = calls.read_text() if calls.exists() else ""
            calls.unlink(missing_ok=True)
            return text.splitlines()

        def runs(self):
            return [report.parse(row) for row in read_tsv(self.results / "here_runs.tsv")]

        def table(self):
            rows = read_tsv(self.results / "here.tsv")
            return {(row["size"], row["threads"], row["contestant"]): row for row in rows}

    return Bench()


def test_quick_measures_compares_and_reports(bench):
    assert bench("--quick") == 0
    assert bench.calls() == [f"{who} 64x64x64 2 2" for who in ("reference", "tensorflow", "llvm")]
    rows = {row["contestant"]: row for row in bench.runs()}
    assert list(rows) == ["reference", "tensorflow float32", "llvm float32"]
    for row in rows.values():
        assert row["status"] == "ok" and 0 < row["wall_s"] < 60 and row["peak_rss_mib"] > 3 and row["cpu_s"] > 0
        assert (
            row["model"] == "compact2mm"
            and row["code"] == run.code_of(bench.folder / "code")
            and "stand-in 1" in row["versions"]
        )
    assert rows["reference"]["compared_with"] is None and rows["reference"]["read_s"] is None
    row = rows["llvm float32"]
    assert (row["compared_with"], row["equal"], row["n_different"]) == ("reference", True, 0)
    assert (row["n_foreground"], row["network_s"]) == (8192, 2.0)
    table = bench.table()
    row = table["64x64x64", "2", "llvm float32"]
    ratio = rows["llvm float32"]["wall_s"] / rows["reference"]["wall_s"]
    assert float(row["time_ratio_median"]) == pytest.approx(ratio, abs=1e-5)
    assert (float(row["median_around_network_s"]), row["n_pairs"]) == (0.5, "1")
    text = (bench.results / "here.md").read_text()
    assert "whole commands, from start to exit" in text and "weights made by benchmarks/weights.py" in text
    assert (bench.results / "here.png").read_text() == "3 rows"
    assert (bench.results / "README.md").read_text().count("not measured") == len(pages.PLATFORMS)


def test_rounds_alternate_and_upstream_runs_from_a_copy(bench):
    checkout = bench.folder / "SynthSeg"
    for name in contestants.UPSTREAM_FOLDERS:
        (checkout / name).mkdir(parents=True)
    (checkout / "scripts" / "commands").mkdir()
    (checkout / "scripts" / "commands" / "SynthSeg_predict.py").write_text("")
    before = sorted(checkout.rglob("*"))
    sizes = ["--sizes", "48x40x48", "32", "--threads", 2, "--pairs", 2, "--pairs-elsewhere", 2]
    assert bench(*sizes, "--upstream", checkout, "--engines", "llvm") == 0
    calls = bench.calls()
    assert calls[:3] == ["reference 64x64x64 2 2", "llvm 64x64x64 2 2", "upstream 64x64x64 2 2"], "the check"
    assert calls[3:7] == ["reference 48x40x48 2 2", "llvm 48x40x48 2 2"] * 2, "compact2mm"
    rounds = ("reference", "upstream", "llvm", "reference", "llvm", "upstream")
    assert calls[7:] == [f"{who} {size} 2 2" for size in ("32x32x32", "48x40x48") for who in rounds]
    assert sorted(checkout.rglob("*")) == before
    weights = bench.folder / "work" / "upstream" / "models" / "synthseg_1.0.h5"
    assert weights.resolve() == (bench.folder / "work" / "model" / "weights.h5").resolve()
    row = bench.table()["32x32x32", "2", "llvm float32"]
    assert float(row["upstream_time_ratio_median"]) > 0
    assert bench.table()["32x32x32", "2", "upstream"]["equal"] == "true"
    assert "× upstream" in (bench.results / "here.md").read_text()


def test_goes_on_where_it_stopped(bench):
    quick = "--quick", "--engines", "llvm", "tensorflow"
    bench(*quick)
    bench.calls()
    path = bench.results / "here_runs.tsv"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]) + lines[3][:40])  # killed in mid-row
    bench(*quick)
    assert bench.calls() == ["tensorflow 64x64x64 2 2"]
    assert bench.runs()[-1]["compared_with"] == "reference" and len(bench.runs()) == 3
    bench(*quick)
    assert bench.calls() == []
    bench(*quick, "--fresh")
    assert len(bench.calls()) == 3 and len(bench.runs()) == 3


@pytest.mark.parametrize(
    ("edited", "again"),
    [("engines/llvm.py", True), ("segment.py", True), ("memory.py", False), ("cohort/summary.py", False)],
)
def test_other_code_is_another_benchmark_where_a_command_runs_it(bench, edited, again):
    quick = "--quick", "--engines", "llvm"
    bench(*quick)
    (bench.folder / "code" / "src" / "synthseg_native" / edited).write_text("2")
    bench(*quick)
    assert len(bench.calls()) == len(bench.runs()) == (4 if again else 2)
    assert {row["n"] for row in bench.table().values()} == {"1"}


def test_without_the_references_label_map_the_reference_runs_again(bench):
    quick = "--quick", "--engines", "llvm"
    bench(*quick)
    bench.calls()
    path = bench.results / "here_runs.tsv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    for file in bench.folder.glob("work/rounds/*/*/reference/dseg.nii.gz"):
        file.unlink()
    bench(*quick)
    assert bench.calls() == ["reference 64x64x64 2 2", "llvm 64x64x64 2 2"]
    assert bench.runs()[-1]["compared_with"] == "reference"


def test_without_the_reference_tensorflow_is_compared_with(bench):
    bench("--quick", "--no-reference")
    assert [row["compared_with"] for row in bench.runs()] == [None, "tensorflow float32"]
    assert {row["n_pairs"] for row in bench.table().values()} == {"0"}


def test_what_fails_is_left_out_and_done_later(bench):
    bench.tell(llvm={"fails": "no such thing: mend it"})
    assert bench("--quick") == 0
    row = bench.table()["64x64x64", "2", "llvm float32"]
    assert (row["n"], row["median_wall_s"]) == ("0", "n/a") and "no such thing" in row["left_out"]
    assert "not measured: scan.nii: no such thing" in (bench.results / "here.md").read_text()
    assert bench.table()["64x64x64", "2", "tensorflow float32"]["equal"] == "true"
    bench.tell()
    bench.calls()
    bench("--quick")
    assert bench.calls() == ["llvm 64x64x64 2 2"]
    assert bench.table()["64x64x64", "2", "llvm float32"]["n"] == "1"


def test_an_engine_of_another_checkout_is_measured_with_its_own_code_and_interpreter(bench):
    before = bench.folder / "before"
    asked = "--quick", "--engines", "llvm", f"openvino@{before}"
    with pytest.raises(SynthSegError, match="before: has no openvino environment: make it there, with sh scripts/"):
        bench(*asked)
    made = before / ".envs/openvino-0123/bin"
    made.mkdir(parents=True)
    (before / "src").mkdir()
    shutil.copy2(bench.folder / "python", made)
    assert bench(*asked) == 0
    assert bench.calls() == [f"{who} 64x64x64 2 2" for who in ("reference", "llvm", "openvino")]
    row = bench.table()["64x64x64", "2", "openvino float32 of before"]
    assert (row["n"], row["equal"]) == ("1", "true") and "openvino of before: " in bench.runs()[-1]["versions"]


def test_nothing_measured_is_an_error(bench):
    bench.tell(llvm={"fails": "no such thing: mend it"})
    with pytest.raises(SynthSegError, match="nothing could be measured"):
        bench("--quick", "--no-reference", "--engines", "llvm")


def test_what_fails_the_check_is_not_measured(bench):
    bench.tell(llvm={"fails": "no such thing: mend it"})
    bench("--sizes", 32, "--threads", 1, "--pairs", 1, "--pairs-elsewhere", 1, "--engines", "llvm")
    assert [call for call in bench.calls() if call.startswith("llvm")] == ["llvm 64x64x64 1 1"]


def labels():
    """The stand-in's label map."""
    array = np.zeros((64, 64, 64), np.int32)
    array[8:24, 8:24, 8:24] = 2
    array[8:24, 8:24, 24:40] = 41
    return array


@pytest.fixture
def compare(tmp_path):
    """compare(precision, voxels changed, margin, volume of label 2 in mm3): what `contestants.compare` says."""

    def call(precision="float32", voxels=(), margin=1e-4, volume=4096.0):
        for name, changed, mm3 in (("reference", (), 4096.0), ("engine", voxels, volume)):
            (tmp_path / name).mkdir()
            array = labels()
            for place, label in changed:
                array[place] = label
            nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / name / "dseg.nii.gz")
            text = f"index\tsoft_volume_mm3\n2\t{mm3}\n41\t4096.0\n"
            (tmp_path / name / "volumes.tsv").write_text(text)
        image = nib.Nifti1Image(np.full((64, 64, 64), margin, np.float32), np.eye(4))
        nib.save(image, tmp_path / "engine" / "margin.nii.gz")
        task = Task(None, COMPACT, None, (64, 64, 64), 1)
        return contestants.compare(Contestant("llvm", precision), tmp_path / "engine", tmp_path / "reference", task)

    return call


@pytest.mark.parametrize(
    ("what", "equal"),
    [
        ({}, True),
        ({"voxels": [((8, 8, 8), 0)]}, False),  # 1 of 8192 is more than 1 in 100,000
        ({"precision": "bf16", "voxels": [((8, 8, 8), 0)], "margin": 0.01}, True),
        ({"precision": "bf16", "voxels": [((8, 8, n), 0) for n in range(8, 17)]}, False),  # 9 of 8192
        ({"precision": "bf16", "voxels": [((8, 8, 23), 41)]}, True),  # the other side, which is next to it
        ({"precision": "bf16", "voxels": [((0, 0, 0), 3)]}, False),  # a label that the reference lacks
        ({"precision": "bf16", "volume": 4096 * 1.0099}, True),
        ({"precision": "bf16", "volume": 4096 * 1.0101}, False),
    ],
)
def test_promise_of_each_precision(compare, what, equal):
    found = compare(**what)
    assert found["equal"] is equal
    assert found["n_different"] == len(what.get("voxels", []))


@pytest.mark.parametrize(("margin", "equal"), [(9e-4, True), (1.1e-3, False)])
def test_margin_decides_for_float32(compare, monkeypatch, margin, equal):
    monkeypatch.setitem(contestants.EQUAL["float32"], "max_fraction_different", 0.5)
    found = compare(voxels=[((8, 8, 8), 0)], margin=margin)
    assert found["equal"] is equal and found["margin_max"] == pytest.approx(margin, abs=1e-6)


def test_no_side_is_swapped_in_float32(compare, monkeypatch):
    monkeypatch.setitem(contestants.EQUAL["float32"], "max_fraction_different", 0.5)
    found = compare(voxels=[((8, 8, 23), 41)])
    assert found["n_contralateral"] == 1 and not found["equal"]


def test_broken_promise_is_in_the_report(bench):
    bench.tell(llvm={"voxels": [[[8, 8, 8], 0]]})
    bench("--quick")
    (line,) = (line for line in (bench.results / "here.md").read_text().splitlines() if "not equal" in line)
    assert "llvm float32" in line and "1 of 8192 differ from the reference, margins up to 0.0001" in line


def test_every_label_of_bf16_is_reported(bench):
    bench.tell(llvm_bf16={"voxels": [[[8, 8, 8], 0]], "volume": 4100.0})  # the stand-in computes in anything
    bench("--quick", "--engines", "llvm:bf16")
    lines = (bench.results / "here.md").read_text().splitlines()
    dice = 2 * 4095 / (4095 + 4096)
    assert f"| 2 | {dice:.5g}, 4 (0.0977) |" in lines
    assert "| 41 | 1, 0 (0) |" in lines


def test_memory_guard(bench, monkeypatch):
    asked = ["--sizes", "192x256x192", "--threads", 2, "--pairs", 1, "--pairs-elsewhere", 1]
    asked += ["--engines", "llvm", "--no-reference"]
    monkeypatch.setattr(run, "HEADLINE", (32, 32, 32))
    monkeypatch.setattr(rounds, "available_mib", lambda: 1000.0)
    bench(*asked)
    assert [call for call in bench.calls() if "192" in call] == ["llvm 192x256x192 2 2"], "compact2mm alone fits"
    left_out = [row for row in read_tsv(bench.results / "here.tsv") if row["left_out"] != "n/a"]
    assert [(row["model"], row["contestant"]) for row in left_out] == [("synthseg1size", "llvm float32")]
    assert left_out[0]["left_out"].endswith("GiB, 1 GiB are free")
    bench("--report")
    again = [row for row in read_tsv(bench.results / "here.tsv") if row["left_out"] != "n/a"]
    assert again == left_out, "what was left out is kept like what was run"


def test_expectation_follows_what_was_measured():
    task = Task(None, ROOT / "models" / "synthseg1", None, (128, 128, 128), 2)
    group = rounds.Group("synthseg1size", task, (), 1)
    guess = rounds.Expectation([])(group, Contestant("llvm"))
    bf16 = rounds.Expectation([])(group, Contestant("llvm", "bf16"))
    assert bf16[0] < guess[0]
    row = {"model": "synthseg1size", "contestant": "llvm float32", "status": "ok", "threads": 1}
    rows = [row | {"padded_voxels": 128**3 // 2, "wall_s": 30.0, "peak_rss_mib": 700.0}]
    assert rounds.Expectation(rows)(group, Contestant("llvm")) == (30.0, 1400.0)
    rows.append(row | {"padded_voxels": 128**3, "wall_s": 44.0, "peak_rss_mib": 900.0, "threads": 2})
    assert rounds.Expectation(rows)(group, Contestant("llvm")) == (44.0, 900.0)
    rows.append(rows[-1] | {"wall_s": 40.0})
    assert rounds.Expectation(rows)(group, Contestant("llvm")) == (40.0, 900.0)


def test_image_of_the_user_is_cut_and_padded(tmp_path):
    data = np.arange(30 * 40 * 50, dtype=np.float32).reshape(30, 40, 50)
    affine = np.diag([-1.0, 1, 1, 1])
    affine[:3, 3] = 10, 20, 30
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "scan.nii.gz")
    ((size, made),) = inputs.cut(tmp_path / "scan.nii.gz", [(32, 32, 50)])
    assert made.shape == size == (32, 32, 50) and nib.aff2axcodes(made.affine) == ("R", "A", "S")
    values = np.asarray(made.dataobj)
    assert np.count_nonzero(values) == np.count_nonzero(data[:, 4:36])
    for voxel in ((5, 6, 7), (20, 30, 40)):
        place = np.linalg.inv(made.affine) @ affine @ [*voxel, 1]
        assert values[tuple(np.rint(place[:3]).astype(int))] == data[voxel]


def test_access_time_tells_when_the_scan_was_read(tmp_path, bench):
    probe = tmp_path / "probe"
    probe.write_text("x")
    before = contestants._unread(probe)
    probe.read_text()
    if probe.stat().st_atime_ns == before:
        pytest.skip("this file system keeps no access times")
    bench("--quick", "--engines", "llvm")
    rows = {row["contestant"]: row for row in bench.runs()}
    assert 0 <= rows["llvm float32"]["first_read_s"] <= rows["llvm float32"]["wall_s"]
    again = contestants._unread(probe)
    assert contestants._first_read_s(probe, again, "2026-01-01T00:00:00+00:00") is None, "not read since"


def test_ends_a_run_that_takes_too_long(tmp_path, bench):
    slow = tmp_path / "slow"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    image = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4)), np.eye(4)), image)
    runner = Runner(tmp_path, {"llvm": slow}, tmp_path / "cache", timeout=0.5)
    row = runner.run(Contestant("llvm"), Task(image, COMPACT, COMPACT / "x.h5", (4, 4, 4), 1), tmp_path / "work")
    assert row["status"] == "timeout" and "longer than" in row["error"]


def test_the_flags_of_synthseg_2_reach_everybody(tmp_path):
    """Upstream knows no --model, and takes the weights by their names."""
    checkout = tmp_path / "checkout"
    files = {name: tmp_path / name for name in ("synthseg_2.0.h5", "synthseg_qc_2.0.h5")}
    for folder in (*contestants.UPSTREAM_FOLDERS, "scripts/commands"):
        (checkout / folder).mkdir(parents=True, exist_ok=True)
    (checkout / "scripts/commands/SynthSeg_predict.py").touch()
    tree = contestants.upstream_tree(checkout, files, tmp_path / "tree")
    assert {path.name: path.readlink() for path in (tree / "models").iterdir()} == files
    runner = Runner(tmp_path, {"tensorflow": "python", "llvm": "python"}, tmp_path, upstream=tree)
    task = Task(tmp_path / "a.nii", COMPACT, COMPACT, (4, 4, 4), 1, ("--parc", "--qc"), version=2)
    for engine in ("llvm", contestants.REFERENCE, contestants.UPSTREAM):
        words = runner.command(Contestant(engine), task, tmp_path)
        place = words.index("--parc")
        assert words[place : place + 3] == ["--parc", "--qc", tmp_path / "scores.csv"]
        assert "--v1" not in words and ("--model" in words) == (engine != contestants.UPSTREAM)
    old = runner.command(Contestant(contestants.UPSTREAM), Task(task.image, COMPACT, COMPACT, (4, 4, 4), 1), tmp_path)
    assert old[-1] == "--v1"


def rows_of(contestant, walls, peak=1000.0, **more):
    row = dict.fromkeys(report.RUN_COLUMNS) | {"status": "ok", "contestant": contestant, "cpu": "Zen", "cores": 2}
    row |= {"memory_gib": 24.0, "system": "Linux", "arch": "x86_64", "weights": "made 12", "image": "phantom 12"}
    row |= dict(zip(("model", "size", "threads"), pages.HEADLINE, strict=True))
    row |= {"precision": "bf16" if "bf16" in contestant else "float32", "started": "2026-01-02", "versions": "1"}
    row |= {"peak_rss_mib": peak, "other_cpu_s": 0.0, "labels_sha256": "a"} | more
    return [row | {"round": n, "wall_s": wall} for n, wall in enumerate(walls, 1) if wall is not None]


def test_ratios_are_taken_within_rounds():
    rows = rows_of("reference", [100, 200, 100]) + rows_of("upstream", [80, None, 160])
    rows += rows_of("llvm float32", [50, 50, 20], first_read_s=0.5)
    found = {row["contestant"]: row for row in report.summarise(rows)}
    row = found["llvm float32"]
    assert (row["n"], row["n_pairs"], row["median_wall_s"]) == (3, 3, 50)
    assert (row["time_ratio_median"], row["time_ratio_min"], row["time_ratio_max"]) == (0.25, 0.2, 0.5)
    assert row["upstream_time_ratio_median"] == pytest.approx((50 / 80 + 20 / 160) / 2)
    assert found["reference"]["n_pairs"] == 0 and "time_ratio_median" not in found["reference"]


def test_the_last_run_of_a_round_counts():
    rows = rows_of("reference", [100]) + rows_of("llvm float32", [70]) + rows_of("llvm float32", [60])
    row = report.summarise(rows)[-1]
    assert (row["n"], row["median_wall_s"]) == (1, 60)


def test_floors_and_goals():
    gb = 1e9 / 2**20
    rows = rows_of("upstream", [100]) + rows_of("llvm float32", [16], 1.4 * gb, first_read_s=2.5)
    cells = {
        line.split(" | ")[0].strip("| "): line.split(" | ")[3:] for line in pages.floors(report.summarise(rows))[2:]
    }
    assert cells["wall, 192x256x192, upstream = 1"] == ["0.16", "floor met |"]
    assert cells["peak memory in GB, 192x256x192"] == ["1.4", "goal met |"]
    assert cells["seconds from start to the first byte read"] == ["2.5", "**missed** |"]
    assert cells["peak memory in GB, 256x256x256"] == ["not measured", " |"]


def test_platforms_say_what_was_not_measured(tmp_path):
    report.write(rows_of("reference", [100]) + rows_of("llvm float32", [30]), {}, tmp_path, "zen")
    assert (tmp_path / "zen.png").read_bytes()[:4] == b"\x89PNG"
    lines = (tmp_path / "README.md").read_text().splitlines()
    code = read_tsv(tmp_path / "zen.tsv")[0]["code"]
    assert f"| Linux x86-64, CPU | [zen](zen.md) | 2 | llvm float32 | 30.0 | 0.30 | 1.0 | {code} |" in lines
    assert "| macOS arm64, Apple GPU | not measured |  |  |  |  |  |  |" in lines


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["--python", "/bin/sh"], "--python"),
        (["--python", "llvm=missing/python"], "missing/python: no such interpreter"),
        (["--weights", "missing.h5"], "missing.h5: no such weights file"),
        (["--upstream", "missing"], "give --upstream a checkout"),
        (["--image", "missing.nii.gz"], "missing.nii.gz"),
        (["--report"], "no runs: measure first"),
    ],
)
def test_wrong_use_is_one_line(bench, arguments, what):
    with pytest.raises(SynthSegError) as caught:
        bench("--quick", *arguments)
    assert what in str(caught.value) and "\n" not in str(caught.value)
    assert bench.calls() == []


def test_table_of_another_version_is_refused(bench):
    bench.results.mkdir(parents=True)
    (bench.results / "here_runs.tsv").write_text("key\twall\na\t1\n")
    with pytest.raises(SynthSegError, match="another version"):
        bench("--quick")


def test_real_engine_and_reference(tmp_path, tensorflow_python, llvm_python):
    script = ROOT / "benchmarks" / "run.py"
    command = [sys.executable, script, "--quick", "--engines", "llvm", "--name", "here", "--threads", "1"]
    command += ["--python", f"tensorflow={tensorflow_python}", "--python", f"llvm={llvm_python}"]
    command += ["--results", tmp_path / "r", "--work", tmp_path / "w"]
    command += ["--image", ROOT / "tests" / "golden" / "t1_image.nii.gz"]  # a phantom takes longer than both
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reference, engine = (report.parse(row) for row in read_tsv(tmp_path / "r" / "here_runs.tsv"))
    assert (reference["contestant"], engine["contestant"]) == ("reference", "llvm float32")
    assert engine["equal"] and engine["n_foreground"] > 1000 and engine["compared_with"] == "reference"
    assert 200 < engine["peak_rss_mib"] < 4000 and engine["network_s"] > 0
