"""One run of the workflow, with a fake engine and a fake reference in place of the network."""

import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from processes import alive, hear_ctrl_c, ignore_ctrl_c, wait_for
from rule_patterns import patterns
from synthseg_native import errors, memory, shared_disk
from synthseg_native.cohort import paths
from synthseg_native.cohort.runs import failures, files, native, reference
from synthseg_native.cohort.runs.existing import find_existing
from synthseg_native.cohort.runs.work import close_work, may_publish, open_work, publish
from synthseg_native.files import is_sealed, sha256_of
from synthseg_native.results import record
from synthseg_native.scan import reading

ROOT = Path(__file__).parents[2]
SCAN = "sub-01/ses-a/anat/sub-01_ses-a_acq-fast_run-2_T1w"
RUN = f"{Path(SCAN).name}_seg-compact2mm_res-2mm"
LABELS = np.zeros((12, 13, 14), np.int32)
LABELS[2:6, 2:6, 2:6] = 17
LABELS[7:9, 7:9, 7:9] = 53

# Plays the engine (`-m synthseg_native ...`) and the reference (`.../reference.py ...`); FAKE says how it behaves.
FAKE = """#!{python}
import json, os, signal, sys, time
from pathlib import Path
mode = os.environ.get("FAKE", "ok")
if "-c" in sys.argv[1:3]:
    print("tensorflow 9.9"); sys.exit()
args = dict(zip(sys.argv[1:], sys.argv[2:]))
Path(os.environ["FAKE_PID"]).write_text(str(os.getpid()))
def record(**fields):
    if "--record" in args:
        Path(args["--record"]).write_text(json.dumps(fields))
if mode == "bad":
    message = args["--i"] + ": 4 dimensions: give a 3-D image"
    record(error={{"code": "bad_input", "message": message}})
    if "--record" in args:
        sys.exit(3)
    sys.exit("reference.py: " + message)
if mode == "disk":
    sys.exit("OSError: [Errno 28] No space left on device")
if mode == "unsaid":
    sys.exit(120)
if mode == "memory":
    sys.exit("tensorflow: OOM when allocating tensor")
if mode == "crash":
    print("first line", file=sys.stderr); sys.exit("Segment fault in layer 3")
if mode == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if mode == "sleep":
    time.sleep(60)
if mode == "slow":
    time.sleep(2)
if mode == "nothing":
    sys.exit()
value, size = "nan" if mode == "nan" else "63.2", float("nan") if mode == "odd" else 1
for flag in ("--o", "--native-grid", "--margin"):
    if flag in args:
        Path(args[flag]).write_bytes(Path({made!r}, flag + ".nii.gz").read_bytes())
if "--vol" in args:
    Path(args["--vol"]).write_text("subject,left hippocampus,right hippocampus\\r\\nx," + value + ",7.9\\r\\n")
    if mode == "odd":
        Path(args["--vol"]).write_text("subject,left hippocampus\\r\\nx\\r\\n")
if "--margin" in args:
    Path(args["--volumes-tsv"]).write_text("index\\n17\\n")
    native_grid = {{"shape": [6, 13, 14], "voxel_mm": [2, 1, 1], "interpolation": args["--interpolation"]}}
    record(engine={{"name": "tensorflow", "version": "9.9"}}, model={{"name": "compact2mm", "research_grade": False}},
           input={{"name": "scan.nii.gz"}},
           output={{"labels_sha256": "0", "voxel_mm": [size, 1, 1], "native_grid": native_grid}},
           seconds={{"network": 1.5}}, predicted_peak_mib=5, device="cpu", started="never", wall_s=-1)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What plays the network has segmented."""
    folder, own = tmp_path_factory.mktemp("made"), np.eye(4)
    images = {"--o": (LABELS, own), "--margin": (np.ones(LABELS.shape, np.uint16), own)}
    images["--native-grid"] = LABELS[::2], np.diag([2.0, 1, 1, 1])
    for flag, (data, affine) in images.items():
        nib.save(nib.Nifti1Image(data, affine), folder / f"{flag}.nii.gz")
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A folder with an image, a fake interpreter, and room for results."""
    fake = tmp_path / "fake"
    fake.write_text(FAKE.format(python=sys.executable, made=str(made)))
    fake.chmod(0o755)
    monkeypatch.setenv("FAKE_PID", str(tmp_path / "pid"))
    monkeypatch.setenv("SYNTHSEG_NATIVE_LET_THROUGH", "FAKE,FAKE_PID")
    rng = np.random.default_rng(1)
    nib.save(nib.Nifti1Image(rng.normal(100, 9, (12, 13, 14)).astype(np.float32), np.eye(4)), tmp_path / "scan.nii.gz")
    return tmp_path


def arguments(place, kind, image="scan.nii.gz", settings=(), options=()):
    """The command line of scripts/native.py or scripts/reference.py, and where its results go."""
    names = files.NATIVE_FILES if kind == "native" else files.REFERENCE_FILES
    places = {name: place / "results" / kind / file for name, file in {**names, "record": f"{RUN}_run.json"}.items()}
    common = {"engine": "tensorflow", "precision": "float32", "threads": 1, "device": "cpu"}
    both = {**(common if kind == "native" else {"kind": "own", "runtime": "local", "threads": 1}), **dict(settings)}
    line = [sys.executable, ROOT / f"scripts/{kind}.py", "--scan", SCAN, "--image", place / image]
    line += ["--settings", json.dumps(both), "--python", place / "fake", "--model", ROOT / "models/compact2mm"]
    line += ["--weights", ROOT / "models/compact2mm/compact2mm.h5", "--failures", place / "failed", *options]
    line += ["--verification", place / "env"] if kind == "native" else []
    for name, path in places.items():
        line += [f"--{name.replace('_', '-')}", path]
    return [str(part) for part in line], places


def environment(mode):
    return {**os.environ, "FAKE": mode, "PYTHONPATH": str(ROOT / "src")}


def call(place, kind, mode="ok", **kwargs):
    """The step in this process, which has all imported: its exit status, what it said, where its results go."""
    line, places = arguments(place, kind, **kwargs)
    spec = importlib.util.spec_from_file_location(f"step_{kind}", line[1])
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    out, err = io.StringIO(), io.StringIO()
    try:
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setenv("FAKE", mode)
            status = script.main(line[2:])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return SimpleNamespace(returncode=status, stdout=out.getvalue(), stderr=err.getvalue()), places


def failed(place, kind):
    engine = "tensorflow" if kind == "native" else "reference"
    path = (place / "failed" / engine / SCAN).with_name(f"{RUN}.json")
    return json.loads(path.read_text()) if path.exists() else None


def nothing_left(place):
    return not list(place.glob("results/*/.work*"))


@pytest.mark.parametrize("kind", ["native", "reference"])
def test_a_good_run_publishes_everything_and_one_record_schema(place, kind):
    done, places = call(place, kind)
    assert done.returncode == 0
    began, ended = done.stdout.splitlines()
    assert began.startswith(Path(SCAN).name) and began.endswith(" runs") and " done in " in ended
    assert all(path.is_file() for path in places.values())
    assert nothing_left(place) and failed(place, kind) is None
    made = json.loads(places["record"].read_text())
    assert list(made) == [*record.new(kind, []), "seal"] and is_sealed(made)
    assert (made["kind"], made["status"], made["error"], made["scan"]) == (kind, "ok", None, SCAN)
    assert made["files"] == {name: sha256_of(path) for name, path in places.items() if name != "record"}
    assert made["wall_s"] > 0 and made["peak_rss_mib"] > 5 and made["started"] < made["finished"]
    assert made["engine"]["version"].endswith("9.9") and made["model"]["name"] == "compact2mm"
    assert made["key"]["threads"] == 1 and made["input"]["name"] == "scan.nii.gz"
    # What plays the network takes what an interpreter takes: far off either prediction, which is told in one line.
    way = "above" if kind == "native" else "below"
    assert f"% {way} the predicted {made['predicted_peak_mib']} MiB" in made["memory_remark"]
    assert done.stderr == f"{Path(SCAN).name}: {made['engine']['name']}: {made['memory_remark']}\n"


def test_a_reference_that_cannot_fit_is_not_started(place, monkeypatch):
    monkeypatch.setattr(memory, "limit_mib", lambda: 100)
    settings = {"kind": "own", "runtime": "local", "threads": 1}
    work = place / "work"
    work.mkdir()
    folder = ROOT / "models/compact2mm"
    weights = folder / "compact2mm.h5"
    made = reference.run_reference(SCAN, place / "scan.nii.gz", settings, place / "fake", folder, weights, work)
    assert (made["status"], made["error"]["code"], made["wall_s"]) == ("failed", "oom", None)
    assert made["error"]["message"].endswith("there are 0.1 GB: what fits: a machine with more memory")
    assert made["predicted_peak_mib"] > 100 and not (place / "pid").exists()


def test_a_native_run_makes_both_label_maps_and_says_what_they_are(place):
    done, places = call(place, "native", settings={"interpolation": "nearest"})
    assert done.returncode == 0
    assert nib.load(places["dseg"]).shape == (12, 13, 14) and nib.load(places["dseg_native"]).shape == (6, 13, 14)
    about = {name: json.loads(places[name].read_text()) for name in ("sidecar", "sidecar_native")}
    assert about["sidecar"]["Resolution"] != about["sidecar_native"]["Resolution"]
    assert "1x1x1 mm" in about["sidecar"]["Resolution"] and "2x1x1 mm" in about["sidecar_native"]["Resolution"]
    assert json.loads(places["record"].read_text())["output"]["native_grid"]["interpolation"] == "nearest"


@pytest.mark.parametrize("kind", ["native", "reference"])
def test_mode_crop_and_ct_become_flags(place, kind):
    settings = {"mode": "fast", "crop": [96, 64, 80], "ct": True}
    _, places = call(place, kind, settings=settings)
    made = json.loads(places["record"].read_text())
    line = " ".join(made["command"])
    assert "--ct --fast --crop 96 64 80" in line and made["mode"] == "fast"
    _, places = call(place, kind)
    made = json.loads(places["record"].read_text())
    assert not {"--ct", "--fast", "--crop", "--accept"} & set(made["command"]) and made["mode"] == "default"


@pytest.mark.parametrize("kind", ["native", "reference"])
def test_a_header_fault_is_taken_where_the_sheet_says_so(place, kind):
    image = nib.load(place / "scan.nii.gz")
    image.header.set_sform(None, code=0)
    image.header.set_qform(None, code=0)
    nib.save(nib.Nifti1Image(image.get_fdata(), None, image.header), place / "bare.nii.gz")
    done, places = call(place, kind, image="bare.nii.gz", settings={"accept": ["no_orientation", "voxel_size_differs"]})
    assert done.returncode == 0, done.stderr
    made = json.loads(places["record"].read_text())
    if kind == "native":
        assert "--accept no_orientation,voxel_size_differs" in " ".join(made["command"])
    else:
        assert "no_orientation" in made["input"]["header_flags"]
        done, _ = call(place, kind, image="bare.nii.gz")
        assert done.returncode == 3 and "accept" in done.stderr and done.stderr.count("\n") == 1


def test_the_reference_gets_the_volumes_and_facts_of_a_native_run(place):
    _, places = call(place, "reference")
    made = json.loads(places["record"].read_text())
    assert made["reference"] == {"kind": "own", "runtime": "local", "id": None, "emulated": False}
    assert made["output"]["shape"] == [12, 13, 14] and len(made["output"]["labels_sha256"]) == 64
    assert made["input"]["orientation"] == "RAS" and made["model"]["research_grade"] is False
    rows = [line.split("\t") for line in places["volumes"].read_text().splitlines()]
    measures = ["soft_volume_mm3", "n_voxels", "voxel_volume_mm3", "mean_posterior", "at_fov_edge"]
    assert rows[0] == ["index", "name", "freesurfer_name", *measures]
    assert len(rows) == 32
    assert ["17", "left hippocampus", "Left-Hippocampus", "63.200", "64", "64.000", "n/a", "n/a"] in rows
    assert ["53", "right hippocampus", "Right-Hippocampus", "7.900", "8", "8.000", "n/a", "n/a"] in rows


@pytest.mark.parametrize("kind", ["native", "reference"])
@pytest.mark.parametrize(
    ("mode", "code", "transient", "says"),
    [
        ("bad", "bad_input", False, "scan.nii.gz: 4 dimensions: give a 3-D image"),
        ("disk", "disk", True, "the disk is full"),
        ("unsaid", "disk", True, "what it had to say could not be written: make room on the disk"),
        ("memory", "oom", True, "not enough memory"),
        ("kill", "killed", True, "ended by SIGKILL"),
        ("crash", "internal", False, "status 1: Segment fault in layer 3"),
        ("nothing", "internal", False, "did not write it"),
    ],
)
def test_a_failure_has_a_code_one_line_and_no_results(place, kind, mode, code, transient, says):
    if mode == "kill" and sys.platform != "linux":
        pytest.skip("only Linux counts what it kills for memory")
    done, places = call(place, kind, mode)
    assert done.returncode == errors.EXIT_CODES[code]
    assert says in done.stderr and done.stderr.count("\n") == 1
    found = failed(place, kind)
    assert (found["status"], found["error"]["code"], found["error"]["transient"]) == ("failed", code, transient)
    assert found["error"]["message"] == done.stderr.strip()
    assert not any(path.exists() for path in places.values()) and nothing_left(place)
    assert ("first line" in done.stdout) == (mode == "crash")  # what it said is in the log

    done, places = call(place, kind)  # repaired
    assert done.returncode == 0 and failed(place, kind) is None and places["dseg"].exists()


@pytest.mark.parametrize(("kind", "says"), [("native", "ValueError: "), ("reference", "ValueError: zip() ")])
def test_an_unexpected_exception_becomes_a_record_and_a_line(place, kind, says):
    done, places = call(place, kind, "odd")
    assert done.returncode == 1 and done.stderr.startswith(f"{SCAN}: {says}") and done.stderr.count("\n") == 1
    assert "Traceback" in done.stdout and "cohort/runs/" in done.stdout
    found = failed(place, kind)
    assert (found["status"], found["error"]["code"], found["scan"]) == ("failed", "internal", SCAN)
    assert found["error"]["message"] == done.stderr.strip() and found["key"]["threads"] == 1 and found["finished"]
    assert not any(path.exists() for path in places.values()) and nothing_left(place)


def test_a_soft_volume_that_is_no_number_is_missing(place):
    done, places = call(place, "reference", "nan")
    assert done.returncode == 0
    rows = [line.split("\t") for line in places["volumes"].read_text().splitlines()]
    assert ["17", "left hippocampus", "Left-Hippocampus", "n/a", "64", "64.000", "n/a", "n/a"] in rows
    assert ["53", "right hippocampus", "Right-Hippocampus", "7.900", "8", "8.000", "n/a", "n/a"] in rows


def test_a_flat_image_is_refused_by_the_reference_in_the_engines_words(place):
    nib.save(nib.Nifti1Image(np.ones((20, 20), np.float32), np.eye(4)), place / "flat.nii.gz")
    with pytest.raises(errors.SynthSegError) as caught:
        reading.read(place / "flat.nii.gz")
    done, _ = call(place, "reference", image="flat.nii.gz")
    assert (done.returncode, done.stderr) == (3, f"{caught.value.message}\n")
    assert failed(place, "reference")["error"]["code"] == "bad_input"


def test_failures_of_another_model_and_resolution_stay_apart(tmp_path):
    found = set()
    for model in ("synthseg1", "compact2mm"):
        for grid in ("1mm", "2mm"):
            record = patterns(tmp_path, model, grid).path("record", "tensorflow", SCAN)
            found.add(str(paths.failure_of(tmp_path / ".state/failed", "tensorflow", SCAN, record)))
    assert len(found) == 4
    assert f"{tmp_path}/.state/failed/tensorflow/{SCAN}_seg-compact2mm_res-2mm.json" in found


@pytest.mark.parametrize("kind", ["native", "reference"])
def test_a_missing_image_is_one_line(place, kind):
    done, _ = call(place, kind, image="gone.nii.gz")
    assert (done.returncode, done.stderr) == (3, f"{place}/gone.nii.gz: no such file: correct the path\n")
    assert failed(place, kind)["error"]["code"] == "bad_input"


@pytest.mark.parametrize("kind", ["native", "reference"])
def test_a_row_that_the_sheet_refuses_is_not_run(place, kind):
    """Whatever lies where its image would be (tests/unit/test_bad_rows.py)."""
    done, places = call(place, kind, settings={"refused": "sub-01: no image: name one"})
    assert (done.returncode, done.stderr, done.stdout) == (3, "sub-01: no image: name one\n", "")
    assert failed(place, kind)["error"]["code"] == "bad_input" and not any(path.exists() for path in places.values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["native", "reference"])
def test_a_run_that_takes_too_long_is_ended(place, kind):
    done, _ = call(place, kind, "sleep", options=["--timeout-min", "0.02"])
    assert done.returncode == 4 and "took longer than 1 s" in done.stderr
    assert failed(place, kind)["error"]["code"] == "timeout"
    assert not alive(int((place / "pid").read_text()))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "hears"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_a_stopped_step_leaves_neither_processes_nor_files(place, number, hears):
    """One that does not hear Ctrl-C is ended by Snakemake's process, which has said why."""
    line, places = arguments(place, "native")
    pipes = {"stderr": subprocess.PIPE, "text": True, "preexec_fn": hear_ctrl_c if hears else ignore_ctrl_c}
    process = subprocess.Popen(line, env=environment("sleep"), **pipes)
    assert wait_for((place / "pid").exists)
    process.send_signal(number)
    assert process.wait(20) == 128 + number
    assert process.stderr.read() == (f"{SCAN}: stopped by SIGINT: call again\n" if hears else "")
    assert wait_for(lambda: not alive(int((place / "pid").read_text())), 3)
    assert nothing_left(place) and not places["dseg"].exists()
    assert failed(place, "native")["error"]["code"] == "killed"


