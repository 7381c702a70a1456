"""The command line, with a stand-in for the network where one is needed."""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from stand_in import SHAPE, Brightness, affine, head

from synthseg_native import cli, memory
from synthseg_native.errors import EXIT_CODES, SynthSegError
from synthseg_native.pipeline import segment
from synthseg_native.results import record, tables
from synthseg_native.results.hashes import labels_sha256
from synthseg_native.scan import reading


@pytest.fixture
def call(small_model, tmp_path):
    """Run the command on an image; returns the exit status and the folder of the results."""

    def run(image, *flags, out="out"):
        folder = tmp_path / out
        arguments = ["--i", image, "--o", folder / "dseg.nii.gz", "--vol", folder / "volumes.csv"]
        arguments += ["--volumes-tsv", folder / "volumes.tsv", "--margin", folder / "margin.nii.gz"]
        arguments += ["--record", folder / "run.json", "--model", small_model, *flags]
        return cli.main([str(argument) for argument in arguments]), folder

    return run


def test_a_run_writes_everything(stand_in, scan, call, capsys):
    status, folder = call(scan, "--threads", "2")
    assert status == 0
    names = ["dseg.json", "dseg.nii.gz", "margin.nii.gz", "run.json", "volumes.csv", "volumes.tsv"]
    assert sorted(path.name for path in folder.iterdir()) == names
    labels = nib.load(folder / "dseg.nii.gz")
    assert labels.shape == (20, 22, 24)  # the model works at 2 mm
    assert labels.get_data_dtype() == np.int32
    np.testing.assert_allclose(labels.affine[:3, :3], np.diag([2, 2, 2]))
    assert nib.load(folder / "margin.nii.gz").shape == labels.shape
    assert len(np.unique(labels.dataobj)) > 5
    assert stand_in == [{"device": "cpu", "threads": 2, "precision": "float32"}]
    assert set(Brightness.shapes) == {(32, 32, 32)}
    out, err = capsys.readouterr()
    assert "compact2mm (not for research)" in out
    assert err == ""

    notes = json.loads((folder / "run.json").read_text())
    assert notes["status"] == "ok"
    assert notes["error"] is None
    assert notes["output"]["labels_sha256"] == labels_sha256(np.asarray(labels.dataobj))
    assert notes["output"]["shape"] == [20, 22, 24]
    assert notes["output"]["voxel_mm"] == [2, 2, 2]
    assert notes["input"]["name"] == "scan.nii.gz"
    assert notes["model"]["research_grade"] is False
    assert len(notes["model"]["weights_sha256"]) == 64
    assert notes["threads"] == 2
    assert set(notes["seconds"]) == {*record.PHASES, "total"}
    assert notes["seconds"]["total"] > 0
    assert notes["machine"]["cpu"]

    with (folder / "volumes.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    values, counts = np.unique(np.asarray(labels.dataobj), return_counts=True)
    counts = dict(zip(values.tolist(), counts.tolist(), strict=True))
    assert [int(row["n_voxels"]) for row in rows] == [counts.get(int(row["index"]), 0) for row in rows]
    assert [float(row["voxel_volume_mm3"]) for row in rows] == [int(row["n_voxels"]) * 8 for row in rows]
    with (folder / "volumes.csv").open(newline="") as file:
        _, row = csv.reader(file)
    assert row[0] == "scan"
    assert [float(v) for v in row[1:]] == [float(row["soft_volume_mm3"]) for row in rows]


def test_the_peak_is_told_beside_its_prediction(stand_in, scan, call, monkeypatch, capsys):
    peaks = iter([1250.0, 1400.0])
    monkeypatch.setattr(memory, "own_peak_mib", lambda: next(peaks))
    predict = segment.Segmenter.run

    def predicted(self, job, staged, notes, *more):
        result = predict(self, job, staged, notes, *more)
        notes["predicted_peak_mib"] = 1100
        return result

    monkeypatch.setattr(segment.Segmenter, "run", predicted)
    notes = []
    for number in (1, 2):
        _, folder = call(scan, out=f"out{number}")
        notes.append(json.loads((folder / "run.json").read_text()))
    assert [n["peak_rss_mib"] for n in notes] == [1250, 1400]
    assert [n["memory_remark"] for n in notes] == [None, "the peak of 1400 MiB is 27 % above the predicted 1100 MiB"]
    assert capsys.readouterr().err == f"synthseg-native: {scan}: {notes[1]['memory_remark']}\n"


def test_a_scan_that_would_not_fit_is_refused_before_a_voxel_is_read(stand_in, scan, call, monkeypatch, capsys):
    monkeypatch.setattr(memory, "limit_mib", lambda: 200)
    monkeypatch.setattr(reading, "_voxels", lambda *_: pytest.fail("voxels were read"))
    status, folder = call(scan)
    assert status == 4 and [path.name for path in folder.iterdir()] == ["run.json"]
    said = capsys.readouterr().err
    assert said.startswith(f"synthseg-native: {scan}: would take 0.") and ": what fits: " in said
    assert said.count("\n") == 1
    assert json.loads((folder / "run.json").read_text())["predicted_peak_mib"] > 200


def test_all_that_is_asked_for_is_in_the_prediction(stand_in, scan, call, tmp_path, monkeypatch):
    asked = []

    def predict(size, *how):
        asked.append(size)
        return 1

    monkeypatch.setattr(memory, "predict", predict)
    monkeypatch.setattr(segment.core, "draw", lambda *_: b"")
    call(scan, "--native-grid", tmp_path / "own.nii", "--post", tmp_path / "post.nii", "--picture", tmp_path / "p.png")
    call(scan, out="plain")
    all_of_it, plain = asked[0], asked[-1]
    assert (all_of_it.own_grid, all_of_it.post, all_of_it.picture) == (True, True, True)
    assert (plain.own_grid, plain.post, plain.picture) == (False, False, False)
    assert plain.bytes == 4 and plain.voxels == np.prod(SHAPE) and plain.grid == 20 * 22 * 24


@pytest.mark.parametrize("error", [MemoryError("no more"), OSError(28, "No space left on device"), RuntimeError("x")])
def test_a_picture_that_fails_costs_no_label_map(stand_in, scan, call, tmp_path, monkeypatch, capsys, error):
    def fail(*_):
        raise error

    picture = tmp_path / "picture.png"
    picture.write_bytes(b"of another run")
    monkeypatch.setattr(segment.core, "draw", fail)
    status, folder = call(scan, "--picture", picture)
    assert status == {MemoryError: 4, OSError: 4, RuntimeError: 1}[type(error)]
    assert not picture.exists(), "nothing of another run beside the new label map"
    assert not list(tmp_path.rglob(".part*"))
    assert len(np.unique(nib.load(folder / "dseg.nii.gz").dataobj)) > 5
    sidecar = json.loads((folder / "dseg.json").read_text())
    assert list(sidecar["SynthSegNative"]["ResultsSHA256"]) == ["o"]
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"

    monkeypatch.setattr(segment.core, "draw", lambda *_: b"picture")
    assert call(scan, "--picture", picture)[0] == 0
    assert picture.read_bytes() == b"picture"
    sidecar = json.loads((folder / "dseg.json").read_text())
    assert sorted(sidecar["SynthSegNative"]["ResultsSHA256"]) == ["margin", "o", "picture"]
    capsys.readouterr()
    assert call(scan, "--picture", picture)[0] == 0
    assert "is current and left out" in capsys.readouterr().out


def test_what_is_odd_about_a_scan_is_said_wherever_one_looks(stand_in, call, tmp_path, monkeypatch, capsys):
    """A gantry tilt, and a CT that was not said to be one: in the line, the .json, the picture and the record."""
    said, tilt = [], affine()
    tilt[1, 2] = np.tan(np.radians(20))
    nib.save(nib.Nifti1Image((head() * 5 - 1000).astype(np.int16), tilt), tmp_path / "scan.nii")

    def draw(*_, lines, **more):
        said.extend(lines)
        return b""

    monkeypatch.setattr(segment.core.picture, "draw", draw)
    _, folder = call(tmp_path / "scan.nii", "--picture", tmp_path / "p.png")
    flags = ["sheared", "values_as_ct"]
    assert "; odd in its header or values: sheared, values_as_ct" in capsys.readouterr().out
    assert json.loads((folder / "dseg.json").read_text())["HeaderFlags"] == flags
    assert json.loads((folder / "run.json").read_text())["input"]["header_flags"] == flags
    assert any(
        "the scan: the axes are not at right angles (gantry tilt); volumes are 1.06 times" in line for line in said
    )
    assert any("air at -1000, and it was not segmented as CT" in line for line in said)
    call(tmp_path / "scan.nii", "--picture", tmp_path / "p.png")  # again, when it is current
    out = capsys.readouterr().out
    assert "is current and left out" in out and f"; odd in its header or values: {', '.join(flags)}\n" in out
    _, folder = call(tmp_path / "scan.nii", "--ct", out="ct")
    assert json.loads((folder / "dseg.json").read_text())["HeaderFlags"] == ["sheared"]


@pytest.mark.slow
@pytest.mark.parametrize("codes", ["LPS", "PIR", "SAL"])
def test_the_way_a_scan_is_stored_does_not_change_its_labels(stand_in, scan, call, tmp_path, codes):
    image = nib.load(scan)
    move = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt(codes))
    nib.save(image.as_reoriented(move), tmp_path / "turned.nii.gz")
    _, folder = call(scan)
    _, turned_folder = call(tmp_path / "turned.nii.gz", out="turned")
    expected = nib.load(folder / "dseg.nii.gz")
    turned = nib.load(turned_folder / "dseg.nii.gz")
    assert "".join(nib.aff2axcodes(turned.affine)) == codes
    back = nib.as_closest_canonical(turned)
    np.testing.assert_allclose(back.affine, expected.affine, atol=1e-5)
    # The samples of the two are computed in other orders; float64 rounding may move none of these labels.
    np.testing.assert_array_equal(np.asarray(back.dataobj), np.asarray(expected.dataobj))


