"""Engine and reference against results of SynthSeg's own code, and against each other."""

import json

import nibabel as nib
import numpy as np
import pytest
from golden_runs import GOLDEN, read_labels, read_volumes

pytestmark = pytest.mark.slow
# Golden case -> image, flags of the command.
CASES = {
    **{f"{image}_default": (image, []) for image in ("t1", "oblique", "thick")},
    **{f"{image}_fast": (image, ["--fast"]) for image in ("t1", "oblique", "thick")},
    "t1_crop": ("t1", ["--crop", "64", "80", "48"]),
    "t1_ct": ("t1", ["--ct"]),
}
# Each image and each mode. What is before and after the network is the same code for every engine, and the quickest
# one is held against upstream in all cases (test_other_engines.py).
HERE = ("oblique_default", "thick_fast", "t1_crop")
# Engine and reference against each other besides: the flags that are not in these cases, by the cheapest run.
BESIDES = {
    "autocrop": ("t1", ["--autocrop", "--fast"]),
    "cropped_ct": ("t1", ["--ct", "--crop", "64", "80", "48"]),
}


def engine_of(runs, case):
    image, flags = CASES[case]
    return runs.engine_of_pair(image, case.split("_")[1], flags)


def pair(runs, case):
    if case in BESIDES:
        image, flags = BESIDES[case]
        return runs.pair(image, case, flags)
    image, flags = CASES[case]
    return runs.pair(image, case.split("_")[1], flags)


@pytest.mark.parametrize("case", HERE)
def test_engine_equals_upstream(runs, check, case):
    engine = engine_of(runs, case)
    check(engine, f"{case}_", margin=engine / "margin.nii.gz")


@pytest.mark.parametrize("case", HERE)
def test_reference_equals_upstream(runs, check, case):
    engine, reference = pair(runs, case)
    check(reference, f"{case}_", margin=engine / "margin.nii.gz")


@pytest.mark.parametrize("program", [0, 1], ids=["engine", "reference"])
def test_resampled_image_equals_upstream(runs, program):
    saved = pair(runs, "oblique_default")[program] / "resampled.nii.gz"
    ours, expected = nib.load(saved), nib.load(GOLDEN / "oblique_resampled.nii.gz")
    assert ours.get_data_dtype() == expected.get_data_dtype()
    np.testing.assert_array_equal(ours.affine, expected.affine)
    # Both are stored as int16 with a slope; a last-bit difference before that moves a voxel by one step at most.
    np.testing.assert_allclose(ours.get_fdata(), expected.get_fdata(), rtol=0, atol=1.01 * expected.dataobj.slope)


@pytest.mark.parametrize("case", [*HERE, *BESIDES])
def test_engine_equals_reference_bit_for_bit(runs, case):
    """The same operations on the same machine: no voxel and no posterior may differ, whatever the machine."""
    engine, reference = pair(runs, case)
    for name in ("dseg.nii.gz", "posteriors.nii"):
        ours, expected = nib.load(engine / name), nib.load(reference / name)
        assert ours.get_data_dtype() == expected.get_data_dtype()
        np.testing.assert_array_equal(np.asarray(ours.dataobj), np.asarray(expected.dataobj))
        np.testing.assert_array_equal(ours.affine, expected.affine)
    volumes = read_volumes(engine / "volumes.csv")[2]
    expected_volumes = read_volumes(reference / "volumes.csv")[2]
    np.testing.assert_allclose(volumes, expected_volumes, rtol=0, atol=0.002)  # mm3: the order of float64 sums


def test_an_automatic_crop_changes_what_the_network_sees(runs):
    whole = engine_of(runs, "t1_fast")
    cropped, _ = pair(runs, "autocrop")
    sizes = [json.loads((folder / "run.json").read_text())["output"] for folder in (whole, cropped)]
    assert sizes[0]["shape"] == sizes[1]["shape"]
    assert sizes[0]["labels_sha256"] != sizes[1]["labels_sha256"]


def test_clipped_brightness_changes_the_labels(runs):
    plain, clipped = engine_of(runs, "t1_crop"), pair(runs, "cropped_ct")[0]
    found = [json.loads((folder / "run.json").read_text())["output"]["labels_sha256"] for folder in (plain, clipped)]
    assert found[0] != found[1]


@pytest.mark.parametrize("case", HERE)
def test_posteriors_are_what_the_labels_and_volumes_come_from(runs, case):
    engine = engine_of(runs, case)
    image = nib.load(engine / "posteriors.nii")
    posteriors = np.asarray(image.dataobj)
    labels, affine = read_labels(engine / "dseg.nii.gz")
    values = np.array(
        [0, *(int(line.split("\t")[0]) for line in (engine / "volumes.tsv").read_text().splitlines()[1:])]
    )
    np.testing.assert_array_equal(values[posteriors.argmax(axis=-1)], labels)
    np.testing.assert_array_equal(image.affine, affine)
    np.testing.assert_allclose(posteriors.sum(axis=-1), 1, atol=1e-5)
    volumes = posteriors.sum(axis=(0, 1, 2), dtype=np.float64)[1:] * np.prod(image.header.get_zooms()[:3])
    np.testing.assert_allclose(read_volumes(engine / "volumes.csv")[2], volumes, rtol=0, atol=0.01)


def test_nothing_leaves_the_machine(runs):
    pair(runs, "t1_crop")
    runs.assert_nothing_left()
