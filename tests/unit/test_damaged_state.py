"""What the program wrote and reads back may have been cut, exchanged, written by a newer version or put there by
somebody else: it then counts as absent, is said in a line and made anew, and stops no scan."""

import ast
import json
import os
from pathlib import Path

import pytest
from results_world import SCAN, World

from synthseg_native.cohort import deploy, paths, state
from synthseg_native.cohort.summary.run_results import RunResult
from synthseg_native.files import write_sealed
from synthseg_native.verification import verify

PACKAGE = Path(verify.__file__).parents[1]

# Every module that reads a file, and what keeps a damaged one from doing harm. A new one has to be put here.
HERE = "the table below"
USERS = "the user's own: refused in a line (test_bad_input, test_samples, test_config, test_bids_samples, test_jobs)"
SHIPPED = "comes with the program"
SYSTEM = "the system's"
FRESH = "written by this run a moment ago, in a folder of its own"
MADE = "held against the hash in its run's record before"
READERS = {
    "cli.py": "tests/unit/test_cli_many.py",  # the table of --vol
    "cohort/bids.py": USERS,
    "cohort/benchmark/images.py": SHIPPED,
    "cohort/benchmark/inputs.py": USERS,
    "cohort/benchmark/contestants.py": FRESH,
    "cohort/benchmark/rounds.py": "tests/unit/test_benchmarks_run.py",
    "cohort/benchmark/weights.py": USERS,
    "cohort/config.py": USERS,
    "cohort/containers.py": SHIPPED,
    "cohort/demo.py": USERS,
    "cohort/environments.py": SHIPPED,
    "cohort/identities.py": "tests/unit/test_state.py",  # a record that says nothing of its label map
    "cohort/manifest.py": "tests/unit/test_manifest.py",
    "cohort/ranking.py": "tests/unit/test_ranking.py",
    "verification/speed.py": "tests/unit/test_ranking.py",
    "cohort/report_labels.py": HERE,
    "cohort/runs/child.py": FRESH,
    "cohort/runs/existing.py": USERS,
    "cohort/runs/native.py": FRESH,
    "cohort/runs/reference.py": FRESH,
    "cohort/runs/work.py": FRESH,
    "cohort/samples.py": USERS,
    "cohort/state.py": HERE,  # the benchmark's tables: tests/unit/test_plan.py
    "cohort/summary/aggregate.py": HERE,
    "cohort/summary/run_results.py": HERE,
    "cohort/summary/terminal.py": "written by this call a moment ago",
    "cohort/tables.py": MADE,
    "compare.py": MADE,
    "engines/kernels/library.py": "tests/unit/test_kernels.py",
    "files.py": HERE,
    "identity/code.py": SHIPPED,
    "identity/contents.py": HERE,
    "identity/current.py": HERE,
    "jobs.py": "tests/unit/test_jobs.py",
    "measure.py": SYSTEM,
    "memory.py": SYSTEM,
    "networks/cards.py": "tests/unit/test_models.py",
    "networks/download.py": "tests/unit/test_weights.py",
    "networks/layers.py": "tests/unit/test_weights.py",
    "networks/weights.py": "tests/unit/test_weights.py",
    "owners.py": "tests/unit/test_locks.py",
    "reference.py": USERS,
    "results/kept.py": "tests/unit/test_cli_many.py",
    "results/record.py": SYSTEM,
    "results/tables.py": "tests/unit/test_cli_many.py",  # whether a table of --volumes-tsv is one
    "results/volumes.py": MADE,
    "scan/content.py": USERS,
    "scan/disguise.py": USERS,
    "scan/reading.py": USERS,
    "shared_disk.py": "tests/unit/test_shared_disk.py",
    "verification/process.py": FRESH,
    "verification/verify.py": "tests/unit/test_verify.py",
    "yaml_text.py": USERS,
}
READING = ("read_json", "read_sealed", "read_text", "read_bytes", "read_csv")
PARSING = ("json", "yaml", "nib", "np", "h5py", "gzip", "pickle")  # whose load, loads, open and the like read


