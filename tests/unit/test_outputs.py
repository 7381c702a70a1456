"""The files that a run leaves."""

import csv
import errno
import hashlib
import json
import os
import struct
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from nibabel.openers import ImageOpener

from synthseg_native import owners, shared_disk
from synthseg_native.errors import SynthSegError
from synthseg_native.networks import cards
from synthseg_native.pipeline import labels as labels_of
from synthseg_native.results import images, tables
from synthseg_native.results.hashes import labels_sha256
from synthseg_native.results.sidecar import save_json, sidecar
from synthseg_native.results.staged import Staged

LABELS = np.arange(24, dtype=np.int32).reshape(2, 3, 4)


@pytest.fixture
def table(root):
    return cards.read_labels(root / "models" / "synthseg1" / "labels.tsv")


def header(dtype=np.int16, **fields):
    image = nib.Nifti1Image(np.zeros((2, 3, 4), dtype), np.diag([2.0, 2, 2, 1]))
    image.set_qform(np.diag([2.0, 2, 2, 1]), 1)
    image.header["descrip"] = b"from the scanner"
    image.header.set_slope_inter(0.25, 3)
    return image


def test_label_maps_keep_the_input_header_on_its_grid(tmp_path):
    image = header()
    images.save_labels(tmp_path / "dseg.nii.gz", LABELS, image.affine, image.header)
    saved = nib.load(tmp_path / "dseg.nii.gz")
    assert saved.get_data_dtype() == np.int32
    np.testing.assert_array_equal(np.asarray(saved.dataobj), LABELS)
    assert saved.header["descrip"].item() == b"from the scanner"
    assert int(saved.header["qform_code"]) == 1
    assert int(saved.header["sform_code"]) == int(image.header["sform_code"])
    assert saved.dataobj.slope == 1


def test_label_maps_on_a_new_grid_have_an_sform_only(tmp_path):
    image = header()
    images.save_labels(tmp_path / "dseg.nii.gz", LABELS, np.eye(4), image.header)
    saved = nib.load(tmp_path / "dseg.nii.gz")
    np.testing.assert_array_equal(saved.affine, np.eye(4))
    assert (int(saved.header["sform_code"]), int(saved.header["qform_code"])) == (2, 0)
    np.testing.assert_array_equal(saved.header.get_zooms(), [1, 1, 1])


def test_label_maps_of_mgz_scans(tmp_path):
    scan = nib.MGHImage(np.zeros((2, 3, 4), np.float32), np.diag([1, 2, 3, 1.0]))
    images.save_labels(tmp_path / "dseg.nii.gz", LABELS, scan.affine, scan.header)
    saved = nib.load(tmp_path / "dseg.nii.gz")
    np.testing.assert_array_equal(np.asarray(saved.dataobj), LABELS)
    np.testing.assert_allclose(saved.affine, scan.affine)


@pytest.mark.parametrize("name", ["dseg.mgz", "dseg.mgh"])
def test_mgz_label_maps_can_hold_a_colour_table(tmp_path, table, name):
    image = header()
    images.save_labels(tmp_path / name, LABELS, image.affine, image.header, table)
    saved = nib.load(tmp_path / name)
    assert saved.get_data_dtype() == np.dtype(">i4")
    np.testing.assert_array_equal(np.asarray(saved.dataobj), LABELS)
    np.testing.assert_allclose(saved.affine, image.affine)
    with ImageOpener(tmp_path / name) as file:
        content = file.read()
    tags = content[284 + LABELS.nbytes + 20 :]  # header, voxels, scan parameters
    tag, version, size, name_length, n = struct.unpack(">5i", tags[:20])
    assert (tag, version, size, name_length, n) == (1, -2, 61, 0, 32)
    found, at = {}, 20
    for _ in range(n):
        index, length = struct.unpack(">2i", tags[at : at + 8])
        text = tags[at + 8 : at + 8 + length]
        red, green, blue, transparency = struct.unpack(">4i", tags[at + 8 + length : at + 24 + length])
        assert (text[-1:], transparency) == (b"\0", 0)
        found[index] = text[:-1].decode(), f"#{red:02x}{green:02x}{blue:02x}"
        at += 24 + length
    assert at == len(tags)
    assert found[17] == ("Left-Hippocampus", "#dcd814")
    assert found == dict(zip(table.index.tolist(), zip(table.freesurfer_names, table.colors, strict=True), strict=True))


