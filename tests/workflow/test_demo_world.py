"""The real demo cohort, made and segmented: sub-02 must be sub-01 in the world, label by label, sides included.

The template is mirror-symmetric, so a mistake of sides would go unseen in it. The phantoms have a larger left lateral
ventricle and a larger right hippocampus; Dice in world coordinates and these two ratios together find a swap of labels
as well as an image whose header mirrors it (there the network's sides are right for the mirrored head, and only the
anatomy tells).
"""

import os
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from synthseg_native.cohort.samples import read_samples
from synthseg_native.networks.cards import read_labels

pytestmark = pytest.mark.slow

# Structures large enough for their Dice between two grids of 2 mm to mean something.
LARGE = (2, 3, 4, 7, 8, 10, 11, 12, 16, 17, 41, 42, 43, 46, 47, 49, 50, 51, 53)
MIN_DICE = 0.75
MIRROR = np.diag([-1.0, 1, 1, 1])
LEFT_VENTRICLE, RIGHT_VENTRICLE, LEFT_HIPPOCAMPUS, RIGHT_HIPPOCAMPUS = 4, 43, 17, 53
# (larger, smaller, least ratio of their volumes)
ASYMMETRIES = ((LEFT_VENTRICLE, RIGHT_VENTRICLE, 1.4), (RIGHT_HIPPOCAMPUS, LEFT_HIPPOCAMPUS, 1.15))


