"""Reading, and what headers say about where a scan lies. What is refused as bad input: test_bad_input.py."""

import gzip
import os
import re
import resource
import sys
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from small_scans import MGH, patch, ramp, save

from synthseg_native.errors import SynthSegError
from synthseg_native.files import sha256_of
from synthseg_native.results import images
from synthseg_native.scan import grid, reading
from synthseg_native.scan.content import Content
from synthseg_native.scan.reading import ACCEPTABLE, FLAGS, read


def affine_of(turn, offset=(0, 0, 0)):
    return nib.affines.from_matvec(turn, offset)


def turned(degrees, axes="z"):
    return affine_of(Rotation.from_euler(axes, degrees, degrees=True).as_matrix())


def flags_of(path, accept=()):
    return read(path, accept).description["header_flags"]


def exchanged(path, back):
    """A reader that finds another image in the path, as rsync puts it there, and maybe the first again afterwards."""
    real = reading._read

    def read_other(*arguments):
        first, other = path.with_name("first"), save(path.with_name("other.nii.gz"), ramp() + 5)
        path.rename(first)
        other.rename(path)
        found = real(*arguments)
        if back:
            first.rename(path)
        return found

    return read_other


# Reading -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("back", [False, True])
def test_a_scan_that_is_exchanged_while_it_is_read_is_not_taken(tmp_path, monkeypatch, back):
    """Another's hash would stand for what was segmented, for ever where the first comes back."""
    path = save(tmp_path / "scan.nii.gz", ramp())
    monkeypatch.setattr(reading, "_read", exchanged(path, back))
    with pytest.raises(SynthSegError, match=r"scan\.nii\.gz: changed while it was read: call again") as error:
        read(path)
    assert error.value.transient
    monkeypatch.undo()
    assert read(path).data.shape == ramp().shape


@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nii", "scan.mgz"])
@pytest.mark.parametrize("ahead", [True, False])
def test_bytes_that_are_read_ahead_are_those_that_are_hashed_and_parsed(tmp_path, monkeypatch, name, ahead):
    path = save(tmp_path / name, ramp())
    content = Content(path)
    content.read_ahead()
    digest = content.sha256()
    if ahead:
        monkeypatch.setattr("synthseg_native.scan.content.sha256_of", None)
        monkeypatch.setattr(Path, "open", None)
        monkeypatch.setattr("gzip.open", None)
    else:  # another file by now
        save(path, ramp() + 5)
    found = read(path, ["no_orientation"], content=content)
    monkeypatch.undo()
    np.testing.assert_array_equal(found.data, read(path, ["no_orientation"]).data)
    assert found.description["sha256"] == sha256_of(path)
    assert (found.description["sha256"] == digest) is ahead


def test_nothing_is_read_ahead_that_is_too_large_or_no_image(tmp_path, monkeypatch):
    monkeypatch.setattr("synthseg_native.scan.content.LIMIT", 100)
    os.mkfifo(tmp_path / "pipe.nii")  # to read it would never end
    for path in (
        save(tmp_path / "scan.nii", ramp()),
        tmp_path / "pipe.nii",
        tmp_path / "none.nii",
        tmp_path / "a\0.nii",
    ):
        content = Content(path)
        content.read_ahead()
        assert content._read_before() is None
    assert Content(tmp_path / "scan.nii").open().read(4) == (348).to_bytes(4, sys.byteorder)


def test_trailing_axes_of_length_one_are_dropped(tmp_path):
    found = read(save(tmp_path / "scan.nii.gz", ramp()[..., None]))
    np.testing.assert_array_equal(found.data, ramp())
    assert found.description["header_flags"] == ["trailing_axes_of_length_1"]
    assert found.description["shape"] == [16, 18, 20, 1]


