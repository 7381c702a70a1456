"""The sample sheet: names composed from entities, and one line per mistake."""

import pytest

from synthseg_native.cohort.samples import read_samples
from synthseg_native.errors import SynthSegError


def sheet(tmp_path, text):
    path = tmp_path / "samples.tsv"
    path.write_text(text)
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


def test_images_below_the_working_directory_are_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    path = sheet(tmp_path / "config", "participant_id\timage\n01\t../images/a.nii\n02\t/data/b.nii\n")
    assert [scan.image for scan in read_samples(path)] == ["images/a.nii", "/data/b.nii"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("participant_id\timage\n", "no rows"),
        ("participant_id,image\n01,a.nii\n", "separated by tabs"),
        ("participant_id\n01\n", "column image is missing"),
        ("participant_id\timage\timage\n01\ta\tb\n", "appears twice"),
        ("participant_id\timage\n01\ta.nii\n01\tb.nii\n", "row 2: sub-01_T1w is row 1 again"),
        (
            "participant_id\timage\n01A\ta.nii\n01a\tb.nii\n",
            "row 2: sub-01a_T1w differs from row 1, sub-01A_T1w, in upper and lower case only",
        ),
        ("participant_id\timage\n../01\ta.nii\n", "row 1: participant_id is '../01'"),
        ("participant_id\timage\n\ta.nii\n", "row 1: participant_id is empty"),
        ("participant_id\timage\n01\t\n", "row 1: image is empty"),
        ("participant_id\timage\tct\n01\ta.nii\tmaybe\n", "ct is 'maybe'"),
        ("participant_id\timage\tsuffix\n01\ta.nii\tbold\n", "suffix is 'bold'"),
        ("participant_id\timage\n01\ta.nii\tx\n", "more cells than columns"),
    ],
)
def test_mistakes_name_the_row(tmp_path, text, said):
    with pytest.raises(SynthSegError, match=r"samples\.tsv") as raised:
        read_samples(sheet(tmp_path, text))
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("suffix", "cell", "ct"),
    [("CT", "", True), ("CT", "n/a", True), ("CT", "false", False), ("CT", "TRUE", True), ("T1w", "", False)],
)
def test_a_ct_is_in_hounsfield_units_unless_the_sheet_says_no(tmp_path, suffix, cell, ct):
    text = f"participant_id\timage\tsuffix\tct\n01\ta.nii\t{suffix}\t{cell}\n"
    assert read_samples(sheet(tmp_path, text))[0].ct is ct
    without = f"participant_id\timage\tsuffix\n01\ta.nii\t{suffix}\n"
    assert read_samples(sheet(tmp_path, without))[0].ct is (suffix == "CT")


def test_every_mistake_is_told_at_once(tmp_path):
    with pytest.raises(SynthSegError) as raised:
        read_samples(sheet(tmp_path, "participant_id\timage\n!\ta\n01\t\n02\tb\n"))
    assert len(str(raised.value).splitlines()) == 2


def test_missing_sheet(tmp_path):
    with pytest.raises(SynthSegError, match="no such sample sheet"):
        read_samples(tmp_path / "none.tsv")