def test_an_image_is_saved_in_the_type_of_the_scan(tmp_path):
    image = header()
    values = np.linspace(0, 1000, 24).reshape(2, 3, 4)
    for name in ("a.nii.gz", "a.mgz"):
        images.save_image(tmp_path / name, values, np.eye(4), image.header)
        saved = nib.load(tmp_path / name)
        np.testing.assert_allclose(saved.get_fdata(), values, atol=0.02)
        np.testing.assert_array_equal(saved.affine, np.eye(4))
    assert nib.load(tmp_path / "a.nii.gz").get_data_dtype() == np.int16


def test_margins_are_stored_in_steps(tmp_path):
    image = header()
    margin = np.linspace(0, labels_of.MAX_MARGIN, 24, dtype=np.float32).reshape(2, 3, 4)
    images.save_margin(tmp_path / "margin.nii.gz", margin, image.affine, image.header)
    saved = nib.load(tmp_path / "margin.nii.gz")
    assert saved.get_data_dtype() == np.uint16
    stored = saved.dataobj.get_unscaled()
    assert stored.min() == 0
    assert stored.max() == 65500
    np.testing.assert_allclose(saved.get_fdata(), margin, atol=0.6e-6)


def test_hash_of_labels_is_of_shape_and_values():
    expected = hashlib.sha256(b"(2, 3, 4)" + LABELS.astype("<i4").tobytes()).hexdigest()
    assert labels_sha256(LABELS) == expected
    assert labels_sha256(np.asfortranarray(LABELS)) == expected
    assert labels_sha256(LABELS.astype(np.uint8)) == expected
    assert labels_sha256(LABELS.reshape(3, 2, 4)) != expected


def test_volumes_csv_is_upstreams(tmp_path, table):
    volumes = np.arange(32) + 0.12345
    tables.save_csv(
        tmp_path / "v.csv", tables.csv_columns(table), [tables.csv_row("sub-01_T1w.nii.gz", table, volumes)]
    )
    content = (tmp_path / "v.csv").read_bytes()
    assert content.endswith(b"\r\n")
    assert content.count(b"\r\n") == content.count(b"\n") == 2
    first, second = content.decode().split("\r\n")[:2]
    names = first.split(",")
    assert names[:3] == ["subject", "left cerebral white matter", "left cerebral cortex"]
    assert names[-1] == "right ventral DC"
    assert len(names) == 32
    assert second.startswith("sub-01_T1w,1.123,2.123,")


@pytest.mark.parametrize(("name", "subject"), [("a.nii", "a.nii"), ("a.mgz", "a.mgz"), ("a.b.nii.gz", "a.b")])
def test_subject_names_in_the_csv_are_upstreams(tmp_path, table, name, subject):
    tables.save_csv(tmp_path / "v.csv", tables.csv_columns(table), [tables.csv_row(name, table, np.zeros(32))])
    assert (tmp_path / "v.csv").read_text().splitlines()[1].startswith(f"{subject},0.0,")


def test_models_with_csf_open_with_the_intracranial_volume(tmp_path, root):
    table = cards.read_labels(root / "models" / "synthseg2" / "labels.tsv")
    row = tables.csv_row("a.nii.gz", table, np.full(33, 2.0))
    tables.save_csv(tmp_path / "v.csv", tables.csv_columns(table), [row])
    with (tmp_path / "v.csv").open(newline="") as file:
        names, row = csv.reader(file)
    assert names[1:3] == ["total intracranial", "left cerebral white matter"]
    assert row[1:3] == ["64.0", "2.0"]
    assert names[17] == "csf"


def test_parcels_stand_behind_the_structures(root):
    table, parcels = (
        cards.read_labels(root / "models" / "synthseg2" / f"{name}.tsv") for name in ("labels", "parcels")
    )
    names = tables.csv_columns(table, parcels)
    row = tables.csv_row("a.nii.gz", table, np.full(33, 2.0), np.arange(69) + 0.25)
    assert len(names) + 1 == len(row) == 102  # with "subject", as in SynthSeg's table
    assert (names[-69:-67], names[-1]) == (["right ventral DC", "ctx-lh-bankssts"], "ctx-rh-insula")
    assert (row[1], row[-69:-67], row[-1]) == ("64.0", ["2.0", "1.25"], "68.25")  # no parcel is counted in the total


