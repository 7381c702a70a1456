"""Reading, checking, and the way to the network's grid and back."""

import gzip
import shutil

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from synthseg_native import image, reference
from synthseg_native.errors import SynthSegError

SETTINGS = {"resolution": 1.0, "pad_multiple": 8, "min_size": 16}


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
        image.read(path)
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
        image.read(too_large(tmp_path))


def test_only_the_number_of_voxels_counts_at_the_limit(tmp_path):
    path = raw_header(save(tmp_path / "scan.nii"), 40, [3, 1024, 1024, 2048, 1], "<i2")  # 2^31 exactly
    with pytest.raises(SynthSegError, match="axis of"):  # passes the limit, and then is too long for a head
        image.read(path)


# Reading -------------------------------------------------------------------------------------------------------------


def test_trailing_axes_of_length_one_are_dropped(tmp_path):
    scan = image.read(save(tmp_path / "scan.nii.gz", ramp()[..., None]))
    np.testing.assert_array_equal(scan.data, ramp())
    assert scan.description["header_flags"] == ["trailing_axes_of_length_1"]


def test_slope_and_intercept_are_applied(tmp_path):
    scan = nib.Nifti1Image(ramp(dtype=np.int16), np.eye(4))
    scan.header.set_slope_inter(0.25, 3)
    nib.save(scan, tmp_path / "scan.nii")
    np.testing.assert_array_equal(image.read(tmp_path / "scan.nii").data, ramp() * 0.25 + 3)


def test_mgz_is_read(tmp_path):
    nib.save(nib.MGHImage(ramp(), np.diag([1, 1, 1.5, 1])), tmp_path / "scan.mgz")
    scan = image.read(tmp_path / "scan.mgz")
    np.testing.assert_allclose(scan.voxel_mm, [1, 1, 1.5])
    np.testing.assert_array_equal(scan.data, ramp())


def test_description_and_header_flags(tmp_path):
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.1), -np.sin(0.1)], [np.sin(0.1), np.cos(0.1)]]
    scan = nib.Nifti1Image(ramp(), turn @ np.diag([-1, 1, 1, 1]))
    scan.set_qform(np.eye(4), code=1)
    scan.header.set_xyzt_units("micron")
    nib.save(scan, tmp_path / "scan.nii")
    facts = image.read(tmp_path / "scan.nii").description
    assert facts["name"] == "scan.nii"
    assert facts["shape"] == [12, 14, 16]
    assert facts["voxel_mm"] == [1, 1, 1]
    assert facts["orientation"] == "LAS"
    assert facts["obliquity_deg"] == pytest.approx(np.degrees(0.1), abs=0.01)
    assert facts["header_flags"] == ["sform_qform_differ", "units_not_mm"]


def test_unknown_orientation_and_shear_are_flagged(tmp_path):
    scan = nib.Nifti1Image(ramp(), None)
    nib.save(scan, tmp_path / "bare.nii")
    assert image.read(tmp_path / "bare.nii").description["header_flags"] == ["no_orientation"]
    affine = np.eye(4)
    affine[0, 1] = 0.2
    flags = image.read(save(tmp_path / "sheared.nii", affine=affine)).description["header_flags"]
    assert "sheared" in flags


def test_negative_voxel_size_is_used_without_its_sign_and_flagged(tmp_path):
    path = raw_header(save(tmp_path / "scan.nii"), 80, -1.0, "<f4")
    scan = image.read(path)
    np.testing.assert_array_equal(scan.voxel_mm, [1, 1, 1])
    assert scan.description["header_flags"] == ["negative_voxel_size"]


# The network's grid --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "resampled"),
    [(1.0, False), (0.9501, False), (1.0499, False), (0.9499, True), (1.0501, True), (0.5, True)],
)
def test_resampling_starts_beyond_a_twentieth_of_a_millimetre(size, resampled):
    assert image.needs_resampling(np.array([1, 1, size]), 1.0) is resampled
    assert image.needs_resampling(np.float32([1, 1, size]), 1.0) is resampled
    assert image.needs_resampling(np.array([2, 2, size + 1]), 2.0) is resampled


