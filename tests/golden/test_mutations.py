"""A broken step must show: each mutation of the default mode has to turn the verdict to "different".

The steps are the same for every engine; the quickest one runs the network.
"""

import csv
import shutil

import pytest
import yaml
from golden_runs import GOLDEN, MODEL, Runs

from synthseg_native import compare

pytestmark = pytest.mark.slow


def set_card(section, **values):
    def mutate(folder):
        card = yaml.safe_load((folder / "card.yaml").read_text())
        card["networks"][0][section].update(values)
        (folder / "card.yaml").write_text(yaml.safe_dump(card))

    return mutate


def edit_labels(change):
    def mutate(folder):
        with (folder / "labels.tsv").open(newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        change(rows)
        with (folder / "labels.tsv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    return mutate


def unflip_hippocampus(rows):
    """One pair of the flip table forgotten."""
    for row in rows:
        if "hippocampus" in row["name"]:
            row["flip_channel"] = row["channel"]


def swap_sides(rows):
    """Left values on right channels."""
    values = [row["index"] for row in rows]
    for row in rows:
        row["index"] = values[int(row["flip_channel"])]


# What the model folder can say wrongly.
IN_THE_FOLDER = {
    "flip_table": edit_labels(unflip_hippocampus),
    "sides": edit_labels(swap_sides),
    "no_smoothing": set_card("outputs", smoothing_sigma=0),
    "smoothing_width": set_card("outputs", smoothing_sigma=0.6),
    "pad_multiple": set_card("grid", pad_multiple=8),
    "threshold": set_card("outputs", threshold=0.3),
}
# What needs another program: run by ``python -c`` ahead of the command line.
IN_THE_CODE = {
    "margins_on_the_other_side": """
def pad(data, multiple, min_size, right=grid.pad):
    volume, box = right(data[::-1, ::-1, ::-1], multiple, min_size)
    return volume[::-1, ::-1, ::-1], tuple(slice(v - s.stop, v - s.start) for v, s in zip(volume.shape, box))
grid.pad = pad
""",
    "no_components": "labels.largest_component = lambda mask: mask",
}
PROGRAM = """
import sys
from synthseg_native import cli
from synthseg_native.pipeline import labels
from synthseg_native.scan import grid
{}
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def runs(root, llvm_python, tmp_path_factory):
    with Runs(root, llvm_python, tmp_path_factory.mktemp("runs"), engine="llvm") as runs:
        yield runs


def verdict(folder, image):
    return compare.compare_label_maps(
        folder / "dseg.nii.gz",
        GOLDEN / f"{image}_default_dseg.nii.gz",
        MODEL / "labels.tsv",
        margin_path=folder / "margin.nii.gz",
    )


def report(name, result):
    print(f"{name}: {result['verdict_reason']}")


def test_without_a_mutation_the_verdict_is_not_different(runs):
    assert verdict(runs.engine("t1", name="unchanged"), "t1")["verdict"] in ("identical", "equivalent")


@pytest.mark.parametrize("name", IN_THE_FOLDER)
def test_a_wrong_model_folder_is_seen(runs, tmp_path, name):
    model = tmp_path / "model"
    shutil.copytree(MODEL, model)
    IN_THE_FOLDER[name](model)
    result = verdict(runs.engine("t1", model, name), "t1")
    report(name, result)
    assert result["verdict"] == "different"


@pytest.mark.parametrize("name", IN_THE_CODE)
def test_a_wrong_step_is_seen(runs, name):
    result = verdict(runs.engine("t1", name=name, start=("-c", PROGRAM.format(IN_THE_CODE[name]))), "t1")
    report(name, result)
    assert result["verdict"] == "different"
