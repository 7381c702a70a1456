"""The sample sheet: names composed from entities. Its mistakes: test_bad_input.py."""

import csv
import io
import os
from pathlib import Path

import pytest

from synthseg_native.cohort import demo
from synthseg_native.cohort.samples import contradictions, openable, read_samples, shared_images


def sheet(tmp_path, text):
    path = tmp_path / "samples.tsv"
    path.write_text(text, encoding="utf-8")
    return path


def test_names_follow_the_entities(tmp_path):
    path = sheet(
        tmp_path,
        "participant_id\tsession_id\tacq\trun\tsuffix\timage\tct\tage\n"
        "01\t\t\t\t\ta.nii\t\t40\nsub-02\tses-a\tmp\t1\tT2w\tsub dir/b.nii\ttrue\t\n",
    )
    first, second = read_samples(path)
    assert first.scan == "sub-01/anat/sub-01_T1w" and not first.ct and first.sheet == {"age": "40"}
    assert second.scan == "sub-02/ses-a/anat/sub-02_ses-a_acq-mp_run-1_T2w" and second.ct
    assert second.image == str(tmp_path / "sub dir/b.nii")


@pytest.mark.parametrize(
    "text",
    [
        "participant_id\timage\t\nsub-01\ta.nii\t\n",
        "participant_id\timage\t\t\t\nsub-01\ta.nii\t\t\t\n",
        "participant_id\timage\nsub-01\ta.nii\t \t\n",
        "participant_id\tsession_id\trun\tacq\timage\tct\taccept\nsub-01\tNA\tNA\tnan\ta.nii\tNaN\tNA\n",
    ],
)
def test_sheets_as_spreadsheets_and_r_write_them(tmp_path, text):
    (scan,) = read_samples(sheet(tmp_path, text))
    assert scan.scan == "sub-01/anat/sub-01_T1w" and Path(scan.image).name == "a.nii"
    assert (scan.ct, scan.accept, scan.sheet) == (False, (), {})


def test_numbers_of_a_column_with_empty_cells_are_read_as_pandas_writes_them(tmp_path):
    first, second = read_samples(sheet(tmp_path, "participant_id\trun\timage\n1.0\t2.0\ta.nii\n2.0\t\tb.nii\n"))
    assert (first.name, second.name) == ("sub-1_run-2_T1w", "sub-2_T1w")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le"])
def test_sheets_in_the_encodings_and_line_ends_of_spreadsheets(tmp_path, encoding, end):
    path = tmp_path / "samples.tsv"
    path.write_bytes(end.join(["participant_id\timage", "01\tä.nii", "02\tb.nii", ""]).encode(encoding))
    assert [Path(scan.image).name for scan in read_samples(path)] == ["ä.nii", "b.nii"]


def test_paths_may_begin_in_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert read_samples(sheet(tmp_path, "participant_id\timage\n01\t~/a.nii\n"))[0].image == "/home/me/a.nii"


@pytest.mark.parametrize(
    ("row", "file", "said"),
    [
        ("1\t\t\tT1w", "sub-01_T1w.nii.gz", "sub-1_T1w: sub-01_T1w.nii.gz"),
        ("01\t1\t\tT1w", "sub-01_ses-001_T1w.mgz", "sub-01_ses-1_T1w: sub-01_ses-001_T1w.mgz"),
        ("01\t\t1\tT1w", "sub-01_run-01_T1w.nii", "sub-01_run-1_T1w: sub-01_run-01_T1w.nii"),
        ("01\t\t\t", "sub-01_FLAIR.nii", "sub-01_T1w: sub-01_FLAIR.nii"),
        ("01\t\t\tT1w", "sub-01_ses-a_run-1_desc-x_T1w.nii", None),  # what the sheet does not say contradicts nothing
        ("01\t\t\tT1w", "T2w.nii", None),
        ("01\t\t\tT1w", "sub.nii.gz", None),
    ],
)
def test_a_row_that_contradicts_the_name_of_its_file_is_said(tmp_path, row, file, said):
    header = "participant_id\tsession_id\trun\tsuffix\timage"
    scans = read_samples(sheet(tmp_path, f"{header}\n{row}\t{file}\n"))
    line = contradictions(scans)
    assert (said is None) == (line is None) and (said is None or f"({said})" in line)


