"""A cohort with a bad row of every kind: each is a failed row with a code and a line of its own, and hurts no other.

All that the workflow does is done here but for Snakemake and the processes: the plan with its hashes, states, memory
and manifest, the runs (the command in this process, with a stand-in for the network), the tables.
"""

import contextlib
import gzip
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from small_scans import patch, save
from stand_in import affine, head

from processes import bound_by_modes
from rule_patterns import with_patterns
from synthseg_native import cli
from synthseg_native.cohort import demands, deploy, state, summary
from synthseg_native.cohort.paths import failure_of
from synthseg_native.cohort.plan import Plan
from synthseg_native.cohort.runs import child, native, steps
from synthseg_native.cohort.tables import read_tsv

pytestmark = pytest.mark.slow  # all of it is one call
CONFIG = {"samples": "s.tsv", "model": "compact2mm", "allow_small_model": True, "engines": ["llvm"]}
CONFIG |= {"device": "cpu", "mode": "fast", "benchmark": {"scans": 99}}


def fifo(path):
    os.mkfifo(path)


def a_socket(path):
    here = Path.cwd()
    os.chdir(path.parent)  # the name of a socket may have a hundred characters
    with socket.socket(socket.AF_UNIX) as it:
        it.bind(path.name)
    os.chdir(here)


def closed(path):
    save(path).chmod(0)


def in_a_closed_folder(path):
    path.parent.mkdir()
    save(path)
    path.parent.chmod(0)


def link(target):
    return lambda path: path.symlink_to(target)


def with_bytes(content):
    return lambda path: path.write_bytes(content)


def header(**fields):
    return lambda path: patch(save(path), **fields)


def vanishing(path):
    """There when the plan is made, gone when its run begins."""
    save(path)


GONE_MEANWHILE = "vanishing.nii"
NOTHING = lambda path: None  # noqa: E731
# Name of the image as the sheet has it: (what makes it, what the row says).
ROWS = {
    "missing.nii": (NOTHING, "missing.nii: no such file: correct the path"),
    "folder.nii": (Path.mkdir, "folder.nii: not an ordinary file: save the image in one"),
    "pipe.nii.gz": (fifo, "pipe.nii.gz: not an ordinary file"),
    "socket.nii": (a_socket, "socket.nii: not an ordinary file"),
    "zeros.nii.gz": (link("/dev/zero"), "zeros.nii.gz: not an ordinary file"),
    "/dev/zero": (NOTHING, "zero: not an ordinary file"),
    "dead.nii": (link("nowhere"), "dead.nii: no such file"),
    "circle.nii": (link("circle.nii"), "circle.nii: cannot be opened (Too many levels of symbolic links): correct the"),
    "file.txt/a.nii": (lambda path: path.parent.write_text("no folder"), "a.nii: no such file"),
    f"{'n' * 300}.nii": (NOTHING, "cannot be opened (File name too long): correct the path"),
    f"{'long/' * 1000}a.nii": (NOTHING, "cannot be opened (File name too long): correct the path"),
    "closed.nii": (closed, "closed.nii: may not be read: change its permissions"),
    "private/a.nii": (in_a_closed_folder, "cannot be opened (Permission denied): correct the path or its permissions"),
    GONE_MEANWHILE: (vanishing, f"{GONE_MEANWHILE}: no such file"),
    "new\nline.nii": (NOTHING, "new\\nline.nii: no such file"),
    "zero\0byte.nii": (NOTHING, "zero\\x00byte.nii: no path holds a zero byte: write the path anew"),
    "~nobody-here/a.nii": (NOTHING, "~nobody-here/a.nii: there is no such user: write the whole path"),
    "n/a": (NOTHING, "the sheet names no image for this row: name one, or leave the row out"),
    "empty.nii": (Path.touch, "empty.nii: the file is empty: copy or convert it again"),
    "text.nii": (with_bytes(b"not an image\n" * 100), "text.nii: not an image that can be read"),
    "annex.nii.gz": (with_bytes(b"/annex/objects/MD5E-s1--a.nii.gz\n"), "annex.nii.gz: a pointer of git-annex, not"),
    "cut.nii.gz": (with_bytes(gzip.compress(bytes(9999))[:-9]), "cut.nii.gz: "),
    "size.nii": (header(pixdim=[1, np.nan, 1, 1]), "size.nii: voxel sizes that are no numbers: correct the header"),
    "vast.nii": (header(pixdim=[1, 1e30, 1, 1], srow=[1e30, 0, 0, 0]), "vast.nii: an affine that is no position in mm"),
    "tiny.nii": (header(pixdim=[1, 1e-38, 1, 1]), "tiny.nii: "),
    "huge.nii": (header(dim=[3, 32767, 32767, 32767]), "huge.nii: the header claims 32767 x 32767 x 32767 voxels"),
    "none.nii": (header(dim=[3, 0, 0, 0]), "none.nii: "),
    "minus.nii": (header(dim=[3, -5, 18, 20]), "minus.nii: "),
    "axes.nii": (header(dim=32767), "axes.nii: not an image that can be read"),
    "type.nii": (header(datatype=77), "type.nii: not an image that can be read"),
}  # fmt: skip
LONG = "l" * 300  # a label that no disk has room for


@pytest.fixture(scope="module")
def summed_up(root, tmp_path_factory):
    """The rows of summary.tsv and failed.tsv by participant, after one call."""
    folder, monkeypatch = tmp_path_factory.mktemp("rows"), pytest.MonkeyPatch()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    monkeypatch.chdir(folder)
    try:
        with bound_by_modes():
            yield one_call(root, folder, monkeypatch)
    finally:
        monkeypatch.undo()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for name in ("private", "results/llvm/sub-shut/anat"):
            if (folder / name).exists():
                (folder / name).chmod(0o700)


