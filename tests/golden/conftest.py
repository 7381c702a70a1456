"""Runs of the engine and of the reference on the golden images, each made once per session."""

import json
import subprocess

import nibabel as nib
import numpy as np
import pytest
from golden_runs import GOLDEN, Runs, read_labels, read_volumes, this_cpu


@pytest.fixture(scope="session")
def runs(root, tensorflow_python, tmp_path_factory):
    with Runs(root, tensorflow_python, tmp_path_factory.mktemp("runs")) as runs:
        yield runs


@pytest.fixture(scope="session")
def exact(tensorflow_python):
    """Whether this machine is of the class on which the golden results were computed, or of one that equalled it."""
    recorded = json.loads((GOLDEN / "recorded.json").read_text())
    ask = "import platform; from importlib.metadata import version; print(version('tensorflow'), platform.machine())"
    done = subprocess.run([tensorflow_python, "-c", ask], capture_output=True, text=True, check=True)
    version, arch = done.stdout.split()
    cpu = this_cpu() | {"arch": arch}  # which is another one's under emulation
    return cpu in (recorded["cpu"], *recorded["also_equal_on"]) and version == recorded["tensorflow"]


@pytest.fixture(scope="session")
def check(exact):
    """A function that compares a run with a golden case, as README.md says; margin is a path or None."""

    def compare(folder, golden, margin=None, golden_folder=GOLDEN, volume_tolerance=5e-4):
        labels, affine = read_labels(folder / "dseg.nii.gz")
        expected, expected_affine = read_labels(golden_folder / f"{golden}dseg.nii.gz")
        assert labels.dtype == expected.dtype == np.int32
        assert labels.shape == expected.shape
        np.testing.assert_array_equal(affine, expected_affine)
        different = labels != expected
        n, foreground = np.count_nonzero(different), np.count_nonzero((labels > 0) | (expected > 0))
        print(f"{golden}: {n} of {foreground} foreground voxels differ")
        if exact:
            assert n == 0
        assert n <= 1e-5 * foreground
        assert set(np.unique(expected)) <= set(np.unique(labels))
        if margin is not None and n:
            assert nib.load(margin).get_fdata()[different].max() < 1e-3

        names, subject, volumes = read_volumes(folder / "volumes.csv")
        expected_names, _, expected_volumes = read_volumes(golden_folder / f"{golden}volumes.csv")
        assert names == expected_names
        assert subject
        np.testing.assert_array_less(
            np.abs(volumes - expected_volumes), np.maximum(1.0, volume_tolerance * expected_volumes) + 1e-9
        )

    return compare
