"""What the rules ask of a configuration: runs, files and rerun keys, without running anything."""

import json
import os

import pytest

from synthseg_native.cohort.plan import Plan
from synthseg_native.errors import SynthSegError


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
        basics = {"samples": "samples.tsv", "model": "compact2mm", "allow_small_model": True}
        return Plan(basics | config, root)

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
    assert plan.fetched and plan.weights == str(tmp_path / "cache/synthseg_1.0.h5")
    assert plan.weights_input() == [] and plan.weights_key() == "7d2e32d298fe"
    assert plan.native_settings("tensorflow", scan_of("01")) == make(model="synthseg1").native_settings(
        "tensorflow", scan_of("01")
    ), "where the cache lies is no reason to run again"


def test_own_weights_are_known_by_their_content(make, tmp_path):
    (tmp_path / "own.h5").write_text("weights")
    before = make(weights="own.h5")
    first = before.weights_key()
    assert before.weights_input() == ["own.h5"]
    (tmp_path / "own.h5").write_text("others!")
    assert make(weights="own.h5").weights_key() != first


def test_content_decides_not_the_time_stamp(make, tmp_path):
    def key():
        plan = make()
        plan.prepare()
        return json.loads(plan.native_settings("tensorflow", scan_of("01")))["content"]

    image, first = tmp_path / "images/01.nii", key()
    os.utime(image, (0, 0))
    assert key() == first
    image.write_text("other 01")
    os.utime(image, (0, 1))
    assert key() != first


def test_an_image_that_vanished_keeps_its_key(make, tmp_path):
    plan = make()
    plan.prepare()
    before = plan.native_settings("tensorflow", scan_of("01"))
    (tmp_path / "images/01.nii").unlink()
    config = {"samples": "samples.tsv", "model": "compact2mm", "allow_small_model": True}
    assert Plan(config, plan.root).native_settings("tensorflow", scan_of("01")) == before


def test_a_missing_image_is_an_input_only_where_its_label_map_is_there(make, tmp_path):
    plan = make()
    (tmp_path / "images/01.nii").unlink()
    assert plan.image(scan_of("01"), "tensorflow") == []
    dseg = tmp_path / plan.files("tensorflow", scan_of("01"))["dseg"]
    dseg.parent.mkdir(parents=True)
    dseg.touch()
    assert plan.image(scan_of("01"), "tensorflow") == ["images/01.nii"]
    assert plan.image(scan_of("01"), "reference") == []
    assert str(dseg.relative_to(tmp_path)) in plan.wanted_runs()
    assert plan.files("tensorflow", scan_of("01"))["record"] not in plan.wanted_runs(), "it cannot be made again"


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
        plan.prepare()
        return json.loads(plan.reference_settings(scan_of("01")))["existing"]

    first = key()
    (tmp_path / "maps/sub-01.nii").write_text("map two")
    second = key()
    (tmp_path / "maps/sub-01.nii").unlink()
    assert first and first != second == key()


def test_the_demo_never_names_images_of_the_sheet(make):
    """Snakemake deletes a job's outputs before it runs: one's own scans must never be among the demo's."""
    plan = make(demo=True)
    assert plan.demo_images and all(image.startswith("demo/sub-") for image in plan.demo_images)


def test_the_plan_of_a_summary_cannot_change_under_it(make):
    assert make().plan_file != make(("01",)).plan_file
    assert make().plan_file == make().plan_file