@pytest.mark.slow
def test_a_killed_step_takes_its_child_along_and_the_next_one_clears_up(place):
    line, places = arguments(place, "native")
    process = subprocess.Popen(line, env=environment("sleep"))
    assert wait_for(lambda: (place / "pid").exists() and (place / "pid").read_text())
    process.kill()
    process.wait()
    assert wait_for(lambda: not alive(int((place / "pid").read_text())), 5)
    assert not nothing_left(place)
    done, _ = call(place, "native")
    assert done.returncode == 0 and places["dseg"].exists() and nothing_left(place)


@pytest.mark.slow
def test_of_two_processes_on_one_result_the_later_one_writes_it(place):
    line, places = arguments(place, "native", settings={"mark": "old"})
    orphan = subprocess.Popen(line, env=environment("slow"), stderr=subprocess.PIPE, text=True)
    assert wait_for((place / "pid").exists)
    done, _ = call(place, "native", settings={"mark": "new"})
    assert done.returncode == 0
    assert orphan.wait(20) == 1 and "another process has taken this over" in orphan.stderr.read()
    assert json.loads(places["record"].read_text())["key"]["mark"] == "new"
    assert all(path.exists() for path in places.values())
    assert nothing_left(place) and failed(place, "native") is None


@pytest.mark.slow
def test_the_orphan_that_fails_does_not_spoil_the_later_success(place):
    line, _ = arguments(place, "native")
    orphan = subprocess.Popen(line, env=environment("sleep"), stderr=subprocess.DEVNULL)
    assert wait_for((place / "pid").exists)
    done, places = call(place, "native")
    orphan.terminate()
    assert orphan.wait(20) == 1 and done.returncode == 0
    assert places["dseg"].exists() and failed(place, "native") is None and nothing_left(place)