def test_slope_and_intercept_are_applied(tmp_path):
    stored = nib.Nifti1Image(ramp(dtype=np.int16), np.eye(4))
    stored.header.set_slope_inter(0.25, 3)
    nib.save(stored, tmp_path / "scan.nii")
    np.testing.assert_array_equal(read(tmp_path / "scan.nii").data, ramp() * 0.25 + 3)


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz", "scan.mgz", "scan.mgh", "SCAN.NII.GZ"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_every_format_is_read_as_nibabel_reads_it(tmp_path, name, dtype):
    affine = affine_of(np.diag([-1, 1, 1.5]), (5, 6, 7))
    kind = nib.MGHImage if ".mg" in name else nib.Nifti1Image
    path = save(tmp_path / name, ramp().astype(dtype), affine, kind)
    found, expected = read(path), nib.load(path)
    np.testing.assert_array_equal(found.data, expected.get_fdata())
    np.testing.assert_array_equal(found.affine, expected.affine)
    np.testing.assert_array_equal(found.voxel_mm, expected.header.get_zooms())
    assert found.data.dtype == dtype  # what is computed in float64 is the same, and it takes less
    assert found.description["orientation"] == "LAS"


def test_nifti2_and_big_endian_files_are_read(tmp_path):
    path = save(tmp_path / "two.nii", kind=nib.Nifti2Image)
    np.testing.assert_array_equal(read(path).data, ramp())
    header = nib.Nifti1Header(endianness=">")
    nib.save(nib.Nifti1Image(ramp(), np.eye(4), header), tmp_path / "big.nii")
    assert (tmp_path / "big.nii").read_bytes()[:4] == b"\0\0\1\x5c"
    np.testing.assert_array_equal(read(tmp_path / "big.nii").data, ramp())


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.MGHImage])
def test_a_label_map_gets_the_header_that_nibabel_would_give_it(tmp_path, kind):
    path = save(tmp_path / ("scan.nii" if kind is nib.Nifti1Image else "scan.mgz"), affine=turned(20), kind=kind)
    found, theirs = read(path), nib.load(path).header
    if kind is nib.Nifti1Image:
        theirs.set_xyzt_units("mm")
    for name, header in (("ours", found.header), ("theirs", theirs)):
        images.save_labels(tmp_path / f"{name}.nii", np.ones(found.data.shape), found.affine, header)
    assert (tmp_path / "ours.nii").read_bytes() == (tmp_path / "theirs.nii").read_bytes()


@pytest.mark.parametrize("name", ["a b.nii.gz", "a'b\"c.nii", "a\nb.nii.gz", "Größe 脑.mgz", "a:b;$(c)*.nii", "-i.nii"])
def test_any_path_is_read(tmp_path, name):
    (tmp_path / "ein Ordner\n'").mkdir()
    path = tmp_path / "ein Ordner\n'" / name
    found = read(save(path, kind=nib.MGHImage if path.suffix == ".mgz" else nib.Nifti1Image))
    assert found.description["name"] == name
    path.write_bytes(b"")
    with pytest.raises(SynthSegError, match="the file is empty") as caught:
        read(path)
    assert len(caught.value.message.splitlines()) == 1


def test_reading_takes_little_more_memory_than_the_values(tmp_path):
    shape = (200, 200, 200)  # 64 MB of float64
    path = save(tmp_path / "scan.nii.gz", np.ones(shape, np.uint8))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    read(path)
    unit = 1 if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 1e8 else 1024  # bytes on macOS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit < 1.4 * 8 * np.prod(shape)


# What is odd, and taken ----------------------------------------------------------------------------------------------


def test_facts_for_the_record(tmp_path):
    facts = read(save(tmp_path / "scan.nii", affine=turned(6) @ np.diag([-1, 1, 1, 1]))).description
    assert facts | {"sha256": ""} == {
        "name": "scan.nii",
        "sha256": "",
        "shape": [16, 18, 20],
        "voxel_mm": [1, 1, 1],
        "orientation": "LAS",
        "obliquity_deg": 6,
        "shear_volume_factor": 1,
        "header_flags": [],
    }
    assert facts["sha256"] == sha256_of(tmp_path / "scan.nii")


def two_forms(path, sform, qform):
    stored = nib.Nifti1Image(ramp(), sform)
    stored.set_sform(sform, 1)
    stored.set_qform(qform, 1)
    nib.save(stored, path)
    return path