def test_scans_on_the_grid_of_the_model_keep_their_grid(stand_in, call, tmp_path):
    matrix = np.diag([2.04, 1.96, 2, 1])
    nib.save(nib.Nifti1Image(head()[::2, ::2, ::2].copy(), matrix), tmp_path / "scan.nii")
    status, folder = call(tmp_path / "scan.nii")
    assert status == 0
    labels = nib.load(folder / "dseg.nii.gz")
    np.testing.assert_allclose(labels.affine, matrix, atol=1e-6)
    with (folder / "volumes.tsv").open(newline="") as file:
        row = max(csv.DictReader(file, delimiter="\t"), key=lambda row: int(row["n_voxels"]))
    size = 2.04 * 1.96 * 2
    assert float(row["voxel_volume_mm3"]) == pytest.approx(int(row["n_voxels"]) * size, rel=1e-5)


def test_a_constant_image_runs_through(stand_in, call, tmp_path):
    nib.save(nib.Nifti1Image(np.full(SHAPE, 9, np.int16), affine()), tmp_path / "scan.nii")
    status, folder = call(tmp_path / "scan.nii")
    assert status == 0
    assert not np.asarray(nib.load(folder / "dseg.nii.gz").dataobj).any()
    notes = json.loads((folder / "run.json").read_text())
    assert notes["input"]["header_flags"] == ["constant_image"]
    assert notes["output"]["mean_confidence"] is None


