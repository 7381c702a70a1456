"""In a hostile surrounding (tests/hostile.py) command, engines, reference and workflow give the same bytes.

Started as a user does, by the launchers, where the user stands among hostile files. In a container: tests/container/.
"""

import gzip
import os
import shutil
import subprocess

import nibabel
import numpy as np
import pytest
from project import ROOT

import hostile
from synthseg_native.cohort.runs import child

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the surrounding and a small scan whose name is not ASCII; and the variables."""
    here = tmp_path_factory.mktemp("surrounding")
    variables = hostile.surround(here)
    template = nibabel.load(ROOT / "tests/golden/t1_image.nii.gz")
    data = np.asarray(template.dataobj)[::4, ::4, ::4][:46, :56, :46].astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(data, np.diag([2.0, 2.0, 2.0, 1.0])), here / "stand/Schädel.nii.gz")
    return here, variables


@pytest.fixture(scope="module")
def run(place):
    """A function that runs a command, with the hostile variables and where the hostile files lie, or without both."""
    here, variables = place

    def call(command, surrounded, **more):
        env = {name: value for name, value in os.environ.items() if not name.startswith("SYNTHSEG_NATIVE")} | more
        if surrounded:
            env |= variables
        done = subprocess.run(
            [str(word) for word in command], cwd=here / "stand" if surrounded else ROOT, env=env,
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return call


@pytest.fixture(scope="module")
def command(place, run):
    """A function that segments the scan with an engine: the contents of label map, volumes and picture."""
    made = {}

    def call(engine, surrounded):
        out = place[0] / f"{engine} {surrounded}"
        if (engine, surrounded) not in made:
            words = [ROOT / "synthseg-native", "--i", place[0] / "stand/Schädel.nii.gz", "--o", out / "a.nii.gz"]
            words += ["--vol", out / "a.csv", "--picture", out / "a.png", "--model", "compact2mm", "--threads", "1"]
            words += ["--fast"] if engine == "tensorflow" else []  # which takes seconds for each pass
            run([*words, "--engine", engine], surrounded)
            made[engine, surrounded] = contents(out)
        return made[engine, surrounded]

    return call


def contents(folder):
    return {path.name: content(path) for path in sorted(folder.iterdir()) if path.suffix != ".json"}


def content(path):
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


@pytest.mark.parametrize("engine", ["llvm", "tensorflow"])
def test_the_command_gives_the_same(command, engine, request):
    request.getfixturevalue(f"{engine}_python")
    assert command(engine, True) == command(engine, False)


def test_the_reference_gives_the_same(place, run, tensorflow_python, monkeypatch):
    """As a step starts it, in a home whose keras.json asks for another order of axes."""
    here, variables = place
    made = {}
    for surrounded in (False, True):
        with monkeypatch.context() as caller:
            for name, value in variables.items() if surrounded else ():
                caller.setenv(name, value)
            env = child.environment_of(1, ROOT / "src")
        out = here / f"reference {surrounded}"
        out.mkdir()
        line = [tensorflow_python, ROOT / "src/synthseg_native/reference.py", "--i", here / "stand/Schädel.nii.gz"]
        line += ["--o", out / "a.nii.gz", "--vol", out / "a.csv", "--model", ROOT / "models/compact2mm", "--fast"]
        done = subprocess.run([str(word) for word in line], cwd=here / "stand", env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        made[surrounded] = contents(out)
    assert made[True] == made[False]


def test_the_workflow_gives_the_same(place, run, command, llvm_python):
    """Called from the hostile folder, for a study of its own, by its default profile."""
    here, _ = place
    study = here / "study"
    (study / "config").mkdir(parents=True)
    sheet = f"participant_id\timage\nsub-01\t{here / 'stand/Schädel.nii.gz'}\n"
    (study / "config/samples.tsv").write_text(sheet, encoding="utf-8")
    config = "samples: config/samples.tsv\nmodel: compact2mm\nallow_small_model: true\nengines: [llvm]\n"
    (study / "config/config.yaml").write_text(config)
    done = run([ROOT / "snakemake", "--directory", study, "--cores", "1"], True)
    assert "SNAKEMAKE_PROFILE is set, and left out" in done.stderr
    (labels,) = study.glob("results/llvm/sub-01/anat/*_res-2mm_dseg.nii.gz")
    assert content(labels) == command("llvm", False)["a.nii.gz"]
    shutil.rmtree(study)