def test_the_sform_counts_where_the_qform_differs(tmp_path):
    near = two_forms(tmp_path / "near.nii", np.eye(4), affine_of(np.eye(3), (0.9, 0, 0)))
    assert flags_of(near) == []
    far = two_forms(tmp_path / "far.nii", np.eye(4), affine_of(np.eye(3), (1.1, 0, 0)))
    assert flags_of(far) == ["sform_qform_differ"]
    np.testing.assert_array_equal(read(far).affine, np.eye(4))
    no_rotation = patch(far, quatern=[2, 2, 2])
    assert flags_of(no_rotation) == ["sform_qform_differ"]


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_a_qform_that_is_no_rotation_by_rounding_alone_is_one(tmp_path, kind):
    """1.5e-6 too long, as float32 leaves it: nibabel itself would not open the file."""
    turn = Rotation.from_euler("xyz", [180, 0, 20], degrees=True).as_matrix()
    stored = kind(ramp(), affine_of(turn, (5, 6, 7)))
    stored.set_qform(stored.affine, 1)
    stored.set_sform(None, 0)
    for part in "bcd":
        stored.header[f"quatern_{part}"] *= 1 + 1e-6
    path = tmp_path / "scan.nii"
    path.write_bytes(stored.header.binaryblock + bytes(4) + ramp().tobytes(order="F"))
    with pytest.raises(ValueError, match="w2 should be positive"):
        nib.load(patch_offset(path))
    found = read(path)
    np.testing.assert_allclose(found.affine, affine_of(turn, (5, 6, 7)), atol=1e-5)
    assert found.description["header_flags"] == []
    images.save_labels(tmp_path / "labels.nii", np.ones(found.data.shape), found.affine, found.header)
    np.testing.assert_allclose(nib.load(tmp_path / "labels.nii").affine, found.affine, atol=1e-6)


def patch_offset(path):
    """Where voxels begin in a file that was put together by hand."""
    content = bytearray(path.read_bytes())
    second = content[0] == 540 % 256
    where, kind, size = (168, "<i8", 544) if second else (108, "<f4", 352)
    content[where : where + np.dtype(kind).itemsize] = np.array(size, kind).tobytes()
    path.write_bytes(content)
    return path


def test_rounding_of_the_qform_is_no_difference_to_the_sform(tmp_path):
    half_turn = np.diag([-1.0, -1, 1, 1])
    path = two_forms(tmp_path / "scan.nii", half_turn, half_turn)
    assert flags_of(patch(path, quatern=[0, 0, 1 + 5e-7])) == []
    assert flags_of(patch(path, quatern=[0, 0, 1.1])) == ["sform_qform_differ"]
    with pytest.raises(SynthSegError, match="the qform is no rotation"):
        read(patch(path, sform_code=0))


def test_an_sform_of_zeros_is_none(tmp_path):
    path = two_forms(tmp_path / "scan.nii", np.eye(4), affine_of(np.eye(3), (1, 2, 3)))
    patch(path, srow=np.zeros(12))
    found = read(path)
    assert found.description["header_flags"] == ["sform_zeros"]
    np.testing.assert_array_equal(found.affine, affine_of(np.eye(3), (1, 2, 3)))
    images.save_labels(tmp_path / "labels.nii", np.ones(found.data.shape), found.affine, found.header)
    np.testing.assert_array_equal(nib.load(tmp_path / "labels.nii").affine, found.affine)
    with pytest.raises(SynthSegError, match="neither sform nor qform is set"):
        read(patch(path, qform_code=0))


def test_forms_that_disagree_about_left_and_right_are_taken_only_on_demand(tmp_path):
    path = two_forms(tmp_path / "scan.nii", np.eye(4), affine_of(np.diag([-1, 1, 1]), (15, 0, 0)))
    with pytest.raises(SynthSegError, match=r"about left and right: .* with --accept sform_qform_mirrored"):
        read(path)
    assert flags_of(path, ["sform_qform_mirrored"]) == ["sform_qform_differ", "sform_qform_mirrored"]
    np.testing.assert_array_equal(read(path, ["sform_qform_mirrored"]).affine, np.eye(4))
    assert flags_of(patch(path, qform_code=0)) == []


