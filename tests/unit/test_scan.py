"""Reading and checking."""

import gzip
import shutil

import nibabel as nib
import numpy as np
import pytest

from synthseg_native.errors import SynthSegError
from synthseg_native.scan import read


def ramp(shape=(12, 14, 16), dtype=np.float32):
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def save(path, data=None, affine=None, **header):
    scan = nib.Nifti1Image(ramp() if data is None else data, np.eye(4) if affine is None else affine)
    for key, value in header.items():
        scan.header[key] = value
    nib.save(scan, path)
    return path


def raw_header(path, offset, values, dtype):
    """Overwrite header bytes: nibabel itself would not write such a file."""
    content = bytearray(path.read_bytes())
    values = np.atleast_1d(np.asarray(values, dtype)).tobytes()
    content[offset : offset + len(values)] = values
    path.write_bytes(content)
    return path


# Bad input -----------------------------------------------------------------------------------------------------------


def missing(folder):
    return folder / "scan.nii.gz"


def empty(folder):
    (folder / "scan.nii.gz").touch()
    return folder / "scan.nii.gz"


def is_folder(folder):
    (folder / "scan.nii.gz").mkdir()
    return folder / "scan.nii.gz"


def other_extension(folder):
    (folder / "scan.dcm").write_bytes(b"DICM" * 100)
    return folder / "scan.dcm"


def truncated_gzip(folder):
    whole = save(folder / "whole.nii.gz", np.random.default_rng(0).random((20, 20, 20)))
    (folder / "scan.nii.gz").write_bytes(whole.read_bytes()[:5000])
    return folder / "scan.nii.gz"


def truncated_gzip_header(folder):
    whole = save(folder / "whole.nii.gz")
    (folder / "scan.nii.gz").write_bytes(whole.read_bytes()[:40])
    return folder / "scan.nii.gz"


def truncated_plain(folder):
    whole = save(folder / "whole.nii")
    (folder / "scan.nii").write_bytes(whole.read_bytes()[:3000])
    return folder / "scan.nii"


def corrupted_gzip(folder):
    path = save(folder / "scan.nii.gz", np.random.default_rng(0).random((20, 20, 20)))
    content = bytearray(path.read_bytes())
    content[1000:1200] = bytes(200)
    path.write_bytes(content)
    return path


def text(folder):
    (folder / "scan.nii").write_text("not an image\n" * 100)
    return folder / "scan.nii"


def plain_named_gz(folder):
    save(folder / "whole.nii")
    shutil.copy(folder / "whole.nii", folder / "scan.nii.gz")
    return folder / "scan.nii.gz"


def flat(folder):
    return save(folder / "scan.nii.gz", ramp((30, 30)))


def frames(folder):
    return save(folder / "scan.nii.gz", ramp((12, 12, 12, 5)))


def few_slices(folder):
    return save(folder / "scan.nii.gz", ramp((40, 40, 10)))


def few_sagittal_slices(folder):
    return save(folder / "scan.nii.gz", ramp((3, 40, 40)))


def rgb(folder):
    colour = np.zeros((12, 12, 12), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    return save(folder / "scan.nii.gz", colour)


def complex_values(folder):
    return save(folder / "scan.nii.gz", ramp().astype(np.complex64))


def zeros(folder):
    return save(folder / "scan.nii.gz", np.zeros((12, 12, 12), np.uint8))


def nans(folder):
    data = ramp()
    data[3, 4, 5:7] = np.nan, np.inf
    return save(folder / "scan.nii.gz", data)


def zero_voxel_size(folder):
    return raw_header(save(folder / "scan.nii"), 80, 0.0, "<f4")  # pixdim[1]


def nan_voxel_size(folder):
    return raw_header(save(folder / "scan.nii"), 84, np.nan, "<f4")  # pixdim[2]


def singular(folder):
    path = save(folder / "scan.nii")
    return raw_header(path, 296, [1, 0, 0, 0], "<f4")  # srow_y becomes srow_x


def nan_affine(folder):
    return raw_header(save(folder / "scan.nii"), 280, np.nan, "<f4")  # srow_x[0]


def too_large(folder):
    return raw_header(save(folder / "scan.nii"), 40, [3, 2000, 2000, 2000, 1], "<i2")  # dim


def in_metres(folder):
    return save(folder / "scan.nii.gz", affine=np.diag([1e-3, 1e-3, 1e-3, 1]))


BAD = {
    missing: "no such file",
    empty: "empty",
    is_folder: "not an image file",
    other_extension: "not an image file",
    truncated_gzip: "cut off",
    truncated_gzip_header: "cut off",
    truncated_plain: "cut off",
    corrupted_gzip: "damaged",
    text: "not an image that can be read",
    plain_named_gz: "damaged",
    flat: "2-D",
    frames: "5 frames",
    few_slices: "40 x 40 x 10 voxels, too few slices",
    few_sagittal_slices: "too few slices",
    rgb: "RGB",
    complex_values: "complex",
    zeros: "all voxels are zero",
    nans: "2 voxels are NaN or infinite",
    zero_voxel_size: "voxel size of zero",
    nan_voxel_size: "voxel sizes that are no numbers",
    singular: "singular",
    nan_affine: "singular",
    too_large: "2000 x 2000 x 2000 voxels",
    in_metres: "axis of 0.012 mm",
}


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__)
def test_bad_input_is_refused_in_one_line(make, tmp_path, capfd):
    path = make(tmp_path)
    with pytest.raises(SynthSegError) as caught:
        read(path)
    assert caught.value.code == "bad_input"
    assert caught.value.exit_code == 3
    assert not caught.value.transient
    file, what, remedy = caught.value.message.split(": ", 2)
    assert file == str(path)
    assert BAD[make] in what
    assert remedy
    assert "\n" not in caught.value.message
    assert capfd.readouterr() == ("", "")  # nibabel's own remarks stay out of the way


