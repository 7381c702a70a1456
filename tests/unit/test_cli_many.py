"""The command line over several scans, and its flags for grids, crops and further results."""

import csv
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from stand_in import Brightness, affine, head

from processes import hear_ctrl_c
from synthseg_native import cli, engines
from synthseg_native.errors import SynthSegError
from synthseg_native.identity import stages
from synthseg_native.networks import weights
from synthseg_native.results import images
from synthseg_native.results.hashes import labels_sha256
from synthseg_native.scan import reading


@pytest.fixture
def run(small_model):
    """Call the command with the small model."""

    def call(*arguments):
        return cli.main([str(a) for a in arguments] + ["--model", str(small_model)])

    return call


@pytest.fixture
def cohort(tmp_path):
    """A folder of two scans that differ."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for name, extra in (("a.nii.gz", 0), ("b.nii.gz", 30)):
        nib.save(nib.Nifti1Image(np.clip(head() - extra, 0, None), affine()), folder / name)
    return folder


def labels(path):
    return np.asarray(nib.load(path).dataobj)


def rows(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


# Folders and lists ---------------------------------------------------------------------------------------------------


def test_a_folder_is_segmented_with_one_start(stand_in, run, cohort, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--i", cohort, "--o", out, "--vol", out / "v", "--volumes-tsv", out / "v.tsv", "--record", out) == 0
    names = ["a_run.json", "a_synthseg.json", "a_synthseg.nii.gz", "b_run.json", "b_synthseg.json", "b_synthseg.nii.gz"]
    assert sorted(path.name for path in out.iterdir()) == [*names, "v.csv", "v.tsv"]
    assert len(stand_in) == 1  # both have one shape
    assert (labels(out / "a_synthseg.nii.gz") != labels(out / "b_synthseg.nii.gz")).any()
    table = rows(out / "v.csv")
    assert [row[0] for row in table] == ["subject", "a", "b"]
    assert (out / "v.csv").read_bytes().count(b"\r\n") == 3
    with (out / "v.tsv").open(newline="") as file:
        long = list(csv.DictReader(file, delimiter="\t"))
    assert [row["image"] for row in long] == [str(cohort / "a.nii.gz")] * 31 + [str(cohort / "b.nii.gz")] * 31
    assert [row["soft_volume_mm3"] for row in long[:31]] == [f"{float(v):.3f}" for v in table[1][1:]]
    assert "2 segmented" in capsys.readouterr().out


@pytest.mark.slow
def test_a_second_call_leaves_out_what_is_current(stand_in, run, cohort, tmp_path, capsys):
    call = ("--i", cohort, "--o", tmp_path / "out", "--vol", tmp_path / "v.csv")
    assert run(*call) == 0
    table, before = rows(tmp_path / "v.csv"), Brightness.passes
    (tmp_path / "v.csv").unlink()
    capsys.readouterr()
    assert run(*call) == 0
    assert Brightness.passes == before
    assert rows(tmp_path / "v.csv") == table  # without a run
    assert capsys.readouterr().out.startswith("2 of 2 scans are current")

    # One scan changes: it alone is done again, and its row alone is another.
    nib.save(nib.Nifti1Image(head() + 5, affine()), cohort / "b.nii.gz")
    assert run(*call) == 0
    assert Brightness.passes == before + 2
    assert rows(tmp_path / "v.csv")[:2] == table[:2]
    assert rows(tmp_path / "v.csv")[2] != table[2]
    assert "1 segmented, 1 current" in capsys.readouterr().out

    assert run(*call, "--recompute") == 0
    assert Brightness.passes == before + 6
    assert run(*call, "--fast") == 0
    assert Brightness.passes == before + 8
    assert run(*call) == 0  # the results of --fast are there now
    assert Brightness.passes == before + 12


@pytest.mark.slow
def test_threads_count_where_an_engine_does_not_promise_the_same_bytes(stand_in, run, scan, tmp_path, capsys):
    for engine, again in (("llvm", 0), ("tensorflow", 2)):
        call = ("--i", scan, "--o", tmp_path / f"{engine}.nii", "--engine", engine)
        assert run(*call) == 0
        before = Brightness.passes
        capsys.readouterr()
        assert run(*call, "--threads", "3") == 0
        assert Brightness.passes == before + again
        assert ("again: threads: 1 to 3" in capsys.readouterr().out) == bool(again)


@pytest.mark.slow
def test_other_code_makes_scans_again_and_says_so(stand_in, run, cohort, tmp_path, monkeypatch, capsys):
    """A git pull between two calls: no table may hold what two versions made."""
    call = ("--i", cohort, "--o", tmp_path / "out", "--vol", tmp_path / "v.csv")
    assert run(*call) == 0
    before = Brightness.passes
    capsys.readouterr()
    codes = stages.codes
    monkeypatch.setattr(stages, "codes", lambda *given: codes(*given) | {"network": "another", "labels": "other"})
    assert run(*call) == 0
    assert Brightness.passes == before + 4
    assert capsys.readouterr().out.startswith("2 of 2 scans again: the code changed (network, labels)\n")
    assert run(*call) == 0
    assert Brightness.passes == before + 4


@pytest.mark.slow
def test_a_label_map_that_was_edited_is_kept_and_said(stand_in, run, cohort, tmp_path, capsys):
    out = tmp_path / "out"
    call = ("--i", cohort, "--o", out, "--vol", tmp_path / "v.csv")
    assert run(*call) == 0
    image = nib.load(out / "a_synthseg.nii.gz")
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.int32), image.affine), out / "a_synthseg.nii.gz")
    edited, before = (out / "a_synthseg.nii.gz").read_bytes(), Brightness.passes
    capsys.readouterr()
    for more in ([], ["--fast"], ["--recompute"]):
        assert run(*call, *more) == 3
        said = capsys.readouterr()
        assert said.err == (
            f"synthseg-native: {out / 'a_synthseg.nii.gz'}: a_synthseg.nii.gz was changed since it was made: "
            "kept, and left out of the tables: --overwrite-edited makes it again\n"
        )
        assert said.out.splitlines()[-1].endswith("1 edited and left alone")
        assert (out / "a_synthseg.nii.gz").read_bytes() == edited
        assert [row[0] for row in rows(tmp_path / "v.csv")] == ["subject", "b"]
    assert Brightness.passes == before + 3  # b: fast, and with --recompute
    assert run(*call, "--overwrite-edited") == 0
    assert (out / "a_synthseg.nii.gz").read_bytes() != edited
    assert [row[0] for row in rows(tmp_path / "v.csv")] == ["subject", "a", "b"]


@pytest.mark.parametrize("note", [None, "", "[]", "{}"])
def test_a_label_map_of_which_nothing_says_what_made_it_is_kept(stand_in, run, scan, tmp_path, capsys, note):
    """Its note is gone or damaged: it may be somebody's work, or upstream's. What says the same is not kept twice."""
    label_map, sidecar, kept = (tmp_path / name for name in ("o.nii.gz", "o.json", "o.nii.gz.kept"))
    call = ("--i", scan, "--o", label_map)
    assert run(*call) == 0
    made = nib.load(label_map)
    there = sorted(tmp_path.iterdir())

    def lose_the_note():
        sidecar.unlink() if note is None else sidecar.write_text(note)
        capsys.readouterr()

    lose_the_note()
    nib.save(nib.Nifti1Image(np.asanyarray(made.dataobj), made.affine), label_map)  # other bytes, the same labels
    if note != "{}":  # that is somebody else's metadata, and refused
        assert run(*call) == 0
        assert sorted(tmp_path.iterdir()) == there and "another file" not in capsys.readouterr().out

    lose_the_note()
    nib.save(nib.Nifti1Image(np.zeros(made.shape, np.int32), made.affine), label_map)
    edited = label_map.read_bytes()
    if note == "{}":
        assert run(*call) == 2 and label_map.read_bytes() == edited
        return
    assert run("--i", scan, "--o", label_map, "--weights", tmp_path / "none.h5") == 2
    assert label_map.read_bytes() == edited and not kept.exists(), "where no scan was segmented nothing was replaced"
    assert run(*call) == 0
    what = "another file lay there, and nothing says what made it: kept as o.nii.gz.kept\n"
    assert f"{label_map}: {what}" in capsys.readouterr().out
    assert kept.read_bytes() == edited and label_map.read_bytes() != edited
    assert run(*call) == 0 and "kept" not in capsys.readouterr().out

    lose_the_note()
    label_map.write_bytes(edited)
    assert run(*call) == 0 and (tmp_path / "o.nii.gz.kept-2").read_bytes() == edited
    lose_the_note()
    label_map.write_bytes(edited)
    assert run(*call, "--overwrite-edited") == 0
    assert sorted({*tmp_path.iterdir()} - {*there}) == [kept, tmp_path / "o.nii.gz.kept-2"]


@pytest.mark.slow
def test_files_of_others_in_the_places_of_results_are_kept_or_refused(stand_in, run, scan, tmp_path, capsys):
    places = {"--picture": "p.png", "--record": "r.json", "--margin": "m.nii.gz", "--resample": "s.nii.gz"}
    places |= {"--post": "post.nii.gz", "--native-grid": "n.nii.gz"}
    for name in places.values():
        (tmp_path / name).write_text('{"mine": 1}')
    shutil.copy(scan, tmp_path / "s.nii.gz")
    shutil.copy(scan, tmp_path / "n.nii.gz")
    before = {name: (tmp_path / name).read_bytes() for name in places.values()}
    call = ["--i", scan, "--o", tmp_path / "o.nii", *(word for o, n in places.items() for word in (o, tmp_path / n))]
    assert run(*call) == 0
    said = capsys.readouterr().out
    for name, content in before.items():
        assert (tmp_path / f"{name}.kept").read_bytes() == content and (tmp_path / name).read_bytes() != content
        assert f"{tmp_path / name}: another file lay there, and nothing says what made it: kept as" in said
    there = sorted(tmp_path.iterdir())
    assert run(*call, "--fast") == 0
    assert run("--i", scan, "--o", tmp_path / "o.nii") == 0  # its note forgets the others
    assert run(*call[:4], "--picture", tmp_path / "p.png", "--record", tmp_path / "r.json") == 0
    assert sorted(tmp_path.iterdir()) == there and "another file" not in capsys.readouterr().out

    sheet = tmp_path / "my.tsv"
    sheet.write_text("participant_id\timage\n01\ta.nii\n")
    assert run("--i", scan, "--o", tmp_path / "o.nii", "--volumes-tsv", sheet) == 2
    assert capsys.readouterr().err == (
        f"synthseg-native: {sheet}: is something else than a table of volumes: choose another name, or remove it\n"
    )
    assert sheet.read_text().startswith("participant_id")
    for more in ([], ["--fast"]):
        assert run("--i", scan, "--o", tmp_path / "o.nii", "--volumes-tsv", tmp_path / "v.tsv", *more) == 0


def test_results_of_an_earlier_version_are_made_again_once(stand_in, run, scan, tmp_path, capsys):
    call = ("--i", scan, "--o", tmp_path / "o.nii")
    assert run(*call) == 0
    sidecar = tmp_path / "o.json"
    content = json.loads(sidecar.read_text())
    content["SynthSegNative"]["Settings"] = content["SynthSegNative"].pop("Identity")
    del content["SynthSegNative"]["seal"]
    sidecar.write_text(json.dumps(content))
    capsys.readouterr()
    before = Brightness.passes
    assert run(*call) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first.endswith("o.nii again: made by an earlier version, which did not note all that made it")
    assert run(*call) == 0
    assert Brightness.passes == before + 2

    sidecar.write_text(json.dumps(content))
    image = nib.load(tmp_path / "o.nii")
    nib.save(nib.Nifti1Image(np.ones_like(image.dataobj), image.affine), tmp_path / "o.nii")
    edited = (tmp_path / "o.nii").read_bytes()
    assert run(*call) == 3
    assert (tmp_path / "o.nii").read_bytes() == edited


def test_a_bad_scan_fails_alone(stand_in, run, cohort, tmp_path, capsys):
    (cohort / "aa.nii.gz").touch()
    out = tmp_path / "out"
    status = run("--i", cohort, "--o", out, "--vol", tmp_path / "v.csv", "--record", out)
    assert status == 3
    said = capsys.readouterr()
    assert said.err == f"synthseg-native: {cohort / 'aa.nii.gz'}: the file is empty: copy or convert it again\n"
    assert "2 segmented, 1 failed" in said.out
    assert sorted(path.name for path in out.glob("*.nii.gz")) == ["a_synthseg.nii.gz", "b_synthseg.nii.gz"]
    assert [row[0] for row in rows(tmp_path / "v.csv")] == ["subject", "a", "b"]
    assert json.loads((out / "aa_run.json").read_text())["error"]["code"] == "bad_input"
    assert not (out / "aa_synthseg.json").exists()

    # Mended, it is the only one to be done.
    before = Brightness.passes
    shutil.copy(cohort / "a.nii.gz", cohort / "aa.nii.gz")
    assert run("--i", cohort, "--o", out, "--vol", tmp_path / "v.csv", "--record", out) == 0
    assert Brightness.passes == before + 2
    assert [row[0] for row in rows(tmp_path / "v.csv")] == ["subject", "a", "aa", "b"]


def test_lines_of_a_list_that_cannot_be_read_fail_alone(stand_in, run, cohort, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.nii")
    (tmp_path / "circle.nii").symlink_to("circle.nii")
    (tmp_path / "folder.nii").mkdir()
    bad = ["missing.nii", "pipe.nii", "circle.nii", "folder.nii", f"{'n' * 300}.nii", "closed/a.txt.nii"]
    (tmp_path / "closed").write_text("no folder")
    (tmp_path / "i.txt").write_text(
        "".join(f"{path}\n" for path in [*(tmp_path / name for name in bad), cohort / "a.nii.gz"])
    )
    (tmp_path / "o.txt").write_text("".join(f"{tmp_path / f'o{n}.nii'}\n" for n in range(len(bad) + 1)))
    assert run("--i", tmp_path / "i.txt", "--o", tmp_path / "o.txt") == 3
    said = capsys.readouterr()
    assert [line.split(": ")[1] for line in said.err.splitlines()] == [str(tmp_path / name) for name in bad]
    assert f"1 segmented, {len(bad)} failed" in said.out and (tmp_path / f"o{len(bad)}.nii").is_file()


def test_a_name_that_leaves_no_room_for_its_results_fails_alone(stand_in, run, cohort, tmp_path, capsys):
    name = f"{'a' * 245}.nii.gz"
    shutil.copy(cohort / "a.nii.gz", cohort / name)
    assert run("--i", cohort, "--o", tmp_path / "out", "--vol", tmp_path / "v.csv") == 3
    said = capsys.readouterr()
    assert (
        said.err.endswith("_synthseg.nii.gz: File name too long: choose a shorter name\n") and said.err.count("\n") == 1
    )
    assert [row[0] for row in rows(tmp_path / "v.csv")] == ["subject", "a", "b"]


def test_a_table_holds_what_is_current_where_all_that_is_left_fails(stand_in, run, cohort, tmp_path):
    (cohort / "aa.nii.gz").touch()
    assert run("--i", cohort, "--o", tmp_path / "out") == 3
    assert run("--i", cohort, "--o", tmp_path / "out", "--vol", tmp_path / "v.csv") == 3
    assert [row[0] for row in rows(tmp_path / "v.csv")] == ["subject", "a", "b"]


@pytest.mark.slow
@pytest.mark.parametrize("where", ["a full disk", "a pipe that is closed"])
def test_what_nobody_reads_costs_no_scan(root, cohort, tmp_path, where):
    reader, writer = os.pipe()
    os.close(reader)
    if where == "a full disk":
        if not Path("/dev/full").exists():
            pytest.skip("no /dev/full")
        os.close(writer)
        writer = os.open("/dev/full", os.O_WRONLY)
    command = [sys.executable, "-c", FAST, root / "tests/unit", "--i", cohort, "--o", tmp_path / "out"]
    command += ["--model", root / "models/compact2mm"]
    done = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(root / "src")}
    )
    os.close(writer)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert len(list((tmp_path / "out").glob("*_synthseg.nii.gz"))) == 2


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_drive_that_fails_for_one_scan_ends_no_folder(stand_in, run, cohort, tmp_path, monkeypatch, capsys, number):
    before = reading._read

    def read(path, *how):
        if path.name == "a.nii.gz":
            raise OSError(number, os.strerror(number))
        return before(path, *how)

    monkeypatch.setattr(reading, "_read", read)
    assert run("--i", cohort, "--o", tmp_path / "out") == 4
    out, err = capsys.readouterr()
    assert "1 segmented, 1 failed\n" in out and err.count("\n") == 1 and "check the drive and call again" in err


def test_what_is_odd_about_a_header_is_in_the_line_and_beside_the_label_map(stand_in, run, cohort, tmp_path, capsys):
    slanted = affine()
    slanted[1, 2] += np.tan(np.radians(20)) * slanted[2, 2]  # a gantry tilt: volumes are too large
    nib.save(nib.Nifti1Image(head(), slanted), cohort / "b.nii.gz")
    out = tmp_path / "out"
    assert run("--i", cohort, "--o", out) == 0
    lines = {line.split(": ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "; odd in its header or values: sheared" in lines[str(out / "b_synthseg.nii.gz")]
    assert "header" not in lines[str(out / "a_synthseg.nii.gz")]
    flags = [json.loads((out / f"{name}_synthseg.json").read_text())["HeaderFlags"] for name in ("a", "b")]
    assert flags[0] == [] and "sheared" in flags[1]


@pytest.mark.parametrize("what", ["images that became bad", "label maps edited by hand"])
def test_a_table_keeps_no_row_of_what_is_stale_or_edited(stand_in, run, cohort, tmp_path, what):
    """Also where no scan of the call is good."""
    out = tmp_path / "out"
    tables = ("--vol", tmp_path / "v.csv", "--volumes-tsv", tmp_path / "v.tsv")
    assert run("--i", cohort, "--o", out, *tables) == 0
    assert len(rows(tmp_path / "v.csv")) == 3
    for name in ("a", "b"):
        if what.startswith("images"):
            (cohort / f"{name}.nii.gz").write_bytes(b"x")
        else:
            image = nib.load(out / f"{name}_synthseg.nii.gz")
            nib.save(nib.Nifti1Image(np.zeros(image.shape, np.int32), image.affine), out / f"{name}_synthseg.nii.gz")
    assert run("--i", cohort, "--o", out, *tables) == 3
    assert [row[0] for row in rows(tmp_path / "v.csv")] == ["subject"]
    assert len((tmp_path / "v.tsv").read_text().splitlines()) == 1


def test_a_table_of_one_scan_that_became_bad_is_empty(stand_in, run, scan, tmp_path):
    call = ("--i", scan, "--o", tmp_path / "o.nii", "--vol", tmp_path / "v.csv", "--volumes-tsv", tmp_path / "v.tsv")
    assert run(*call) == 0
    scan.write_bytes(b"x")
    assert run(*call) == 3
    assert len(rows(tmp_path / "v.csv")) == len((tmp_path / "v.tsv").read_text().splitlines()) == 1


def test_a_table_stays_where_nothing_could_be_tried(stand_in, run, cohort, tmp_path, capsys):
    """Without weights nobody knows what is stale."""
    call = ("--i", cohort, "--o", tmp_path / "out", "--vol", tmp_path / "v.csv")
    assert run(*call) == 0
    before = (tmp_path / "v.csv").read_bytes()
    assert run(*call, "--weights", tmp_path / "none.h5") == 2
    assert (tmp_path / "v.csv").read_bytes() == before


@pytest.mark.slow
def test_several_calls_into_one_table_keep_all_rows(stand_in, run, cohort, tmp_path, capsys):
    """None twice, each in its place; what is no longer so is not kept."""
    table, first, second = tmp_path / "v.csv", tmp_path / "1.nii", tmp_path / "2.nii"
    for scan, out, more in (("a", first, []), ("b", second, []), ("a", first, ["--recompute"])):
        assert run("--i", cohort / f"{scan}.nii.gz", "--o", out, "--vol", table, *more) == 0
    before = rows(table)
    assert [row[0] for row in before] == ["subject", "a", "b"] and before[1] != before[2]
    shutil.copy(cohort / "b.nii.gz", cohort / "a.nii.gz")
    assert run("--i", cohort / "a.nii.gz", "--o", first, "--vol", table) == 0
    assert [row[0] for row in rows(table)] == ["subject", "a", "b"] and rows(table)[1][1:] == before[2][1:]
    (cohort / "a.nii.gz").write_bytes(b"")
    assert run("--i", cohort / "a.nii.gz", "--o", first, "--vol", table) == 3
    assert rows(table) == [before[0], before[2]]
    # Label maps that went with their notes: the same volumes are the same row.
    second.unlink(), second.with_suffix(".json").unlink()
    assert run("--i", cohort / "b.nii.gz", "--o", second, "--vol", table) == 0
    assert rows(table) == [before[0], before[2]]
    # A scan of the same name in another folder: upstream's table has no folders.
    (tmp_path / "more").mkdir()
    nib.save(nib.Nifti1Image(head()[:, ::-1], affine()), tmp_path / "more/b.nii.gz")
    capsys.readouterr()
    assert run("--i", tmp_path / "more/b.nii.gz", "--o", tmp_path / "3.nii", "--vol", table) == 0
    assert (
        f"{table}: has a row b already, and nothing says that it is of this scan: it stays" in capsys.readouterr().out
    )
    assert [row[0] for row in rows(table)] == ["subject", "b", "b"]


@pytest.mark.parametrize("content", ["subject,mine\r\nx,1\r\n", "notes\nof mine\n", "my notes\n", 'a,"b\nc', "cut"])
def test_a_table_of_somebody_else_s_is_not_overwritten(stand_in, run, scan, tmp_path, capsys, content):
    table = tmp_path / "v.csv"
    if content == "cut":
        assert run("--i", scan, "--o", tmp_path / "other.nii", "--vol", table) == 0
        content = table.read_bytes().decode()[:-20]
        capsys.readouterr()
    table.write_bytes(content.encode())
    assert run("--i", scan, "--o", tmp_path / "o.nii", "--vol", table) == 2
    assert capsys.readouterr().err == (
        f"synthseg-native: {table}: has rows of something else than this call's volumes, or cut ones: choose another "
        "name, or remove it\n"
    )
    assert table.read_bytes() == content.encode() and not (tmp_path / "o.nii").exists()


@pytest.mark.slow
def test_flags_that_do_not_matter_make_nothing_stale(stand_in, run, scan, tmp_path):
    assert run("--i", scan, "--o", tmp_path / "o.nii") == 0
    before = Brightness.passes
    assert run("--i", scan, "--o", tmp_path / "o.nii", "--interpolation", "nearest", "--addctab") == 0
    assert Brightness.passes == before
    assert run("--i", scan, "--o", tmp_path / "o.nii", "--keepgeom") == 0
    assert Brightness.passes == before + 2
    assert run("--i", scan, "--o", tmp_path / "o.nii", "--keepgeom", "--interpolation", "nearest") == 0
    assert Brightness.passes == before + 4


def test_without_weights_what_is_there_is_not_lost(stand_in, root, scan, tmp_path, capsys):
    model = tmp_path / "model"
    shutil.copytree(root / "models" / "compact2mm", model)
    call = ["--i", str(scan), "--o", str(tmp_path / "o.nii"), "--model", str(model)]
    assert cli.main(call) == 0
    before = (tmp_path / "o.nii").read_bytes()
    (model / "compact2mm.h5").unlink()
    capsys.readouterr()
    assert cli.main(call) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "o.nii").read_bytes() == before


@pytest.fixture
def tries(monkeypatch):
    """A function after whose call no weights can be fetched; it gives a list with an element for each try."""

    def nowhere():
        calls = []

        def resolve(*_, **__):
            calls.append(1)
            raise SynthSegError("timeout", "w.h5: could not be fetched: try again later")

        monkeypatch.setattr(weights, "resolve", resolve)
        return calls

    return nowhere


def test_weights_that_cannot_be_fetched_are_tried_once(stand_in, run, cohort, tmp_path, tries, capsys):
    calls = tries()
    assert run("--i", cohort, "--o", tmp_path / "out") == 4
    said = capsys.readouterr()
    assert said.err == "synthseg-native: w.h5: could not be fetched: try again later\n"
    assert said.out == "1 failed, 1 not started\n"
    assert len(calls) == 1


def test_weights_are_tried_once_where_results_are_there(stand_in, run, scan, tmp_path, tries):
    """Their hash tells whether those are current."""
    assert run("--i", scan, "--o", tmp_path / "o.nii") == 0
    calls = tries()
    assert run("--i", scan, "--o", tmp_path / "o.nii") == 4
    assert len(calls) == 1


@pytest.mark.slow
def test_a_terminal_that_shows_ascii_alone(root, scan, tmp_path):
    odd = tmp_path / os.fsdecode(b"\xc3\xb6 \xff\n")
    odd.mkdir()
    for image in (scan, odd / "missing.nii"):
        done = subprocess.run(
            [sys.executable, "-c", FAST, root / "tests" / "unit", "--i", image, "--o", odd / "o.nii",
             "--vol", odd / "v.csv", "--model", root / "models" / "compact2mm"],
            env={**os.environ, "PYTHONPATH": str(root / "src"), "PYTHONIOENCODING": "ascii"}, capture_output=True,
        )  # fmt: skip
        assert done.returncode == (0 if image == scan else 3), done.stderr
        said = done.stdout + done.stderr
        assert said.count(b"\n") == 1
        assert said.isascii()
    assert (odd / "v.csv").exists()


def test_label_maps_are_in_mm_whatever_the_scan_says(stand_in, run, tmp_path):
    image = nib.Nifti1Image(head(), affine())
    image.header.set_xyzt_units("meter", "sec")
    image.header.set_intent("z score")
    nib.save(image, tmp_path / "scan.nii")
    assert run("--i", tmp_path / "scan.nii", "--o", tmp_path / "o.nii", "--keepgeom") == 0
    header = nib.load(tmp_path / "o.nii").header
    assert header.get_xyzt_units()[0] == "mm"
    assert header.get_intent()[0] == "none"


def test_the_gravest_failure_gives_the_status(stand_in, run, cohort, tmp_path, monkeypatch, capsys):
    (cohort / "aa.nii.gz").touch()
    segment = Brightness.run

    def fail_once(self, inputs, smoothing):
        if self.passes == 2:
            type(self).passes += 1
            raise MemoryError("24 GB")
        return segment(self, inputs, smoothing)

    monkeypatch.setattr(Brightness, "run", fail_once)
    assert run("--i", cohort, "--o", tmp_path / "out") == 4  # a: well, aa: bad input, b: out of memory
    assert "1 segmented, 2 failed" in capsys.readouterr().out
    assert run("--i", cohort, "--o", tmp_path / "out") == 3  # the call that repairs


@pytest.mark.slow
def test_a_full_disk_ends_the_call_and_keeps_what_is_done(stand_in, run, cohort, tmp_path, monkeypatch, capsys):
    save = images.save_labels
    calls = []

    def full(path, *rest):
        calls.append(path)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        save(path, *rest)

    shutil.copy(cohort / "a.nii.gz", cohort / "c.nii.gz")
    monkeypatch.setattr(images, "save_labels", full)
    assert run("--i", cohort, "--o", tmp_path / "out", "--vol", tmp_path / "v.csv") == 4
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert "make room" in said.err
    assert "1 segmented, 1 failed, 1 not started" in said.out
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a_synthseg.json", "a_synthseg.nii.gz"]
    assert [row[0] for row in rows(tmp_path / "v.csv")] == ["subject", "a"]


def test_lists(stand_in, run, cohort, tmp_path):
    lists = {"i": ["a.nii.gz", "b.nii.gz"], "o": ["x/first.mgz", "y/second.nii"], "v": ["1.csv", "2.csv"]}
    for name, lines in lists.items():
        folder = cohort if name == "i" else tmp_path
        (tmp_path / f"{name}.txt").write_text("".join(f"{folder / line}\n" for line in lines))
    assert run("--i", tmp_path / "i.txt", "--o", tmp_path / "o.txt", "--vol", tmp_path / "v.txt") == 0
    assert isinstance(nib.load(tmp_path / "x" / "first.mgz"), nib.MGHImage)
    table = rows(tmp_path / "2.csv")
    assert [row[0] for row in table] == ["", "b"]  # upstream leaves the first cell of a list's tables empty
    assert len(table[0]) == 32


# Grids, crops, formats -----------------------------------------------------------------------------------------------


@pytest.fixture
def thick(tmp_path):
    """5 mm slices, stored from left to right, back to front and from top to bottom."""
    data = head()[:, :, 2::5][::-1, :, ::-1]
    matrix = np.diag([-1.0, 1, -5, 1])
    matrix[:3, 3] = 19, -22, 24
    nib.save(nib.Nifti1Image(np.repeat(data, 2, axis=2)[:, :, :15], matrix), tmp_path / "thick.nii.gz")
    return tmp_path / "thick.nii.gz"


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["posterior", "nearest"])
def test_both_grids(stand_in, run, thick, tmp_path, interpolation):
    flags = (
        "--native-grid",
        tmp_path / "own.nii.gz",
        "--interpolation",
        interpolation,
        "--record",
        tmp_path / "r.json",
    )
    assert run("--i", thick, "--o", tmp_path / "o.nii.gz", "--vol", tmp_path / "v.csv", *flags) == 0
    scan, own, network = (nib.load(tmp_path / name) for name in ("thick.nii.gz", "own.nii.gz", "o.nii.gz"))
    assert own.shape == scan.shape
    np.testing.assert_array_equal(own.affine, scan.affine)
    assert network.header.get_zooms() == (2, 2, 2)
    record = json.loads((tmp_path / "r.json").read_text())["output"]["native_grid"]
    assert record["voxel_mm"] == [1, 1, 5]
    assert record["labels_sha256"] == labels_sha256(labels(tmp_path / "own.nii.gz"))
    missing = set(np.unique(labels(tmp_path / "o.nii.gz"))) - set(np.unique(labels(tmp_path / "own.nii.gz")))
    assert record["labels_missing"] == sorted(missing)
    if interpolation == "posterior":
        assert not missing
    # Positions in the world agree: the centre of mass of the foreground.
    centres = []
    for image in (own, network):
        voxels = np.argwhere(np.asarray(image.dataobj) > 0)
        centres.append((image.affine @ [*voxels.mean(axis=0), 1])[:3])
    assert (np.abs(centres[0] - centres[1]) < np.array([1, 1, 5]) / 2).all()  # half a voxel
    sidecars = [json.loads((tmp_path / name).read_text()) for name in ("own.json", "o.json")]
    assert sidecars[0]["Resolution"].startswith("the input image's own grid (1x1x5 mm)")
    assert sidecars[1]["Resolution"].startswith("2x2x2 mm")

    assert run("--i", thick, "--o", tmp_path / "k.mgz", "--vol", tmp_path / "k.csv", "--keepgeom", *flags[2:4]) == 0
    np.testing.assert_array_equal(labels(tmp_path / "k.mgz"), labels(tmp_path / "own.nii.gz"))
    assert rows(tmp_path / "k.csv") == rows(tmp_path / "v.csv")  # volumes are the network's grid's
    assert json.loads((tmp_path / "k.json").read_text())["Resolution"] == sidecars[0]["Resolution"]


def test_a_crop_is_background_outside_and_the_same_inside_on_every_grid(stand_in, run, scan, tmp_path):
    more = ("--native-grid", tmp_path / "own.nii", "--post", tmp_path / "p.nii", "--margin", tmp_path / "m.nii.gz")
    assert run("--i", scan, "--o", tmp_path / "o.nii", "--crop", "10", "16", "200", *more) == 0
    network, own = labels(tmp_path / "o.nii"), labels(tmp_path / "own.nii")
    assert (network.shape, own.shape) == ((20, 22, 24), (40, 44, 48))
    assert Brightness.shapes[0] == (16, 16, 208)  # rounded up to 16, which is the smallest padded size as well
    inside = np.zeros(network.shape, bool)
    inside[2:18, 3:19, :] = True
    assert network[inside].any()
    assert not network[~inside].any()
    # Without resampling back, the own grid's voxels lie two by two in the network's.
    coarse = own[::2, ::2, ::2]
    assert not coarse[~inside].any()
    assert np.mean(coarse == network) > 0.8
    posteriors = nib.load(tmp_path / "p.nii")
    assert posteriors.shape == (20, 22, 24, 32)
    assert posteriors.get_data_dtype() == np.float32
    values = posteriors.get_fdata()
    whole = values.sum(axis=-1)
    np.testing.assert_allclose(whole[whole > 0], 1, atol=1e-5)  # the stand-in is so sure that a repair leaves nothing
    assert (values[~inside][:, 0] == 1).all()
    np.testing.assert_array_equal(values.argmax(axis=-1) > 0, network > 0)


def test_further_results_are_written_and_current(stand_in, run, scan, tmp_path):
    call = ("--i", scan, "--o", tmp_path / "o", "--resample", tmp_path / "o", "--margin", tmp_path / "o")
    assert run(*call) == 0
    assert {path.name for path in (tmp_path / "o").iterdir()} == {
        "scan_synthseg.nii.gz", "scan_synthseg.json", "scan_resampled.nii.gz", "scan_margin.nii.gz",
    }  # fmt: skip
    resampled = nib.load(tmp_path / "o" / "scan_resampled.nii.gz")
    assert resampled.shape == (20, 22, 24)
    before = Brightness.passes
    assert run(*call) == 0
    assert Brightness.passes == before
    (tmp_path / "o" / "scan_margin.nii.gz").unlink()
    assert run(*call) == 0
    assert Brightness.passes == before + 2
    assert (tmp_path / "o" / "scan_margin.nii.gz").exists()


def test_a_scan_on_the_networks_grid_is_its_own_resampled_image(stand_in, run, tmp_path):
    nib.save(nib.Nifti1Image(head()[::2, ::2, ::2].astype(np.int16), np.diag([2.0, 2, 2, 1])), tmp_path / "scan.nii")
    assert run("--i", tmp_path / "scan.nii", "--o", tmp_path / "o.nii", "--resample", tmp_path / "r.nii") == 0
    resampled = nib.load(tmp_path / "r.nii")
    assert resampled.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asarray(resampled.dataobj), labels(tmp_path / "scan.nii"))


@pytest.mark.slow
def test_colour_tables_go_into_mgz_files(stand_in, run, scan, tmp_path):
    assert run("--i", scan, "--o", tmp_path / "plain.mgh") == 0
    assert run("--i", scan, "--o", tmp_path / "coloured.mgh", "--addctab") == 0
    plain, coloured = ((tmp_path / name).read_bytes() for name in ("plain.mgh", "coloured.mgh"))
    assert coloured.startswith(plain)
    assert b"Left-Hippocampus\0" in coloured
    for name, flags in (("plain.nii", []), ("coloured.nii", ["--addctab"])):  # a NIfTI can hold none
        assert run("--i", scan, "--o", tmp_path / name, *flags) == 0
    assert (tmp_path / "plain.nii").read_bytes() == (tmp_path / "coloured.nii").read_bytes()


def test_a_shape_that_cannot_be_built_does_not_spoil_the_next_scan(run, cohort, tmp_path, monkeypatch):
    nib.save(nib.Nifti1Image(np.pad(head(), [(0, 0), (0, 0), (0, 130)]), affine()), cohort / "aa.nii.gz")

    class Small(Brightness):
        def run(self, inputs, smoothing=0.0):
            shapes.append(inputs["image"].shape[2])
            if shapes[-1] > 64:
                raise MemoryError("24 GB")
            return super().run(inputs, smoothing)

    shapes, built = [], []

    def build(table, weights, **options):
        built.append(options)
        return Small()

    monkeypatch.setattr(engines, "load", lambda *_: SimpleNamespace(build=build, check=len))
    assert run("--i", cohort, "--o", tmp_path / "out") == 4
    assert sorted(path.name for path in (tmp_path / "out").glob("*.gz")) == ["a_synthseg.nii.gz", "b_synthseg.nii.gz"]
    assert (shapes, len(built)) == ([32, 32, 96, 32, 32], 1)  # the one engine, and back again after the failure


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["with space", 'it\'s "quoted"', "häß_日本", "new\nline", "-dash", "a*[b]?{c}$d`e`"])
def test_any_path_works(stand_in, run, scan, tmp_path, folder, capsys):
    place = tmp_path / folder
    place.mkdir()
    shutil.copy(scan, place / "scan.nii.gz")
    assert run("--i", place / "scan.nii.gz", "--o", place / "one" / "o.nii.gz", "--vol", place / "v.csv") == 0
    picture = ["--picture", place / "out"] if folder == "häß_日本" else []  # takes its time
    assert run("--i", place, "--o", place / "out", *picture, "--vol", place / "v.csv") == 0
    assert [path.read_bytes()[:4] for path in (place / "out").glob("*.png")] == [b"\x89PNG"] * bool(picture)
    assert capsys.readouterr().err == ""
    (place / "scan.nii.gz").write_bytes(b"no image")
    assert run("--i", place / "scan.nii.gz", "--o", place / "o.nii.gz") == 3
    assert capsys.readouterr().err.count("\n") == 1  # one line, also where the path has two


FAST = """
import sys
from types import SimpleNamespace
sys.path.insert(0, sys.argv.pop(1))
from synthseg_native import cli, engines, memory
import stand_in