@pytest.mark.parametrize("degrees", [5, 20, 29])
def test_a_sheared_scan_says_how_much_too_large_its_volumes_are(tmp_path, degrees):
    tilt = np.eye(4)
    tilt[1, 2] = np.tan(np.radians(degrees))
    tilt[:3, 2] *= 3 / np.linalg.norm(tilt[:3, 2])
    path = save(tmp_path / "scan.nii", affine=tilt)
    found = read(path)
    assert found.description["header_flags"] == ["sheared"]
    # By volumes of voxels: the product of their edges, as volumes are counted, over what they are.
    true = abs(np.linalg.det(tilt[:3, :3]))
    assert found.description["shear_volume_factor"] == pytest.approx(3 / true, abs=1e-4)
    assert found.description["shear_volume_factor"] == pytest.approx(1 / np.cos(np.radians(degrees)), abs=1e-4)


@pytest.mark.parametrize(("size", "flags"), [(1.009, []), (1.02, ["voxel_size_differs"])])
def test_voxel_sizes_that_differ_a_little_are_flagged(tmp_path, size, flags):
    assert flags_of(patch(save(tmp_path / "scan.nii"), index=2, pixdim=size)) == flags


def test_voxel_sizes_that_differ_much_are_taken_only_on_demand(tmp_path):
    path = patch(save(tmp_path / "scan.nii"), index=3, pixdim=1.2)
    with pytest.raises(SynthSegError, match=r"1 x 1 x 1\.2 mm by the header, of 1 x 1 x 1 mm by the affine"):
        read(path)
    found = read(path, ["voxel_size_differs"])
    assert found.description["header_flags"] == ["voxel_size_differs"]
    np.testing.assert_allclose(found.voxel_mm, [1, 1, 1.2])


@pytest.mark.parametrize(("code", "flags"), [(0, []), (2, []), (10, []), (1, ["units_not_mm"]), (3, ["units_not_mm"])])
def test_units_other_than_mm_are_flagged_where_the_sizes_are_those_of_mm(tmp_path, code, flags):
    assert flags_of(patch(save(tmp_path / "scan.nii"), xyzt_units=code)) == flags


def test_few_slices_are_flagged(tmp_path):
    assert flags_of(save(tmp_path / "scan.nii", ramp((40, 40, 15)))) == ["few_slices"]
    assert flags_of(save(tmp_path / "scan.nii", ramp((40, 40, 16)))) == []


@pytest.mark.parametrize(
    ("degrees", "flags"),
    [(29, []), (31, ["oblique"]), (41, ["oblique"]), (43, ["oblique", "ambiguous_axes"]), (65, []), (45.01, None)],
)
def test_oblique_and_ambiguous_axes(tmp_path, degrees, flags):
    expected = ["oblique", "ambiguous_axes"] if flags is None else flags
    path = save(tmp_path / "scan.nii", affine=turned(degrees))
    assert flags_of(path) == expected
    assert read(path).description["obliquity_deg"] == pytest.approx(min(degrees, 90 - degrees), abs=0.01)


def test_ambiguity_does_not_depend_on_the_voxels_shape(tmp_path):
    """Axes are chosen after resampling: 5 mm slices at 20 degrees are no toss-up; by the affine alone they would be."""
    path = save(tmp_path / "scan.nii", ramp((64, 64, 20)), turned(20, "x") @ np.diag([1, 1, 5, 1]))
    assert flags_of(path) == []


def test_repaired_axes_are_ambiguous(tmp_path):
    turn = Rotation.from_rotvec(np.radians(57) * np.array([1, 1, 1]) / np.sqrt(3)) * Rotation.from_euler("x", 5, True)
    affine = affine_of(turn.as_matrix())
    assert len(set(np.abs(np.linalg.inv(affine)[:3, :3]).argmax(axis=0))) == 2  # one voxel axis wins twice
    assert "ambiguous_axes" in flags_of(save(tmp_path / "scan.nii", affine=affine))


