"""The other engines against SynthSeg's own results: their numbers are other roundings of the same formulas."""

import csv
import json
from contextlib import ExitStack

import numpy as np
import pytest
from golden_runs import GOLDEN, MODEL, RunFailed, Runs, read_labels, read_volumes
from test_golden import CASES

from synthseg_native.compare import compare_label_maps
from synthseg_native.engines import BF16
from synthseg_native.results.hashes import labels_sha256

pytestmark = pytest.mark.slow
ENGINES = ("llvm", "torch")


ANEW = "import sys; from synthseg_native.cli import main; sys.exit(main())"  # a process of its own


@pytest.fixture(scope="module")
def run(request, root, tmp_path_factory):
    """A function that runs an engine on a golden case once; returns its folder. Skips what this machine cannot do."""
    runs, refused = {}, {}
    with ExitStack() as stack:

        def run(engine, case, precision="float32", again=False):
            python = request.getfixturevalue(f"{engine}_python")  # skips where there is none, each time anew
            if engine not in runs:
                runs[engine] = stack.enter_context(Runs(root, python, tmp_path_factory.mktemp(engine), engine))
            if (engine, precision) in refused:
                pytest.skip(refused[engine, precision])
            image, flags = CASES[case]
            name, start = f"{case}_{precision}_{again}", ("-c", ANEW) if again else ("synthseg_native.cli",)
            try:
                return runs[engine].engine(image, name=name, start=start, flags=[*flags, "--precision", precision])
            except RunFailed as error:
                if "does not compute in it" not in str(error):
                    raise
                refused[engine, precision] = str(error)
            pytest.skip(refused[engine, precision])

        run.of = runs
        yield run


def compare(folder, case, **thresholds):
    golden = GOLDEN / f"{case}_dseg.nii.gz"
    result = compare_label_maps(
        folder / "dseg.nii.gz", golden, MODEL / "labels.tsv", folder / "margin.nii.gz", thresholds
    )
    print(f"{case}: {result['n_voxels_different']} of {result['n_voxels_foreground']} foreground voxels differ")
    return result


# What is before and after the network is the same code for all: torch, the slower one here, runs each image and mode.
FEW = ("t1_crop", "oblique_fast", "thick_default")


@pytest.mark.parametrize(("engine", "case"), [*(("llvm", case) for case in CASES), *(("torch", case) for case in FEW)])
def test_float32_equals_upstream(run, engine, case):
    result = compare(run(engine, case), case)
    assert result["verdict"] in ("identical", "equivalent"), result["verdict_reason"]
    assert result["n_voxels_contralateral"] == 0
    assert result["labels_lost"] == []


# bf16: shares of the foreground that may differ, and of a soft volume. README.md has the figures, and says why torch is
# beyond them in `thick`.
CLOSE, FAR = (1e-3, 0.01), (6e-3, None)
ROUGH = ("t1_crop", "thick_default")


@pytest.mark.parametrize("case", ROUGH)
def test_bf16_is_near_upstream(run, case):
    folder = run("torch", case, "bf16")
    result = compare(folder, case)
    print({entry["name"]: entry["dice"] for entry in result["labels"]})
    voxels, volume = FAR if case == "thick_default" else CLOSE
    assert result["fraction_different"] <= voxels
    with (folder / "volumes.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    volumes = np.array([float(row["soft_volume_mm3"]) for row in rows])
    expected = read_volumes(GOLDEN / f"{case}_volumes.csv")[2]
    print("largest difference of a volume:", np.abs(volumes - expected).max(), "mm3")
    if volume:
        np.testing.assert_array_less(np.abs(volumes - expected), np.maximum(20, volume * expected))


@pytest.mark.parametrize(("engine", "precision"), [("llvm", "float32"), ("torch", "float32"), ("torch", "bf16")])
def test_twice_gives_the_same_labels_margins_and_volumes(run, engine, precision):
    first, second = (run(engine, "t1_crop", precision, again) for again in (False, True))
    for name in ("dseg.nii.gz", "margin.nii.gz"):
        np.testing.assert_array_equal(read_labels(first / name)[0], read_labels(second / name)[0])
    assert (first / "volumes.tsv").read_bytes() == (second / "volumes.tsv").read_bytes()


@pytest.mark.parametrize("engine", ENGINES)
def test_record_says_what_ran(run, engine):
    precision = "bf16" if engine in BF16 else "float32"
    folder = run(engine, "t1_crop", precision)
    record = json.loads((folder / "run.json").read_text())
    assert (record["engine"]["name"], record["precision"], record["device"]) == (engine, precision, "cpu")
    assert record["engine"]["version"]
    assert record["output"]["labels_sha256"] == labels_sha256(read_labels(folder / "dseg.nii.gz")[0])


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_leaves_the_machine(run, engine):
    run(engine, "t1_crop")
    run.of[engine].assert_nothing_left()