def test_ct_is_clipped(stand_in, scan, call):
    _, folder = call(scan)
    _, clipped = call(scan, "--ct", out="ct")
    first, second = (np.asarray(nib.load(f / "dseg.nii.gz").dataobj) for f in (folder, clipped))
    assert np.count_nonzero(second == second.max()) > np.count_nonzero(first == first.max())


def test_csv_gets_its_extension(stand_in, scan, root, tmp_path):
    model = str(root / "models" / "compact2mm")
    arguments = ["--i", str(scan), "--o", str(tmp_path / "o.nii"), "--vol", str(tmp_path / "v"), "--model", model]
    assert cli.main(arguments) == 0
    assert (tmp_path / "v.csv").exists()


# Failures ------------------------------------------------------------------------------------------------------------


def failed(call, capsys, image, *flags):
    """Exit status, the one line, and the record of a run that has to fail and to leave nothing else."""
    status, folder = call(image, *flags)
    out, err = capsys.readouterr()
    assert out == ""
    line = err.splitlines()[-1]
    assert line.startswith("synthseg-native: ")
    assert [path.name for path in folder.iterdir()] == ["run.json"]
    notes = json.loads((folder / "run.json").read_text())
    assert notes["status"] == "failed"
    assert f"synthseg-native: {notes['error']['message']}" == line
    assert EXIT_CODES[notes["error"]["code"]] == status
    return status, err, notes


