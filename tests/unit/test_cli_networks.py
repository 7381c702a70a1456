"""The command with --robust, --parc and --qc, with a stand-in for every network."""

import csv
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from stand_in import Whole, head

from synthseg_native import cli
from synthseg_native.networks import cards
from synthseg_native.results import quality
from synthseg_native.scan import reading

SCORES = ["general white matter", "general grey matter", "general csf", "cerebellum", "brainstem", "thalamus",
          "putamen+pallidum", "hippocampus+amygdala"]  # fmt: skip


@pytest.fixture
def run(whole_stand_in, whole_model):
    """Call the command with all networks."""

    def call(*arguments, model=whole_model):
        return cli.main([str(argument) for argument in arguments] + ["--fast", "--model", str(model)])

    return call


def save(path, darker=0):
    """The middle of the head, of voxels as large as the network's."""
    nib.save(nib.Nifti1Image(np.clip(head()[4:36:2, 6:38:2, 8:40:2] - darker, 0, None), np.diag([2.0, 2, 2, 1])), path)
    return path


@pytest.fixture
def scan(tmp_path):
    return save(tmp_path / "scan.nii.gz")


@pytest.fixture
def cohort(tmp_path):
    """A folder of two scans that differ."""
    (tmp_path / "scans").mkdir()
    save(tmp_path / "scans" / "a.nii.gz")
    save(tmp_path / "scans" / "b.nii.gz", 30)
    return tmp_path / "scans"


def rows(path):
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_robust_mode_parcels_and_scores_in_one_call(run, scan, tmp_path, capsys):
    out = {name: tmp_path / name for name in ("o.nii", "v.csv", "qc.csv", "v.tsv", "r.json")}
    tables = ("--vol", out["v.csv"], "--qc", out["qc.csv"], "--volumes-tsv", out["v.tsv"], "--record", out["r.json"])
    assert run("--i", scan, "--o", out["o.nii"], "--robust", "--parc", *tables) == 0
    assert Whole.built == ("unet", "l2l", "unet2", "unet_parc", "qc_final"), "each once, when its turn comes"
    assert Whole.passes == 5
    said = capsys.readouterr()
    assert "segmented with golden2, robust, parcels, quality scores (not for research)" in said.out and said.err == ""
    assert "; look at it: " in said.out and "low_scores" in said.out

    labels = np.unique(nib.load(out["o.nii"]).dataobj).tolist()
    assert not {3, 42} & set(labels) and any(value > 1000 for value in labels)
    header, row = rows(out["v.csv"])
    assert (len(header), header[1], header[34], header[-1]) == (
        102,
        "total intracranial",
        "ctx-lh-bankssts",
        "ctx-rh-insula",
    )
    volumes = dict(zip(header[1:], map(float, row[1:]), strict=True))
    for side in ("left", "right"):  # the parcels of a hemisphere add up to its cortex in the same table
        parcels = sum(volume for name, volume in volumes.items() if name.startswith(f"ctx-{side[0]}h-"))
        assert parcels == pytest.approx(volumes[f"{side} cerebral cortex"], abs=0.05)
    scores = [f"{score:.4f}" for score in np.clip(np.linspace(0.1, 1.2, 9, dtype=np.float32)[1:], 0, 1)]
    assert rows(out["qc.csv"]) == [["subject", *SCORES], ["scan", *scores]]
    with out["v.tsv"].open(newline="") as file:
        assert len(list(csv.DictReader(file, delimiter="\t"))) == 32 + 68

    notes = json.loads(out["r.json"].read_text())
    assert notes["mode"] == "robust"
    networks = notes["model"]["networks"]
    assert list(networks) == ["groups", "denoised", "robust", "parcellation", "quality"]
    assert networks["groups"] == networks["robust"] == notes["model"]["weights_sha256"]
    assert len(set(networks.values())) == 3
    assert notes["output"]["qc"]["scores"] == dict(zip(SCORES, map(float, scores), strict=True))
    assert quality.of_record(notes, cards.load("golden2").labels)["scores_low"] == SCORES[:3]  # 0.24, 0.38, 0.51


