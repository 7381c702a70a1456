"""What the rules ask of a configuration: runs, files and identities, without running anything."""

import json
import os

import nibabel as nib
import numpy as np
import pytest

from rule_patterns import with_patterns
from synthseg_native import memory, shared_disk
from synthseg_native.cohort import demands, deploy, environments, ranking, state
from synthseg_native.cohort.benchmark import COLUMNS, RUN_COLUMNS
from synthseg_native.cohort.plan import Plan
from synthseg_native.cohort.tables import write_tsv
from synthseg_native.errors import SynthSegError

BASICS = {"samples": "samples.tsv", "model": "compact2mm", "allow_small_model": True, "engines": ["tensorflow"]}


@pytest.fixture
def make(root, tmp_path, monkeypatch):
    """Make a plan in an empty working directory, with images 01, 02, ... of a few bytes."""
    monkeypatch.chdir(tmp_path)

    def plan(scans=("01", "02"), **config):
        rows = [f"{scan}\timages/{scan}.nii" for scan in scans]
        (tmp_path / "samples.tsv").write_text("\n".join(["participant_id\timage", *rows]) + "\n")
        (tmp_path / "images").mkdir(exist_ok=True)
        for scan in scans:
            image = tmp_path / f"images/{scan}.nii"
            if not image.exists():
                image.write_text(f"image {scan}")
        dry_run = config.pop("dry_run", False)
        return with_patterns(Plan(BASICS | config, root, dry_run))

    return plan


def scan_of(name):
    return f"sub-{name}/anat/sub-{name}_T1w"


def test_there_is_no_default_model(make):
    with pytest.raises(SynthSegError, match="model: not set: choose one of compact2mm, synthseg1, synthseg2"):
        make(model=None)


def test_a_small_model_never_passes_for_synthseg(make):
    with pytest.raises(SynthSegError, match="allow_small_model: true"):
        make(allow_small_model=False)


def test_weights_that_are_named_must_be_there(make):
    with pytest.raises(SynthSegError, match=r"config: weights: nowhere\.h5: no such weights file"):
        make(weights="nowhere.h5")


def test_official_weights_are_no_input_and_known_by_their_card(make, tmp_path):
    plan = make(model="synthseg1", weights_cache=str(tmp_path / "cache"))
    assert plan.weights_files["synthseg_1.0.h5"].fetched
    assert plan.weights == str(tmp_path / "cache/synthseg_1.0.h5")
    assert plan.identities.weights_key() == "7d2e32d298fe"
    assert plan.identities.native_settings("tensorflow", scan_of("01")) == make(
        model="synthseg1"
    ).identities.native_settings("tensorflow", scan_of("01")), "where the cache lies is no reason to run again"


def test_own_weights_are_known_by_their_content(make, tmp_path):
    (tmp_path / "own.h5").write_text("weights")
    first = make(weights="own.h5").identities.weights_key()
    (tmp_path / "own.h5").write_text("others!")
    assert make(weights="own.h5").identities.weights_key() != first


def test_content_decides_not_the_time_stamp(make, tmp_path):
    def key():
        plan = make()
        found = json.loads(plan.identities.native_settings("tensorflow", scan_of("01")))["content"]
        deploy.prepare(plan)
        return found

    image, first = tmp_path / "images/01.nii", key()
    os.utime(image, (0, 0))
    assert key() == first
    image.write_text("other 01")
    os.utime(image, (0, 1))
    assert key() != first


def test_an_image_that_vanished_keeps_its_key(make, tmp_path):
    plan = make()
    before = plan.identities.native_settings("tensorflow", scan_of("01"))
    deploy.prepare(plan)
    (tmp_path / "images/01.nii").unlink()
    assert with_patterns(Plan(BASICS, plan.root)).identities.native_settings("tensorflow", scan_of("01")) == before


def test_an_image_is_an_input_only_where_the_workflow_makes_it(make):
    """Its content decides: neither its place nor its time."""
    plan = make()
    assert plan.image(scan_of("01")) == plan.benchmarked_images() == []
    plan.demo_images = [plan.image_path(scan_of("01"))]
    assert plan.image(scan_of("01")) == ["images/01.nii"]


