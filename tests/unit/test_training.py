"""The training code, checked in an interpreter that has PyTorch: training_checks.py holds the checks."""

import ast
import json
import os
import subprocess
from pathlib import Path

import pytest

import outside

CHECKS = Path(__file__).with_name("training_checks.py")
NAMES = [
    node.name
    for node in ast.parse(CHECKS.read_text(encoding="utf-8")).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("check_")
]
LABEL_MAPS = "SYNTHSEG_LABEL_MAPS"  # environment variable: a folder with the 20 label maps


@pytest.fixture(scope="session")
def training_python(root):
    """The interpreter that $SYNTHSEG_TORCH_PYTHON names, else that of the training environment if it was made."""
    made = sorted((root / ".envs").glob("training-*/bin/python"))
    python = os.environ.get("SYNTHSEG_TORCH_PYTHON") or (str(made[-1]) if made else None)
    if python is None:
        pytest.skip("no PyTorch: make the environment training, or name an interpreter in SYNTHSEG_TORCH_PYTHON")
    return python


@pytest.fixture(scope="session")
def found(request, training_python, root, tmp_path_factory):
    """What each check that is asked for said: one process, as PyTorch starts slowly."""
    names = {item.callspec.params["name"] for item in request.session.items if item.originalname == "test_training"}
    folder = tmp_path_factory.mktemp("training")
    command = [training_python, CHECKS, folder, *sorted(names)]
    command = outside.within(command, folder / "counters") if outside.available() else command
    env = os.environ | outside.hostile(folder / "home")
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout) | {"folder": folder}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_training(name, found):
    assert found[name] is None, found[name]


@pytest.mark.slow
def test_training_knocks_nowhere(found):
    outside.need()
    assert outside.tries(found["folder"] / "counters") == 0 and outside.undocumented(found["folder"] / "home") == []


def call(python, root, *arguments):
    return subprocess.run([python, "-m", "training", *map(str, arguments)], capture_output=True, text=True, cwd=root)


# Runs several command lines of the training in one process, as PyTorch starts slowly: [status, what was said] each.
MANY = """
import contextlib, io, json, sys
from training.__main__ import main
found = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            status = main(words)
        except SystemExit as error:
            status = error.code
    found.append([status, said.getvalue()])
print(json.dumps(found))
"""


@pytest.mark.slow  # PyTorch starts: 3 s
def test_wrong_use_is_one_line(training_python, root, tmp_path):
    (tmp_path / "broken.yaml").write_text("a: [")
    cases = {
        "none.yaml": ["--config", tmp_path / "none.yaml", "train"],
        "broken.yaml": ["--config", tmp_path / "broken.yaml", "train"],
        "training_seg_01.nii.gz": ["--maps", tmp_path, "train"],
        "checkpoint.pt": ["--output", tmp_path, "export"],
    }
    given = json.dumps([list(map(str, words)) for words in cases.values()])
    done = subprocess.run([training_python, "-c", MANY, given], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    for part, (status, said) in zip(cases, json.loads(done.stdout), strict=True):
        assert status == 2 and part in said and len(said.splitlines()) == 1, said


def test_the_list_of_maps(root):
    rows = [line.split("\t") for line in (root / "training" / "maps.tsv").read_text().splitlines()]
    assert rows[0] == ["number", "bytes", "sha256", "address"]
    assert [int(row[0]) for row in rows[1:]] == list(range(1, 21))
    assert len({row[2] for row in rows[1:]}) == 20 and all(len(row[2]) == 64 for row in rows[1:])
    assert all(row[3].endswith(f"/data/training_label_maps/training_seg_{int(row[0]):02}.nii.gz") for row in rows[1:])


@pytest.mark.slow
def test_maps_that_are_there_are_not_fetched(training_python, root, tmp_path):
    """And a damaged one is noticed: with no network the call then fails, and says which."""
    if LABEL_MAPS not in os.environ:
        pytest.skip(f"no label maps: name their folder in {LABEL_MAPS}")
    for path in Path(os.environ[LABEL_MAPS]).glob("*.nii.gz"):
        (tmp_path / path.name).symlink_to(path)
    done = call(training_python, root, "--maps", tmp_path, "fetch-maps")
    assert done.returncode == 0 and "fetching" not in done.stderr, done.stderr


TEMPLATE = """
import json
import nibabel as nib
import numpy as np
from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template
from training import look

grey, white = (np.asarray(load(resolution=1).dataobj) for load in (load_mni152_gm_template, load_mni152_wm_template))
labels = np.where(grey > 0.5, 42, np.where(white > 0.5, 2, 0)).astype(np.int16)
right = look.against_template(nib.Nifti1Image(labels, np.eye(4)))
labels[:20] = 3
wrong = look.against_template(nib.Nifti1Image(labels, np.eye(4)))
print(json.dumps([right, wrong, look.template().shape == labels.shape]))
"""


@pytest.mark.slow
def test_agreement_with_the_template(training_python, root):
    done = subprocess.run([training_python, "-c", TEMPLATE], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    right, wrong, fits = json.loads(done.stdout)
    assert fits and list(right.values()) == [1, 1, 0]
    assert wrong["template: outside the brain"] > 0.05 and wrong["template: grey matter"] < 1
