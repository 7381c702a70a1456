"""What a call makes again and why: the table of docs/caching.md as far as it needs no network, on results that say
what made them."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
from results_world import SCAN, World, by_hand

from processes import bound_by_modes, counted_calls
from synthseg_native.cohort import deploy, environments, paths, state
from synthseg_native.errors import SynthSegError
from synthseg_native.files import read_sealed, write_sealed


@pytest.fixture(scope="module")
def made(root, tmp_path_factory):
    """The folder of a world that each test gets a copy of: to make one takes a fifth of a second."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        World(root, folder).make()
    return folder


@pytest.fixture
def world(root, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    world = World(root, tmp_path)
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return world


@pytest.fixture
def copied(world, root, tmp_path):
    """The same with code of its own, which a test may change."""
    for folder in ("src", "scripts", "workflow", "models"):
        shutil.copytree(root / folder, tmp_path / "code" / folder, ignore=shutil.ignore_patterns("__pycache__"))
    world.root = tmp_path / "code"
    world.make()
    return world


def both(why, *kinds):
    return {f"{name}{kind}": f"stale: {why}" for name in ("01", "02") for kind in kinds or ("",)}


def test_nothing_changed(world):
    assert world.states() == {}
    assert state.to_make(world.plan()) == set() and state.lines(world.plan()) == []


def test_a_moved_dataset_is_the_same_dataset(world, tmp_path):
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    for name in ("01", "02"):
        os.utime(tmp_path / f"elsewhere/{name}.nii")
    world.sheet(f"01\t{tmp_path}/elsewhere/01.nii", "02\telsewhere/02.nii")
    assert world.states() == {}


def test_other_contents_of_the_same_size_and_time(world, tmp_path):
    image = tmp_path / "images/01.nii"
    before = image.stat()
    image.write_text("image ab")
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert image.stat().st_size == before.st_size
    assert world.states() == {name: "stale: the image changed" for name in ("01", "01 reference")}


def test_an_image_that_was_exchanged_while_it_was_read(world):
    """Planned with A, read B, and A again: the results are B's, and say so."""
    path = world.plan().path("record", "llvm", SCAN.format("01", "01"))
    record = json.loads(Path(path).read_text())
    record["input"]["sha256"] = "b" * 64
    write_sealed(path, record)
    assert world.states() == {"01": "stale: the image changed"}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"mode": "fast"}, both("mode: default to fast", "", " reference")),
        ({"crop": 96}, both("crop: none to [96, 96, 96]", "", " reference")),
        ({"interpolation": "nearest"}, both("interpolation: posterior to nearest")),
        ({"device": "cpu"}, both("device: auto to cpu")),
        ({"threads": 4}, both("threads: 1 to 4", " reference")),  # llvm gives the same for any number
        ({"memory_mb": 5000, "timeout_min": 3, "equivalence": {"max_margin": 0.01}}, {}),
        ({"reference": {"runtime": "none"}}, {}),
    ],
)
def test_settings(world, config, expected):
    assert world.states(**config) == expected


def test_threads_count_for_engines_that_promise_nothing(world):
    world.make(engines=["tensorflow"])
    found = world.states(engines=["tensorflow"], threads=2)
    assert found["01 tensorflow"] == "stale: threads: 1 to 2"


def test_what_a_row_asks_for(world):
    world.sheet("01\timages/01.nii\ttrue\t", "02\timages/02.nii\t\tno_orientation",
                header="participant_id\timage\tct\taccept")  # fmt: skip
    assert world.states() == {
        "01": "stale: ct: false to true", "01 reference": "stale: ct: false to true",
        "02": "stale: accept: none to ['no_orientation']", "02 reference": "stale: accept: none to ['no_orientation']",
    }  # fmt: skip


def test_weights_are_known_by_their_content(world, root, tmp_path):
    shutil.copy(root / "models/compact2mm/compact2mm.h5", tmp_path / "same.h5")
    assert world.states(weights="same.h5") == {}
    with (tmp_path / "same.h5").open("ab") as file:
        file.write(b"\0")
    assert world.states(weights="same.h5") == both("the weights changed", "", " reference")


def add_statement(path):
    path.write_text(path.read_text() + "\n_CHANGED = True\n")