def one_call(root, folder, monkeypatch):
    said = []
    monkeypatch.setattr(logging.Logger, "handle", lambda self, record: said.append(record.getMessage()))
    sheet = ["participant_id\timage", "good1\tgood1.nii.gz"]
    for number, (name, (make, _)) in enumerate(ROWS.items()):
        if not name.startswith("/"):
            make(folder / name)
        sheet.append(f'{number:02}\t"{name}"')
    sheet += [f"{LONG}\tgood1.nii.gz", "future\tfuture.nii.gz", "garbled\tgarbled.nii.gz", "shut\tshut.nii.gz"]
    sheet += ["good2\tgood2.nii.gz"]
    (folder / "s.tsv").write_text("\n".join(sheet) + "\n")
    for name in ("good1", "good2", "future", "garbled", "shut"):
        nib.save(nib.Nifti1Image(head(), affine()), folder / f"{name}.nii.gz")
    os.utime(folder / "future.nii.gz", (4e9, 4e9))

    plan = with_patterns(Plan(CONFIG, root))
    deploy.make_again(plan, runs=True)
    for scan in plan.scans:
        asked = demands.memory_mb(plan, "llvm", scan)
        assert 0 < asked < 2 * plan.model.memory_mb, f"{scan}: no claim of a header is believed"
    assert demands.benchmark_memory(plan) > 0 and len(plan.benchmark_order[1]) > 1000
    (folder / GONE_MEANWHILE).unlink()
    with stand_in_for_processes(monkeypatch):
        codes = {scan: run(plan, scan) for scan in plan.scans}
    Path(plan.path("volumes", "llvm", "sub-garbled/anat/sub-garbled_T1w")).write_bytes(bytes(range(256)))
    Path("results/llvm/sub-shut/anat").chmod(0)
    summary.summarise(plan.manifest)
    again = with_patterns(Plan(CONFIG, root))
    return {
        "status": codes,
        "said": said,
        "summary": {row["participant_id"]: row for row in read_tsv("results/summary.tsv")},
        "failed": read_tsv("results/failed.tsv"),
        "to make": {Path(path).name.split("_")[0] for path in state.to_make(again) if path.endswith("_run.json")},
    }


@contextlib.contextmanager
def stand_in_for_processes(monkeypatch):
    """The command in this process, and a stand-in for the network."""
    from types import SimpleNamespace

    from stand_in import Brightness

    from synthseg_native import engines, memory

    def measured(record, command, work, threads, timeout):
        return cli.main([str(word) for word in command[3:]]), {}

    monkeypatch.setattr(child, "measured", measured)
    engine = SimpleNamespace(build=lambda *_, **__: Brightness(), check=lambda table: None)
    monkeypatch.setattr(engines, "load", lambda *_: engine)
    monkeypatch.setattr(memory, "own_peak_mib", lambda: None)
    yield


def run(plan, scan):
    """The step of one scan, as scripts/native.py does it."""
    files, settings = plan.files("llvm", scan), plan.identities.of("llvm", scan)
    Path(files["record"]).parent.mkdir(parents=True, exist_ok=True)
    given = plan.image_path(scan), settings, sys.executable, plan.model.folder, Path(plan.weights), Path("results/env")
    failure = failure_of(f"{plan.state}/failed", "llvm", scan, files["record"])
    return steps.step(scan, settings, files, failure, lambda work: native.run_native(scan, *given, work))


@pytest.mark.parametrize("name", ["good1", "good2", "future"])
def test_good_rows_are_done(summed_up, name):
    row = summed_up["summary"][f"sub-{name}"]
    assert (row["status"], row["error"]) == ("ok", "n/a")
    assert f"sub-{name}" not in summed_up["to make"]


@pytest.mark.parametrize("number", range(len(ROWS)), ids=[ascii(name)[:20] for name in ROWS])
def test_a_bad_row_is_one_failed_row(summed_up, number):
    row = summed_up["summary"][f"sub-{number:02}"]
    assert (row["status"], row["error_code"]) == ("failed", "bad_input"), row["error"]
    assert list(ROWS.values())[number][1] in row["error"]
    assert "Error" not in row["error"], "of Python"
    assert f"sub-{number:02}" in summed_up["to make"], "the next call tries it again"


def test_a_garbage_table_is_its_row_s_own_trouble(summed_up):
    row = summed_up["summary"]["sub-garbled"]
    assert (row["status"], row["brain_mm3"]) == ("stale", "n/a") and "is not as it was made" in row["state_reason"]
    assert "sub-garbled" in summed_up["to make"]


def test_results_in_a_closed_folder_are_their_row_s_own_trouble(summed_up):
    row = summed_up["summary"]["sub-shut"]
    assert (row["status"], row["error"]) == ("missing", "its results may not be looked at (Permission denied)")
    assert "sub-shut" in summed_up["to make"]


def test_a_name_that_no_disk_has_room_for_fails_its_row(summed_up):
    (row,) = (row for name, row in summed_up["summary"].items() if name.startswith("sub-llll"))
    assert (row["status"], row["error_code"]) == ("failed", "bad_input")
    assert row["error"].startswith(
        f"sub-{'l' * 36}...: a name of 308 characters, more than files may have: use at most"
    )
    assert LONG in {row["participant_id"] for row in summed_up["failed"]}, "as the sheet has it"


def test_no_library_speaks_where_nobody_knows_of_which_row(summed_up):
    assert summed_up["said"] == []


def test_failed_rows_are_a_sheet_again(summed_up):
    assert len(summed_up["failed"]) == len(ROWS) + 2  # with the long name and the closed folder
    assert set(summed_up["status"].values()) == {0, 3}