def test_work_folders_of_other_hosts_are_left_alone(tmp_path, monkeypatch):
    root, here = tmp_path / ".work-run.json", shared_disk.me()
    with monkeypatch.context() as node7:
        node7.setattr(shared_disk, "me", lambda: replace(here, host="node7/00000007", boot="its own"))
        theirs = open_work(root)
    with monkeypatch.context() as earlier:
        earlier.setattr(shared_disk, "me", lambda: replace(here, boot="before the restart"))
        left = open_work(root)
    assert theirs.is_dir() and left.is_dir()
    mine = open_work(root)
    assert theirs.is_dir() and not left.exists() and mine.is_dir()
    assert may_publish(root, mine) and not may_publish(root, theirs)
    close_work(root, mine)
    assert theirs.is_dir() and not may_publish(root, theirs)
    close_work(root, theirs)
    assert not root.exists()


def test_a_disk_that_fills_up_while_publishing_leaves_nothing(tmp_path, monkeypatch):
    work = tmp_path / "work"
    work.mkdir()
    places = {name: tmp_path / file for name, file in {**files.REFERENCE_FILES, "record": "run.json"}.items()}
    for path in places.values():
        (work / path.name).write_text("x")
    original, calls = Path.replace, []

    def replace(self, target):
        calls.append(self.name)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return original(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(OSError, match="No space"):
        publish(work, places)
    assert not any(path.exists() for path in places.values())
    monkeypatch.undo()
    (work / "dseg.nii.gz").write_text("x")
    (work / "dseg.json").write_text("x")
    calls.clear()
    monkeypatch.setattr(Path, "replace", lambda self, target: calls.append(self.name) or original(self, target))
    publish(work, places)
    assert all(path.exists() for path in places.values())
    assert calls[-1] == "run.json"  # what the record speaks of is there before it


def test_a_kill_counts_as_memory_only_where_the_kernel_says_so(monkeypatch):
    kill = {"signal": 9, "returncode": 137, "peak_rss_mib": 900.0, "timed_out": False}
    assert failures.failure(137, {**kill, "oom_kills": 1}, "", "x.nii").code == "oom"
    assert failures.failure(137, {**kill, "oom_kills": 0}, "", "x.nii").code == "killed"
    # A kernel that does not count: judged by the share of the machine's memory.
    monkeypatch.setattr(os, "sysconf", lambda name: {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**18}[name])
    assert failures.failure(-9, {**kill, "oom_kills": None}, "", "x.nii").code == "oom"
    assert failures.failure(-9, {**kill, "oom_kills": None, "peak_rss_mib": 100.0}, "", "x.nii").code == "killed"
    monkeypatch.setattr(failures.verify, "memory_bytes", lambda: 0)  # a system that does not tell
    assert failures.failure(-9, {**kill, "oom_kills": None}, "", "x.nii").code == "killed"


def test_a_status_above_all_signals_is_no_signal():
    error = failures.failure(255, {}, "FATAL: container creation failed: mount /x: no such file", "x.nii")
    assert (error.code, error.message.count("FATAL: container creation failed")) == ("internal", 1)
    assert failures.failure(143, {}, "", "x.nii").message == "x.nii: ended by SIGTERM: call again"


def test_the_device_is_this_machines_verified_one(tmp_path, monkeypatch):
    settings = {"engine": "tensorflow", "device": "auto", "threads": 1}
    findings, calls = [None, {"decision": {"device": "gpu", "reason": "it passed"}}], []
    monkeypatch.setattr(native.verify, "ensure_verified", lambda name, folder: findings.pop(0))
    monkeypatch.setattr(
        native.child, "call", lambda command, log, environment: calls.append([str(c) for c in command]) or 0
    )
    assert native.device_of(settings, "python", tmp_path / "env", tmp_path) == ("gpu", "it passed")
    mark = native.verify.fingerprint("tensorflow")[:8]  # a node of its own kind gets a file of its own
    assert calls[0][-1] == str(tmp_path / "env" / f"tensorflow-{mark}.json") and "verify_env.py" in calls[0][1]

    findings = [None, None]
    assert native.device_of(settings, "python", tmp_path, tmp_path)[0] == "cpu"
    findings = [{"decision": {"device": None, "reason": "no module tensorflow"}}]
    with pytest.raises(errors.SynthSegError, match="no device works here: no module tensorflow"):
        native.device_of(settings, "python", tmp_path, tmp_path)
    assert len(calls) == 2
    assert native.device_of({**settings, "device": "cpu"}, "python", tmp_path, tmp_path)[0] == "cpu"


# --- existing label maps ---------------------------------------------------------------------------------------------


def existing(place, pattern):
    return call(place, "reference", settings={"kind": "existing", "runtime": "none", "pattern": str(place / pattern)})


def test_takes_the_label_map_that_the_user_has(place):
    affine = np.diag([1.0, 2.0, 1.0, 1.0])
    path = place / "fs" / "sub-01" / "ses-a" / "acq-fast_run-2_T1w.mgz"
    path.parent.mkdir(parents=True)
    nib.save(nib.MGHImage(LABELS.astype(np.float32), affine), path)
    done, places = existing(place, "fs/{participant_id}/{session_id}/{acq}_{run}_{suffix}.mgz")
    assert done.returncode == 0, done.stderr
    labels = nib.load(places["dseg"])
    assert labels.get_data_dtype() == np.int32 and np.array_equal(np.asarray(labels.dataobj), LABELS)
    assert np.allclose(labels.affine, affine)
    made = json.loads(places["record"].read_text())
    assert (made["wall_s"], made["threads"], made["seconds"]["total"]) == (None, None, None)
    assert made["reference"]["kind"] == "existing" and made["reference"]["runtime"] == "none"
    assert set(made["model"].values()) == {None}
    about = json.loads(places["sidecar"].read_text())  # nobody knows which model made it
    assert about["SegmentationMethod"] == "existing label map" and "ResearchGrade" not in about
    assert ["17", "left hippocampus", "Left-Hippocampus", "n/a", "64", "128.000", "n/a", "n/a"] in [
        line.split("\t") for line in places["volumes"].read_text().splitlines()
    ]


@pytest.mark.parametrize(
    ("files", "pattern", "says"),
    [
        ([], "{scan}.nii.gz", "no file fits"),
        (["a/seg.nii.gz", "b/seg.nii.gz"], "*/seg.nii.gz", "2 files fit"),
        (["seg.nii.gz"], "seg.{extension}", "not understood"),
        (["seg.nii.gz"], "seg.{scan.x}", "not understood"),
    ],
)
def test_a_pattern_that_does_not_name_one_file_is_one_line(place, files, pattern, says):
    for file in files:
        (place / file).parent.mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(LABELS, np.eye(4)), place / file)
    done, _ = existing(place, pattern)
    assert done.returncode in (2, 3) and says in done.stderr and done.stderr.count("\n") == 1


def test_an_image_is_no_label_map(place):
    done, _ = existing(place, "scan.nii.gz")
    assert done.returncode == 3 and "not a label map" in done.stderr
    (place / "cut.nii.gz").write_bytes((place / "scan.nii.gz").read_bytes()[:200])
    done, _ = existing(place, "cut.nii.gz")
    assert done.returncode == 3 and "cut.nii.gz" in done.stderr and done.stderr.count("\n") == 1


def test_pattern_knows_globs_and_scans(tmp_path):
    shutil.copy(ROOT / "LICENSE", tmp_path / "sub-01_ses-a_acq-fast_run-2_T1w_synthseg.nii.gz")
    found = find_existing(f"{tmp_path}/{{scan}}*synthseg.nii*", SCAN)
    assert [Path(path).name for path in found] == ["sub-01_ses-a_acq-fast_run-2_T1w_synthseg.nii.gz"]