def test_bad_input_is_one_line_and_status_3(call, capsys, tmp_path):
    (tmp_path / "scan.nii.gz").touch()
    status, err, notes = failed(call, capsys, tmp_path / "scan.nii.gz")
    assert status == 3
    assert err == f"synthseg-native: {tmp_path / 'scan.nii.gz'}: the file is empty: copy or convert it again\n"
    assert notes["error"]["transient"] is False
    assert notes["error"]["code"] == "bad_input"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--threads", "0"], "--threads 0"),
        (["--engine", "abacus"], "abacus: no such engine"),
        (["--precision", "bf16"], "precision bf16: the tensorflow engine has float32: ask for that"),
        (["--model", "synthseg9"], "synthseg9: no such model"),
        (["--weights", "nowhere.h5"], "nowhere.h5"),
        (["--v1"], "--v1 and --model"),
        (["--cpu", "--device", "gpu"], "--cpu and --device gpu"),
        (["--crop", "64", "80"], "--crop 64 80: not one or three"),
        (["--crop", "0"], "--crop 0: not one or three"),
        (["--crop", "64", "--autocrop"], "exclude each other"),
        (["--interpolation", "cubic"], "--interpolation cubic"),
        (["--accept", "everything"], "everything"),
        (["--post", "posteriors.txt"], "--i is none"),
        (["--crop", "100000"], "1 to 512"),
        (["--robust"], "compact2mm: its card has no network for robust mode: leave that out"),
        (["--parc"], "compact2mm: its card has no network for the parcellation: leave that out"),
        (["--qc", "scores.csv"], "compact2mm: its card has no network for quality scores: leave that out"),
        (["--qc", "scores.txt"], "scores.txt"),
        (["--parc", "--parcel-volumes", "mine"], "--parcel-volumes mine: not known: give cortex or upstream-66342c1"),
        (["--parcel-volumes", "upstream-66342c1"], "--parcel-volumes: of parcels, which only --parc makes: add it"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(call, capsys, scan, flags, words):
    status, err, notes = failed(call, capsys, scan, *flags)
    assert status == 2
    assert words in err
    assert err.count("\n") == 1
    assert notes["error"]["code"] == "usage"


def test_without_arguments_there_is_help_and_status_2(capsys):
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "--keepgeom" in err
    assert "exit status:" in err


def test_the_help_fits_a_terminal_and_explains_every_flag(capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 120
    for action in cli.parser()._actions:
        shown = action.help != argparse.SUPPRESS
        assert all((flag in text) is shown for flag in action.option_strings)
        assert action.help


@pytest.mark.parametrize("wrong", [["--threads", "1.5"], ["--crop"], ["stray"], ["--frobnicate"]])
def test_what_the_parser_does_not_take_is_one_line(capsys, wrong):
    with pytest.raises(SystemExit) as caught:
        cli.main(["--i", "a.nii", "--o", "b.nii", *wrong])
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("synthseg-native: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("flag", ["--photo"])
def test_what_is_not_there_yet_is_refused_in_one_line(capsys, flag):
    assert cli.main(["--i", "a.nii", "--o", "b.nii", flag]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"synthseg-native: {flag}: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "status", "code", "transient"),
    [
        (MemoryError("24 GB"), 4, "oom", True),
        (OSError(28, "No space left on device"), 4, "disk", True),
        (SynthSegError("timeout", "weights.h5: slow: again"), 4, "timeout", True),
        (ZeroDivisionError("division by zero"), 1, "internal", False),
    ],
)
def test_faults_of_machine_and_program(monkeypatch, stand_in, scan, call, capsys, error, status, code, transient):
    def fail(*_):
        raise error

    monkeypatch.setattr(Brightness, "run", fail)
    found, err, notes = failed(call, capsys, scan)
    assert found == status
    assert notes["error"]["code"] == code
    assert notes["error"]["transient"] is transient
    assert ("Traceback" in err) == (code == "internal")  # a fault of ours comes with its place


def test_a_place_that_cannot_be_written_to(stand_in, scan, root, tmp_path, capsys):
    (tmp_path / "file").touch()
    model = str(root / "models" / "compact2mm")
    status = cli.main(["--i", str(scan), "--o", str(tmp_path / "file" / "dseg.nii.gz"), "--model", model])
    assert status == 4
    assert str(tmp_path / "file" / "dseg.nii.gz") in capsys.readouterr().err


def test_wrong_use_replaces_no_record(stand_in, scan, call, capsys):
    _, folder = call(scan)
    before = (folder / "run.json").read_bytes()
    assert call(scan, "--threads", "0")[0] == 2
    assert (folder / "run.json").read_bytes() == before


def test_a_record_in_a_wrong_place_is_not_in_the_way_of_the_corrected_call(stand_in, scan, root, tmp_path, capsys):
    """ref.json is also where the metadata of ref.nii.gz goes."""
    line = ["--i", str(scan), "--o", str(tmp_path / "ref.nii.gz"), "--model", str(root / "models" / "compact2mm")]
    assert cli.main([*line, "--record", str(tmp_path / "ref.json")]) == 2
    assert "ref.json" in capsys.readouterr().err and not list(tmp_path.glob("ref.*"))
    assert cli.main([*line, "--record", str(tmp_path / "run.json")]) == 0


def test_places_that_cannot_be_written_to_are_known_before_the_network_runs(stand_in, scan, root, tmp_path, capsys):
    (tmp_path / "file").touch()
    flags = ["--vol", str(tmp_path / "file" / "v.csv"), "--model", str(root / "models" / "compact2mm")]
    assert cli.main(["--i", str(scan), "--o", str(tmp_path / "o.nii"), *flags]) == 4
    assert Brightness.passes == 0
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "o.nii").exists()


def test_old_results_survive_a_failed_run(stand_in, scan, call, monkeypatch):
    _, folder = call(scan)
    before = (folder / "dseg.nii.gz").read_bytes()

    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(tables, "save_volumes_tsv", fail)
    assert call(scan, "--recompute")[0] == 4
    assert (folder / "dseg.nii.gz").read_bytes() == before


def test_a_network_that_the_engine_cannot_compute_is_wrong_use(root, scan, tmp_path, capsys):
    model = tmp_path / "mine"
    shutil.copytree(root / "models" / "compact2mm", model)
    card = model / "card.yaml"
    card.write_text(card.read_text().replace("kernel: 3", "kernel: 7"))
    arguments = ["--i", scan, "--o", tmp_path / "o.nii", "--model", model, "--engine", "llvm"]
    assert cli.main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert "kernel 7 of unet_conv_downarm_0_0" in said and "llvm" in said and "--engine tensorflow" in said
    assert said.count("\n") == 1 and not (tmp_path / "o.nii").exists()


@pytest.mark.slow
def test_bad_input_is_reported_before_tensorflow_is_imported(root, tensorflow_python, tmp_path):
    (tmp_path / "scan.nii.gz").touch()
    program = (
        "import sys; from synthseg_native import cli; status = cli.main(sys.argv[1:]); "
        "print('tensorflow' in sys.modules); sys.exit(status)"
    )
    done = subprocess.run(
        [tensorflow_python, "-c", program, "--i", tmp_path / "scan.nii.gz", "--o", tmp_path / "dseg.nii.gz"],
        env={**os.environ, "PYTHONPATH": str(root / "src")}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 3
    assert done.stdout == "False\n"


def test_the_module_runs_as_a_command(root):
    done = subprocess.run(
        [sys.executable, "-m", "synthseg_native", "--version"],
        env={**os.environ, "PYTHONPATH": str(root / "src")}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.startswith("synthseg-native 0.")