def test_results_of_a_vanished_image_are_asked_for_where_they_are_there(make, tmp_path):
    plan = make()
    (tmp_path / "images/01.nii").unlink()
    dseg = tmp_path / plan.path("dseg", "tensorflow", scan_of("01"))
    dseg.parent.mkdir(parents=True)
    dseg.touch()
    assert plan.wanted_of("tensorflow", scan_of("01")) == [str(dseg.relative_to(tmp_path))], "no other can be made"


def test_a_picture_of_a_vanished_image_is_asked_for_only_where_it_is_there(make, tmp_path):
    plan = make(("01",))
    picture = plan.path("picture", "tensorflow", scan_of("01"))
    assert picture.endswith("sub-01_T1w_seg-compact2mm_res-2mm_qc.png") and picture in plan.wanted_runs()
    for path in plan.files("tensorflow", scan_of("01")).values():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / "images/01.nii").unlink()
    assert picture not in plan.wanted_runs(), "it cannot be drawn again"
    (tmp_path / picture).touch()
    assert picture in plan.wanted_runs()


def test_a_picture_names_the_model_and_that_it_is_small(make):
    scan = scan_of("01")
    assert make().title("tensorflow", scan) == "sub-01_T1w · compact2mm (not for research) · tensorflow"
    assert make(model="synthseg1").title("tensorflow", scan) == "sub-01_T1w · synthseg1 · tensorflow"


def test_both_label_maps_have_their_names(make):
    files = make().files("tensorflow", "sub-01/anat/sub-01_T1w")
    start = "results/tensorflow/sub-01/anat/sub-01_T1w_seg-compact2mm_res-"
    assert (files["dseg"], files["sidecar"]) == (f"{start}2mm_dseg.nii.gz", f"{start}2mm_dseg.json")
    assert (files["dseg_native"], files["sidecar_native"]) == (f"{start}native_dseg.nii.gz", f"{start}native_dseg.json")
    assert set(make().files("reference", scan_of("01"))) == {"dseg", "sidecar", "volumes", "record"}


def test_mode_and_crop_run_both_again_interpolation_the_native_run_alone(make):
    def settings(**config):
        plan = make(("01",), **config)
        both = (
            plan.identities.native_settings("tensorflow", scan_of("01")),
            plan.identities.reference_settings(scan_of("01")),
        )
        return [json.loads(text) for text in both]

    native, reference = settings()
    for change in ({"mode": "fast"}, {"crop": 96}, {"crop": [96, 96, 64]}):
        again = settings(**change)
        assert again[0] != native and again[1] != reference
    nearest = settings(interpolation="nearest")
    assert nearest[0] != native and nearest[1] == reference
    assert settings(crop=96) == settings(crop=[96, 96, 96])
    existing = {"kind": "existing", "pattern": "maps/{scan}.nii"}
    assert settings(reference=existing)[1] == settings(reference=existing, mode="fast", crop=96, threads=2)[1]


def test_what_a_row_accepts_is_part_of_both_runs(make, tmp_path):
    plan = make(("01",))
    sheet = tmp_path / "samples.tsv"
    sheet.write_text("participant_id\timage\taccept\n01\timages/01.nii\tno_orientation\n")
    accepting = Plan(BASICS, plan.root)
    for settings in (
        lambda plan: plan.identities.native_settings("tensorflow", scan_of("01")),
        lambda plan: plan.identities.reference_settings(scan_of("01")),
    ):
        assert json.loads(settings(plan))["accept"] == []
        assert json.loads(settings(accepting))["accept"] == ["no_orientation"]


def test_a_path_with_braces_is_no_input_and_known_by_its_content(make, tmp_path):
    """Snakemake would take them for a wildcard."""
    image = tmp_path / "images/{scan}.nii"
    root, name = make(("01",)).root, scan_of("01")
    (tmp_path / "samples.tsv").write_text("participant_id\timage\n01\timages/{scan}.nii\n")
    seen = set()
    for content in ("one", "other"):
        image.write_text(content)
        plan = with_patterns(Plan(BASICS | {"benchmark": {"scans": 1}}, root))
        assert plan.image(name) == plan.benchmarked_images() == []
        seen.add(json.loads(plan.identities.native_settings("tensorflow", name))["content"])
    assert len(seen) == 2 and None not in seen


def test_a_row_more_does_not_draw_anew(make):
    names = [f"{number:03}" for number in range(40)]
    options = {"reference": {"runtime": "local", "subjects": 5}}
    before = set(make(names, **options).compared)
    after = set(make([*names, "040"], **options).compared)
    assert len(before) == len(after) == 5 and len(before & after) >= 4
    assert set(make(names, reference={"runtime": "local", "subjects": 5, "seed": 1}).compared) != before