def test_a_folder_and_a_second_call(run, cohort, tmp_path, monkeypatch, capsys):
    call = ("--i", cohort, "--o", tmp_path / "out", "--qc", tmp_path / "qc")
    assert run(*call) == 0
    table, before = rows(tmp_path / "qc.csv"), Whole.passes
    assert [row[0] for row in table] == ["subject", "a", "b"] and {len(row) for row in table} == {9}
    (tmp_path / "qc.csv").unlink()
    capsys.readouterr()
    assert run(*call) == 0
    assert Whole.passes == before and rows(tmp_path / "qc.csv") == table  # without a run
    assert capsys.readouterr().out.startswith("2 of 2 scans are current")

    # Of another call, with another scan: the rows of the first stay.
    shutil.copy(cohort / "a.nii.gz", tmp_path / "c.nii.gz")
    assert run("--i", tmp_path / "c.nii.gz", "--o", tmp_path / "c_o.nii", "--qc", tmp_path / "qc.csv") == 0
    assert rows(tmp_path / "qc.csv")[:3] == table and rows(tmp_path / "qc.csv")[3][0] == "c"

    monkeypatch.setattr(Whole, "best", 0.9)  # made again, each scan still has one row
    # Of the volumes are other rows then, and of other columns: those of parcels cannot stand beside them.
    assert run("--i", tmp_path / "c.nii.gz", "--o", tmp_path / "c_o.nii", "--qc", tmp_path / "qc.csv",
               "--vol", tmp_path / "v.csv", "--recompute") == 0  # fmt: skip
    assert [row[0] for row in rows(tmp_path / "qc.csv")] == ["subject", "a", "b", "c"]
    assert [row[-1] for row in rows(tmp_path / "qc.csv")][1:] == ["1.0000", "1.0000", "0.9000"]
    content = (tmp_path / "v.csv").read_bytes()
    for option, path in (("--vol", tmp_path / "v.csv"), ("--qc", tmp_path / "v.csv"), ("--vol", tmp_path / "qc.csv")):
        capsys.readouterr()
        assert run("--i", cohort, "--o", tmp_path / "out", "--parc", option, path) == 2
        of = {"--vol": "volumes", "--qc": "quality scores"}[option]
        assert capsys.readouterr().err == (
            f"synthseg-native: {path}: has rows of something else than this call's {of}, or cut ones: choose another "
            "name, or remove it\n"
        )
    assert (tmp_path / "v.csv").read_bytes() == content


def test_a_list_has_a_table_of_scores_for_each_scan(run, cohort, tmp_path):
    names = {"i": ["a.nii.gz", "b.nii.gz"], "o": ["1.nii", "2.nii"], "qc": ["1.csv", "2"]}
    for name, lines in names.items():
        folder = cohort if name == "i" else tmp_path
        (tmp_path / f"{name}.txt").write_text("".join(f"{folder / line}\n" for line in lines))
    call = ("--i", tmp_path / "i.txt", "--o", tmp_path / "o.txt", "--qc", tmp_path / "qc.txt")
    assert run(*call) == 0
    assert [row[0] for row in rows(tmp_path / "2.csv")] == ["", "b"]
    assert rows(tmp_path / "1.csv")[0] == ["", *SCORES]
    before = Whole.passes
    assert run(*call) == 0 and Whole.passes == before
    (tmp_path / "1.csv").unlink()
    assert run(*call) == 0 and Whole.passes == before + 2  # the network that segments, and that of the scores
    assert (tmp_path / "1.csv").is_file()


def test_parcels_that_are_asked_for_later_make_a_scan_again(run, scan, tmp_path, capsys):
    call = ("--i", scan, "--o", tmp_path / "o.nii", "--vol", tmp_path / "v.csv")
    assert run(*call) == 0
    before = nib.load(tmp_path / "o.nii").get_fdata()
    assert before.max() < 1000
    for more, why in (
        (["--parc"], "parcels: none to cortex"),
        (["--parc", "--parcel-volumes", "upstream-66342c1"], "parcels: cortex to upstream-66342c1"),
        (["--robust"], "mode: fast to robust"),
    ):
        capsys.readouterr()
        assert run(*call, *more) == 0
        said = [line for line in capsys.readouterr().out.splitlines() if " again: " in line]
        assert len(said) == 1 and said[0].startswith(f"{tmp_path / 'o.nii'} again: ") and why in said[0], said
        if "upstream-66342c1" in more:
            volumes = dict(zip(*rows(tmp_path / "v.csv"), strict=True))
            white = sum(float(volumes[f"{side} cerebral white matter"]) for side in ("left", "right"))
            assert sum(float(volumes[name]) for name in volumes if name.startswith("ctx-")) == pytest.approx(white)
        before = Whole.passes
        assert run(*call, *more) == 0 and Whole.passes == before


@pytest.mark.parametrize(("flags", "file"), [
    (["--parc"], "parc.h5"), (["--qc", "qc.csv"], "qc.h5"), (["--robust"], "robust.h5"),
])  # fmt: skip
def test_weights_that_are_missing_are_found_before_a_scan_is_read(
    run, whole_model, scan, tmp_path, monkeypatch, capsys, flags, file
):
    """SynthSeg has emptied the tables by then."""
    monkeypatch.chdir(tmp_path)
    model = tmp_path / "golden2"
    shutil.copytree(whole_model, model, ignore=shutil.ignore_patterns(file))
    parcels = ["--parc"] if "--parc" in flags else []  # of the same columns
    call = ("--i", save(tmp_path / "other.nii", 30), "--o", tmp_path / "o2.nii", "--vol", tmp_path / "v.csv", *parcels)
    assert run(*call, "--qc", tmp_path / "qc.csv") == 0
    before, passes = {path: path.read_bytes() for path in tmp_path.glob("*.csv")}, Whole.passes
    assert len(before) == 2
    capsys.readouterr()
    monkeypatch.setattr(reading, "read", lambda *_: pytest.fail("a scan was read"))
    assert run("--i", scan, "--o", tmp_path / "o.nii", "--vol", tmp_path / "v.csv", *flags, model=model) == 2
    assert capsys.readouterr().err == (
        f"synthseg-native: {model / file}: no such weights file, and the card has no address: put it there\n"
    )
    assert Whole.passes == passes and not (tmp_path / "o.nii").exists()
    assert {path: path.read_bytes() for path in tmp_path.glob("*.csv")} == before


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--robust", "--v1"], "--robust and --v1: SynthSeg 1.0 has no robust networks: give one of them"),
        (
            ["--model", "compact2mm", "--robust"],
            "compact2mm: its card has no network for robust mode: leave that out, or take another model",
        ),
        (
            ["--model", "synthseg1", "--robust", "--parc"],
            "synthseg1: its card has no network for robust mode: leave that out, or take another model",
        ),
    ],
)
def test_robust_mode_is_refused_where_there_is_none(whole_stand_in, scan, tmp_path, capsys, flags, line):
    table = tmp_path / "v.csv"
    table.write_bytes(b"of an earlier call\r\n")
    arguments = ["--i", scan, "--o", tmp_path / "o.nii", "--vol", table, *flags]
    assert cli.main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"synthseg-native: {line}\n")
    assert table.read_bytes() == b"of an earlier call\r\n" and not (tmp_path / "o.nii").exists()


