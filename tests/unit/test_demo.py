"""The making of the demo's phantoms, on a small made-up template (the real one: tests/workflow/test_demo_world.py)."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from synthseg_native.cohort import demo, phantoms
from synthseg_native.cohort.samples import read_samples

AFFINE = np.array([[1.0, 0, 0, -80], [0, 1, 0, -110], [0, 0, 1, -70], [0, 0, 0, 1]])
SHAPE = (161, 191, 151)
LEFT_VENTRICLE, RIGHT_HIPPOCAMPUS = np.array([-11.0, 12, 12]), np.array([28.0, -22, -15])


def world(shape, affine):
    return nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))


def ball(points, centre, radius):
    return ((points - np.asarray(centre)) ** 2).sum(-1) <= radius**2


@pytest.fixture(scope="module")
def made_up_template():
    """A mirror-symmetric ellipsoid of white matter with two dark ventricles and two grey hippocampi."""
    points = world(SHAPE, AFFINE)
    array = np.where(((points - [0, -18, 5]) / [65, 80, 55]) ** 2 @ np.ones(3) <= 1, 0.87, 0)
    for side in (-1, 1):
        array[ball(points, LEFT_VENTRICLE * [-side, 1, 1], 7)] = 0.33
        array[ball(points, RIGHT_HIPPOCAMPUS * [side, 1, 1], 7)] = 0.70
    return array.astype(np.float32), AFFINE


@pytest.fixture(scope="module")
def phantom(made_up_template):
    return phantoms.make_phantom(*made_up_template)


def test_the_deformation_enlarges_one_side_and_folds_nowhere():
    grid = np.moveaxis(np.mgrid[-80:81:2, -110:81:2, -60:71:2].astype(float), 0, -1)
    pulled = phantoms.pull_back(grid)
    jacobian = np.linalg.det(
        np.stack([np.stack(np.gradient(pulled[..., i], 2.0), -1) for i in range(3)], axis=-2)
    )  # of the way back: below 1 where the phantom is larger than the template
    assert jacobian.min() > 0.02
    moved = np.linalg.norm(pulled - grid, axis=-1)
    assert 3 < moved.max() < 8  # mm

    def at(point):
        return jacobian[tuple(np.round((np.array(point) - [-80, -110, -60]) / 2).astype(int))]

    assert at(LEFT_VENTRICLE) < 0.3 and at(RIGHT_HIPPOCAMPUS) < 0.3
    assert 0.7 < at(LEFT_VENTRICLE * [-1, 1, 1]) < 1.4 and 0.9 < at(RIGHT_HIPPOCAMPUS * [-1, 1, 1]) < 1.1
    assert moved[:, :, -5:].max() < 0.05  # the head's outline stays


@pytest.mark.slow
def test_the_phantom_is_asymmetric_where_the_template_is_not(made_up_template, phantom):
    array, affine = made_up_template
    left = world(SHAPE, affine)[..., 0] < 0

    def volumes(dark, image):
        return [int((dark(image) & side).sum()) for side in (left, ~left)]

    inside = ndimage.binary_erosion(array > 0, iterations=3)
    assert len(set(volumes(lambda a: (a < 0.5) & inside, array))) == 1
    ventricles = volumes(lambda a: (a < 0.3) & inside, phantom.tissue)
    hippocampi = volumes(lambda a: (a > 0.6) & (a < 0.75) & inside, phantom.tissue)
    assert ventricles[0] > 1.5 * ventricles[1]
    assert hippocampi[1] > 1.2 * hippocampi[0]


@pytest.mark.slow
def test_brain_csf_bone_scalp_and_air_follow_each_other(phantom):
    image = phantom.image()
    voxel = np.round(nib.affines.apply_affine(np.linalg.inv(AFFINE), [0, -18, 5])).astype(int)
    line = image[voxel[0], voxel[1], voxel[2] :]  # upwards from the middle
    surface = int(np.nonzero(phantom.inside[voxel[0], voxel[1], voxel[2] :] > 0.5)[0].max())
    assert line[surface - 5] > 0.8
    bone, scalp = line[surface + 1 : surface + 9], line[surface + 5 : surface + 14]
    assert bone.min() < 0.12
    assert scalp.max() > 0.6
    assert np.argmax(scalp) + surface + 5 > np.argmin(bone) + surface + 1
    assert line[surface + 20 :].max() < 0.01
    # The shell has no hole: every way out of the head meets bright scalp.
    enclosed = ndimage.binary_fill_holes(ndimage.binary_closing(image > 0.35, iterations=2))
    assert enclosed[phantom.inside > 0.5].all()


@pytest.mark.slow
def test_the_other_contrast_turns_grey_and_white_matter_round(phantom):
    flair = phantom.image(phantoms.FLAIR_TISSUE, phantoms.FLAIR_SHELL)
    voxels = np.round(
        nib.affines.apply_affine(np.linalg.inv(AFFINE), [RIGHT_HIPPOCAMPUS, [40, 20, 20], LEFT_VENTRICLE])
    ).astype(int)
    grey, white, csf = (flair[tuple(voxel)] for voxel in voxels)
    assert grey > 1.3 * white and csf < 0.3 * white


def test_smooth_fields_follow_from_their_seed():
    field = phantoms.smooth_field((40, 50, 60), 12, seed=5)
    assert field.shape == (40, 50, 60)
    assert np.array_equal(field, phantoms.smooth_field((40, 50, 60), 12, seed=5))
    assert not np.array_equal(field, phantoms.smooth_field((40, 50, 60), 12, seed=6))
    assert np.abs(field).max() <= 1 and field.std() > 0.2
    assert max(np.abs(np.diff(field, axis=axis)).max() for axis in range(3)) < 0.25


@pytest.mark.slow
def test_distance_from_the_envelope():
    points = world((81, 81, 81), np.eye(4)) - 40
    distance = phantoms.envelope_distance(ball(points, (0, 0, 0), 22))
    expected = np.linalg.norm(points, axis=-1) - 22
    near = np.abs(expected) < 8
    assert np.abs(distance - expected)[near].max() < 2.5
    # A cleft is closed: in it, the distance is that of the whole ball.
    cleft = ball(points, (0, 0, 0), 22) & ~((np.abs(points[..., 0]) < 2) & (points[..., 2] > 0))
    assert phantoms.envelope_distance(cleft)[40, 40, 55] < -3


@pytest.mark.parametrize("axes", ["LIA", "LPS", "RAS", "PIR"])
def test_a_tilted_grid(axes):
    shape, voxel_mm, centre = (60, 70, 80), (1.2, 0.9, 1.5), (2.0, -20.0, 14.0)
    affine = phantoms.tilted_affine(axes, voxel_mm, (6.0, -4.0, 5.0), shape, centre)
    assert "".join(nib.aff2axcodes(affine)) == axes
    np.testing.assert_allclose(nib.affines.voxel_sizes(affine), voxel_mm)
    np.testing.assert_allclose(nib.affines.apply_affine(affine, (np.array(shape) - 1) / 2), centre)
    assert 6 < np.degrees(nib.affines.obliquity(affine)).max() < 10
    straight = phantoms.tilted_affine(axes, voxel_mm, (0, 0, 0), shape, centre)
    assert np.allclose(nib.affines.obliquity(straight), 0)


def test_resampling_keeps_the_place_in_the_world():
    source = AFFINE @ np.diag([2.0, 2, 2, 1])
    points = world((60, 60, 60), source)
    target = phantoms.tilted_affine(
        "LIA", (1.2, 0.9, 1.5), (6.0, -4.0, 5.0), (20, 20, 20), points.reshape(-1, 3).mean(0)
    )
    for axis in range(3):
        found = phantoms.on_grid(points[..., axis], source, target, (20, 20, 20))
        np.testing.assert_allclose(found, world((20, 20, 20), target)[..., axis], atol=0.3)


@pytest.mark.slow
def test_the_second_image_is_the_first_on_another_grid(phantom):
    first, second = phantoms.first_image(phantom), phantoms.second_image(phantom)
    second = nib.Nifti1Image.from_bytes(second.to_bytes())
    assert nib.aff2axcodes(first.affine) == ("R", "A", "S")
    assert nib.aff2axcodes(second.affine) == ("L", "I", "A")
    np.testing.assert_allclose(second.header.get_zooms(), (1.2, 0.9, 1.5), rtol=1e-6)
    assert 7 < np.degrees(nib.affines.obliquity(second.affine)).max() < 11
    assert second.get_data_dtype() == np.int16
    assert (second.dataobj.slope, second.dataobj.inter) == (0.25, 0)
    for image in (first, second):
        assert image.header["sform_code"] == image.header["qform_code"] == 1
        np.testing.assert_allclose(image.get_sform(), image.get_qform(), atol=1e-3)
    np.testing.assert_allclose(np.asarray(second.dataobj), 0.25 * second.dataobj.get_unscaled())
    other = phantoms.on_grid(second.get_fdata(), second.affine, first.affine, first.shape, order=1)
    seen = other > 50
    own = first.get_fdata()
    assert seen.mean() > 0.2
    assert np.corrcoef(other[seen], own[seen])[0, 1] > 0.95
    mirrored = phantoms.on_grid(
        second.get_fdata(), np.diag([-1, 1, 1, 1]) @ second.affine, first.affine, first.shape, 1
    )
    inside = phantom.inside > 0.99
    assert np.corrcoef(mirrored[inside], own[inside])[0, 1] < 0.8 * np.corrcoef(other[inside], own[inside])[0, 1]


@pytest.mark.slow
def test_the_third_image_has_thick_slices(phantom):
    image = phantoms.third_image(phantom)
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    np.testing.assert_allclose(image.header.get_zooms(), (0.95, 0.95, 5.0), rtol=1e-6)
    # Noise of about 30 in the air: Rician, so its mean is sigma * sqrt(pi / 2).
    assert 30 < image.get_fdata()[:8, :8].mean() < 45


@pytest.mark.slow
def test_the_cohort_is_written_whole_and_the_same_each_time(phantom, tmp_path, monkeypatch):
    monkeypatch.setattr(phantoms, "template", lambda: (None, None))
    monkeypatch.setattr(phantoms, "make_phantom", lambda array, affine: phantom)
    monkeypatch.setattr(demo, "IMAGES", (demo.IMAGES[0], demo.IMAGES[2]))
    sheets = [demo.make(tmp_path / name, log=lambda line: None) for name in ("a", "b")]
    files = [
        sorted(path.relative_to(sheet.parent) for path in sheet.parent.rglob("*") if path.is_file()) for sheet in sheets
    ]
    assert [str(path) for path in files[0]] == [
        "dataset_description.json",
        "samples.tsv",
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-03/anat/sub-03_FLAIR.nii.gz",
    ]
    assert files[0] == files[1]
    for path in files[0]:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()
    scans = read_samples(sheets[0])
    assert [scan.name for scan in scans] == ["sub-01_T1w", "sub-03_FLAIR"]
    assert all(nib.load(scan.image).ndim == 3 for scan in scans)
    description = json.loads((tmp_path / "a" / "dataset_description.json").read_text())
    assert "phantoms" in description["Name"] and "No scans of anybody" in description["GeneratedBy"][0]["Description"]
    with gzip.open(scans[0].image) as stream:
        assert b"phantom" in stream.read(348)


@pytest.mark.slow
def test_a_failure_leaves_no_sheet_and_no_half_file(phantom, tmp_path, monkeypatch):
    def broken(phantom):
        raise OSError("no space left")

    monkeypatch.setattr(phantoms, "template", lambda: (None, None))
    monkeypatch.setattr(phantoms, "make_phantom", lambda array, affine: phantom)
    monkeypatch.setitem(phantoms.BUILDERS, "02", broken)
    with pytest.raises(OSError, match="no space"):
        demo.make(tmp_path, log=lambda line: None)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["sub-01_T1w.nii.gz"]


def test_the_snakefile_can_ask_for_the_paths_without_the_demo_environment():
    ask = "import sys; from synthseg_native.cohort import demo; print(*demo.image_paths('a b'), 'numpy' in sys.modules)"
    env = {"PYTHONPATH": str(Path(demo.__file__).parents[2])}
    said = subprocess.run([sys.executable, "-S", "-c", ask], env=env, capture_output=True, text=True, check=True).stdout
    assert said == " ".join(
        [
            "a b/sub-01/anat/sub-01_T1w.nii.gz",
            "a b/sub-02/anat/sub-02_T1w.nii.gz",
            "a b/sub-03/anat/sub-03_FLAIR.nii.gz",
            "False\n",
        ]
    )


def test_every_image_of_the_cohort_has_a_builder_and_a_row_in_the_demo_configuration(root):
    assert list(phantoms.BUILDERS) == [subject for subject, _ in demo.IMAGES]
    scans = read_samples(root / "config" / "demo_samples.tsv")
    assert [Path(scan.image).resolve() for scan in scans] == [root / path for path in demo.image_paths()]
