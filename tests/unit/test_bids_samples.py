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
    rows, left_out = bids.find_images(dataset)
    assert sorted(row["image"] for row in rows) == sorted(GOOD)
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
    rows, left_out = bids.find_images(tmp_path)
    assert [row["participant_id"] for row in rows] == ["sub-01"]
    assert dict(left_out) == {
        "sub-02/": "no image in it (a dataset of DataLad's: install it first, datalad get -n)",
        "sub-03/": "no image in it (a dataset of DataLad's: install it first, datalad get -n)",
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
    rows, left_out = bids.find_images(dataset)
    assert {row["participant_id"] for row in rows} == {"sub-02"}
    assert ("sub-01/anat/", "may not be read (Permission denied)") in left_out


@pytest.mark.parametrize("place", ["inside", "above", "elsewhere"])
def test_the_sheet_finds_its_images_from_where_it_is(dataset, tmp_path, place):
    sheet = {
        "inside": dataset / "code" / "samples.tsv",
        "above": dataset.parent / "samples.tsv",
        "elsewhere": tmp_path / "other" / "place" / "samples.tsv",
    }[place]
    done = run(dataset, "--out", sheet, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{len(GOOD)} images of 2 participants, {len(BAD)} left out" in done.stderr
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
    rows, _ = bids.find_images(tmp_path / "link")
    bids.write_sheet(rows, tmp_path / "link", tmp_path / "sheet.tsv")
    assert {Path(scan.image).name for scan in read_samples(tmp_path / "sheet.tsv")} == {Path(n).name for n in GOOD}


def test_a_folder_that_cannot_be_written_is_one_line(dataset, tmp_path):
    (tmp_path / "file").write_text("")
    rows, _ = bids.find_images(dataset)
    with pytest.raises(SynthSegError, match="cannot be written"):
        bids.write_sheet(rows, dataset, tmp_path / "file" / "samples.tsv")