memory.own_peak_mib = lambda: None

engines.load = lambda *_: SimpleNamespace(build=lambda *a, **k: stand_in.Brightness(), check=len)
sys.exit(cli.main(sys.argv[1:]))
"""

# Stopping ------------------------------------------------------------------------------------------------------------

SLOW = """
import sys, time
from types import SimpleNamespace
sys.path.insert(0, sys.argv.pop(1))
from synthseg_native import cli, engines, memory
import stand_in

memory.own_peak_mib = lambda: None

class Slow(stand_in.Brightness):
    def run(self, inputs, smoothing=0.0):
        if self.passes >= 2:
            print("busy", flush=True)
            time.sleep(60)
        yield from super().run(inputs, smoothing)

engines.load = lambda *_: SimpleNamespace(build=lambda *a, **k: Slow(), check=len)
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_at_once_and_keeps_what_is_done(root, cohort, tmp_path, number):
    out = tmp_path / "out"
    command = [sys.executable, "-c", SLOW, root / "tests" / "unit", "--i", cohort, "--o", out, "--vol", out / "v.csv"]
    command += ["--model", root / "models" / "compact2mm"]
    process = subprocess.Popen(
        [str(part) for part in command], env={**os.environ, "PYTHONPATH": str(root / "src")},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=hear_ctrl_c,
    )  # fmt: skip
    lines = []
    while not lines or lines[-1] != "busy\n":
        lines.append(process.stdout.readline())
        assert lines[-1], process.stderr.read()
    start = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert time.monotonic() - start < 20
    assert process.returncode == 128 + number
    assert err == f"synthseg-native: stopped by {number.name}: what is finished is kept, call again to go on\n"
    assert sorted(path.name for path in out.iterdir()) == ["a_synthseg.json", "a_synthseg.nii.gz", "v.csv"]


@pytest.mark.slow
def test_a_bar_on_a_terminal_alone(stand_in, run, scan, tmp_path, monkeypatch, capsys):
    assert run("--i", scan, "--o", tmp_path / "o.nii") == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert run("--i", scan, "--o", tmp_path / "o.nii", "--recompute") == 0
    err = capsys.readouterr().err
    assert "scan.nii.gz: network" in err
    assert "%" in err