@pytest.mark.parametrize("flags", [["values_as_labels"], ["constant_image"]])
def test_a_constant_image_is_flagged(tmp_path, flags):
    data = np.full((16, 16, 16), 7, np.uint8)
    data[0, 0, 0] += flags != ["constant_image"]
    assert flags_of(save(tmp_path / "scan.nii", data)) == flags


def head(dtype=np.int16):
    """A ball in air: noise, as scans have it."""
    x, y, z = np.meshgrid(*[np.linspace(-1.2, 1.2, n) for n in (30, 32, 34)], indexing="ij")
    inside = x**2 + y**2 + z**2 < 1
    return (inside * (60 + 40 * (x > 0) + np.random.default_rng(0).normal(0, 6, x.shape))).astype(dtype)


PATCHES = np.kron(np.arange(27).reshape(3, 3, 3), np.ones((8, 8, 8))).astype(np.int16)  # of one value each


@pytest.mark.parametrize(
    ("data", "flags"),
    [
        (head(), []),
        (head(np.uint8) // 4, []),
        (head(np.float32), []),
        (head() - 1024, ["values_as_ct"]),
        (np.where(head() > 0, 20 * head(), -1000), ["values_as_ct"]),
        (np.where(head() > 0, head(), -300), []),
        (head().astype(np.float32) * 40 - 2000, []),  # phases, say
        ((head() > 0).astype(np.uint8), ["values_as_labels"]),
        ((head() > 0) * np.float32(255), ["values_as_labels"]),
        (PATCHES, ["values_as_labels"]),
        (PATCHES.astype(np.float32), ["values_as_labels"]),
        (PATCHES % 4, ["values_as_labels"]),  # tissue classes
        (PATCHES % 5 * 40, []),  # a phantom
        (PATCHES + np.random.default_rng(0).integers(0, 9, PATCHES.shape, np.int16), []),
        (PATCHES * np.float32(0.1), []),
    ],
)
def test_values_of_ct_and_of_label_maps_are_flagged(tmp_path, data, flags):
    path = save(tmp_path / "scan.nii", data)
    assert flags_of(path) == flags
    assert read(path, ct=True).description["header_flags"] == [flag for flag in flags if flag != "values_as_ct"]


def test_real_scans_are_neither(root):
    for name in ("t1", "thick", "oblique"):
        found = flags_of(root / f"tests/golden/{name}_image.nii.gz")
        assert not {"values_as_ct", "values_as_labels"} & set(found), name
        assert "values_as_labels" in flags_of(root / f"tests/golden/{name}_default_dseg.nii.gz")


# What would swap left and right --------------------------------------------------------------------------------------

# The axes stand 61, 77 and 85 degrees on each other; found by a search for the least sheared that turns over.
SWAPPING = np.array([[0.6542, -0.2240, 0.4566], [0.7559, 0.5106, -0.2441], [-0.0251, 0.8301, 0.8555]])


def test_axes_that_would_come_out_mirrored_are_refused(tmp_path):
    affine = affine_of(SWAPPING)
    assert np.linalg.det(affine) > 0.85
    axes, flipped = grid.ras_order(affine)
    assert np.linalg.det(affine[:3, axes] * np.where(flipped, -1, 1)) < -0.85  # what upstream would segment
    with pytest.raises(SynthSegError, match="left and right would be swapped") as caught:
        read(save(tmp_path / "scan.nii", affine=affine), ACCEPTABLE)
    assert caught.value.code == "bad_input"


@pytest.mark.slow
def test_no_rotation_and_no_gantry_tilt_comes_out_mirrored():
    for turn in Rotation.random(5000, random_state=0).as_matrix():
        tilt = np.eye(3)
        tilt[1, 2] = turn[0, 0]  # up to 45 degrees, to either side
        for matrix in (turn, turn @ tilt):
            assert not reading._mirrored(affine_of(matrix / np.linalg.norm(matrix, axis=0)))


@pytest.mark.parametrize("flip", [1, -1])
def test_both_kinds_of_storage_are_right_handed_in_the_network(tmp_path, flip):
    assert flags_of(save(tmp_path / "scan.nii", affine=np.diag([flip, 1, 1, 1]))) == []


# What is taken only on demand ----------------------------------------------------------------------------------------


def no_orientation(path):
    return patch(save(path), sform_code=0, qform_code=0)


def test_an_unknown_orientation_is_taken_on_demand_as_nibabel_takes_it(tmp_path):
    path = no_orientation(tmp_path / "scan.nii")
    with pytest.raises(SynthSegError, match="left and right are unknown"):
        read(path)
    found = read(path, ["no_orientation"])
    assert found.description["header_flags"] == ["no_orientation"]
    assert found.description["orientation"] == "LAS"
    np.testing.assert_array_equal(found.affine, nib.load(path).affine)
    assert flags_of(patch(path, sform_code=99), ["no_orientation"]) == ["no_orientation"]  # no code that there is


def test_an_mgz_without_orientation_is_taken_on_demand_as_nibabel_takes_it(tmp_path):
    path = patch(save(tmp_path / "scan.mgh", kind=nib.MGHImage), fields=MGH, good_ras=0, delta=[2, 2, 2])
    with pytest.raises(SynthSegError, match="goodRASFlag is not set"):
        read(path)
    found = read(path, ["no_orientation"])
    assert found.description["header_flags"] == ["no_orientation"]
    np.testing.assert_array_equal(found.affine, nib.load(path).affine)
    np.testing.assert_array_equal(found.voxel_mm, [1, 1, 1])


def test_a_negative_voxel_size_is_taken_on_demand_as_nibabel_takes_it(tmp_path):
    nifti = patch(save(tmp_path / "scan.nii"), index=1, pixdim=-1)
    mgh = patch(save(tmp_path / "scan.mgh", kind=nib.MGHImage), fields=MGH, delta=-1)
    for path in (nifti, mgh):
        with pytest.raises(SynthSegError, match="a negative voxel size"):
            read(path)
        found = read(path, ["negative_voxel_size"])
        assert found.description["header_flags"] == ["negative_voxel_size"]
        np.testing.assert_array_equal(found.voxel_mm, [1, 1, 1])
        np.testing.assert_array_equal(found.affine, nib.load(path).affine)
        images.save_labels(tmp_path / "labels.nii", np.ones(found.data.shape), found.affine, found.header)


def test_all_faults_are_told_at_once_and_each_must_be_accepted(tmp_path):
    path = patch(no_orientation(tmp_path / "scan.nii"), index=1, pixdim=-1)
    with pytest.raises(SynthSegError) as caught:
        read(path)
    assert caught.value.message == (
        f"{path}: neither sform nor qform is set, so left and right are unknown; a negative voxel size in the header: "
        "set the sform or the qform; make it positive, or take it as it is with --accept "
        "no_orientation,negative_voxel_size (sheet: column accept)"
    )
    with pytest.raises(SynthSegError, match="with --accept negative_voxel_size "):
        read(path, ["no_orientation"])
    assert flags_of(path, ["no_orientation", "negative_voxel_size"]) == ["no_orientation", "negative_voxel_size"]


def test_accepting_what_is_not_there_changes_nothing(tmp_path):
    assert flags_of(save(tmp_path / "scan.nii"), ACCEPTABLE) == []


def test_an_unknown_flag_is_wrong_use(tmp_path):
    with pytest.raises(SynthSegError, match="--accept no_orientaton: no such flag: did you mean no_orientation") as one:
        read(tmp_path / "none.nii", ["no_orientaton"])
    with pytest.raises(SynthSegError, match="oblique: no such flag: use one of no_orientation, ") as two:
        read(tmp_path / "none.nii", ["oblique"])
    assert one.value.code == two.value.code == "usage"


# The file on the disk ------------------------------------------------------------------------------------------------


def test_gzip_and_plain_files_read_alike(tmp_path):
    save(tmp_path / "scan.nii")
    with gzip.open(tmp_path / "copy.nii.gz", "wb") as file:
        file.write((tmp_path / "scan.nii").read_bytes())
    np.testing.assert_array_equal(read(tmp_path / "scan.nii").data, read(tmp_path / "copy.nii.gz").data)


def test_a_folder_is_no_image(tmp_path):
    (tmp_path / "scan.nii.gz").mkdir()
    with pytest.raises(SynthSegError, match="not an image file"):
        read(tmp_path / "scan.nii.gz")


def packed(path, *parts):
    """A gzip of one member per part."""
    path.write_bytes(b"".join(gzip.compress(part, 1) for part in parts))
    return path


def test_a_gzip_of_several_members_is_one_file(tmp_path):
    content = save(tmp_path / "scan.nii").read_bytes()
    found = read(packed(tmp_path / "a.nii.gz", content[:100], content[100:9000], b"", content[9000:]))
    np.testing.assert_array_equal(found.data, ramp())


@pytest.mark.parametrize("behind", [b"\0" * 9, b"x", b"garbage" * 99, b"\x1f\x8b\x07 no method of gzip"])
def test_what_lies_behind_the_stream_is_not_looked_at(tmp_path, behind):
    path = packed(tmp_path / "a.nii.gz", save(tmp_path / "scan.nii").read_bytes())
    path.write_bytes(path.read_bytes() + behind)
    np.testing.assert_array_equal(read(path).data, nib.load(path).get_fdata())


def test_a_wrong_checksum_is_still_seen_and_so_is_a_stream_without_end(tmp_path):
    path = packed(tmp_path / "a.nii.gz", save(tmp_path / "scan.nii").read_bytes())
    whole = bytearray(path.read_bytes())
    for broken in (whole[:-8] + b"\0" + whole[-7:], whole[:-4] + b"\0\0\0\0", whole[:-5]):
        path.write_bytes(broken)
        with pytest.raises(SynthSegError, match="cut off or damaged"):
            read(path)


def test_a_stream_that_goes_on_behind_its_voxels_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "MAX_BEHIND", 3 * reading.CHUNK)
    zeros = gzip.compress(bytes(reading.CHUNK), 1)
    path = packed(tmp_path / "a.nii.gz", save(tmp_path / "scan.nii").read_bytes())
    path.write_bytes(path.read_bytes() + 9 * zeros + b"\x1f\x8b\x08 no gzip at all")
    np.testing.assert_array_equal(read(path).data, ramp())
    monkeypatch.setattr(reading, "MAX_BEHIND", 30 * reading.CHUNK)
    with pytest.raises(SynthSegError, match="damaged"):
        read(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_extensions_are_never_held(tmp_path, monkeypatch, name):
    """However many: of the voxels alone memory is taken, and of no byte of the file where the header is asked for."""
    content, longest = save(tmp_path / "scan.nii").read_bytes(), 20 * reading.CHUNK
    (tmp_path / "more.nii").write_bytes(content[:348] + b"\1\0\0\0" + bytes(longest) + content[352:])
    path = patch(tmp_path / "more.nii", vox_offset=352 + longest)
    if name.endswith("gz"):
        path = packed(tmp_path / name, path.read_bytes())
    tracemalloc.start()
    extent, few = reading.extent(path), tracemalloc.get_traced_memory()[1]
    data = read(path).data
    assert few < 1e6 < tracemalloc.get_traced_memory()[1] < 4 * reading.CHUNK
    tracemalloc.stop()
    np.testing.assert_array_equal(data, ramp())
    assert extent == reading.Extent((16, 18, 20), (1, 1, 1), 4)


def test_it_is_told_how_large_the_scan_is_before_a_voxel_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "_voxels", lambda *_: pytest.fail("voxels were read"))

    def too_large(extent):
        raise SynthSegError("oom", f"{extent.shape}, {extent.bytes}: too large")

    for dtype, slope, size in ((np.int16, 1, 2), (np.float32, 1, 4), (np.int16, 0.5, 8), (np.float64, 1, 8)):
        stored = nib.Nifti1Image(ramp(dtype=dtype), np.eye(4))
        stored.header.set_slope_inter(slope, 0)
        nib.save(stored, tmp_path / "scan.nii")
        with pytest.raises(SynthSegError, match=rf"\(16, 18, 20\), {size}: too large"):
            read(tmp_path / "scan.nii", fits=too_large)


