"""The verdict: what counts as identical, as equivalent, and what as different and why."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from synthseg_native.cohort.config import read_schema
from synthseg_native.compare import compare_label_maps
from synthseg_native.errors import SynthSegError
from synthseg_native.files import write_sealed
from synthseg_native.pipeline.labels import MAX_MARGIN
from synthseg_native.results.verdicts import verdict_text

ROOT = Path(__file__).parents[2]
LABELS = ROOT / "models" / "synthseg1" / "labels.tsv"
LEFT_WHITE, RIGHT_WHITE, LEFT_HIPPOCAMPUS, RIGHT_HIPPOCAMPUS, THIRD_VENTRICLE = 2, 41, 17, 53, 14


@pytest.fixture
def head():
    """A head of 150,000 foreground voxels: white matter left and right, hippocampi, a ventricle between them."""
    labels = np.zeros((80, 60, 60), np.int32)
    labels[10:40, 5:55, 5:55] = LEFT_WHITE  # RAS: which half is which does not matter here
    labels[40:70, 5:55, 5:55] = RIGHT_WHITE
    labels[20:25, 20:30, 20:30] = LEFT_HIPPOCAMPUS
    labels[55:60, 20:30, 20:30] = RIGHT_HIPPOCAMPUS
    labels[39:41, 25:35, 25:35] = THIRD_VENTRICLE
    return labels


@pytest.fixture
def compare(tmp_path):
    """Write two maps (and what else is given) and compare them."""

    def run(native, reference, affine=None, reference_affine=None, margin=None, volumes=None, **thresholds):
        affine = np.eye(4) if affine is None else affine
        paths = [tmp_path / "native.nii.gz", tmp_path / "reference.nii.gz"]
        save(paths[0], native, affine)
        save(paths[1], reference, affine if reference_affine is None else reference_affine)
        options = {}
        if margin is not None:
            options["margin_path"] = save_margin(tmp_path / "margin.nii.gz", margin, native.shape, affine)
        for who, values in zip(("native", "reference"), volumes or (), strict=False):
            options[f"{who}_volumes"] = save_volumes(tmp_path / f"{who}.tsv", values)
        result = compare_label_maps(*paths, LABELS, thresholds=thresholds, **options)
        json.dumps(result, allow_nan=False)
        return result

    return run


def save(path, labels, affine):
    nib.Nifti1Image(labels, affine, dtype=labels.dtype).to_filename(path)


def save_margin(path, value, shape, affine):
    """A margin map as the engine stores it: uint16 steps of 1e-6."""
    image = nib.Nifti1Image(np.full(shape, round(value * 1e6), np.uint16), affine)
    image.header.set_slope_inter(1e-6, 0)
    image.to_filename(path)
    assert nib.load(path).get_fdata().max() == pytest.approx(value)  # nibabel did not scale it a second time
    return path


def save_volumes(path, values):
    with path.open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        writer.writerow(["index", "soft_volume_mm3"])
        writer.writerows(values.items())
    return path


def entry(result, label):
    return next(row for row in result["labels"] if row["index"] == label)


def test_identical(compare, head):
    result = compare(head, head.copy())
    assert result["verdict"] == "identical" and result["identical"] and result["geometry_equal"]
    assert result["n_voxels_foreground"] == 150_000 and result["n_voxels_different"] == 0
    assert result["min_dice"] == 1 and result["max_difference"] == 0 and result["max_volume_difference_mm3"] == 0
    assert result["boundary_distance_mm"]["max"] is None
    assert result["labels_sha256"]["native"] == result["labels_sha256"]["reference"]
    assert entry(result, 18)["dice"] is None, "a label that neither map has cannot agree"


def test_identical_maps_with_other_soft_volumes_say_so(compare, head):
    result = compare(head, head, volumes=({17: 500.0, 2: "n/a"}, {17: 520.0, 2: 70000}))
    assert result["verdict"] == "identical"
    assert "20 mm3" in result["verdict_reason"] and "left hippocampus" in result["verdict_reason"]
    assert entry(result, 17)["soft_volume_difference_percent"] == pytest.approx(-3.8462)
    assert entry(result, 2)["soft_volume_difference_mm3"] is None


def test_one_close_voxel_is_equivalent(compare, head):
    native = head.copy()
    native[25, 25, 25] = LEFT_HIPPOCAMPUS
    result = compare(native, head, margin=0.0004)
    assert result["verdict"] == "equivalent"
    assert (result["n_voxels_different"], result["margin"]["n_above"]) == (1, 0)
    assert result["margin"]["max"] == pytest.approx(0.0004, abs=1e-7)
    assert result["max_difference"] == LEFT_HIPPOCAMPUS - LEFT_WHITE
    assert result["min_dice_label"] == "left hippocampus" and result["min_dice"] == pytest.approx(2 * 500 / 1001)
    assert result["max_volume_difference_mm3"] in (1, -1)
    assert result["boundary_distance_mm"]["max"] == 0 and sum(result["boundary_distance_mm"]["histogram"]) == 1


@pytest.mark.parametrize(("margin", "verdict"), [(0.000999, "equivalent"), (0.001, "different"), (0.02, "different")])
def test_margin_limit(compare, head, margin, verdict):
    native = head.copy()
    native[25, 25, 25] = LEFT_HIPPOCAMPUS
    result = compare(native, head, margin=margin)
    assert result["verdict"] == verdict
    assert ("no close call" in result["verdict_reason"]) == (verdict == "different")


@pytest.mark.parametrize("limit", [0.065, 0.1, 0.5])
def test_the_largest_margin_that_a_map_can_hold_is_that_or_more(compare, head, limit):
    native = head.copy()
    native[25, 25, 25] = LEFT_HIPPOCAMPUS
    result = compare(native, head, margin=MAX_MARGIN, max_margin=limit)
    assert (result["verdict"], result["margin"]["n_above"]) == ("different", 1)
    assert compare(native, head, margin=0.0649, max_margin=0.065)["verdict"] == "equivalent"


def test_the_schema_s_largest_margin_is_below_what_a_map_can_hold(root):
    schema = read_schema(root / "workflow/schemas/config.schema.yaml")
    assert schema["properties"]["equivalence"]["properties"]["max_margin"]["maximum"] < MAX_MARGIN


def test_without_a_margin_map_no_voxel_is_excused(compare, head):
    native = head.copy()
    native[25, 25, 25] = LEFT_HIPPOCAMPUS
    result = compare(native, head)
    assert result["verdict"] == "different" and "no margin map" in result["verdict_reason"]


def test_too_many_voxels(compare, head):
    native = head.copy()
    native[25, 25, 25:27] = LEFT_HIPPOCAMPUS  # 2 of 150,000, and 1.5 are allowed
    result = compare(native, head, margin=1e-5)
    assert result["verdict"] == "different" and "2 of 150000 foreground voxels differ" in result["verdict_reason"]
    assert compare(native, head, margin=1e-5, max_fraction_different=2e-5)["verdict"] == "equivalent"


def test_a_lost_label(compare, head):
    native = head.copy()
    native[0, 0, 0] = 26  # one voxel, all of the accumbens
    result = compare(native, head, margin=1e-5)
    assert result["verdict"] == "different" and "left accumbens area (not in the reference)" in result["verdict_reason"]
    assert result["labels_lost"] == [{"index": 26, "name": "left accumbens area", "absent_in": "reference"}]
    assert result["min_dice"] == 0


def test_one_voxel_that_changed_side(compare, head):
    native = head.copy()
    native[40, 10, 10] = LEFT_WHITE
    result = compare(native, head, margin=1e-5)
    assert result["verdict"] == "different" and result["n_voxels_contralateral"] == 1
    assert result["verdict_reason"] == "1 voxels changed side (allowed: 0)"


def test_swapped_labels_and_a_mirrored_map_change_side(compare, head):
    swapped = head.copy()
    for left, right in ((LEFT_WHITE, RIGHT_WHITE), (LEFT_HIPPOCAMPUS, RIGHT_HIPPOCAMPUS)):
        swapped[head == left], swapped[head == right] = right, left
    for other in (swapped, head[::-1].copy()):
        result = compare(other, head, margin=1e-5)
        assert result["n_voxels_contralateral"] == 150_000 - 200, "everything but the ventricle"
        assert result["verdict"] == "different" and "changed side" in result["verdict_reason"]


def test_a_mirrored_header_is_another_geometry(compare, head):
    affine, mirrored = np.diag([1.0, 1, 1, 1]), np.diag([-1.0, 1, 1, 1])
    result = compare(head, head, affine, mirrored)
    assert result["verdict"] == "different" and not result["geometry_equal"]
    assert result["geometry"]["orientation"] == {"native": "RAS", "reference": "LAS"}
    assert "grids differ" in result["verdict_reason"] and result["n_voxels_different"] is None
    mirrored[0, 3] = head.shape[0] - 1  # the same place in space, stored from the other end
    result = compare(head, head[::-1].copy(), affine, mirrored)
    assert result["verdict"] == "different" and not result["geometry_equal"] and result["n_voxels_different"] == 0
    assert result["verdict_reason"] == (
        "the axes are stored in another order (RAS and LAS); the labels at every position are the same"
    )


def test_other_shape_and_shifted_grid(compare, head):
    result = compare(head, head[:-1].copy())
    assert "shapes 80x60x60 and 79x60x60" in result["verdict_reason"] and result["min_dice"] is None
    assert entry(result, LEFT_WHITE)["n_voxels_native"] == entry(result, LEFT_WHITE)["n_voxels_reference"] > 0
    shifted = np.eye(4)
    shifted[0, 3] = 0.5
    result = compare(head, head, reference_affine=shifted)
    assert result["verdict"] == "different" and "corners up to 0.5 mm apart" in result["verdict_reason"]
    shifted[0, 3] = 1e-4  # what a header rounds away
    assert compare(head, head, reference_affine=shifted)["verdict"] == "identical"


def test_volume_criterion(compare, head):
    native = head.copy()
    native[25, 25, 25] = LEFT_HIPPOCAMPUS
    volumes = {17: 500.0, 2: 70000.0}
    assert compare(native, head, margin=1e-5, volumes=({17: 509.0, 2: 70300.0}, volumes))["verdict"] == "equivalent"
    result = compare(native, head, margin=1e-5, volumes=({17: 511.0, 2: 70300.0}, volumes))
    assert result["verdict"] == "different" and result["labels_volume_exceeded"] == [17]
    assert "left hippocampus" in result["verdict_reason"] and "0.5 % or 10 mm3" in result["verdict_reason"]
    assert result["max_volume_difference_mm3"] == 300 and result["max_volume_difference_kind"] == "soft volume"
    result = compare(native, head, affine=np.diag([3.0, 3, 3, 1]), margin=1e-5)
    assert result["labels_volume_exceeded"] == [], "27 mm3 are 0.2 % of this hippocampus"
    assert result["max_volume_difference_kind"] == "voxel count" and abs(result["max_volume_difference_mm3"]) == 27


def test_both_maps_empty(compare):
    empty = np.zeros((5, 5, 5), np.int32)
    result = compare(empty, empty)
    assert result["verdict"] == "identical" and result["n_voxels_foreground"] == 0 and result["min_dice"] is None


def test_one_map_empty(compare, head):
    result = compare(head, np.zeros_like(head), margin=1e-5)
    assert result["verdict"] == "different" and result["min_dice"] == 0 and len(result["labels_lost"]) == 5


def test_labels_that_the_model_does_not_know(compare, head):
    reference = head.copy()
    reference[12, 12, 12] = 1035
    result = compare(head, reference, margin=1e-5)
    assert result["labels_unknown"] == [1035] and entry(result, 1035)["name"] is None
    assert "label 1035 (not in the native)" in result["verdict_reason"]


def test_distance_from_the_boundary_by_hand(compare, head):
    native = head.copy()
    native[15, 15, 25] = LEFT_HIPPOCAMPUS  # in the reference 5 voxels of 2 mm from the rim, x = 10
    native[10, 10, 10] = 0
    result = compare(native, head, affine=np.diag([2.0, 2, 2, 1]))
    # edges 0, 0.5, 1, 2, 3, 5, 10: one voxel at 0 mm, one at 10 mm (rim x = 10; hippocampus x = 20 is 10 mm away)
    assert result["boundary_distance_mm"]["max"] == 10
    assert result["boundary_distance_mm"]["histogram"] == [1, 0, 0, 0, 0, 0, 1]


def test_a_speck_is_as_far_from_the_boundary_whichever_map_it_is_in(compare, head):
    other = head.copy()
    other[14:17, 14:17, 24:27] = LEFT_HIPPOCAMPUS
    results = [compare(*maps, affine=np.diag([2.0, 2, 2, 1])) for maps in ((other, head), (head, other))]
    assert results[0]["boundary_distance_mm"] == results[1]["boundary_distance_mm"]
    assert results[0]["boundary_distance_mm"]["max"] > 5


@pytest.mark.parametrize(
    ("labels", "what"),
    [
        (np.full((3, 3, 3), -1, np.int16), "values from -1"),
        (np.full((3, 3, 3), 1.5, np.float32), "not whole numbers"),
        (np.full((3, 3, 3), np.nan, np.float32), "values from nan"),
        (np.ones((3, 3, 3, 2), np.int16), "4 dimensions"),
    ],
)
def test_what_is_no_label_map(compare, head, labels, what):
    with pytest.raises(SynthSegError, match=what) as caught:
        compare(head, labels)
    assert caught.value.code == "bad_input" and "reference.nii.gz" in str(caught.value)


def test_float_maps_and_a_trailing_axis_are_read(compare, head):
    assert compare(head, head.astype(np.float32)[..., None])["verdict"] == "identical"


@pytest.mark.parametrize("missing", ["native", "reference", "margin", "labels", "volumes"])
def test_a_missing_file_is_an_error(tmp_path, head, missing):
    files = {name: tmp_path / f"{name}.nii.gz" for name in ("native", "reference")}
    for path in files.values():
        save(path, head, np.eye(4))
    files |= {"margin": save_margin(tmp_path / "margin.nii.gz", 0.05, head.shape, np.eye(4)), "labels": LABELS}
    files["volumes"] = save_volumes(tmp_path / "volumes.tsv", {})
    files[missing] = tmp_path / "gone"
    with pytest.raises(SynthSegError, match=r"gone: [Nn]o such file"):
        compare_label_maps(
            files["native"],
            files["reference"],
            files["labels"],
            margin_path=files["margin"],
            native_volumes=files["volumes"],
        )


def test_unknown_threshold_and_foreign_margin_map(compare, head, tmp_path):
    with pytest.raises(SynthSegError, match="max_dice"):
        compare(head, head, max_dice=1)
    margin = save_margin(tmp_path / "small.nii.gz", 0.05, (3, 3, 3), np.eye(4))
    save(tmp_path / "map.nii.gz", head, np.eye(4))
    with pytest.raises(SynthSegError, match=r"small.nii.gz: shape"):
        compare_label_maps(tmp_path / "map.nii.gz", tmp_path / "map.nii.gz", LABELS, margin_path=margin)


def test_the_verdict_says_what_it_is_a_verdict_on():
    assert verdict_text("identical", "own") == "identical (to the own reference)"
    assert verdict_text("different", "upstream") == "different (from upstream's image)"
    assert verdict_text("equivalent", "existing") == "equivalent (to the existing label map)"
    assert verdict_text("not_compared", "own") == "not compared"


def run_script(tmp_path, head, **changed):
    """Run scripts/compare.py as the workflow does; returns its exit status, stderr and the file."""
    out = tmp_path / "out" / "compare.json"
    arguments = {"out": out, "labels": LABELS, "thresholds": '{"max_margin": 0.002}'}
    for who in ("native", "reference"):
        save(tmp_path / f"{who}.nii.gz", head, np.eye(4))
        record = {"scan": "sub-01/anat/sub-01_T1w", "status": "ok", "error": None, "reference": None}
        if who == "reference":
            record["reference"] = {"kind": "own", "runtime": "local", "id": None, "emulated": False}
        write_sealed(tmp_path / f"{who}.json", record)
        arguments |= {who: tmp_path / f"{who}.nii.gz", f"{who}_record": tmp_path / f"{who}.json"}
    arguments |= changed
    command = [sys.executable, ROOT / "scripts" / "compare.py"]
    for name, value in arguments.items():
        command += [f"--{name.replace('_', '-')}", value]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "src")})
    return done.returncode, done.stderr, json.loads(out.read_text()) if out.exists() else None


@pytest.mark.slow
def test_script_writes_the_comparison(tmp_path, head):
    status, stderr, result = run_script(tmp_path, head)
    assert (status, stderr) == (0, "")
    assert result["verdict_text"] == "identical (to the own reference)" and result["reference"]["kind"] == "own"
    assert result["thresholds"]["max_margin"] == 0.002 and result["scan"] == "sub-01/anat/sub-01_T1w"


@pytest.mark.slow
def test_script_fails_on_a_missing_file_and_writes_nothing(tmp_path, head):
    gone = {"reference": "no such file", "native": "no such file", "reference_record": "no run record"}
    for name, says in gone.items():
        status, stderr, result = run_script(tmp_path, head, **{name: tmp_path / "gone"})
        assert status == 3 and result is None
        assert stderr.startswith("compare: ") and f"gone: {says}" in stderr and stderr.count("\n") == 1


def test_soft_volumes_that_are_no_numbers_are_missing(compare, head):
    given = {LEFT_WHITE: "nan", RIGHT_WHITE: "n/a", LEFT_HIPPOCAMPUS: "inf", RIGHT_HIPPOCAMPUS: "500.0"}
    result = compare(head, head, volumes=(given, dict.fromkeys(given, "500.0")))  # strict JSON, or it would raise
    found = {label: entry(result, label)["soft_volume_native_mm3"] for label in given}
    assert found == {LEFT_WHITE: None, RIGHT_WHITE: None, LEFT_HIPPOCAMPUS: None, RIGHT_HIPPOCAMPUS: 500.0}
    assert result["verdict"] == "identical"
