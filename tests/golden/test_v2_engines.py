"""The command with --robust, --parc and --qc, by every engine, against what SynthSeg's own code gives.

The bounds are those of v2/README.md, as `compare` has them. Stages, tables of what is taken from where, and mistakes
that must show are tested in test_v2.py and in unit tests; here each engine runs whole.
"""

import csv
from contextlib import ExitStack

import numpy as np
import pytest
from golden_runs import GOLDEN, RunFailed, Runs, read_volumes

from synthseg_native.compare import compare_label_maps

V2, MODELS = GOLDEN / "v2", GOLDEN.parents[1] / "models"
UPSTREAM = ["--parcel-volumes", "upstream-66342c1"]  # as the golden tables have them
CASES = {  # image, model, flags
    "t1_parc_qc": ("t1", "golden2", ["--parc", "--qc"]),  # where one voxel of cortex moves parcels far from it
    "t1_fast_parc": ("t1", "golden2", ["--fast", "--parc"]),
    "t1_robust_parc_qc": ("t1", "golden2", ["--robust", "--parc", "--qc"]),
    "t1_crop_parc": ("t1", "golden2", ["--parc", "--crop", "64", "80", "48"]),
    "t1_v1_parc_qc": ("t1", "compact2mm", ["--parc", "--qc"]),
}
EVERY = "t1_robust_parc_qc"  # all networks but one
WHICH = [*(("llvm", case) for case in CASES), ("tensorflow", EVERY), ("torch", EVERY)]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(request, root, tmp_path_factory):
    """A function that runs an engine on a case once; returns its folder."""
    runs = {}
    with ExitStack() as stack:

        def run(engine, case):
            python = request.getfixturevalue(f"{engine}_python")  # skips where there is none
            if engine not in runs:
                runs[engine] = stack.enter_context(Runs(root, python, tmp_path_factory.mktemp(engine), engine))
            image, model, flags = CASES[case]
            scores = runs[engine].folder / f"{case}_qc.csv"
            words = [word for flag in flags for word in ([flag, scores] if flag == "--qc" else [flag])]
            try:
                return runs[engine].engine(image, MODELS / model, case, flags=[*words, *UPSTREAM]), scores
            except RunFailed as error:
                pytest.fail(str(error))

        yield run


@pytest.mark.parametrize(("engine", "case"), WHICH)
def test_label_maps_equal_upstream(run, engine, case):
    folder, _ = run(engine, case)
    model = MODELS / CASES[case][1]
    result = compare_label_maps(
        folder / "dseg.nii.gz",
        V2 / f"{case}_dseg.nii.gz",
        model / "labels.tsv",
        folder / "margin.nii.gz",
        parcels_path=MODELS / "golden2" / "parcels.tsv",
    )
    print(f"{case}: {result['n_voxels_different']} of {result['n_voxels_foreground']} foreground voxels differ")
    assert result["verdict"] in ("identical", "equivalent"), result["verdict_reason"]


@pytest.mark.parametrize(("engine", "case"), WHICH)
def test_tables_equal_upstream(run, engine, case):
    """Columns, names and what they say; volumes are float64 sums here, float32 sums there."""
    folder, scores = run(engine, case)
    names, subject, volumes = read_volumes(folder / "volumes.csv")
    expected_names, expected_subject, expected = read_volumes(V2 / f"{case}_volumes.csv")
    assert (names, subject) == (expected_names, expected_subject)
    assert (np.abs(volumes - expected) <= 5e-3 * np.maximum(expected, 100)).all()
    if "--qc" in CASES[case][2]:
        ours, theirs = (list(csv.reader(path.open(newline=""))) for path in (scores, V2 / f"{case}_qc.csv"))
        assert ours[0] == theirs[0]
        difference = np.abs(np.array(ours[1][1:], float) - np.array(theirs[1][1:], float)).max()
        assert difference <= 5e-4