@pytest.mark.parametrize("dtype", ["i1", "u1", "<i2", ">i2", "<u2", ">i4", "<u4", ">f4", "<f8", "<i8", "<u8"])
@pytest.mark.parametrize("slope", [1, 0.1])
def test_the_network_sees_the_same_whatever_type_the_voxels_are_kept_in(tmp_path, dtype, slope):
    values = (np.random.default_rng(1).normal(50, 20, (14, 15, 16))).astype(dtype)
    header = nib.Nifti1Header(endianness=dtype[0] if dtype[0] in "<>" else "<")
    stored = nib.Nifti1Image(values, np.diag([1.5, 2, 3, 1]), header, dtype=np.dtype(dtype))
    stored.header.set_slope_inter(slope, 3 * (slope != 1))
    nib.save(stored, tmp_path / "scan.nii")
    found, theirs = read(tmp_path / "scan.nii"), nib.load(tmp_path / "scan.nii").get_fdata()
    np.testing.assert_array_equal(found.data, theirs)
    same = reading.Scan(theirs, found.affine, found.header, found.voxel_mm, {})
    for resolution in (1, 2):
        ours, other = (grid.regrid(scan, resolution) for scan in (found, same))
        np.testing.assert_array_equal(ours.data, other.data)
    for options in ({}, {"ct": True}, {"autocrop": True}, {"crop": (8, 8, 8)}):
        ours, other = (
            grid.prepare(scan.data, scan.affine, pad_multiple=4, min_size=8, **options) for scan in (found, same)
        )
        assert ours.volume.tobytes() == other.volume.tobytes(), options


