"""Engine and reference against results of SynthSeg's own code, and against each other."""

import nibabel as nib
import numpy as np
import pytest
from golden_runs import GOLDEN, read_labels, read_volumes

pytestmark = pytest.mark.slow
IMAGES = ("t1", "oblique", "thick")


@pytest.mark.parametrize("image", IMAGES)
def test_engine_equals_upstream(runs, check, image):
    folder = runs.engine(image)
    check(folder, f"{image}_default_", margin=folder / "margin.nii.gz")


@pytest.mark.parametrize("image", IMAGES)
def test_reference_equals_upstream(runs, check, image):
    check(runs.reference(image), f"{image}_default_", margin=runs.engine(image) / "margin.nii.gz")


@pytest.mark.parametrize("image", IMAGES)
def test_fast_reference_equals_upstream(runs, check, image):
    check(runs.reference(image, "fast", ["--fast"]), f"{image}_fast_")


def test_cropped_reference_equals_upstream(runs, check):
    check(runs.reference("t1", "crop", ["--crop", "64", "80", "48"]), "t1_crop_")


def test_ct_reference_equals_upstream(runs, check):
    check(runs.reference("t1", "ct", ["--ct"]), "t1_ct_")


def test_resampled_image_equals_upstream(runs):
    saved = runs.reference("oblique") / "resampled.nii.gz"
    ours, expected = nib.load(saved), nib.load(GOLDEN / "oblique_resampled.nii.gz")
    assert ours.get_data_dtype() == expected.get_data_dtype()
    np.testing.assert_array_equal(ours.affine, expected.affine)
    # Both are stored as int16 with a slope; a last-bit difference before that moves a voxel by one step at most.
    np.testing.assert_allclose(ours.get_fdata(), expected.get_fdata(), rtol=0, atol=1.01 * expected.dataobj.slope)


@pytest.mark.parametrize("image", IMAGES)
def test_engine_equals_reference_bit_for_bit(runs, image):
    """The same operations on the same machine: no voxel may differ, whatever the machine."""
    labels, affine = read_labels(runs.engine(image) / "dseg.nii.gz")
    expected, expected_affine = read_labels(runs.reference(image) / "dseg.nii.gz")
    assert np.array_equal(labels, expected)
    assert np.array_equal(affine, expected_affine)
    volumes = read_volumes(runs.engine(image) / "volumes.csv")[2]
    expected_volumes = read_volumes(runs.reference(image) / "volumes.csv")[2]
    np.testing.assert_allclose(volumes, expected_volumes, rtol=0, atol=0.002)  # mm3: the order of float64 sums
