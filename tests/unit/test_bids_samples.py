"""bids_samples.py on made-up datasets, read back by the workflow's own reader of sample sheets."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from synthseg_native.cohort import bids
from synthseg_native.cohort.samples import COLUMNS, read_samples
from synthseg_native.errors import SynthSegError

ROOT = Path(__file__).resolve().parents[2]
GOOD = [
    "sub-01/anat/sub-01_T1w.nii.gz",
    "sub-01/anat/sub-01_FLAIR.nii",
    "sub-01/anat/sub-01_acq-mprage_run-2_T1w.nii.gz",
    "sub-02/ses-a/anat/sub-02_ses-a_T1w.nii.gz",
    "sub-02/ses-b/anat/sub-02_ses-b_rec-norm_T2w.nii.gz",
    "sub-02/ses-b/ct/sub-02_ses-b_CT.nii.gz",
]
BAD = {
    "sub-01/anat/sub-01_ce-gd_T1w.nii.gz": "cannot be told apart from sub-01/anat/sub-01_T1w.nii.gz",
    "sub-01/anat/sub-01_FLAIR.nii.gz": "cannot be told apart",
    "sub-01/anat/sub-01_mod-T1w_defacemask.nii.gz": "suffix defacemask",
    "sub-01/anat/sub-01_part-phase_T2starw.nii.gz": "not a magnitude image",
    "sub-01/anat/sub-02_T1w.nii.gz": "does not fit the folder sub-01",
    "sub-02/ses-a/anat/sub-02_T1w.nii.gz": "does not fit the folder sub-02/ses-a",
    "sub-02/ses-a/anat/sub-02_ses-a_acq-hi-res_T1w.nii.gz": "not a BIDS name",
    "sub-02/ses-a/anat/sub-02_ses-a_odd_T1w.nii.gz": "not a BIDS name",
    "sub-02/ses-a/func/": "not a folder of anatomical images",
    "derivatives/": "skipped",
    "sourcedata/": "skipped",
    "sub-01/anat/sub-01_PDw.nii.gz": "is empty",
    "sub-01/anat/sub-01_T2w.nii.gz": "leads nowhere",
}


@pytest.fixture
def dataset(tmp_path):
    root = tmp_path / "my data"
    files = [name for name in BAD if not name.endswith("/")]
    files += ["sub-02/ses-a/func/sub-02_ses-a_task-rest_bold.nii.gz", "sub-01/anat/sub-01_T1w.json"]
    files += ["derivatives/x/sub-01/anat/sub-01_T1w.nii.gz", "sourcedata/sub-01/anat/sub-01_T1w.nii.gz"]
    for name in [*GOOD, *files]:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("sub-01_T2w.nii.gz"):
            path.symlink_to("../.git/annex/objects/not-here")
        else:
            path.write_bytes(b"" if "PDw" in name else b"\x1f\x8b, an image")
    return root


def run(*arguments, cwd):
    """As a person calls it: a bare Python (-S: no installed packages), no PYTHONPATH."""
    command = [sys.executable, "-S", str(ROOT / "scripts" / "bids_samples.py"), *map(str, arguments)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60)


def test_what_is_found_and_what_is_left_out(dataset):
    rows, left_out, without = bids.find_images(dataset)
    assert sorted(row["image"] for row in rows) == sorted(GOOD) and without == []
    reasons = dict(left_out)
    assert set(reasons) == set(BAD)
    for path, reason in BAD.items():
        assert reason in reasons[path]
    by_image = {row["image"]: row for row in rows}
    assert by_image[GOOD[2]] == {
        "participant_id": "sub-01",
        "session_id": "",
        "acq": "mprage",
        "run": "2",
        "suffix": "T1w",
        "image": GOOD[2],
        "ct": "false",
    }
    assert [image for image, row in by_image.items() if row["ct"] == "true"] == [GOOD[5]]
    assert by_image[GOOD[4]]["session_id"] == "b"


def test_nobody_is_left_out_in_silence(tmp_path):
    """Whoever has a folder sub-* or a row in participants.tsv is in the sheet or on the list, with a reason."""
    files = {
        "sub-01/anat/sub-01_T1w.nii.gz": b"image",
        "sub-03/ses-01/anat/sub-03_ses-01_T1w.json": b"{}",
        "sub-05/sub-05_T1w.nii.gz": b"image",
        "sub-06/anat/sub-06_T1w.nii.gz": b"/annex/objects/MD5E-s12345--01.nii.gz\n",
        "sub-07/anat/sub-07_T1w.nii.gz": b"version https://git-lfs.github.com/spec/v1\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"\x1f\x8b" if content == b"image" else content)
    (tmp_path / "sub-02").mkdir()
    (tmp_path / "sub-04").symlink_to("../gone")
    names = ["sub-01", "sub-02", "08", "sub-09"]
    (tmp_path / "participants.tsv").write_text("\n".join(["participant_id\tage", *(f"{name}\t9" for name in names)]))
    found = bids.find_images(tmp_path)
    assert [row["participant_id"] for row in found.rows] == ["sub-01"]
    assert found.without == [f"sub-0{n}" for n in range(2, 10)]
    assert found.sum() == "images: 1 in the sheet + 3 left out = 4; participants: 1 in the sheet + 8 left out (" + (
        ", ".join(found.without) + ") = 9"
    )
    assert dict(found.left_out) == {
        "sub-02/": "no image in it (a dataset of DataLad's: install it first, datalad get -n)",
        "sub-03/ses-01/": "no image in it (a dataset of DataLad's: install it first, datalad get -n)",
        "sub-04": bids.LINK,
        "sub-05/sub-05_T1w.nii.gz": "outside of anat and ct",
        "sub-06/anat/sub-06_T1w.nii.gz":
            "a pointer of git-annex, not the image: get its content first (git annex get, datalad get)",
        "sub-07/anat/sub-07_T1w.nii.gz": "a pointer of git LFS, not the image: get its content first (git lfs pull)",
        "sub-08": "in participants.tsv, but has no folder",
        "sub-09": "in participants.tsv, but has no folder",
    }  # fmt: skip


def test_a_folder_that_may_not_be_read_is_its_participants_trouble(dataset, monkeypatch):
    right = Path.iterdir

    def iterdir(path):
        if path == dataset / "sub-01/anat":
            raise PermissionError(13, "Permission denied")
        return right(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    found = bids.find_images(dataset)
    assert {row["participant_id"] for row in found.rows} == {"sub-02"} and found.without == ["sub-01"]
    assert ("sub-01/anat/", "may not be read (Permission denied)") in found.left_out


def write(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"\x1f\x8b" if name.endswith(".nii.gz") else b"")


@pytest.mark.parametrize(
    ("better", "other"),
    [
        ("rec-RMS_T1w", "echo-1_T1w"),  # the image of all echoes
        ("T1w", "echo-1_T1w"),
        ("echo-1_T1w", "echo-2_T1w"),
        ("T1w", "ce-gd_T1w"),
        ("rec-norm_T1w", "ce-gd_T1w"),
        ("T1w", "rec-defaced_T1w"),
        ("UNIT1", "inv-1_UNIT1"),
        ("T2starw", "part-mag_T2starw"),
        ("part-mag_T2starw", "part-phase_T2starw"),
        ("mt-off_PDw", "mt-on_PDw"),
        ("T1w", "chunk-1_T1w"),
        ("T1w", "task-rest_T1w"),
        ("sample-a_T1w", "sample-b_T1w"),
    ],
)
def test_of_images_that_the_sheet_cannot_tell_apart_the_one_that_a_reader_would_choose(tmp_path, better, other):
    names = [f"sub-01/anat/sub-01_{name}.nii.gz" for name in (better, other)]
    write(tmp_path, *names)
    found = bids.find_images(tmp_path)
    assert [row["image"] for row in found.rows] == names[:1] and [path for path, _ in found.left_out] == names[1:]


@pytest.mark.parametrize("name", ["acq-a+b_T1w", "ses-x+y/sub-01_ses-x+y_T1w", "T2star", "FLASH", "PD", "run-01_UNIT1"])
def test_names_of_newer_and_older_bids_are_taken(tmp_path, name):
    session, _, rest = name.rpartition("/")
    path = f"sub-01/{session}/anat/{rest or name}" if session else f"sub-01/anat/sub-01_{name}"
    write(tmp_path, f"{path}.nii.gz")
    found = bids.find_images(tmp_path)
    assert len(found.rows) == 1 and found.left_out == []
    bids.write_sheet(found.rows, tmp_path, tmp_path / "sheet.tsv")
    assert read_samples(tmp_path / "sheet.tsv")[0].name == Path(path).name


def test_whatever_lies_in_a_dataset_is_in_the_sheet_or_on_the_list(tmp_path):
    write(
        tmp_path,
        *("sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_T1w.mgz", "sub-01/anat/sub-01_T2w.NII.GZ"),
        *("sub-01/anat/more/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_PDw.img", "sub-01/perf/sub-01_asl.nii.gz"),
        *("sub-02/ses-1/anat/sub-02_ses-1_T1w.nii.gz", "sub-02/ses-2/anat/sub-02_ses-2_T1w.json"),
        *("sub-03/anat/sub-03_inv-1_MP2RAGE.nii.gz", "sub-03/anat/sub-03_PDT2.nii.gz"),
        *("sub-04/anat/sub-04_acq-bad_T1w.nii.gz", "sub-04/ct/sub-04_CT.nii.gz", ".bidsignore"),
        *("siteB/sub-01/anat/sub-01_T1w.nii.gz", "sub-09_T1w.nii.gz", "derivatives/x/sub-01/a.nii.gz", "code/run.py"),
    )
    (tmp_path / ".bidsignore").write_text("# by hand\n*_acq-bad_*\nct/\n*_acq-fine_*\n!*_acq-fine_*\n")
    write(tmp_path, "sub-04/anat/sub-04_acq-fine_T1w.nii.gz")
    (tmp_path / "sub-05").mkdir()
    (tmp_path / "sub-05/anat").symlink_to("../../gone")
    (tmp_path / "sub-06/anat/sub-06_T1w.nii.gz").mkdir(parents=True)
    os.mkfifo(tmp_path / "sub-06/anat/sub-06_T2w.nii.gz")
    (tmp_path / "sub-06/anat" / os.fsdecode(b"sub-06_acq-\xe4_T1w.nii.gz")).touch()
    found = bids.find_images(tmp_path)
    assert [row["image"].split("/")[-1] for row in found.rows] == [
        "sub-01_T1w.nii.gz", "sub-02_ses-1_T1w.nii.gz", "sub-04_CT.nii.gz", "sub-04_acq-fine_T1w.nii.gz"
    ]  # fmt: skip
    assert dict(found.left_out) == {
        "derivatives/": "skipped",
        "siteB/": "a dataset of its own: call for it, too",
        "sub-01/anat/more/": "a folder in anat",
        "sub-01/anat/sub-01_PDw.img": "BIDS has .nii.gz and .nii alone: convert or rename it",
        "sub-01/anat/sub-01_T1w.mgz": "BIDS has .nii.gz and .nii alone: convert or rename it",
        "sub-01/anat/sub-01_T2w.NII.GZ": "BIDS has .nii.gz and .nii alone: convert or rename it",
        "sub-01/perf/": "not a folder of anatomical images",
        "sub-02/ses-2/": bids.NO_IMAGE,
        "sub-03/anat/sub-03_PDT2.nii.gz": bids.SERIES["PDT2"],
        "sub-03/anat/sub-03_inv-1_MP2RAGE.nii.gz": bids.SERIES["MP2RAGE"],
        "sub-04/anat/sub-04_acq-bad_T1w.nii.gz": "named in .bidsignore",
        "sub-05/anat": bids.LINK,
        "sub-06/anat/sub-06_T1w.nii.gz": "a folder, not an image",
        "sub-06/anat/sub-06_T2w.nii.gz": "not an ordinary file",
        os.fsdecode(b"sub-06/anat/sub-06_acq-\xe4_T1w.nii.gz"):
            "its name is not UTF-8, and cannot stand in a sheet: rename it",
        "sub-09_T1w.nii.gz": "outside of a folder sub-*",
    }  # fmt: skip
    assert found.without == ["sub-03", "sub-05", "sub-06"]


@pytest.mark.parametrize(
    ("content", "why"),
    [(b"participant\tage\nsub-01\t9\n", "no column participant_id"), ("sub-\xe4".encode("latin-1"), "not UTF-8 text")],
)
def test_a_participants_tsv_that_cannot_be_read_is_said(tmp_path, content, why):
    write(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz")
    (tmp_path / "participants.tsv").write_bytes(content)
    ((path, reason),) = bids.find_images(tmp_path).left_out
    assert path == "participants.tsv" and why in reason and reason.endswith("so that it is not known who is missing")


def test_participants_of_a_spreadsheet_are_read(tmp_path):
    write(tmp_path, "sub-01/anat/sub-01_T1w.nii.gz")
    (tmp_path / "participants.tsv").write_bytes("participant_id\tage\r\nsub-02\t9\r\n".encode("utf-16"))
    assert bids.find_images(tmp_path).without == ["sub-02"]


def test_a_folder_of_datasets_names_them(tmp_path):
    write(tmp_path, "rawdata/sub-01/anat/sub-01_T1w.nii.gz")
    with pytest.raises(SynthSegError, match=r"no folder sub-\*; rawdata holds some: name the folder of a BIDS dataset"):
        bids.find_images(tmp_path)


@pytest.mark.parametrize("place", ["inside", "above", "elsewhere"])
def test_the_sheet_finds_its_images_from_where_it_is(dataset, tmp_path, place):
    sheet = {
        "inside": dataset / "code" / "samples.tsv",
        "above": dataset.parent / "samples.tsv",
        "elsewhere": tmp_path / "other" / "place" / "samples.tsv",
    }[place]
    done = run(dataset, "--out", sheet, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    images = len(BAD) - 3  # and three folders
    total = f"images: {len(GOOD)} in the sheet + {images} left out = {len(GOOD) + images}; "
    assert done.stderr.endswith(f"{sheet}: {total}participants: 2 in the sheet + 0 left out = 2\n")
    for path in BAD:
        assert f"left out: {path}: " in done.stderr
    scans = read_samples(sheet)
    assert sorted(Path(scan.image).resolve() for scan in scans) == sorted((dataset / name).resolve() for name in GOOD)
    assert [scan.ct for scan in scans].count(True) == 1
    absolute = [line.split("\t")[5].startswith("/") for line in sheet.read_text().splitlines()[1:]]
    assert set(absolute) == {place == "elsewhere"}
    assert [path.name for path in sheet.parent.iterdir() if path.suffix == ".tmp"] == []


def test_a_sheet_is_not_overwritten_unasked(dataset, tmp_path):
    sheet = tmp_path / "samples.tsv"
    sheet.write_text("mine\n")
    done = run(dataset, cwd=tmp_path)
    assert done.returncode == 2
    assert "samples.tsv: exists" in done.stderr.splitlines()[-1]
    assert sheet.read_text() == "mine\n"
    assert run(dataset, "--force", cwd=tmp_path).returncode == 0
    assert len(read_samples(sheet)) == len(GOOD)


def test_the_empty_sheet_that_is_shipped_is_filled(dataset, tmp_path):
    sheet = tmp_path / "samples.tsv"
    sheet.write_text("\t".join(COLUMNS) + "\n")
    done = run(dataset, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(read_samples(sheet)) == len(GOOD)
    assert run(dataset, cwd=tmp_path).returncode == 2  # it has rows now


def test_no_dataset_and_no_image_are_one_line(tmp_path):
    for make, message in ((None, "no such folder"), ("other", "no folder sub-"), ("sub-01/func", "no image found")):
        if make:
            (tmp_path / "data" / make).mkdir(parents=True)
        done = run(tmp_path / "data", cwd=tmp_path)
        assert done.returncode == 2
        assert message in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "samples.tsv").exists()


def test_a_link_to_the_dataset_keeps_the_images_names(dataset, tmp_path):
    (tmp_path / "link").symlink_to(dataset)
    rows = bids.find_images(tmp_path / "link").rows
    bids.write_sheet(rows, tmp_path / "link", tmp_path / "sheet.tsv")
    assert {Path(scan.image).name for scan in read_samples(tmp_path / "sheet.tsv")} == {Path(n).name for n in GOOD}


def test_a_folder_that_cannot_be_written_is_one_line(dataset, tmp_path):
    (tmp_path / "file").write_text("")
    rows = bids.find_images(dataset).rows
    with pytest.raises(SynthSegError, match="cannot be written"):
        bids.write_sheet(rows, dataset, tmp_path / "file" / "samples.tsv")