CODE = [
    ("scan/reading.py", both("the code changed (read)")),
    ("scan/grid.py", both("the code changed (grid)")),
    ("engines/llvm.py", both("the code changed (network)")),
    ("engines/kernels/stream.py", both("the code changed (network)")),
    ("engines/tensorflow.py", {}),
    ("pipeline/posteriors.py", both("the code changed (labels)")),
    ("pipeline/segment.py", both("the code changed (command)")),
    ("results/figures.py", both("the code changed (figures)")),
    ("options.py", both("the code changed (command)")),
    ("reference.py", both("the code changed (reference)", " reference")),
    ("cohort/runs/native.py", both("the code changed (native step)")),
    ("cohort/runs/reference.py", both("the code changed (reference step)", " reference")),
    ("results/picture.py", {}),
    ("results/quality.py", {}),
    ("progress.py", {}),
    ("memory.py", {}),
    ("networks/weights.py", {}),
    ("cohort/summary/tables.py", {}),
]


def test_code(copied):
    """Of each module: what runs again where it changes."""
    for module, expected in CODE:
        path = copied.root / "src/synthseg_native" / module
        before = path.read_text()
        add_statement(path)
        assert copied.states() == expected, module
        path.write_text(before)
    assert copied.states() == {}


def test_glue_that_adds_a_flag_or_counts_otherwise(copied):
    """Both were "Nothing to be done" once."""
    runs = copied.root / "src/synthseg_native/cohort/runs"
    text = (runs / "native.py").read_text()
    assert "keys.flags(settings)" in text
    (runs / "native.py").write_text(text.replace("keys.flags(settings)", '["--fast", *keys.flags(settings)]'))
    assert copied.states() == both("the code changed (native step)")


def replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_words_limits_and_colours_run_no_network(copied):
    package, model = copied.root / "src/synthseg_native", copied.root / "models/compact2mm"
    before = copied.plan().identities.step_key("picture.py"), copied.plan().identities.step_key("compare.py")
    replace(package / "cli.py", 'help="half the time', 'help="about half the time')
    replace(package / "reference.py", "description=", "epilog='more words', description=")
    replace(package / "pipeline/segment.py", '"""One scan', '"""A scan')
    assert copied.states() == {}
    assert (copied.plan().identities.step_key("picture.py"), copied.plan().identities.step_key("compare.py")) == before

    replace(package / "results/quality.py", "MIN_CONFIDENCE = 0.70", "MIN_CONFIDENCE = 0.71")
    limit = copied.plan().identities.step_key("picture.py")
    assert limit != before[0] and copied.plan().identities.step_key("compare.py") == before[1]
    replace(model / "labels.tsv", "#f5f5f5", "#f5f5f6")
    assert copied.plan().identities.step_key("picture.py") != limit
    replace(model / "labels.tsv", "left thalamus", "left thalamus proper")
    assert copied.plan().identities.step_key("compare.py") != before[1]
    assert copied.states() == {}
    plan = copied.plan()
    again = {plan.path(name, "llvm", scan) for name in ("picture", "compare") for scan in plan.scans}
    assert state.to_make(plan) == again, "also where Snakemake remembers nothing"


def test_values_and_classes_of_the_label_table_run_networks(copied):
    table = copied.root / "models/compact2mm/labels.tsv"
    replace(table, "1\t2\tleft cerebral white matter\tleft\t18\t4", "1\t2\tleft cerebral white matter\tleft\t18\t5")
    assert copied.states() == both("the model changed", "", " reference")


def test_the_options_of_the_command_are_glue(copied):
    replace(copied.root / "src/synthseg_native/cli.py", 'default="posterior"', 'default="nearest"')
    assert copied.states() == both("the code changed (command)")


def test_a_lock(copied, monkeypatch):
    lock_hash = environments.lock_hash
    monkeypatch.setattr(environments, "lock_hash", lambda name: name if name == "llvm" else lock_hash(name))
    assert copied.states() == both("its environment changed")


# References of others ------------------------------------------------------------------------------------------------


@pytest.fixture
def foreign(world):
    config = {"model": "synthseg1", "reference": {"kind": "upstream", "runtime": "docker"}}
    world.make(**config)
    return config