def test_existing_label_maps_are_known_by_content_and_may_vanish(make, tmp_path):
    options = {"reference": {"kind": "existing", "pattern": "maps/{participant_id}.nii"}}
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps/sub-01.nii").write_text("map")

    def key():
        plan = make(("01",), **options)
        found = json.loads(plan.identities.reference_settings(scan_of("01")))["existing"]
        deploy.prepare(plan)
        return found

    first = key()
    (tmp_path / "maps/sub-01.nii").write_text("map two")
    second = key()
    (tmp_path / "maps/sub-01.nii").unlink()
    assert first and first != second == key()


def test_the_demo_never_names_images_of_the_sheet(make):
    """Snakemake deletes a job's outputs before it runs: one's own scans must never be among the demo's."""
    assert make().demo_images == []


def test_the_manifest_of_a_run_in_progress_cannot_change_under_it(make, tmp_path):
    assert make().manifest.path(tmp_path) != make(("01",)).manifest.path(tmp_path)
    assert make().manifest.path(tmp_path) == make().manifest.path(tmp_path)


# Engines -------------------------------------------------------------------------------------------------------------


def test_engines_run_side_by_side_and_none_makes_the_other_run_again(make):
    both, one = make(engines=["tensorflow", "llvm"]), make()
    scan = scan_of("01")
    assert both.identities.native_settings("tensorflow", scan) == one.identities.native_settings("tensorflow", scan)
    assert both.identities.native_settings("llvm", scan) == make(engines=["llvm"]).identities.native_settings(
        "llvm", scan
    )
    assert both.identities.reference_settings(scan) == one.identities.reference_settings(scan)
    locks = [both.identities.of(engine, scan)["environment"] for engine in both.engines]
    assert locks == [environments.lock_hash("tensorflow"), environments.lock_hash("llvm")]
    assert locks[0] != locks[1]
    code = [both.identities.of(engine, scan)["code"] for engine in both.engines]
    assert code[0]["network"] != code[1]["network"]
    assert {name: code[0][name] for name in code[0] if name != "network"}.items() <= code[1].items()
    assert set(one.wanted_runs()) < set(both.wanted_runs())
    assert "results/env/llvm.json" in both.wanted_once()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            {"engines": ["tensorflow", "llvm"], "precision": "bf16"},
            "config: precision: bf16: tensorflow has float32 only: use torch, or precision float32\n"
            "config: precision: bf16: llvm has float32 only: use torch, or precision float32",
        ),
        (
            {"engines": ["llvm"], "device": "gpu"},
            "config: device: gpu: llvm runs on the CPU only: use torch, or device auto",
        ),
    ],
)
def test_what_an_engine_cannot_do_is_one_line(make, config, says):
    with pytest.raises(SynthSegError) as caught:
        make(**config)
    assert str(caught.value) == says


def test_precision_is_part_of_the_native_run_alone(make):
    settings = [make(engines=["torch"], precision=precision) for precision in ("float32", "bf16")]
    native = {plan.identities.native_settings("torch", scan_of("01")) for plan in settings}
    reference = {plan.identities.reference_settings(scan_of("01")) for plan in settings}
    assert (len(native), len(reference)) == (2, 1)


def test_auto_is_the_engine_that_the_results_folder_names(make, tmp_path, monkeypatch):
    monkeypatch.setattr(ranking, "verified", lambda engine, folder, log: pytest.fail("nothing is to be verified"))
    (tmp_path / "results").mkdir()
    (tmp_path / "results/engine.json").write_text('{"engine": "llvm"}')
    assert make(engines="auto").engines == ["llvm"]
    with pytest.raises(SynthSegError, match=r"results/engine\.json: device: gpu: llvm runs on the CPU only"):
        make(engines="auto", device="gpu")
    (tmp_path / "results/engine.json").unlink()
    assert make(engines="auto", dry_run=True).engines != [] and not (tmp_path / "results/engine.json").exists()


def test_auto_is_chosen_after_all_mistakes_are_found(make, tmp_path, monkeypatch):
    monkeypatch.setattr(ranking, "of_results", lambda *arguments: pytest.fail("too early"))
    with pytest.raises(SynthSegError, match="no such weights file"):
        make(engines="auto", weights="nowhere.h5")