def test_scores_csv_is_upstreams(tmp_path, root):
    names = cards.read_scores(root / "models" / "synthseg2" / "scores.tsv")[1:]
    row = tables.scores_row("a.b.nii.gz", np.array([0.95, 1, 0, 0.12345, 0.99999, 0.5, 0.65, 0.1]))
    for first in ("subject", ""):
        tables.save_csv(tmp_path / "qc.csv", names, [row], first_cell=first)
        assert (tmp_path / "qc.csv").read_bytes().decode() == (
            f"{first},general white matter,general grey matter,general csf,cerebellum,brainstem,thalamus,"
            "putamen+pallidum,hippocampus+amygdala\r\n"
            "a.b,0.9500,1.0000,0.0000,0.1235,1.0000,0.5000,0.6500,0.1000\r\n"
        )


def test_volumes_tsv(tmp_path, table):
    counts = np.arange(32)
    confidences = np.append(np.linspace(0.5, 1, 31), np.nan)
    rows = tables.volume_rows(table, np.arange(32) * 1.5, counts, [2, 2, 2], confidences, at_edge=[2])
    tables.save_volumes_tsv(tmp_path / "v.tsv", rows)
    with (tmp_path / "v.tsv").open(newline="") as file:
        found = list(csv.DictReader(file, delimiter="\t"))
    assert len(found) == 31
    assert list(found[0].values()) == [
        "2",
        "left cerebral white matter",
        "Left-Cerebral-White-Matter",
        "1.500",
        "1",
        "8.000",
        "0.5167",
        "true",
    ]
    assert found[-1]["mean_posterior"] == "n/a"
    assert found[-1]["at_fov_edge"] == "false"
    tables.save_volumes_tsv(tmp_path / "v.tsv", {"a.nii": rows, "b.nii": rows[:2]})
    lines = (tmp_path / "v.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in lines] == ["image", *["a.nii"] * 31, *["b.nii"] * 2]
    for missing in (None, np.full(32, np.nan)):
        row = tables.volume_rows(table, missing, counts, [2, 2, 2])[0]
        assert row[3] == row[6] == row[7] == "n/a"


def test_soft_volumes_are_float64_mm3():
    result = SimpleNamespace(soft=np.array([1.0, 2.0]))
    volumes = labels_of.volumes_mm3(result, np.float32([1, 2, 0.5]))
    assert volumes.dtype == np.float64
    assert volumes.tolist() == [1, 2]


# All or nothing ------------------------------------------------------------------------------------------------------


def test_files_appear_together_at_the_end(tmp_path):
    with Staged() as staged:
        for name in ("new/a.txt", "b.nii.gz"):
            part = staged.path(tmp_path / name)
            assert part.name.endswith(name.split("/")[-1])  # nibabel goes by the extension
            part.write_text(name)
        assert not (tmp_path / "new" / "a.txt").exists()
    assert (tmp_path / "new" / "a.txt").read_text() == "new/a.txt"
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.txt", "b.nii.gz", "new"]


def test_nothing_appears_after_a_failure(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(RuntimeError), Staged() as staged:
        staged.path(tmp_path / "a.txt").write_text("new")
        raise RuntimeError
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("links", [True, False], ids=["links", "a disk without links"])
@pytest.mark.parametrize("blocked", range(4))
def test_where_one_file_cannot_be_moved_all_are_as_before(tmp_path, monkeypatch, blocked, links):
    """Not new beside old: a folder has come into the place of one of them."""
    if not links:
        monkeypatch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(PermissionError(1, "no links here")))
    places = [tmp_path / name for name in ("a", "b", "c", "d")]
    for place in (places[0], places[2]):
        place.write_text("old")
    (tmp_path / "d").symlink_to("gone")
    before = {place: place.read_text() for place in (places[0], places[2])}
    with pytest.raises(SynthSegError, match="a folder is in its place: choose a place") as caught, Staged() as staged:
        for place in places:
            staged.path(place).write_text("new")
        places[blocked].unlink(missing_ok=True)
        places[blocked].mkdir()
    assert str(places[blocked]) in caught.value.message
    before.pop(places[blocked], None)
    assert {place: place.read_text() for place in before} == before
    assert (blocked == 3 or (tmp_path / "d").readlink() == Path("gone")) and (
        blocked == 1 or not (tmp_path / "b").exists()
    )
    assert {path.name for path in tmp_path.iterdir()} - {"a", "b", "c", "d"} == set(), "nothing is left beside them"


@pytest.mark.parametrize("links", [True, False], ids=["links", "a disk without links"])
def test_files_that_are_there_are_replaced(tmp_path, monkeypatch, links):
    if not links:
        monkeypatch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(PermissionError(1, "no links here")))
    (tmp_path / "a").write_text("old")
    with Staged() as staged:
        staged.path(tmp_path / "a").write_text("new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["new"]


def test_what_is_published_stays_whatever_happens_to_the_rest(tmp_path):
    for name in ("labels.nii", "picture.png", "table.csv"):
        (tmp_path / name).write_text("old")
    with pytest.raises(RuntimeError), Staged() as staged:
        for name in ("labels.nii", "picture.png", "table.csv"):
            staged.path(tmp_path / name).write_text("new")
        staged.publish([tmp_path / "labels.nii"], outdated=[tmp_path / "picture.png", tmp_path / "none"])
        raise RuntimeError
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"labels.nii": "new", "table.csv": "old"}
    with Staged() as staged:  # and may be written once more
        staged.path(tmp_path / "labels.nii").write_text("newer")
        staged.publish([tmp_path / "labels.nii"])
        staged.path(tmp_path / "labels.nii").write_text("newest")
        assert (tmp_path / "labels.nii").read_text() == "newer"
    assert (tmp_path / "labels.nii").read_text() == "newest"