def test_no_voxel_is_read_where_the_header_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(nib.arrayproxy, "ArrayProxy", lambda *_: pytest.fail("voxels were read"))
    with pytest.raises(SynthSegError, match="the header claims 2000 x 2000 x 2000 voxels"):
        read(patch(save(tmp_path / "scan.nii"), dim=[3, 2000, 2000, 2000]))
    with pytest.raises(SynthSegError, match="the header wants"):
        read(patch(save(tmp_path / "scan.nii"), dim=[3, 500, 500, 500]))


def test_only_the_number_of_voxels_counts_at_the_limit(tmp_path):
    path = patch(save(tmp_path / "scan.nii"), dim=[3, 1024, 1024, 1024])  # 2^30 exactly
    with pytest.raises(SynthSegError, match="axis of"):  # passes the limit, and then is too long for a head
        read(path)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (OSError(5, "Input/output error"), "read", "cannot be read .Input/output error.: check the drive"),
        (OSError(36, "File name too long"), "bad_input", "cannot be read .File name too long.: correct the path"),
        (PermissionError(13, "Permission denied"), "bad_input", "may not be read: change its permissions"),
    ],
)
def test_a_drive_that_fails_is_no_bad_input(tmp_path, monkeypatch, error, code, said):
    path = save(tmp_path / "scan.nii")

    def fail(*_):
        raise error

    monkeypatch.setattr(reading, "_voxels", fail)
    with pytest.raises(SynthSegError, match=said) as caught:
        read(path)
    assert caught.value.code == code


# Documentation -------------------------------------------------------------------------------------------------------


def test_the_table_of_conditions_is_complete(root):
    rows = [line for line in (root / "docs/input.md").read_text().splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
    assert {len(row) for row in cells} == {4}
    named = [flag for row in cells for flag in re.findall(r"`(\w+)`", row[1])]
    assert sorted(set(named)) == sorted(FLAGS)
    refused = {flag for row in cells if "--accept" in row[2] for flag in re.findall(r"`(\w+)`", row[1])}
    assert refused == set(ACCEPTABLE)
    assert set(ACCEPTABLE) <= set(FLAGS)
