"""The command with --robust, --parc and --qc, by every engine, against what SynthSeg's own code gives.

The bounds are those of v2/README.md, as `compare` has them. Tables of what is taken from where, and mistakes that must
show, are tested in test_v2.py and in unit tests; here each engine runs whole, and stage by stage: each network fed with
upstream's map (fed.py).
"""

import csv
import json
from contextlib import ExitStack
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from golden_runs import GOLDEN, RunFailed, Runs, read_labels, read_volumes

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
ENGINES = ("llvm", "tensorflow", "torch")
WHICH = [*(("llvm", case) for case in CASES), ("tensorflow", EVERY), ("torch", EVERY)]
STAGES = ("groups", "denoised", "structures", "parcels", "scores")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(request, root, tmp_path_factory):
    """A function that runs an engine on a case once; returns folder, scores, and of a run that is fed what it found.

    how : () for the command as it is; what was fed and found nothing else than it was fed is that, too
    """
    runs = {}
    with ExitStack() as stack:

        def run(engine, case, how=()):
            python = request.getfixturevalue(f"{engine}_python")  # skips where there is none
            if engine not in runs:
                runs[engine] = stack.enter_context(Runs(root, python, tmp_path_factory.mktemp(engine), engine))
            if case == EVERY and not how:
                fed = run(engine, case, ("--fed",))
                if not any(about["different"] for about in fed.found.values()):
                    return fed
            image, model, flags = CASES[case]
            name = "".join([case, *how])
            scores, found = (runs[engine].folder / f"{name}_{what}" for what in ("qc.csv", "found.json"))
            words = [word for flag in flags for word in ([flag, scores] if flag == "--qc" else [flag])]
            words += [word for flag in how for word in ([flag, found] if flag == "--fed" else [flag])]
            try:
                folder = runs[engine].engine(image, MODELS / model, name, ("fed",), [*words, *UPSTREAM])
            except RunFailed as error:
                pytest.fail(str(error))
            return SimpleNamespace(folder=folder, scores=scores, found=json.loads(found.read_text()) if how else None)

        yield run


@pytest.mark.parametrize(("engine", "case"), WHICH)
def test_label_maps_equal_upstream(run, engine, case):
    folder = run(engine, case).folder
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
    done = run(engine, case)
    names, subject, volumes = read_volumes(done.folder / "volumes.csv")
    expected_names, expected_subject, expected = read_volumes(V2 / f"{case}_volumes.csv")
    assert (names, subject) == (expected_names, expected_subject)
    assert (np.abs(volumes - expected) <= 5e-3 * np.maximum(expected, 100)).all()
    if "--qc" in CASES[case][2]:
        assert score_difference(done, case) <= 5e-4


def score_difference(done, case=EVERY):
    (names, ours), (expected_names, theirs) = (
        csv.reader(path.open(newline="")) for path in (done.scores, V2 / f"{case}_qc.csv")
    )
    assert names == expected_names
    return np.abs(np.array(ours[1:], float) - np.array(theirs[1:], float)).max()


def found_at(done, stage):
    """How many voxels differ after a stage of a run that was fed, their largest margin, and the foreground."""
    if stage in done.found:
        foreground = np.load(V2 / "t1_robust_groups.npz")[{"groups": "s1"}.get(stage, stage)] > 0
        return done.found[stage]["different"], done.found[stage]["margin"], np.count_nonzero(foreground)
    labels, _ = read_labels(done.folder / "dseg.nii.gz")
    expected, _ = read_labels(V2 / f"{EVERY}_dseg.nii.gz")
    both = (labels > 1000) & (expected > 1000)  # with parcels there is no other cortex
    differ = (labels != expected) & (both if stage == "parcels" else ~both)
    margin = nib.load(done.folder / "margin.nii.gz").get_fdata()
    return np.count_nonzero(differ), margin[differ].max(initial=0), np.count_nonzero(expected)


def is_equal(done, stage):
    """Whether a stage of a run that was fed is within its bounds."""
    if stage == "scores":
        print(f"scores differ by {score_difference(done):.4f} at most")
        return score_difference(done) < 2.01e-4
    different, margin, foreground = found_at(done, stage)
    print(f"{stage}: {different} of {foreground} foreground voxels differ, margin {margin:.1e}")
    return different <= 1e-5 * foreground and margin < 1e-3


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_network_fed_with_upstreams_map_equals_upstream(run, engine, stage):
    assert is_equal(run(engine, EVERY, ("--fed",)), stage)


@pytest.mark.parametrize("stage", STAGES)
def test_a_mistake_of_a_network_is_seen_where_it_is_made(run, stage):
    """Each of fed.py's, all at once: what a network is fed is right."""
    assert not is_equal(run("llvm", EVERY, ("--fed", "--wrong")), stage)
