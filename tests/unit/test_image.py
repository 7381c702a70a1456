"""The way to the network's grid and back."""

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from synthseg_native import reference
from synthseg_native.scan import grid
from synthseg_native.scan.reading import read

SETTINGS = {"pad_multiple": 8, "min_size": 16}


def ramp(shape=(12, 14, 16), dtype=np.float32):
    return np.arange(np.prod(shape), dtype=dtype).reshape(shape)


def save(path, data=None, affine=None, **header):
    scan = nib.Nifti1Image(ramp() if data is None else data, np.eye(4) if affine is None else affine)
    for key, value in header.items():
        scan.header[key] = value
    nib.save(scan, path)
    return path


# The network's grid --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "resampled"),
    [(1.0, False), (0.9501, False), (1.0499, False), (0.9499, True), (1.0501, True), (0.5, True)],
)
def test_resampling_starts_beyond_a_twentieth_of_a_millimetre(size, resampled):
    assert grid.needs_resampling(np.array([1, 1, size]), 1.0) is resampled
    assert grid.needs_resampling(np.float32([1, 1, size]), 1.0) is resampled
    assert grid.needs_resampling(np.array([2, 2, size + 1]), 2.0) is resampled


def test_both_limits_of_the_tolerance_are_left_alone():
    assert not grid.needs_resampling(np.array([0.95, 1.05, 1]), 1.0)
    assert grid.needs_resampling(np.array([1, 1, 1.0500001]), 1.0)
    assert grid.needs_resampling(np.array([1, 1, 0.9499999]), 1.0)
    # Headers hold float32, where 1.05 rounds to the inner side and 0.95 to the outer one. Upstream compares alike.
    assert not grid.needs_resampling(np.float32([1, 1, 1.05]), 1.0)
    assert grid.needs_resampling(np.float32([1, 1, 0.95]), 1.0)


@pytest.mark.parametrize(("n", "factor"), [(220, 0.9), (221, 1.1), (256, 0.9375), (176, 1.2), (189, 0.5), (7, 3.0)])
def test_sample_positions_are_those_of_a_float_range(n, factor):
    positions = grid.sample_positions(n, factor)
    wanted = np.ceil(n * factor)
    assert abs(len(positions) - wanted) <= 1
    assert positions.min() >= 0
    assert positions.max() <= n - 1
    inner = positions[(positions > 0) & (positions < n - 1)]
    np.testing.assert_allclose(np.diff(inner), 1 / factor, rtol=1e-9)


def test_float_range_can_give_one_sample_more():
    lengths = {n: len(grid.sample_positions(n, 1.1)) - int(np.ceil(n * 1.1)) for n in range(50, 400)}
    assert set(lengths.values()) <= {0, 1}
    assert 1 in lengths.values()


def test_resampling_keeps_the_outer_faces_and_reproduces_a_linear_ramp():
    affine = np.diag([2.0, 2, 2, 1])
    affine[:3, 3] = 10, 20, 30
    data = np.broadcast_to(np.arange(20.0)[:, None, None], (20, 16, 16))
    result, new = grid.resample(data, affine, 1.0)
    assert result.shape == (40, 32, 32)
    np.testing.assert_allclose(new, [[1, 0, 0, 9.5], [0, 1, 0, 19.5], [0, 0, 1, 29.5], [0, 0, 0, 1]])
    np.testing.assert_allclose(result[1:-1, 5, 5], np.arange(0.25, 19, 0.5)[:38])
    assert result[0, 0, 0] == 0  # positions outside are moved to the border
    assert result[-1, 0, 0] == 19


