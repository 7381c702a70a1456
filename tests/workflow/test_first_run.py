"""The command as everyone types it, in a fresh copy with nothing edited, by a Snakemake that is not this project's."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from project import ROOT, Project

pytestmark = pytest.mark.slow
COMMAND = [sys.executable, "-m", "snakemake", "--cores", "1", "results/summary.tsv", "-n"]


@pytest.fixture
def fresh(tmp_path) -> Project:
    project = Project.create(tmp_path / "fresh")
    shutil.copytree(ROOT / "config", project.folder / "config")
    return project


def jobs(output: str) -> dict[str, int]:
    """The table of jobs that a dry run prints."""
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", output, re.M)}


def call(project, *more, **variables):
    env = {key: value for key, value in os.environ.items() if not key.startswith("SYNTHSEG_NATIVE")} | variables
    done = subprocess.run([*COMMAND, *more], cwd=project.folder, env=env, capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


def test_nothing_edited_is_the_demonstration(fresh):
    code, said = call(fresh)
    assert code == 0, said
    runs = {"native": 3, "reference": 3, "compare": 3, "picture": 3}
    assert jobs(said) == {"demo": 1, "verify_env": 1, **runs, "benchmark": 1, "summary": 1, "total": 16}


def test_two_words_make_it_a_cohort_of_ones_own(fresh):
    code, said = call(fresh, "--config", "samples=samples.tsv", "model=synthseg2")
    assert code == 0, said
    assert jobs(said) == {"verify_env": 1, "native": 2, "picture": 2, "summary": 1, "total": 6}
    code, said = call(fresh, "--config", "samples=samples.tsv")
    assert code == 1 and "config: model: compact2mm is not research grade: set model: synthseg1 or synthseg2" in said


def test_a_snakemake_whose_python_lacks_packages_hands_over(fresh, tmp_path):
    """sitecustomize hides a package from the Python that is called; the project's own environment has it."""
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['nibabel'] = None")
    code, said = call(fresh, PYTHONPATH=str(tmp_path))
    assert code == 0, said
    assert said.count("this Snakemake's Python lacks nibabel: going on with the Snakemake of this project's own") == 1
    assert jobs(said)["total"] == 16
