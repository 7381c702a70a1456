"""The examples in the docstrings are true: every module of the package that has any, in this process."""

import doctest
import importlib
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"
MODULES = sorted(
    ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    for path in (SOURCE / "synthseg_native").rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)
RUNTIMES = ("tensorflow", "torch", "llvm", "llvmlite", "nilearn")  # each in an environment of its own


@pytest.mark.parametrize("name", MODULES)
def test_examples(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in RUNTIMES:
            raise
        pytest.skip(f"{error.name} is in an environment of its own")
    outcome = doctest.testmod(module)  # what differs is printed
    assert outcome.attempted > 0 and outcome.failed == 0
    assert list(tmp_path.iterdir()) == [], "an example leaves files behind"


def test_an_example_that_is_wrong_is_noticed(tmp_path, monkeypatch, capsys):
    (tmp_path / "wrong_example.py").write_text(
        'def double(x):\n    """\n    >>> double(2)\n    5\n    """\n    return 2 * x\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert doctest.testmod(importlib.import_module("wrong_example")).failed == 1


def test_modules_that_have_examples():
    rooms = ("results.verdicts", "errors", "measure", "scan.grid", "scan.own_grid", "cohort.bids", "cohort.containers")
    assert {f"synthseg_native.{room}" for room in (*rooms, "cohort.tables", "reference")} <= set(MODULES)