def test_a_foreign_reference_is_told_by_what_is_really_used(world, foreign, monkeypatch):
    assert world.states(**foreign) == {}
    changes = {
        "UPSTREAM_IMAGE": ("another/image", "image: pwesp/synthseg:py38 to another/image"),
        "UPSTREAM_MODELS": ({"synthseg1": ["--v1", "--robust"]}, "flags: ['--v1'] to ['--v1', '--robust']"),
        "UPSTREAM_PLATFORM": ("linux/arm64", "platform: linux/amd64 to linux/arm64"),
    }
    for name, (value, why) in changes.items():
        with monkeypatch.context() as patch:
            patch.setattr(f"synthseg_native.cohort.containers.{name}", value)
            assert world.states(**foreign) == both(why, " reference")
    pinned = foreign["reference"] | {"image": "pwesp/synthseg:py38"}
    assert world.states(**foreign | {"reference": pinned}) == {}, "the default, named"


def test_a_container_instead_of_an_interpreter(world):
    found = world.states(reference={"kind": "own", "runtime": "docker"})
    assert set(found) == {"01 reference", "02 reference"}
    assert "runtime: local to docker" in found["01 reference"]


def test_label_maps_that_the_user_has(world, tmp_path):
    maps = {"reference": {"kind": "existing", "pattern": "maps/{participant_id}.nii"}}
    (tmp_path / "maps").mkdir()
    for name in ("01", "02"):
        (tmp_path / f"maps/sub-{name}.nii").write_text(name)
    world.make(**maps)
    assert world.states(**maps) == {}
    (tmp_path / "maps").rename(tmp_path / "moved")
    moved = {"reference": maps["reference"] | {"pattern": "moved/{participant_id}.nii"}}
    assert world.states(**moved, mode="default") == {}
    (tmp_path / "moved/sub-01.nii").write_text("other")
    assert world.states(**moved) == {"01 reference": "stale: your label map changed"}
    assert world.states(**moved | {"mode": "fast"})["02"] == "stale: mode: default to fast"
    assert "02 reference" not in world.states(**moved | {"mode": "fast"})


# What is there -------------------------------------------------------------------------------------------------------


def test_an_edited_label_map_is_kept_and_said(world):
    plan = world.plan()
    scan = SCAN.format("01", "01")
    by_hand(plan.path("dseg", "llvm", scan))
    expected = "edited: sub-01_T1w_seg-compact2mm_res-2mm_dseg.nii.gz was changed since it was made"
    assert world.states() == {"01": expected}
    assert world.states(mode="fast")["01"] == expected, "whatever else is to be said"

    plan = world.plan()
    summary = Path(plan.aggregates()["summary"])
    assert state.to_make(plan) == {str(summary)}, "which counts it still"
    world.tell()
    left_out = {
        *plan.files("llvm", scan).values(),
        *(plan.path(n, "llvm", scan) for n in ("picture", "compare")),
    }
    assert not left_out & set(plan.wanted_runs())
    Path(plan.path("picture", "llvm", scan)).unlink()
    assert state.to_make(plan) == set()
    (line,) = state.lines(plan)
    assert line.startswith("1 native label map changed by hand: kept, without") and line.endswith("(sub-01_T1w)")

    plan = world.plan(edited="overwrite")
    assert plan.path("record", "llvm", scan) in state.to_make(plan) and left_out < set(plan.wanted_runs())
    assert "made again" in state.lines(plan)[0]


@pytest.mark.parametrize("renewed", ["touched", "copied"])
def test_an_edited_label_map_is_seen_where_the_record_s_times_are_new(world, renewed):
    """`cp -r`, and archives unpacked without times, make all files as young as one another."""
    plan, scan = world.plan(), SCAN.format("01", "01")
    edited, record = (Path(plan.path(name, "llvm", scan)) for name in ("dseg", "record"))
    by_hand(edited)
    for path in (edited, record):
        if renewed == "copied":
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content)
        else:
            path.touch()
    assert world.states()["01"].startswith("edited: ")


def test_a_summary_of_other_states_or_rows_is_made_again(world):
    summary = {world.plan().aggregates()["summary"]}
    assert state.to_make(world.plan()) == set()
    world.sheet("01\timages/01.nii\told", "02\timages/02.nii\tyoung", header="participant_id\timage\tgroup")
    assert state.to_make(world.plan()) == summary, "a column of the sheet"
    world.tell()
    assert state.to_make(world.plan()) == set()
    world.sheet("02\timages/02.nii\tyoung", "01\timages/01.nii\told", header="participant_id\timage\tgroup")
    assert state.to_make(world.plan()) == summary, "the order of the rows"
    world.sheet("01\timages/01.nii", "02\timages/02.nii")
    world.tell()
    plan, scan = world.plan(), SCAN.format("01", "01")
    by_hand(plan.path("dseg", "reference", scan))
    assert state.to_make(world.plan()) == summary, "it says identical still"
    world.tell()
    Path(plan.image_path(scan)).unlink()
    Path(plan.path("dseg", "llvm", scan)).unlink()
    assert state.to_make(world.plan()) == summary, "it counts a run that is gone, and cannot be made again"