def reads(path: Path) -> bool:
    """Whether a module reads files, or parses what was read."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            owner = getattr(getattr(node.func, "value", None), "id", "")
            words = [word.value for word in node.args if isinstance(word, ast.Constant)]
            opened = name == "open" and not any(str(word)[:1] in "wax" for word in words[-1:])
            if name in READING or opened or (owner in PARSING and name in ("load", "loads", "safe_load", "File")):
                return True
    return False


@pytest.mark.slow
def test_every_module_that_reads_files_says_what_a_damaged_one_does():
    found = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if reads(path)}
    assert found - set(READERS) == set(), "say in READERS what happens where such a file is damaged"
    assert set(READERS) - found == set(), "they read nothing any more"
    root = PACKAGE.parents[1]
    assert all((root / why).is_file() for why in READERS.values() if why.startswith("tests/"))


def of_run(name, engine="llvm"):
    return lambda plan: plan.path(name, engine, SCAN.format("01", "01"))


def failure(plan):
    return paths.failure_of(f"{plan.state}/failed", "llvm", SCAN.format("01", "01"), of_run("record")(plan))


# Every file below results/ that a later call reads: what it is -> its path. Of the first nothing has to be made again.
REMEMBERED = {
    "contents": lambda plan: f"{plan.state}/contents.json",
    "manifest": lambda plan: plan.manifest.path(plan.state),
    "failure": failure,
}
OF_THE_SUMMARY = {
    "told": lambda plan: state.told_file(plan.results),
    "table": lambda plan: plan.aggregates()["summary"],
}
FOLLOWING = {"comparison": of_run("compare"), "picture": of_run("picture")}
OF_A_RUN = {
    "record": of_run("record"),
    "record of the reference": of_run("record", "reference"),
    "volumes": of_run("volumes"),
    "label map": of_run("dseg"),
    "sidecar": of_run("sidecar"),
    "margin": of_run("margin"),
}


def reshaped(path):
    """The same JSON, each entry of another kind."""
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = {"another": "shape"}
    path.write_text(json.dumps({name: [1] if isinstance(found[name], str | dict) else {} for name in found}))


def newer(path):
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = {}
    path.write_text(json.dumps(found | {"schema": 99, "form": 99}))


def folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = {
    "empty": lambda path: path.write_text(""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-3]),
    "no JSON": lambda path: path.write_text("<html>"),
    "not text": lambda path: path.write_bytes(b"\xff\xfe\x00\xd8"),
    "a list": lambda path: path.write_text("[]"),
    "a list of one": lambda path: path.write_text("[1]"),
    "null": lambda path: path.write_text("null"),
    "no entries": lambda path: path.write_text("{}"),
    "of another shape": reshaped,
    "of a newer version": newer,
    "a folder": folder,
}


@pytest.fixture(scope="module")
def made(root, tmp_path_factory):
    """Results of two scans."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        world = World(root, folder)
        world.make()
    return world


QUICK = ("contents", "told", "record")  # one of each kind
NAMES = [*REMEMBERED, *OF_THE_SUMMARY, *FOLLOWING, *OF_A_RUN]


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_a_damaged_file_is_made_anew_and_stops_nothing(made, name, monkeypatch):
    """What is to be made is of its scan alone, or the summary; and nothing is, once the file is as it was."""
    monkeypatch.chdir(made.folder)
    path = Path({**REMEMBERED, **OF_THE_SUMMARY, **FOLLOWING, **OF_A_RUN}[name](made.plan()))
    if name == "failure":  # which the good run that came after it outdates
        path.parent.mkdir(parents=True)
        write_sealed(path, {"error": {"message": "x", "code": "oom"}, "finished": "2026-11-26T12:00:00+00:00"})
    content, about = path.read_bytes(), path.stat()
    for damage, do in DAMAGES.items():
        do(path)
        plan = made.plan()
        found, lines = state.to_make(plan), state.lines(plan)
        assert bool(found) == (name not in REMEMBERED), (damage, found)
        assert not any("sub-02" in one for one in found), (damage, "the other scan is as it was")
        if name in (*OF_A_RUN, "table"):
            assert lines and all("\n" not in line for line in lines), (damage, found, plan.identities.states)
        runs = [
            RunResult(run, engine, plan.contents) for scan in plan.manifest.scans for engine, run in scan.runs.items()
        ]
        good = [str(run.files["record"]) for run in runs if run.status == "ok"]
        assert sum("sub-02" in record for record in good) == 2 and len(good) == (3 if name in OF_A_RUN else 4), damage
        if name in REMEMBERED and damage != "a folder":
            deploy.prepare(plan)
            assert made.plan().contents.known == plan.contents.known and plan.contents.known, damage
        path.rmdir() if path.is_dir() else path.unlink()
        path.write_bytes(content)
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
        assert state.to_make(made.plan()) == set(), damage
    if name == "failure":
        path.unlink()