def test_torch_is_deployed_only_where_a_gpu_is_seen(make, monkeypatch):
    monkeypatch.setattr(environments, "gpu", lambda: None)
    made = []
    monkeypatch.setattr(environments, "ensure_all", made.extend)
    monkeypatch.setattr(environments, "lock_hash", lambda name: name)
    with pytest.raises(SynthSegError, match="config: engines: torch: no NVIDIA or Apple GPU is seen on this machine"):
        deploy.deploy(make(engines=["torch"]))
    assert made == []
    deploy.deploy(make(engines=["torch"], device="cpu"))
    deploy.deploy(make(engines=["torch"]), here=False)  # a cluster's node may have one
    assert made == ["torch", "torch"]


def test_a_benchmark_of_many_images_is_asked_for_by_a_file(make):
    """One word of a command holds 128 KiB, and the settings of 300 images in it would be more."""
    names = [f"{number:03}" for number in range(300)]
    plan = make(names, engines=["tensorflow", "llvm"], reference={"runtime": "local"}, benchmark={"scans": 300})
    path, text = plan.benchmark_order
    deploy.prepare(plan)
    order = json.loads(path.read_text())
    assert len(text) > 128 * 1024 and len(plan.benchmark_key()) == 12
    assert order["scans"] == {scan_of(name): f"images/{name}.nii" for name in names}
    assert set(order["settings"]["native"]) == set(order["settings"]["reference"]) == set(order["scans"])
    assert make(names[:1], benchmark={"scans": 1}).benchmark_order[0] != path


@pytest.mark.parametrize(
    ("codes", "says"),
    [
        ("ok oom", None),
        ("oom oom", "tensorflow failed in all runs of sub-01_T1w (oom)"),
        ("bad_input", None),
        ("", "its tables are damaged"),
        ("cut", "its tables are damaged"),
        ("garbage", "its tables are damaged"),
    ],
)
def test_a_benchmark_is_run_again_where_the_machine_failed_or_its_tables_are_damaged(make, tmp_path, codes, says):
    plan = make(benchmark={"scans": 1})
    runs, table = (tmp_path / plan.patterns.benchmark[name] for name in ("runs", "table"))
    assert {str(path.relative_to(tmp_path)) for path in (runs, table)} <= state.to_make(plan), "they are not there"
    words = codes.replace("cut", "ok").split()
    rows = [{"scan": scan_of("01"), "engine": "tensorflow", "status": code, "error_code": code} for code in words]
    write_tsv(runs, RUN_COLUMNS, rows)
    write_tsv(table, COLUMNS, [{"scan": "all"}])
    if codes == "cut":
        table.write_text(table.read_text()[:-9])
    if codes == "garbage":
        runs.write_bytes(bytes(range(256)))
    assert (plan.patterns.benchmark["runs"] in state.to_make(plan)) == (says is not None)
    assert [line for line in state.lines(plan) if "benchmark" in line] == (
        [f"the benchmark again: {says}"] if says else []
    )


# Memory --------------------------------------------------------------------------------------------------------------


def test_a_job_asks_for_what_its_scan_is_predicted_to_take(make, tmp_path):
    engines = ("tensorflow", "llvm")
    plan = make(("01", "02"), engines=list(engines), reference={"runtime": "local"}, benchmark={"scans": 1})
    nib.save(nib.Nifti1Image(np.zeros((100, 120, 90), np.uint8), np.diag([2, 2, 2, 1])), tmp_path / "images/01.nii")
    size = memory.size_of(plan.model.network, (100, 120, 90), (2, 2, 2))
    assert size.padded == (112, 128, 96)
    for engine in (*engines, "reference"):
        assert demands.memory_mb(plan, engine, scan_of("01")) == memory.declared_mb(memory.predict(size, engine))
        assert demands.memory_mb(plan, engine, scan_of("02")) == plan.model.memory_mb == 3000, "no image"
    assert demands.benchmark_memory(plan) == max(
        demands.memory_mb(plan, engine, scan_of("01")) for engine in (*engines, "reference")
    )
    assert demands.memory_mb(make(memory_mb=777), "tensorflow", scan_of("01")) == 777