def test_an_edited_label_map_on_the_scan_s_own_grid(world):
    by_hand(world.plan().path("dseg_native", "llvm", SCAN.format("02", "02")))
    assert world.states()["02"].startswith("edited: sub-02_T1w_seg-compact2mm_res-native_dseg.nii.gz")


def test_an_edited_reference_is_compared_with_nothing(world):
    plan = world.plan()
    by_hand(plan.path("dseg", "reference", SCAN.format("01", "01")))
    plan = world.plan()
    assert plan.path("compare", "llvm", SCAN.format("01", "01")) not in plan.wanted_runs()
    assert plan.path("compare", "llvm", SCAN.format("02", "02")) in plan.wanted_runs()


def test_other_results_that_changed_are_made_again(world):
    plan = world.plan()
    Path(plan.path("volumes", "llvm", SCAN.format("01", "01"))).write_text("half a table")
    Path(plan.path("margin", "llvm", SCAN.format("02", "02"))).unlink()
    found = world.states()
    assert found["01"] == "stale: sub-01_T1w_seg-compact2mm_res-2mm_volumes.tsv is not as it was made"
    assert found["02"] == "missing: sub-02_T1w_seg-compact2mm_res-2mm_margin.nii.gz is missing"
    records = {plan.path("record", "llvm", SCAN.format(name, name)) for name in ("01", "02")}
    assert records < state.to_make(world.plan())


def test_results_that_were_copied_are_the_same_results(world, tmp_path, monkeypatch):
    """In any order, with times of today, and without what a call remembered."""
    shutil.copytree(tmp_path / "results", tmp_path / "copy", copy_function=shutil.copy)
    shutil.rmtree(tmp_path / "results")
    (tmp_path / "copy").rename(tmp_path / "results")
    shutil.rmtree(tmp_path / "results/.state")
    for path in sorted(tmp_path.glob("results/**/*"), reverse=True):
        os.utime(path)
    assert world.states() == {}


def test_label_maps_of_two_participants_exchanged(world):
    first, second = (world.plan().path("dseg", "llvm", SCAN.format(name, name)) for name in ("01", "02"))
    Path(first).rename("aside")
    Path(second).rename(first)
    Path("aside").rename(second)
    assert {name: found.split(":")[0] for name, found in world.states().items()} == {"01": "edited", "02": "edited"}


def test_a_failed_run_is_tried_again(world):
    plan = world.plan()
    record = plan.path("record", "llvm", SCAN.format("01", "01"))
    failure = Path(paths.failure_of(f"{plan.state}/failed", "llvm", SCAN.format("01", "01"), record))
    failure.parent.mkdir(parents=True)
    write_sealed(failure, {"error": {"message": "a.nii: bad"}, "finished": "2026-11-28T12:00:00+00:00"})
    assert world.states() == {"01": "failed: a.nii: bad"}
    assert record in state.to_make(world.plan())
    write_sealed(failure, {"error": {"message": "a.nii: bad"}, "finished": "2026-11-26T12:00:00+00:00"})
    assert world.states() == {}, "it succeeded since"


def test_results_of_a_vanished_image_stay(world, tmp_path):
    (tmp_path / "images/01.nii").unlink()
    assert world.states() == {} and state.to_make(world.plan()) == set()
    plan = world.plan(mode="fast")
    assert plan.path("record", "llvm", SCAN.format("01", "01")) not in state.to_make(plan)
    said = state.lines(plan)
    assert "1 native run not again, the image is gone: mode: default to fast (sub-01_T1w)" in said
    assert "1 native run again: mode: default to fast (sub-02_T1w)" in said
    for path in plan.files("llvm", SCAN.format("01", "01")).values():
        Path(path).unlink()
    assert world.states()["01"] == "missing: has not run"
    assert plan.path("record", "llvm", SCAN.format("01", "01")) in state.to_make(world.plan()), "and its run says why"