def test_a_huge_header_is_refused_before_memory_is_taken(tmp_path, monkeypatch):
    monkeypatch.setattr(nib.Nifti1Image, "get_fdata", lambda *_, **__: pytest.fail("voxels were read"))
    with pytest.raises(SynthSegError, match="claims"):
        read(too_large(tmp_path))


def test_only_the_number_of_voxels_counts_at_the_limit(tmp_path):
    path = raw_header(save(tmp_path / "scan.nii"), 40, [3, 1024, 1024, 2048, 1], "<i2")  # 2^31 exactly
    with pytest.raises(SynthSegError, match="axis of"):  # passes the limit, and then is too long for a head
        read(path)


# Reading -------------------------------------------------------------------------------------------------------------


def test_trailing_axes_of_length_one_are_dropped(tmp_path):
    scan = read(save(tmp_path / "scan.nii.gz", ramp()[..., None]))
    np.testing.assert_array_equal(scan.data, ramp())
    assert scan.description["header_flags"] == ["trailing_axes_of_length_1"]


def test_slope_and_intercept_are_applied(tmp_path):
    scan = nib.Nifti1Image(ramp(dtype=np.int16), np.eye(4))
    scan.header.set_slope_inter(0.25, 3)
    nib.save(scan, tmp_path / "scan.nii")
    np.testing.assert_array_equal(read(tmp_path / "scan.nii").data, ramp() * 0.25 + 3)


def test_mgz_is_read(tmp_path):
    nib.save(nib.MGHImage(ramp(), np.diag([1, 1, 1.5, 1])), tmp_path / "scan.mgz")
    scan = read(tmp_path / "scan.mgz")
    np.testing.assert_allclose(scan.voxel_mm, [1, 1, 1.5])
    np.testing.assert_array_equal(scan.data, ramp())


def test_description_and_header_flags(tmp_path):
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.1), -np.sin(0.1)], [np.sin(0.1), np.cos(0.1)]]
    scan = nib.Nifti1Image(ramp(), turn @ np.diag([-1, 1, 1, 1]))
    scan.set_qform(np.eye(4), code=1)
    scan.header.set_xyzt_units("micron")
    nib.save(scan, tmp_path / "scan.nii")
    facts = read(tmp_path / "scan.nii").description
    assert facts["name"] == "scan.nii"
    assert facts["shape"] == [12, 14, 16]
    assert facts["voxel_mm"] == [1, 1, 1]
    assert facts["orientation"] == "LAS"
    assert facts["obliquity_deg"] == pytest.approx(np.degrees(0.1), abs=0.01)
    assert facts["header_flags"] == ["sform_qform_differ", "units_not_mm"]


def test_unknown_orientation_and_shear_are_flagged(tmp_path):
    scan = nib.Nifti1Image(ramp(), None)
    nib.save(scan, tmp_path / "bare.nii")
    assert read(tmp_path / "bare.nii").description["header_flags"] == ["no_orientation"]
    affine = np.eye(4)
    affine[0, 1] = 0.2
    flags = read(save(tmp_path / "sheared.nii", affine=affine)).description["header_flags"]
    assert "sheared" in flags


def test_negative_voxel_size_is_used_without_its_sign_and_flagged(tmp_path):
    path = raw_header(save(tmp_path / "scan.nii"), 80, -1.0, "<f4")
    scan = read(path)
    np.testing.assert_array_equal(scan.voxel_mm, [1, 1, 1])
    assert scan.description["header_flags"] == ["negative_voxel_size"]


def test_gzip_and_plain_files_read_alike(tmp_path):
    save(tmp_path / "scan.nii")
    with gzip.open(tmp_path / "copy.nii.gz", "wb") as file:
        file.write((tmp_path / "scan.nii").read_bytes())
    np.testing.assert_array_equal(read(tmp_path / "scan.nii").data, read(tmp_path / "copy.nii.gz").data)