@pytest.mark.parametrize(("number", "remedy"), [(errno.ENOSPC, "make room"), (errno.EROFS, "choose a place")])
def test_a_disk_that_cannot_be_written_to_is_named(tmp_path, number, remedy):
    with pytest.raises(SynthSegError, match=remedy) as caught, Staged() as staged:
        staged.path(tmp_path / "a.txt").write_text("half")
        raise OSError(number, "no")
    assert caught.value.code == "disk"
    assert caught.value.transient
    assert caught.value.message.startswith(str(tmp_path / "a.txt"))
    assert not list(tmp_path.iterdir())


def test_a_destination_below_a_file_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SynthSegError, match="file"), Staged() as staged:
        staged.path(tmp_path / "file" / "a.txt")


def test_json_refuses_what_is_not_json(tmp_path):
    save_json(tmp_path / "a.json", {"a": 1})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_json(tmp_path / "b.json", {"a": float("nan")})


def test_sidecar_never_lets_a_small_model_pass_for_synthseg():
    record = {
        "input": {"name": "sub-01_T1w.nii.gz"},
        "output": {"voxel_mm": [2.0, 2.0, 2.0]},
        "engine": {"name": "tensorflow", "version": "2.15.1"},
        "model": {"name": "compact2mm", "research_grade": False},
        "reference": None,
    }
    result = sidecar(record)
    assert result["ResearchGrade"] is False
    assert result["SegmentationMethod"].startswith("compact2mm")
    assert result["Sources"] == ["sub-01_T1w.nii.gz"]
    assert result["Resolution"] == "2x2x2 mm, axes as in the input image"
    record["output"]["native_grid"] = {"voxel_mm": [1.2, 0.9, 5.0], "interpolation": "posterior"}
    native = sidecar(record, "native")
    assert native["Resolution"] == "the input image's own grid (1.2x0.9x5 mm), labels from resampled posteriors"
    assert native | {"Resolution": None} == result | {"Resolution": None}


def test_the_display_range_of_the_scan_is_the_scan_s(tmp_path):
    """In a label map it would show every label black."""
    header = nib.Nifti1Header()
    header["cal_min"], header["cal_max"] = 500, 2000
    data = np.ones((3, 3, 3), np.int16)
    images.save_labels(tmp_path / "labels.nii", data, np.eye(4), header)
    images.save_image(tmp_path / "scan.nii", data, np.eye(4), header)
    found = [nib.load(tmp_path / f"{name}.nii").header for name in ("labels", "scan")]
    assert [(float(h["cal_min"]), float(h["cal_max"])) for h in found] == [(0, 0), (500, 2000)]


def test_what_killed_processes_left_beside_a_result_is_cleared_away(tmp_path):
    """But for what another machine may still write."""
    ended = replace(shared_disk.me(), pid=2**22 + 1)
    left = [
        tmp_path / f".part-{owners.unique(owner)}-a.nii" for owner in (ended, replace(ended, host="node7/00000007"))
    ]
    for path in left:
        path.touch()
    with Staged() as staged:
        staged.path(tmp_path / "a.nii").write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["a.nii", left[1].name])