def test_both_limits_of_the_tolerance_are_left_alone():
    assert not image.needs_resampling(np.array([0.95, 1.05, 1]), 1.0)
    assert image.needs_resampling(np.array([1, 1, 1.0500001]), 1.0)
    assert image.needs_resampling(np.array([1, 1, 0.9499999]), 1.0)
    # Headers hold float32, where 1.05 rounds to the inner side and 0.95 to the outer one. Upstream compares alike.
    assert not image.needs_resampling(np.float32([1, 1, 1.05]), 1.0)
    assert image.needs_resampling(np.float32([1, 1, 0.95]), 1.0)


@pytest.mark.parametrize(("n", "factor"), [(220, 0.9), (221, 1.1), (256, 0.9375), (176, 1.2), (189, 0.5), (7, 3.0)])
def test_sample_positions_are_those_of_a_float_range(n, factor):
    positions = image.sample_positions(n, factor)
    wanted = np.ceil(n * factor)
    assert abs(len(positions) - wanted) <= 1
    assert positions.min() >= 0
    assert positions.max() <= n - 1
    inner = positions[(positions > 0) & (positions < n - 1)]
    np.testing.assert_allclose(np.diff(inner), 1 / factor, rtol=1e-9)


def test_float_range_can_give_one_sample_more():
    lengths = {n: len(image.sample_positions(n, 1.1)) - int(np.ceil(n * 1.1)) for n in range(50, 400)}
    assert set(lengths.values()) <= {0, 1}
    assert 1 in lengths.values()


def test_resampling_keeps_the_outer_faces_and_reproduces_a_linear_ramp():
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = 10, 20, 30
    data = np.broadcast_to(np.arange(20.0)[:, None, None], (20, 16, 16))
    result, new = image.resample(data, affine, 1.0)
    assert result.shape == (40, 32, 32)
    np.testing.assert_allclose(new, [[1, 0, 0, 9.5], [0, 1, 0, 19.5], [0, 0, 1, 29.5], [0, 0, 0, 1]])
    np.testing.assert_allclose(result[1:-1, 5, 5], np.arange(0.25, 19, 0.5)[:38])
    assert result[0, 0, 0] == 0  # positions outside are moved to the border
    assert result[-1, 0, 0] == 19


def test_only_axes_that_lose_resolution_are_blurred():
    rng = np.random.default_rng(1)
    data = rng.random((16, 16, 16))
    affine = np.diag([0.5, 2, 1, 1.0])
    result, _ = image.resample(data, affine, 1.0)
    # The axis at exactly 1 mm is blurred a little as well, as upstream does.
    blurred = gaussian_filter(data, [0.5, 0, 0.25])
    np.testing.assert_allclose(result[3, 3, 5], (blurred[6:8, 1, 5] * 0.75 + blurred[6:8, 2, 5] * 0.25).mean())


def test_engine_and_reference_resample_alike():
    rng = np.random.default_rng(2)
    affine = np.diag([1.2, 0.9, 1.5, 1]) @ nib.affines.from_matvec(np.eye(3), [3, 4, 5])
    data = rng.random((20, 22, 18))
    for ours, expected in zip(image.resample(data, affine, 2.0), reference.resample(data, affine, 2.0), strict=True):
        np.testing.assert_array_equal(ours, expected)


ORIENTATIONS = ["RAS", "LPS", "LIA", "PSR", "SAL", "ILP"]


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_every_way_of_storing_a_scan_gives_the_same_volume_and_comes_back(codes, tmp_path):
    data = np.random.default_rng(3).random((13, 15, 18)).astype(np.float32)
    affine = np.diag([1, 1, 1, 1.0])
    affine[:3, 3] = -6, -7, -9
    original = nib.Nifti1Image(data, affine)
    turned = original.as_reoriented(nib.orientations.axcodes2ornt(codes))
    turned = turned.as_reoriented(  # as_reoriented takes the move, axcodes2ornt names the goal
        nib.orientations.ornt_transform(nib.io_orientation(turned.affine), nib.orientations.axcodes2ornt(codes))
    )
    assert "".join(nib.aff2axcodes(turned.affine)) == codes
    nib.save(turned, tmp_path / "scan.nii")
    scan = image.read(tmp_path / "scan.nii")
    prepared = image.prepare(scan, **SETTINGS)
    np.testing.assert_array_equal(prepared.volume[prepared.box], image.rescale(data.astype(float)).astype(np.float32))
    back = image.from_ras(prepared.volume[prepared.box], prepared.axes, prepared.flipped)
    expected = image.rescale(np.asarray(turned.dataobj).astype(float)).astype(np.float32)
    np.testing.assert_array_equal(back, expected)