def test_another_mode_of_a_scan_takes_its_row(run, cohort, tmp_path, capsys):
    """Into another label map: the note beside the first one tells whose the row is. A table has a scan once."""
    tables = ("--vol", tmp_path / "v.csv", "--qc", tmp_path / "q.csv")
    for out, flags in (("plain", []), ("robust", ["--robust"]), ("plain", [])):
        capsys.readouterr()
        assert run("--i", cohort, "--o", tmp_path / out, *tables, *flags) == 0
        said = capsys.readouterr().out
        for table in tables[1::2]:
            assert [row[0] for row in rows(table)] == ["subject", "a", "b"]
            other = tmp_path / "plain" / "a_synthseg.json"
            assert (f"{table}: the row a that {other} tells of gives way" in said) == (out == "robust")


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--robust", "--fast"], "--fast changes nothing here: robust mode is that by itself"),
        (["--addctab"], "--addctab changes nothing here: only .mgz and .mgh label maps have a colour table"),
        (
            ["--interpolation", "nearest"],
            "--interpolation nearest changes nothing here: it is for the scan's own grid: --keepgeom or --native-grid",
        ),
        (
            ["--parc", "--parcel-volumes", "upstream-66342c1"],
            "--parcel-volumes upstream-66342c1 changes nothing here: no table of volumes is asked for: --vol or "
            "--volumes-tsv",
        ),
    ],
)
def test_what_changes_nothing_is_said(run, whole_model, scan, tmp_path, capsys, flags, line):
    assert cli.main(["--i", str(scan), "--o", str(tmp_path / "o.nii"), "--model", str(whole_model), *flags]) == 0
    assert capsys.readouterr().out.splitlines()[0] == line
    more = {"--addctab": ["--o", tmp_path / "o.mgz"], "--interpolation": ["--keepgeom"]}.get(
        flags[0], ["--vol", tmp_path / "v.csv"]
    )
    again = [word for word in flags if word != "--fast"]
    call = ["--i", scan, "--o", tmp_path / "o.nii", "--model", whole_model, *again, *more]
    assert cli.main([str(word) for word in call]) == 0
    assert "changes nothing" not in capsys.readouterr().out


def test_a_file_of_weights_that_is_named_is_that_of_the_labels(run, whole_model, scan, tmp_path, capsys):
    """With --robust that of robust mode; several files are named by their folder."""
    for flags, right, wrong in (([], "v2.h5", "parc.h5"), (["--robust"], "robust.h5", "v2.h5")):
        call = ("--i", scan, "--o", tmp_path / f"{right}.nii", *flags, "--weights")
        assert run(*call, whole_model / wrong) == 2
        assert f"{wrong}: not the weights of golden2" in capsys.readouterr().err
        assert run(*call, whole_model / right) == 0
        assert run(*call, whole_model / right, "--parc") == 2
        line = f"{right}: a file, and this takes {right}, parc.h5: name the folder that holds them\n"
        assert capsys.readouterr().err.endswith(line)


def test_a_folder_of_weights_that_is_named_has_those_of_all(run, whole_model, scan, tmp_path, capsys):
    folder = tmp_path / "weights"
    shutil.copytree(whole_model, folder, ignore=lambda _, names: [name for name in names if not name.endswith(".h5")])
    call = ("--i", scan, "--o", tmp_path / "o.nii", "--parc", "--qc", tmp_path / "qc.csv", "--weights", folder)
    assert run(*call) == 0
    (folder / "qc.h5").write_bytes(b"other")
    assert run(*call) == 2 and f"{folder / 'qc.h5'}: not the weights of golden2" in capsys.readouterr().err
    (folder / "qc.h5").unlink()
    assert run(*call) == 2
    line = f"{folder}: the folder lacks qc.h5: put them there, or leave --weights out\n"
    assert capsys.readouterr().err == f"synthseg-native: {line}"