def test_results_of_an_earlier_version_are_made_again_once(world):
    plan = world.plan()
    for pair in plan.identities.states:
        path = Path(plan.path("record", *pair))
        record = json.loads(path.read_text())
        del record["key"]["form"], record["files"], record["seal"]
        record["key"]["code"] = "0123456789ab"
        path.write_text(json.dumps(record))
    why = "made by an earlier version, which did not note all that made it"
    assert world.states() == both(why, "", " reference")
    assert state.lines(world.plan())[0] == f"2 native runs again: {why} (sub-01_T1w, sub-02_T1w)"
    world.make()
    assert world.states() == {}


def change(path, **entries):
    Path(path).write_text(json.dumps(json.loads(Path(path).read_text()) | entries))


def test_a_record_that_was_changed_makes_its_run_again_but_spares_a_label_map_that_was_edited(world):
    plan = world.plan()
    for name in ("01", "02"):
        change(plan.path("record", "llvm", SCAN.format(name, name)), output={"mean_confidence": 1})
    by_hand(plan.path("dseg", "llvm", SCAN.format("02", "02")))
    found = world.states()
    assert found["01"] == "stale: sub-01_T1w_seg-compact2mm_res-2mm_run.json is not as it was made"
    assert found["02"].startswith("edited: sub-02_T1w_seg-compact2mm_res-2mm_dseg.nii.gz")
    assert state.lines(world.plan())[0].startswith("1 native run again: sub-01_T1w")


@pytest.mark.parametrize("record", ["", "[]", '{"status": "ok", "files": 3}'])
def test_a_label_map_of_which_no_record_says_what_made_it_is_found_before_it_goes(world, record):
    plan = world.plan()
    first, second = (
        {n: plan.path(n, "llvm", SCAN.format(*[s] * 2)) for n in plan.patterns.native} for s in ("01", "02")
    )
    by_hand(first["dseg"])
    Path(first["dseg_native"]).write_bytes(b"cut")
    Path(first["record"]).write_text(record)
    Path(second["volumes"]).write_text("cut")  # made again, and its record says what made its label maps
    assert world.plan().identities.unvouched() == [Path(first["dseg"])]
    assert world.plan(edited="overwrite").identities.unvouched() == []


@pytest.mark.parametrize("grid", ["dseg", "dseg_native"])
@pytest.mark.parametrize("share", [0, 0.5, 0.95])
def test_a_label_map_that_was_cut_is_nobodys_work(world, grid, share):
    path = Path(world.plan().path(grid, "llvm", SCAN.format("01", "01")))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert world.states()["01"] == f"stale: {path.name} is not as it was made"
    assert world.plan().path("record", "llvm", SCAN.format("01", "01")) in state.to_make(world.plan())


def test_pictures_and_comparisons_that_were_cut_or_changed_are_made_again(world):
    plan, first, second = world.plan(), *(SCAN.format(name, name) for name in ("01", "02"))
    drawn, compared = (Path(plan.path(name, "llvm", first)) for name in ("picture", "compare"))
    drawn.write_bytes(drawn.read_bytes()[:-1])
    change(compared, verdict="identical")
    Path(plan.path("compare", "llvm", second)).write_text("[1]")
    again = {str(drawn), str(compared), plan.path("compare", "llvm", second)}
    assert state.to_make(world.plan()) == again | {plan.aggregates()["summary"]}
    assert state.lines(world.plan()) == [
        "1 picture again: cut, changed, another's, or drawn by other code or limits (sub-01_T1w)",
        "2 comparisons again: changed, another's, or made by other code or thresholds (sub-01_T1w, sub-02_T1w)",
    ]


def test_another_scan_s_picture_and_comparison_do_not_pass_for_one_s_own(world):
    plan, first, second = world.plan(), *(SCAN.format(name, name) for name in ("01", "02"))
    places = [plan.path(name, "llvm", first) for name in ("picture", "compare")]
    for name, path in zip(("picture", "compare"), places, strict=True):
        shutil.copy(plan.path(name, "llvm", second), path)
    assert state.to_make(world.plan()) == {*places, plan.aggregates()["summary"]}


@pytest.mark.parametrize("table", ["summary", "columns", "homogeneity", "failed", "volumes", "volumes_wide",
                                   "volumes_synthseg"])  # fmt: skip