def test_pictures_and_comparisons_ask_for_more_where_there_is_more_to_draw(make, tmp_path):
    plan = make(("01", "02", "03"), reference={"runtime": "local"})
    for name, n, dtype in (("01", 100, np.uint8), ("02", 200, np.float32)):
        image = nib.Nifti1Image(np.zeros((n, n, n), dtype), np.diag([2, 2, 2, 1]))
        nib.save(image, tmp_path / f"images/{name}.nii")
    for ask, each in ((demands.picture_mb, memory.DRAWING), (demands.comparison_mb, memory.COMPARISON)):
        small, large, unknown = (ask(plan, scan_of(name)) for name in ("01", "02", "03"))
        least = each * (200**3 - 100**3) / 1e6
        assert small + least < large and unknown == demands.UNKNOWN_MB
    own_grid = nib.Nifti1Image(np.zeros((300, 300, 300), np.uint8), np.diag([1, 1, 1, 1]))
    nib.save(own_grid, tmp_path / "images/01.nii")
    plan = make(("01",), reference={"runtime": "local"})
    on_the_networks = demands.comparison_mb(plan, scan_of("01"))
    plan.reference["kind"] = "existing"
    assert demands.comparison_mb(plan, scan_of("01")) > 4 * on_the_networks
    assert demands.memory_mb(plan, "reference", scan_of("01")) >= demands.comparison_mb(plan, scan_of("01"))


def test_a_crop_takes_less(make, tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((256,) * 3, np.uint8), np.eye(4)), tmp_path / "01.nii")
    (tmp_path / "images").mkdir()
    (tmp_path / "01.nii").rename(tmp_path / "images/01.nii")

    def asked(**config):
        plan = make(("01",), model="synthseg1", engines=["llvm"], **config)
        return demands.memory_mb(plan, "llvm", scan_of("01")), memory.size_of(plan.model.network, (256,) * 3, (1,) * 3)

    whole, size = asked()
    assert asked(crop=160)[0] < whole == memory.declared_mb(memory.predict(size, "llvm"))


def test_one_run_at_a_time_writes_to_a_results_folder(tmp_path):
    """Also where two working folders share one through a link, and of another machine only signs of life are seen."""
    state = tmp_path / "data/.state"
    state.mkdir(parents=True)
    (tmp_path / "results").symlink_to("data")
    with (
        shared_disk.hold(state / "run.lock"),
        pytest.raises(SynthSegError, match=r"results: another run \(process \d+ on .*\) writes its results there"),
    ):
        deploy.hold_results(str(tmp_path / "results/.state"))
    deploy.hold_results(str(tmp_path / "results/.state"))
    with pytest.raises(shared_disk.Held), shared_disk.hold(state / "run.lock", wait_s=0):
        pass


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda path: path.write_text(""), "results: a file, where the results belong"),
        (lambda path: path.symlink_to("gone/away"), "results: a link that leads nowhere"),
        (lambda path: (path / ".state/run.lock").mkdir(parents=True), "Is a directory"),
    ],
)
def test_results_that_cannot_be_written_are_one_line(tmp_path, made, says):
    made(tmp_path / "results")
    with pytest.raises(SynthSegError, match=says) as caught:
        deploy.hold_results(str(tmp_path / "results/.state"))
    assert caught.value.code == "disk" and "\n" not in caught.value.message


def test_what_verifies_by_itself_is_said_and_stops_nothing(make, monkeypatch, capsys):
    """Before the first job, so that no run of the first wave does it beyond its own memory and time."""
    asked = []

    def verified(engine, folder):
        asked.append((engine, folder))
        raise environments.SetupError("no luck")

    monkeypatch.setattr(ranking, "verified", verified)
    deploy.verify_here(make(engines=["llvm"]))
    assert asked == [("llvm", "results/env")] and capsys.readouterr().err == "synthseg-native: no luck\n"


@pytest.mark.parametrize("run", [False, True])
def test_a_call_that_only_looks_leaves_no_folder(tmp_path, monkeypatch, run):
    """Unless a run has begun in it meanwhile."""
    ends, folder = [], tmp_path / ".snakemake"
    monkeypatch.setattr(deploy.atexit, "register", ends.append)
    deploy.leave_nothing(folder)
    for name in ("locks", "iocache"):
        (folder / name).mkdir(parents=True)
    (folder / "iocache/latest.pkl").touch()
    if run:
        (folder / "launcher.lock").touch()
    deploy.leave_nothing(folder)  # where it is there already it stays
    assert len(ends) == 1
    ends[0]()
    assert folder.exists() == run and (folder / "iocache/latest.pkl").exists() == run