def test_only_axes_that_lose_resolution_are_blurred():
    rng = np.random.default_rng(1)
    data = rng.random((16, 16, 16))
    affine = np.diag([0.5, 2, 1, 1.0])
    result, _ = grid.resample(data, affine, 1.0)
    # The axis at exactly 1 mm is blurred a little as well, as upstream does.
    blurred = gaussian_filter(data, [0.5, 0, 0.25])
    np.testing.assert_allclose(result[3, 3, 5], (blurred[6:8, 1, 5] * 0.75 + blurred[6:8, 2, 5] * 0.25).mean())


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("order", "CF")
@pytest.mark.parametrize("voxel_mm", [(1.2, 0.9, 1.5), (5, 1, 1), (2, 4.2, 2.3), (0.7, 0.3, 2)])
def test_engine_and_reference_resample_alike(voxel_mm, order, threads):
    rng = np.random.default_rng(2)
    affine = np.diag([*voxel_mm, 1]) @ nib.affines.from_matvec(np.eye(3), [3, 4, 5])
    data = np.array(rng.normal(size=(20, 22, 18)), order=order)
    before = data.copy()
    results = grid.resample(data, affine, 2.0, threads), reference.resample(data, affine, 2.0)
    for ours, expected in zip(*results, strict=True):
        np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(data, before)


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
    scan = read(tmp_path / "scan.nii")
    prepared = grid.prepare(scan.data, scan.affine, **SETTINGS)
    np.testing.assert_array_equal(prepared.volume[prepared.box], grid.rescale(data.astype(float)).astype(np.float32))
    back = grid.from_ras(prepared.volume[prepared.box], prepared.axes, prepared.flipped)
    expected = grid.rescale(np.asarray(turned.dataobj).astype(float)).astype(np.float32)
    np.testing.assert_array_equal(back, expected)


@pytest.mark.parametrize("degrees", [0, 20, 44.9, 45, 60, 90, 200])
def test_axis_order_is_a_permutation_for_any_rotation_and_agrees_with_the_reference(degrees):
    rng = np.random.default_rng(int(degrees))
    for axis in rng.normal(size=(20, 3)):
        affine = np.eye(4)
        angle = np.radians(degrees)
        affine[:3, :3] = nib.quaternions.angle_axis2mat(angle, axis) @ np.diag(rng.uniform(0.5, 5, 3))
        axes, flipped = grid.ras_order(affine)
        assert sorted(axes) == [0, 1, 2]
        data = rng.random((3, 4, 5))
        turned = grid.to_ras(data, axes, flipped)
        np.testing.assert_array_equal(turned, reference.to_ras(data, affine))
        np.testing.assert_array_equal(grid.from_ras(turned, axes, flipped), data)
        np.testing.assert_array_equal(reference.from_ras(turned, affine), data)


def test_a_duplicate_axis_goes_to_the_missing_one():
    # Both world x and y are closest to voxel axis 0; the later claim moves to axis 1.
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.inv([[1, 0.9, 0], [-0.1, 0.5, 0], [0, 0, 1]])
    axes, _ = grid.ras_order(affine)
    assert axes.tolist() == [0, 1, 2]
    assert reference.ras_axes(affine).tolist() == [0, 1, 2]


# Intensities and size ------------------------------------------------------------------------------------------------


def test_a_constant_image_becomes_zeros(tmp_path):
    scan = read(save(tmp_path / "scan.nii", np.full((12, 12, 12), 7, np.int16)))
    assert "constant_image" in scan.description["header_flags"]
    prepared = grid.prepare(scan.data, scan.affine, **SETTINGS)
    assert prepared.volume.shape == (16, 16, 16)
    assert not prepared.volume.any()


def test_rescaling_uses_the_percentiles_of_all_voxels():
    data = np.arange(1000.0).reshape(10, 10, 10)
    result = grid.rescale(data)
    low, high = np.percentile(data, [0.5, 99.5])
    np.testing.assert_allclose(result, np.clip((data - low) / (high - low), 0, 1))
    assert result.min() == 0
    assert result.max() == 1
    np.testing.assert_array_equal(result, reference.scale(data))


def test_ct_is_clipped_before_rescaling(tmp_path):
    data = np.linspace(-1000, 3000, 12**3).reshape(12, 12, 12)
    scan = read(save(tmp_path / "scan.nii", data))
    prepared = grid.prepare(scan.data, scan.affine, **SETTINGS, ct=True)
    expected = grid.rescale(np.clip(scan.data, 0, 80)).astype(np.float32)
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
    assert tuple(grid.padded_size(n, 32, 128) for n in shape) == padded


def test_the_odd_plane_of_padding_is_on_the_far_side():
    data = np.ones((11, 12, 13))
    volume, box = grid.pad(data, 8, (16, 16, 16))
    assert volume.shape == (16, 16, 16)
    assert box == (slice(2, 13), slice(2, 14), slice(1, 14))
    assert volume.sum() == data.size
    assert volume[box].all()
    expected, expected_box = reference.pad(data, 8, [16, 16, 16])
    np.testing.assert_array_equal(volume, expected)
    assert box == expected_box