@pytest.mark.parametrize("degrees", [0, 20, 44.9, 45, 60, 90, 200])
def test_axis_order_is_a_permutation_for_any_rotation_and_agrees_with_the_reference(degrees):
    rng = np.random.default_rng(int(degrees))
    for axis in rng.normal(size=(20, 3)):
        affine = np.eye(4)
        angle = np.radians(degrees)
        affine[:3, :3] = nib.quaternions.angle_axis2mat(angle, axis) @ np.diag(rng.uniform(0.5, 5, 3))
        axes, flipped = image.ras_order(affine)
        assert sorted(axes) == [0, 1, 2]
        data = rng.random((3, 4, 5))
        turned = image.to_ras(data, axes, flipped)
        np.testing.assert_array_equal(turned, reference.to_ras(data, affine))
        np.testing.assert_array_equal(image.from_ras(turned, axes, flipped), data)
        np.testing.assert_array_equal(reference.from_ras(turned, affine), data)


def test_a_duplicate_axis_goes_to_the_missing_one():
    # Both world x and y are closest to voxel axis 0; the later claim moves to axis 1.
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.inv([[1, 0.9, 0], [-0.1, 0.5, 0], [0, 0, 1]])
    axes, _ = image.ras_order(affine)
    assert axes.tolist() == [0, 1, 2]
    assert reference.ras_axes(affine).tolist() == [0, 1, 2]


# Intensities and size ------------------------------------------------------------------------------------------------


def test_a_constant_image_becomes_zeros(tmp_path):
    scan = image.read(save(tmp_path / "scan.nii", np.full((12, 12, 12), 7, np.int16)))
    assert scan.description["header_flags"] == ["constant_image"]
    prepared = image.prepare(scan, **SETTINGS)
    assert prepared.volume.shape == (16, 16, 16)
    assert not prepared.volume.any()


def test_rescaling_uses_the_percentiles_of_all_voxels():
    data = np.arange(1000.0).reshape(10, 10, 10)
    result = image.rescale(data)
    low, high = np.percentile(data, [0.5, 99.5])
    np.testing.assert_allclose(result, np.clip((data - low) / (high - low), 0, 1))
    assert result.min() == 0
    assert result.max() == 1
    np.testing.assert_array_equal(result, reference.scale(data))


def test_ct_is_clipped_before_rescaling(tmp_path):
    data = np.linspace(-1000, 3000, 12**3).reshape(12, 12, 12)
    scan = image.read(save(tmp_path / "scan.nii", data))
    prepared = image.prepare(scan, **SETTINGS, ct=True)
    expected = image.rescale(np.clip(scan.data, 0, 80)).astype(np.float32)
    np.testing.assert_array_equal(prepared.volume[prepared.box], expected)


@pytest.mark.parametrize(
    ("shape", "padded"),
    [
        ((181, 217, 181), (192, 224, 192)),
        ((100, 100, 100), (128, 128, 128)),
        ((256, 256, 176), (256, 256, 192)),
        ((128, 129, 127), (128, 160, 128)),
    ],
)
def test_padded_sizes(shape, padded):
    assert tuple(image.padded_size(n, 32, 128) for n in shape) == padded


def test_the_odd_plane_of_padding_is_on_the_far_side():
    data = np.ones((11, 12, 13))
    volume, box = image.pad(data, 8, 16)
    assert volume.shape == (16, 16, 16)
    assert box == (slice(2, 13), slice(2, 14), slice(1, 14))
    assert volume.sum() == data.size
    assert volume[box].all()
    expected, expected_box = reference.pad(data, 8, [16, 16, 16])
    np.testing.assert_array_equal(volume, expected)
    assert box == expected_box


def test_gzip_and_plain_files_read_alike(tmp_path):
    save(tmp_path / "scan.nii")
    with gzip.open(tmp_path / "copy.nii.gz", "wb") as file:
        file.write((tmp_path / "scan.nii").read_bytes())
    np.testing.assert_array_equal(image.read(tmp_path / "scan.nii").data, image.read(tmp_path / "copy.nii.gz").data)