def test_a_table_that_was_cut_or_edited_is_made_again_and_said(world, table):
    path = Path(world.plan().aggregates()[table])
    path.write_text("sub-01\t400000\n")
    plan = world.plan()
    assert state.to_make(plan) == {plan.aggregates()["summary"]}
    assert state.lines(plan) == [f"{path} was changed since it was made: made again"]


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"status": "ok"}', '{"status": "failed"}'])
def test_a_damaged_record_is_no_record(world, text):
    Path(world.plan().path("record", "llvm", SCAN.format("01", "01"))).write_text(text)
    assert world.states()["01"].split(":")[0] in ("missing", "stale")


def test_what_is_missing_below_a_summary_that_is_there(world):
    plan = world.plan()
    scan = SCAN.format("01", "01")
    gone = {plan.path("picture", "llvm", scan), plan.path("compare", "llvm", scan), *plan.wanted_once()[:1],
            plan.aggregates()["volumes"]}  # fmt: skip
    for path in gone:
        Path(path).unlink()
    assert state.to_make(world.plan()) == gone | {plan.aggregates()["summary"]}
    world.make()
    state.mark_failed(plan.state)
    assert state.to_make(world.plan()) == {plan.aggregates()["summary"]}


def test_a_row_more(world, tmp_path):
    (tmp_path / "images/03.nii").write_text("image 03")
    world.sheet("01\timages/01.nii", "02\timages/02.nii", "03\timages/03.nii")
    assert world.states() == {"03": "missing: has not run", "03 reference": "missing: has not run"}