# Crops ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(8, 8, 8), (9, 20, 100), (12, 14, 16), (1, 1, 1)])
def test_engine_and_reference_crop_alike(size):
    data = ramp((21, 30, 18)).astype(float)
    prepared = grid.prepare(data, np.eye(4), **SETTINGS, crop=size)
    rounded = [-(-n // 8) * 8 for n in size]
    box = reference.crop_box(data.shape, rounded)
    volume, inside = reference.pad(reference.scale(data[box]), 8, rounded)
    assert (prepared.crop, prepared.box) == (box, inside)
    np.testing.assert_array_equal(prepared.volume, volume.astype(np.float32))


def head(low, high, shape=(40, 44, 48)):
    data = np.zeros(shape)
    data[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = 100
    return data


@pytest.mark.parametrize(
    ("low", "high"),
    [((10, 12, 9), (22, 20, 31)), ((0, 0, 1), (40, 44, 48)), ((30, 1, 2), (40, 20, 20)), ((3, 3, 3), (10, 19, 18))],
)
def test_engine_and_reference_leave_out_the_same_margins(low, high):
    data = head(low, high)
    prepared = grid.prepare(data, np.eye(4), **SETTINGS, autocrop=True)
    box = reference.bright_box(reference.scale(data), 8)
    volume, inside = reference.pad(reference.scale(data)[box], 8, [16] * 3)
    assert ([part.indices(n)[:2] for part, n in zip(prepared.crop, data.shape, strict=True)]
            == [(part.start, part.stop) for part in box])  # fmt: skip
    assert prepared.box == inside
    np.testing.assert_array_equal(prepared.volume, volume.astype(np.float32))
    assert prepared.volume.sum() == data.sum() / 100  # nothing bright is lost


def test_a_dark_image_is_not_cropped():
    prepared = grid.prepare(np.zeros((20, 20, 20)), np.eye(4), **SETTINGS, autocrop=True)
    assert prepared.volume[prepared.box].shape == (20, 20, 20)


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_what_is_cropped_goes_back_to_its_place(codes):
    data = ramp((21, 30, 18)).astype(float)
    move = nib.orientations.ornt_transform(nib.io_orientation(np.eye(4)), nib.orientations.axcodes2ornt(codes))
    turned = nib.Nifti1Image(data, np.eye(4)).as_reoriented(move)
    stored = np.asarray(turned.dataobj)
    prepared = grid.prepare(stored, turned.affine, **SETTINGS, crop=(8, 16, 8))
    part = data[prepared.crop]
    back = grid.from_ras(grid.uncrop(part, prepared, -1), prepared.axes, prepared.flipped)
    kept = back != -1
    assert kept.sum() == 8 * 16 * 8
    np.testing.assert_array_equal(back[kept], stored[kept])
    origin = grid.crop_origin(prepared)
    assert origin == tuple(np.argwhere(kept).min(axis=0))
    four = grid.uncrop(np.stack([part, part], axis=-1), prepared, np.array([1, 0]))
    assert four.shape == (*data.shape, 2)
    assert four[0, 0, 0].tolist() == [1, 0]
    np.testing.assert_array_equal(grid.from_ras(four, prepared.axes, prepared.flipped)[kept][:, 0], stored[kept])


def test_regridding_says_by_how_much(tmp_path):
    scan = read(save(tmp_path / "a.nii", affine=np.diag([2, 1, 0.75, 1])))
    gridded = grid.regrid(scan, 1.0)
    np.testing.assert_allclose(gridded.factor, [2, 1, 0.75])
    np.testing.assert_array_equal(gridded.voxel_mm, [1, 1, 1])
    assert gridded.data.shape == (24, 14, 12)
    scan = read(save(tmp_path / "b.nii", affine=np.diag([1.04, 1, 0.96, 1])))
    gridded = grid.regrid(scan, 1.0)
    assert gridded.factor is None
    assert gridded.data is scan.data
    np.testing.assert_allclose(gridded.voxel_mm, [1.04, 1, 0.96])