def run(python, root, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    command = [python, *map(str, arguments)]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def cohort(demo_python, root, tmp_path_factory):
    """Path of the sample sheet of a freshly made cohort."""
    folder = tmp_path_factory.mktemp("demo cohort")
    run(demo_python, root, "scripts/make_demo.py", "--out", folder)
    return folder / "samples.tsv"


@pytest.fixture(scope="module")
def images(cohort):
    return [scan.image for scan in read_samples(cohort)]


@pytest.fixture(scope="module")
def segmented(images, llvm_python, root, tmp_path_factory):
    """Label maps of the small model, in one call: of the cohort's images, and of the second with a mirrored header."""
    folder = tmp_path_factory.mktemp("segmented")
    image = nib.load(images[1])
    copy = nib.Nifti1Image(image.dataobj.get_unscaled(), MIRROR @ image.affine, image.header)
    copy.header.set_slope_inter(image.dataobj.slope, image.dataobj.inter)
    nib.save(copy, folder / "mirrored.nii.gz")
    given = [*images, folder / "mirrored.nii.gz"]
    made = [folder / f"{number}.nii.gz" for number in range(len(given))]
    for name, paths in (("given.txt", given), ("made.txt", made)):
        (folder / name).write_text("".join(f"{path}\n" for path in paths))
    options = ("--engine", "llvm", "--model", "compact2mm", "--threads", "2", "--device", "cpu")
    lists = ("--i", folder / "given.txt", "--o", folder / "made.txt")
    run(llvm_python, root, "-m", "synthseg_native", *lists, *options)
    return [nib.load(path) for path in made]


@pytest.fixture(scope="module")
def label_maps(segmented):
    """Those of the cohort."""
    return segmented[:3]


def labels_on(grid, label_map):
    """The label map at the voxel centres of the image ``grid``, nearest neighbour in world coordinates."""
    to_source = np.linalg.inv(label_map.affine) @ grid.affine
    labels = np.asarray(label_map.dataobj).astype(np.int32)
    return ndimage.affine_transform(labels, to_source[:3, :3], to_source[:3, 3], grid.shape, order=0)


def dice(first, second):
    """Dice of each of LARGE between two label arrays on one grid."""
    result = {}
    for label in LARGE:
        a, b = first == label, second == label
        result[label] = 2 * (a & b).sum() / max(1, a.sum() + b.sum())
    return result


def asymmetries(label_map):
    labels = np.asarray(label_map.dataobj)
    return [(labels == larger).sum() / max(1, (labels == smaller).sum()) for larger, smaller, _ in ASYMMETRIES]


def disagreements(first, second):
    """What makes ``second`` another head than ``first``: a list of lines, empty when it is the same."""
    lines = [
        f"label {label}: Dice {value:.2f}"
        for label, value in dice(np.asarray(first.dataobj), labels_on(first, second)).items()
        if value < MIN_DICE
    ]
    for (larger, smaller, least), ratio in zip(ASYMMETRIES, asymmetries(second), strict=True):
        if ratio < least:
            lines.append(f"label {larger} is {ratio:.2f} times label {smaller}, expected above {least}")
    return lines


def test_the_cohort_is_what_it_says(cohort, images):
    assert [scan.name for scan in read_samples(cohort)] == ["sub-01_T1w", "sub-02_T1w", "sub-03_FLAIR"]
    loaded = [nib.load(image) for image in images]
    assert loaded[0].shape == (197, 233, 189)
    assert ["".join(nib.aff2axcodes(image.affine)) for image in loaded] == ["RAS", "LIA", "LPS"]
    assert [str(image.get_data_dtype()) for image in loaded] == ["uint8", "int16", "int16"]
    assert loaded[1].dataobj.slope == 0.25
    assert np.degrees(nib.affines.obliquity(loaded[1].affine)).max() > 7
    assert loaded[2].header.get_zooms()[2] == 5
    for image, path in zip(loaded, images, strict=True):
        assert Path(path).stat().st_size < 8e6
        values = image.get_fdata()
        # The whole head is in the field of view: air at every face but the lower one, where the neck leaves it.
        head = values > 0.35 * np.percentile(values, 99)
        canonical = nib.as_closest_canonical(nib.Nifti1Image(head.astype(np.uint8), image.affine)).get_fdata()
        faces = [canonical[0], canonical[-1], canonical[:, 0], canonical[:, -1], canonical[:, :, -1]]
        assert max(face.mean() for face in faces) < 0.01


def test_the_asymmetry_is_found_in_both(label_maps):
    for label_map in label_maps[:2]:
        for (larger, smaller, least), ratio in zip(ASYMMETRIES, asymmetries(label_map), strict=True):
            assert ratio > least, f"{larger} / {smaller}"


def test_sub_02_is_sub_01_in_the_world(label_maps):
    assert disagreements(label_maps[0], label_maps[1]) == []


def test_swapped_labels_are_caught(label_maps, root):
    labels = read_labels(root / "models" / "compact2mm" / "labels.tsv")
    swap = np.zeros(256, np.int32)
    swap[labels.index] = np.asarray(labels.index)[labels.flip]
    second = label_maps[1]
    swapped = nib.Nifti1Image(swap[np.asarray(second.dataobj)], second.affine)
    lines = disagreements(label_maps[0], swapped)
    assert len(lines) == 18 + len(ASYMMETRIES)  # all but the brain-stem, which has no sides


def test_a_label_map_with_a_mirrored_header_is_caught(label_maps):
    second = label_maps[1]
    mirrored = nib.Nifti1Image(np.asarray(second.dataobj), MIRROR @ second.affine)
    assert len(disagreements(label_maps[0], mirrored)) >= 18


def test_an_image_with_a_mirrored_header_is_caught(label_maps, segmented):
    label_map = segmented[3]
    lines = disagreements(label_maps[0], label_map)
    assert sum("times" in line for line in lines) == len(ASYMMETRIES)
    # It is a good segmentation of the mirrored head all the same: nothing but the anatomy gives it away.
    assert min(1 / ratio for ratio in asymmetries(label_map)) > 1.15


def test_sub_03_is_segmented_as_a_brain(label_maps):
    found = dice(np.asarray(label_maps[0].dataobj), labels_on(label_maps[0], label_maps[2]))
    assert np.mean(list(found.values())) > 0.6
    assert asymmetries(label_maps[2])[0] > 1.2