def test_looking_writes_nothing(world, tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "run_snapshot", lambda: pytest.fail("a snapshot"))
    (tmp_path / "images/01.nii").write_text("other")

    def listing():
        return {str(path): path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    before = listing()
    assert deploy.make_again(world.plan(), runs=False)
    assert listing() == before
    made = []
    monkeypatch.setattr(environments, "run_snapshot", lambda: made.append(1))
    assert deploy.make_again(world.plan(), runs=True)
    assert made and listing() != before


@pytest.mark.slow
def test_planning_takes_steps_in_proportion_to_the_rows(world, tmp_path):
    """Of ten times as many rows: ten times as many, and not a hundred times."""
    took = []
    for number in (10, 100):
        rows = []
        for row in range(number):
            (tmp_path / f"images/{row:04}.nii").write_text(str(row))
            rows.append(f"{row:04}\timages/{row:04}.nii")
        world.sheet(*rows)
        world.make()
        with counted_calls() as calls:
            assert world.states() == {}
        took.append(calls.number)
    assert took[1] < 12 * took[0], took


@pytest.mark.slow
def test_a_run_that_begins_leaves_no_table_that_calls_stale_results_good(world, root, monkeypatch):
    """Whatever ends it afterwards, SIGKILL too."""
    monkeypatch.setattr(environments, "run_snapshot", lambda: root)
    monkeypatch.setattr(environments, "ensure_all", lambda names: None)
    plan = world.plan(mode="fast")
    deploy.deploy(plan)
    with Path(plan.aggregates()["summary"]).open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert [(row["status"], row["state_reason"]) for row in rows] == [("stale", "mode: default to fast")] * 2
    assert state.says_what_is(world.plan(mode="fast"))


def test_results_dated_in_the_future_get_todays_date(world, monkeypatch):
    """Of another machine's clock, or one that was turned back: Snakemake would throw the summary away at every call."""
    monkeypatch.setattr(environments, "run_snapshot", lambda: None)
    path = Path(world.plan().path("record", "llvm", SCAN.format("01", "01")))
    tomorrow = path.stat().st_mtime + 86400
    os.utime(path, (tomorrow, tomorrow))
    assert deploy.make_again(world.plan(), runs=False) == set() and path.stat().st_mtime == tomorrow
    assert deploy.make_again(world.plan(), runs=True) == set() and path.stat().st_mtime < tomorrow - 86000


def test_results_that_may_not_be_written_to_are_one_line_and_stay(world):
    plan = world.plan()
    locked = [Path(plan.path(name, "llvm", SCAN.format("01", "01"))) for name in ("margin", "dseg_native")]
    for path in locked:
        path.chmod(0o444)
    with bound_by_modes():
        assert deploy.make_again(world.plan(), runs=True) == set(), "nothing is to be made again"
    Path(plan.path("volumes", "llvm", SCAN.format("01", "01"))).write_text("cut")
    said = "_margin.nii.gz and 1 more: may not be written to, and has to be made again: make it writable"
    with bound_by_modes(), pytest.raises(SynthSegError, match=said):
        deploy.make_again(world.plan(), runs=True)
    assert deploy.make_again(world.plan(), runs=False), "a look says what there is to do"


def file_for_folder(folder):
    shutil.rmtree(folder)
    folder.write_text("mine")


def folder_for_table(path):
    path.unlink()
    path.mkdir()
    (path / "notes").write_text("mine")


def dead_link(path):
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.parametrize("runs", [True, False])
@pytest.mark.parametrize(
    ("place", "put", "said"),
    [
        ("llvm", file_for_folder, "a file, where a folder of the results belongs"),
        ("llvm/sub-01", file_for_folder, "a file, where a folder of the results belongs"),
        ("llvm/sub-01/anat", file_for_folder, "a file, where a folder of the results belongs"),
        ("logs", lambda path: path.write_text("mine"), "a file, where a folder of the results belongs"),
        ("failed.tsv", folder_for_table, "a folder, where a table belongs"),
        ("summary.tsv", folder_for_table, "a folder, where a table belongs"),
        ("llvm/sub-01/anat/sub-01_T1w_seg-compact2mm_res-2mm_dseg.nii.gz", dead_link, "a link that leads nowhere"),
        ("summary.tsv", dead_link, "a link that leads nowhere"),
    ],
)
def test_what_lies_where_results_belong_is_one_line(world, place, put, said, runs):
    path = Path(world.plan().results, place)
    put(path)
    with pytest.raises(SynthSegError) as caught:
        deploy.make_again(world.plan(), runs)
    assert caught.value.message == f"{path}: {said}: remove it and call again"


def test_tables_call_rows_stale_as_soon_as_a_call_says_so(world, monkeypatch):
    """What ends the call then, even before its first job, leaves no old number that stands for a new one."""
    marked = []
    monkeypatch.setattr(deploy, "_summarise", lambda plan: marked.append(plan))
    deploy.make_again(world.plan(), runs=True)
    assert not marked
    Path(world.plan().image_path(SCAN.format("01", "01"))).write_text("another image")
    deploy.make_again(world.plan(), runs=False)
    assert not marked
    deploy.make_again(world.plan(), runs=True)
    assert len(marked) == 1


def test_what_snakemake_is_asked_for_is_what_has_to_be_made(world):
    """Of a run that is made again the last file in its row; of results that are current nothing."""
    plan, scan = world.plan(), SCAN.format("01", "01")
    asked = lambda: {*(plan := world.plan()).to_ask_for(state.to_make(plan))}  # noqa: E731
    assert asked() == set()
    compared = Path(plan.path("compare", "llvm", scan))
    kept = compared.read_bytes()
    compared.unlink()
    assert asked() == {str(compared)}
    compared.write_bytes(kept)
    Path(plan.path("picture", "llvm", scan)).unlink()
    assert asked() == {plan.path("picture", "llvm", scan)}
    Path(plan.path("dseg", "reference", scan)).unlink()
    again = {plan.path("record", "reference", scan)}
    assert asked() == again | {plan.path("picture", "llvm", scan), str(compared)}
    by_hand(plan.path("dseg", "llvm", scan))
    assert asked() == again, "neither drawn nor compared"
    Path(plan.path("margin", "llvm", SCAN.format("02", "02"))).unlink()
    second = {plan.path(name, "llvm", SCAN.format("02", "02")) for name in ("picture", "compare")}
    assert asked() == again | second


def test_what_was_made_from_another_run_is_made_again_whatever_its_times(world):
    """As after a kill between a run and its picture, or where a record and its files came from a backup."""
    plan, scan = world.plan(), SCAN.format("01", "01")
    made = {plan.path("picture", "llvm", scan), plan.path("compare", "llvm", scan), plan.aggregates()["summary"]}
    record = plan.path("record", "llvm", scan)
    write_sealed(record, read_sealed(record) | {"finished": "2026-11-27T12:00:01+00:00"})
    for path in made:
        Path(path).touch()
    assert world.states() == {} and state.to_make(world.plan()) == made