def test_many_contradictions_are_one_line(tmp_path):
    rows = "".join(f"{n}\tsub-{n:03}_T1w.nii\n" for n in range(1, 10))
    line = contradictions(read_samples(sheet(tmp_path, f"participant_id\timage\n{rows}")))
    assert line.startswith("9 rows of the sheet are named otherwise than their files (sub-1_T1w: sub-001_T1w.nii, ")
    assert "sub-3_T1w: sub-003_T1w.nii and 6 more)" in line and "\n" not in line


def test_rows_with_one_image_are_said(tmp_path):
    rows = "".join(f"{n}\t{n // 3}.nii\t{n % 2}\n" for n in range(1, 9))
    line = shared_images(read_samples(sheet(tmp_path, f"participant_id\timage\tct\n{rows}")))
    found = {number: line.count(f"/{number}.nii (") for number in range(3)}
    assert found == {0: 0, 1: 1, 2: 1} and line.startswith("4 rows of the sheet have the image of another: ")
    assert line.endswith(": is that meant?") and "\n" not in line


def test_images_below_the_working_directory_are_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    path = sheet(tmp_path / "config", "participant_id\timage\n01\t../images/a.nii\n02\t/data/b.nii\n")
    assert [scan.image for scan in read_samples(path)] == ["images/a.nii", "/data/b.nii"]


@pytest.mark.parametrize(
    ("suffix", "cell", "ct"),
    [("CT", "", True), ("CT", "n/a", True), ("CT", "false", False), ("CT", "TRUE", True), ("T1w", "", False)],
)
def test_a_ct_is_in_hounsfield_units_unless_the_sheet_says_no(tmp_path, suffix, cell, ct):
    text = f"participant_id\timage\tsuffix\tct\n01\ta.nii\t{suffix}\t{cell}\n"
    assert read_samples(sheet(tmp_path, text))[0].ct is ct
    without = f"participant_id\timage\tsuffix\n01\ta.nii\t{suffix}\n"
    assert read_samples(sheet(tmp_path, without))[0].ct is (suffix == "CT")


@pytest.mark.parametrize(
    ("cell", "accept"),
    [
        ("", ()),
        ("n/a", ()),
        ("no_orientation", ("no_orientation",)),
        ("voxel_size_differs, no_orientation,", ("no_orientation", "voxel_size_differs")),
    ],
)
def test_header_faults_are_accepted_for_one_image(tmp_path, cell, accept):
    text = f"participant_id\timage\taccept\tage\n01\ta.nii\t{cell}\t40\n02\tb.nii\t\t50\n"
    first, second = read_samples(sheet(tmp_path, text))
    assert (first.accept, second.accept) == (accept, ())
    assert first.sheet == {"age": "40"}


def test_a_sheet_without_accept_accepts_nothing(tmp_path):
    assert read_samples(sheet(tmp_path, "participant_id\timage\n01\ta.nii\n"))[0].accept == ()


@pytest.mark.parametrize(
    "name", ["a b.nii", "a'b.nii", "Größe 脑.nii", 'a"b.nii', "a\nb.nii", "a\u2028b.nii", "#a.nii"]
)
def test_any_path_can_stand_in_a_sheet(tmp_path, name):
    text = io.StringIO()
    csv.writer(text, delimiter="\t", lineterminator="\n").writerows([["participant_id", "image"], ["01", name]])
    assert [scan.image for scan in read_samples(sheet(tmp_path, text.getvalue()))] == [str(tmp_path / name)]


def test_comments_and_empty_lines_are_left_out(tmp_path):
    text = "# by hand\nparticipant_id\timage\n\n01\ta.nii\n#02\tb.nii\n"
    assert len(read_samples(sheet(tmp_path, text))) == 1


def test_a_name_that_looks_like_a_flag_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert openable(Path("-scan.nii")) == str(tmp_path / "-scan.nii")
    assert openable(Path("images/-scan.nii")) == "images/-scan.nii"


def test_a_sheet_may_be_a_pipe_which_is_read_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reader, writer = os.pipe()
    os.write(writer, b"participant_id\timage\n01\tscans/a.nii\n")
    os.close(writer)
    place = f"/dev/fd/{reader}"
    assert not demo.is_sheet(place), "asked first of every sheet"
    assert [scan.image for scan in read_samples(place)] == ["scans/a.nii"]
