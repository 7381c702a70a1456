"""reference.py with --robust, --parc and --qc against what SynthSeg's own code gives: bounds of v2/README.md.

It runs here in as few cases as show what it takes from where; v2/README.md has the command for all of them.
"""

import csv
import json
import os
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
from golden_runs import GOLDEN, read_labels, read_volumes
from run_v2 import ALL, MISTAKES

V2 = GOLDEN / "v2"
pytestmark = pytest.mark.slow
# Besides these: --parc --qc in default mode, below. What the other combinations take is among what these take.
CASES = ["t1_fast", "t1_fast_qc", "t1_fast_parc_qc", "t1_robust_parc_qc", "t1_crop_parc"]
CORTEX = (3, 42)


@pytest.fixture(scope="module")
def done(root, tensorflow_python, tmp_path_factory):
    """The folder of run_v2.py and what it found."""
    folder = tmp_path_factory.mktemp("v2")
    command = [tensorflow_python, GOLDEN / "run_v2.py", folder, *CASES]
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    found = json.loads((folder / "found.json").read_text())
    print(f"{found['processor_s']:.0f} s of processor time")
    return SimpleNamespace(folder=folder, **found)


def merged(labels):
    """All parcels and both cortices as one label."""
    return np.where((labels > 1000) | np.isin(labels, CORTEX), CORTEX[0], labels)


def beyond(labels, expected):
    """What of the bounds does not hold, as words; and how many voxels differ."""
    structures, wanted = merged(labels), merged(expected)
    moved = structures != wanted
    cortex = moved & ((structures == CORTEX[0]) | (wanted == CORTEX[0]))
    parcels = (labels != expected) & ~moved
    few = 1e-5 * np.count_nonzero((labels > 0) | (expected > 0))
    found = []
    if moved.sum() > few:
        found.append(f"{moved.sum()} voxels of structures")
    if parcels.sum() > few + 10 * cortex.sum():
        found.append(f"{parcels.sum()} voxels of parcels")
    return found, np.count_nonzero(labels != expected)


def read_scores(path):
    with path.open(newline="") as file:
        header, row = csv.reader(file)
    return header, np.array(row[1:], float), row[1:]


def label_maps(done, case, golden=None):
    """Labels of a run, and the golden ones, of the same case or another."""
    return read_labels(done.folder / f"{case}_dseg.nii.gz")[0], read_labels(V2 / f"{golden or case}_dseg.nii.gz")[0]


@pytest.mark.parametrize("case", CASES)
def test_label_maps(done, case):
    labels, expected = label_maps(done, case)
    assert labels.dtype == expected.dtype == np.int32
    assert labels.shape == expected.shape
    affine, expected_affine = (read_labels(folder / f"{case}_dseg.nii.gz")[1] for folder in (done.folder, V2))
    np.testing.assert_array_equal(affine, expected_affine)
    found, n = beyond(labels, expected)
    print(f"{case}: {n} of {np.count_nonzero(expected)} foreground voxels differ")
    assert not found


@pytest.mark.parametrize("case", CASES)
def test_volumes(done, case):
    """With the parcels' total of the commit that the golden results come from."""
    names, subject, volumes = read_volumes(done.folder / f"{case}_volumes.csv")
    expected_names, expected_subject, expected = read_volumes(V2 / f"{case}_volumes.csv")
    assert (names, subject) == (expected_names, expected_subject)
    assert len(names) == (102 if "parc" in case else 34)
    difference = np.abs(volumes - expected) / np.maximum(expected, 100)
    print(f"{case}: volumes differ by {difference.max():.1e} at most")
    assert difference.max() < 5e-3


@pytest.mark.parametrize("case", [case for case in CASES if "--qc" in ALL[case]])
def test_scores(done, case):
    names, scores, texts = read_scores(done.folder / f"{case}_qc.csv")
    expected_names, expected, expected_texts = read_scores(V2 / f"{case}_qc.csv")
    assert names == expected_names
    assert [len(text) for text in texts] == [len(text) for text in expected_texts]
    _, n = beyond(*label_maps(done, case))
    difference = np.abs(scores - expected).max()
    print(f"{case}: scores differ by {difference:.4f} at most")
    assert difference < (5.01e-4 if n else 2.01e-4)
    network = json.loads((V2 / "details.json").read_text())[case]["quality_network_output"]
    assert np.abs(np.subtract(done.scores[case], network)).max() < 5e-4


def test_a_cube_that_is_one_voxel_off_has_other_scores(done):
    assert np.abs(np.subtract(done.scores["moved"], done.scores["t1_fast_qc"]))[1:].max() > 5e-4


@pytest.mark.parametrize("stage", ["groups", "denoised", "structures", "parcels"])
def test_a_network_fed_with_the_golden_map_equals_upstream(done, stage):
    found = done.stages[stage]
    print(f"{stage}: {found['different']} voxels differ, margin {found['margin']:.1e}")
    assert found["different"] <= 1e-5 * found["foreground"]
    assert found["margin"] < 1e-3


def test_scores_of_the_golden_map_equal_upstreams(done):
    expected = json.loads((V2 / "details.json").read_text())["t1_robust_parc_qc"]["quality_network_output"]
    np.testing.assert_allclose(done.stages["scores"], expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("mistake", ["groups_permuted", "not_denoised", "channels_permuted"])
def test_a_mistake_with_groups_is_seen(done, mistake):
    assert done.stages[mistake]["different"] > 1000


def test_a_skip_too_many_does_not_fit_the_weights(done):
    assert (
        "layer l2l_conv_uparm_5_0 is missing or another: give those of a skip too many"
        in done.stages["a_skip_too_many"]
    )


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_with_parcels_is_seen(done, mistake):
    found, n = beyond(*label_maps(done, mistake, "t1_crop_parc"))
    print(f"{mistake}: {n} voxels differ")
    assert found


def test_scores_besides_leave_parcels_unsmoothed(done):
    labels, expected = label_maps(done, "with_scores", "t1_crop_parc")
    assert not beyond(merged(labels), merged(expected))[0]
    assert beyond(labels, expected)[0]
    np.testing.assert_array_equal(labels, label_maps(done, "parcels_not_smoothed", "t1_crop_parc")[0])
    assert len(read_scores(done.folder / "with_scores_qc.csv")[1]) == 8


def test_parcels_of_a_hemisphere_add_up_to_its_cortex(done):
    names, _, volumes = read_volumes(done.folder / "by_hemisphere_volumes.csv")
    upstream_names, _, upstream = read_volumes(V2 / "t1_crop_parc_volumes.csv")
    assert names == upstream_names
    names = names[1:]
    for side, cortex in (("lh", "left cerebral cortex"), ("rh", "right cerebral cortex")):
        parcels = [i for i, name in enumerate(names) if name.startswith(f"ctx-{side}-")]
        assert len(parcels) == 34
        assert volumes[parcels].sum() == pytest.approx(volumes[names.index(cortex)], abs=34 * 0.0005)
        shares, expected = (v[parcels] / v[parcels].sum() for v in (volumes, upstream))
        np.testing.assert_allclose(shares, expected, atol=5e-5)
    white_matter = sum(upstream[names.index(f"{side} cerebral white matter")] for side in ("left", "right"))
    assert upstream[-68:].sum() == pytest.approx(white_matter, rel=1e-3)  # what is done otherwise here
