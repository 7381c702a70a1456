"""Label maps on the input's own grid: what must stay, what must not appear, and where voxels land."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from synthseg_native.scan import grid as image
from synthseg_native.scan import own_grid
from synthseg_native.scan.own_grid import nearest_labels

VALUES = np.array([0, 2, 41, 14], dtype=np.int32)


def network_shape(shape, factor):
    return tuple(len(image.sample_positions(n, f)) for n, f in zip(shape, factor, strict=True))


def random_posteriors(shape, n=4, seed=0):
    values = np.random.default_rng(seed).random((*shape, n), dtype=np.float32) ** 4
    return values / values.sum(axis=-1, keepdims=True)


def labels_on_grid(posteriors, values, *arguments, **more):
    """`own_grid.labels_on_grid` of posteriors (x, y, z, N)."""
    n, some = posteriors.shape[3], posteriors > 0
    there = [some.any(axis=tuple({0, 1, 2} - {axis})).T for axis in range(3)]
    counts = np.bincount(posteriors.argmax(axis=-1).ravel(), minlength=n)
    channels = own_grid.Channels(lambda k: posteriors[..., k], there, counts)
    return own_grid.labels_on_grid(channels, values, *arguments, **more)


def one_hot(channel, n=4):
    return np.eye(n, dtype=np.float32)[channel]


def soft_ball(shape, radius, centre, n=2):
    """A ball with a linear edge one voxel wide."""
    where = np.indices(shape).transpose(1, 2, 3, 0) - centre
    inside = np.clip(radius + 0.5 - np.sqrt((where**2).sum(axis=-1)), 0, 1).astype(np.float32)
    return np.stack([1 - inside, *(inside * (k == 1) for k in range(1, n))], axis=-1)


@pytest.mark.parametrize("factor", [None, np.ones(3)])
def test_without_resampling_the_labels_are_the_likeliest(factor):
    posteriors = random_posteriors((9, 8, 7))
    posteriors[2, 3, 4] = [0.2, 0.3, 0.3, 0.2]  # a tie: the first one
    posteriors[0, 0, 0] = 0  # nothing known: background
    result = labels_on_grid(posteriors, VALUES, factor, (9, 8, 7))
    assert result.labels.dtype == np.int32
    np.testing.assert_array_equal(result.labels, VALUES[posteriors.argmax(axis=-1)])
    assert (result.missing, result.rescued) == ([], [])


def test_a_size_that_the_factor_does_not_give_is_refused():
    with pytest.raises(ValueError, match="do not fit"):
        labels_on_grid(random_posteriors((9, 8, 7)), VALUES, np.full(3, 2.0), (4, 4, 4))
    with pytest.raises(ValueError, match="are not the"):
        nearest_labels(np.zeros((9, 8, 7), np.int32), None, (9, 8, 8))


def test_weights_by_hand():
    index, weight = own_grid._taps(2, 2.5, 5)  # voxels 0..2.5 and 2.5..5 of the network's axis
    np.testing.assert_array_equal(index, [[0, 2], [1, 3], [2, 4]])
    np.testing.assert_allclose(weight, [[0.4, 0.2], [0.4, 0.4], [0.2, 0.4]], rtol=1e-6)
    index, weight = own_grid._taps(2, 1.5, 3)  # centres at 0.25 and 1.75
    np.testing.assert_array_equal(index, [[0, 1], [1, 2]])
    np.testing.assert_allclose(weight, [[0.75, 0.25], [0.25, 0.75]], rtol=1e-6)
    index, weight = own_grid._taps(4, 0.5, 2)  # centres at -0.25 (moved to the border), 0.25, 0.75, 1.25
    np.testing.assert_array_equal(index, [[0, 0, 0, 1], [1, 1, 1, 1]])
    np.testing.assert_allclose(weight, [[1, 0.75, 0.25, 1], [0, 0.25, 0.75, 0]], rtol=1e-6)


@pytest.mark.parametrize("factor", [(5, 1, 1), (1.2, 0.9, 1.5), (0.5, 0.7, 2), (0.35, 1.04, 0.98), (3.3, 6, 2.0001)])
def test_equals_a_dense_calculation(factor):
    """The same sums written as one matrix per axis, all channels at once."""
    shape = (7, 8, 6)
    grid = network_shape(shape, factor)
    posteriors = random_posteriors(grid, seed=3)
    posteriors[grid[0] // 2 :, :, :, 3] = 0  # a channel that is somewhere only
    dense = posteriors
    for axis, (n, f) in enumerate(zip(shape, factor, strict=True)):
        index, weight = own_grid._taps(n, f, grid[axis])
        matrix = np.zeros((n, grid[axis]))
        for i, w in zip(index, weight, strict=True):
            np.add.at(matrix, (np.arange(n), i), w)
        np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-6)
        dense = np.moveaxis(np.tensordot(matrix, dense, (1, axis)), 0, axis)
    result = labels_on_grid(posteriors, VALUES, factor, shape)
    assert result.rescued == []
    np.testing.assert_array_equal(result.labels, VALUES[dense.argmax(axis=-1)])


@pytest.mark.parametrize("factor", [(5, 1, 0.5), (1.2, 0.9, 1.5), None])
def test_outside_a_part_of_the_grid_is_background(factor):
    shape = (8, 10, 12)
    grid = network_shape(shape, factor) if factor else shape
    whole = np.zeros((*grid, 4), dtype=np.float32)
    whole[..., 0] = 1
    part = (slice(3, 7), slice(0, 6), slice(2, grid[2]))
    whole[part] = random_posteriors(whole[part].shape[:3])
    expected = labels_on_grid(whole, VALUES, factor, shape)
    result = labels_on_grid(whole[part], VALUES, factor, shape, origin=(3, 0, 2))
    np.testing.assert_array_equal(result.labels, expected.labels)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("flipped", [(False, False, False), (True, False, True)])
def test_views_give_what_copies_give(axes, flipped):
    factor, axes, flipped = np.array([2.4, 0.8, 1.0]), np.array(axes), np.array(flipped)
    shape = (6, 10, 9)
    posteriors = random_posteriors(network_shape(shape, factor), seed=5)
    # Laid out in memory as the network's RAS volume, seen in the input's order.
    ras = np.stack([np.ascontiguousarray(image.to_ras(p, axes, flipped)) for p in np.moveaxis(posteriors, 3, 0)], -1)
    view = ras[tuple(slice(None, None, -1 if flip else 1) for flip in flipped)].transpose(*np.argsort(axes), 3)
    np.testing.assert_array_equal(view, posteriors)
    expected = labels_on_grid(posteriors, VALUES, factor, shape).labels
    np.testing.assert_array_equal(labels_on_grid(view, VALUES, factor, shape).labels, expected)
    planar = np.moveaxis(np.ascontiguousarray(np.moveaxis(posteriors, 3, 1)), 1, 3)
    np.testing.assert_array_equal(labels_on_grid(planar, VALUES, factor, shape, threads=3).labels, expected)
    labels = VALUES[posteriors.argmax(axis=-1)]
    np.testing.assert_array_equal(
        nearest_labels(VALUES[view.argmax(axis=-1)], factor, shape).labels, nearest_labels(labels, factor, shape).labels
    )


def thin_plane(likelihood=1.0):
    """5 mm slices of 1 mm voxels; a plane one voxel thick at 1 mm plane 8, away from the slice's centre at 7."""
    posteriors = np.zeros((12, 12, 20, 3), dtype=np.float32)
    posteriors[..., 0] = 1
    posteriors[2:10, 2:10, 8, 1] = likelihood
    posteriors[2:10, 2:10, 8, 0] = 1 - likelihood
    return posteriors


def test_a_thin_plane_survives_thick_slices():
    posteriors = thin_plane(0.9)
    posteriors[5:7, 2:10, 8, :2] = [0, 1]  # the likeliest 16 places
    result = labels_on_grid(posteriors, VALUES[:3], (1, 1, 5), (12, 12, 4))
    assert (result.rescued, result.missing) == ([2], [])
    voxels = np.argwhere(result.labels == 2)
    assert len(voxels) == round(64 / 5)  # its volume
    assert np.all(voxels[:, 2] == 1) and np.all((voxels[:, 0] == 5) | (voxels[:, 0] == 6))
    nearest = nearest_labels(VALUES[posteriors.argmax(axis=-1)], (1, 1, 5), (12, 12, 4))
    assert (nearest.missing, nearest.rescued) == ([2], []) and not nearest.labels.any()


def test_equally_likely_voxels_are_given_in_their_order():
    labels = labels_on_grid(thin_plane(), VALUES[:3], (1, 1, 5), (12, 12, 4)).labels
    expected = np.zeros((12, 12, 4), dtype=bool)
    expected[2, 2:10, 1] = expected[3, 2:7, 1] = True  # 13 of 64
    np.testing.assert_array_equal(labels == 2, expected)


def test_a_smallest_structure_gets_one_voxel():
    posteriors = thin_plane(0)
    posteriors[4, 5, 8] = [0, 0, 1]
    result = labels_on_grid(posteriors, VALUES[:3], (1, 1, 5), (12, 12, 4))
    np.testing.assert_array_equal(np.argwhere(result.labels), [[4, 5, 1]])
    assert result.rescued == [41]


def test_thin_labels_that_compete_for_a_voxel_all_get_one():
    # Both in the first thick voxel; the first also reaches the next one, so it gives way although it is likelier.
    channel = np.zeros((1, 1, 12), dtype=int)
    channel[0, 0, 0], channel[0, 0, 1:3], channel[0, 0, 6] = 2, 1, 1
    result = labels_on_grid(one_hot(channel), VALUES, (1, 1, 6), (1, 1, 2))
    np.testing.assert_array_equal(result.labels, [[[41, 2]]])
    assert (result.rescued, result.missing) == ([2, 41], [])


def test_two_labels_with_one_voxel_between_them():
    channel = np.zeros((1, 1, 12), dtype=int)
    channel[0, 0, 1], channel[0, 0, 2] = 1, 2
    result = labels_on_grid(one_hot(channel), VALUES, (1, 1, 6), (1, 1, 2))
    np.testing.assert_array_equal(result.labels, [[[2, 0]]])  # a tie goes to the first label
    assert (result.rescued, result.missing) == ([2], [41])


def test_a_rescue_never_takes_the_last_voxel_of_another_label():
    channel = np.full((1, 1, 12), 3)
    channel[0, 0, 6:] = 0
    channel[0, 0, 0] = 1  # within the only voxel of channel 3
    result = labels_on_grid(one_hot(channel), VALUES, (1, 1, 6), (1, 1, 2))
    np.testing.assert_array_equal(result.labels, [[[14, 0]]])
    assert (result.rescued, result.missing) == ([], [2])


def test_labels_that_win_nowhere_do_not_appear():
    posteriors = np.zeros((8, 8, 20, 4), dtype=np.float32)
    posteriors[...] = [0.6, 0.2, 0.2, 0]
    posteriors[2:6, 2:6, 5:10, :] = [0.1, 0.5, 0.4, 0]
    result = labels_on_grid(posteriors, VALUES, (1, 1, 5), (8, 8, 4))
    assert np.unique(result.labels).tolist() == [0, 2]
    assert (result.missing, result.rescued) == ([], [])

    posteriors[..., ::2, :], posteriors[..., 1::2, :] = [0, 0.6, 0, 0.4], [0, 0, 0.6, 0.4]
    result = labels_on_grid(posteriors, VALUES, (1, 1, 4), (8, 8, 5))  # on average 0.3, 0.3 and 0.4
    assert np.unique(result.labels).tolist() == [2, 41]  # not 14, which is second everywhere before
    assert (result.labels == 41).sum() == 8 * 8 * 5 / 2 and result.rescued == [41]


def test_nearest_takes_the_voxel_that_the_centre_lies_in():
    labels = np.arange(10, dtype=np.int32)[:, None, None]
    # 5 mm voxels, centres at 2 and 7; 2 mm: at 0.5, 2.5, ... (the higher one); 0.5 mm: at -0.25, 0.25, 0.75, ...
    assert nearest_labels(labels, (5, 1, 1), (2, 1, 1)).labels.ravel().tolist() == [2, 7]
    assert nearest_labels(labels, (2, 1, 1), (5, 1, 1)).labels.ravel().tolist() == [1, 3, 5, 7, 9]
    assert nearest_labels(labels, (2 - 1e-7, 1, 1), (5, 1, 1)).labels.ravel().tolist() == [1, 3, 5, 7, 9]
    assert nearest_labels(labels, (0.5, 1, 1), (20, 1, 1)).labels.ravel().tolist() == [i // 2 for i in range(20)]
    mirrored = nearest_labels(labels[::-1], (5, 1, 1), (2, 1, 1))
    assert mirrored.labels.ravel().tolist() == [7, 2] and mirrored.labels.dtype == np.int32
    turned = nearest_labels(labels.transpose(2, 1, 0), (1, 1, 5), (1, 1, 2))
    assert turned.labels.ravel().tolist() == [2, 7]
    assert turned.missing == [1, 3, 4, 5, 6, 8, 9]


@pytest.mark.parametrize("planes", [1, 2, 100])
@pytest.mark.parametrize("factor", [(5, 1, 1), (0.6, 0.9, 1.5), (2.6, 0.35, 1)])
def test_how_many_planes_are_filled_at_a_time_changes_nothing(planes, factor, monkeypatch):
    shape = (7, 8, 6)
    posteriors = random_posteriors(network_shape(shape, factor), seed=8)
    posteriors[: len(posteriors) // 2, ..., 2] = 0
    expected = labels_on_grid(posteriors, VALUES, factor, shape)
    monkeypatch.setattr(own_grid, "PART", planes)
    result = labels_on_grid(posteriors, VALUES, factor, shape, threads=2)
    np.testing.assert_array_equal(result.labels, expected.labels)
    assert (result.missing, result.rescued) == (expected.missing, expected.rescued)


def test_places_agree_with_the_affines_of_resampling():
    """World positions of both grids, from the affines that `resample` returns: a label ends where it is in mm."""
    affine = np.diag([1.2, 0.9, 1.5, 1.0])
    affine[:3, 3] = [-7, 11, 3]
    data, new = image.resample(np.zeros((20, 25, 15)), affine, 1.0)
    centre_mm = affine[:3, :3] @ [9.3, 12.2, 7.1] + affine[:3, 3]
    posteriors = soft_ball(data.shape, 6, np.linalg.inv(new)[:3, :3] @ (centre_mm - new[:3, 3]))
    labels = labels_on_grid(posteriors, VALUES[:2], (1.2, 0.9, 1.5), (20, 25, 15)).labels
    found = np.argwhere(labels).mean(axis=0)
    np.testing.assert_allclose(found, [9.3, 12.2, 7.1], atol=0.1)


@pytest.mark.parametrize("voxel_mm", [(1, 1, 5), (1.2, 0.9, 1.5), (0.7, 0.7, 0.7), (2, 2, 2), (0.5, 0.5, 3)])
def test_volume_of_a_ball_is_kept(voxel_mm):
    shape = tuple(int(64 / v) for v in voxel_mm)
    posteriors = soft_ball(network_shape(shape, voxel_mm), 20, (30.3, 31.1, 30.6))
    labels = labels_on_grid(posteriors, VALUES[:2], voxel_mm, shape).labels
    assert (labels == 2).sum() * np.prod(voxel_mm) == pytest.approx(4 / 3 * np.pi * 20**3, rel=0.02)


@pytest.mark.parametrize("extra", [-1, 1])
def test_one_sample_more_or_fewer_moves_nothing(extra, monkeypatch):
    """`resample` builds its positions as a float range: one off from ceil(n * factor), at the far end."""
    shape, factor = (12, 10, 8), np.array([1.5, 0.9, 5])
    usual = network_shape(shape, factor)
    posteriors = soft_ball(tuple(n + 1 for n in usual), 3.5, (8, 4, 20))
    expected = labels_on_grid(posteriors[: usual[0], : usual[1], : usual[2]], VALUES[:2], factor, shape)
    odd = tuple(n + extra for n in usual)
    monkeypatch.setattr(own_grid, "_geometry", lambda factor, shape: (factor, odd))
    result = labels_on_grid(posteriors[: odd[0], : odd[1], : odd[2]], VALUES[:2], factor, shape)
    np.testing.assert_array_equal(result.labels, expected.labels)
    assert result.labels.any()


@pytest.mark.parametrize(("n", "factor"), [(22, 0.35), (23, 0.7), (256, 0.9375), (49, 1.1)])
def test_lengths_that_resampling_really_gives(n, factor):
    size = len(image.sample_positions(n, factor))
    posteriors = random_posteriors((size, 2, 2))
    result = labels_on_grid(posteriors, VALUES, (factor, 1, 1), (n, 2, 2))
    assert result.labels.shape == (n, 2, 2)
    assert nearest_labels(VALUES[posteriors.argmax(-1)], (factor, 1, 1), (n, 2, 2)).labels.shape == (n, 2, 2)


def test_parcels_take_the_place_of_the_cortex_alone():
    """Slices of 3 mm of a network at 1 mm: posteriors are averaged over them, where there are any."""
    values = np.array([0, 1001, 1002, 2001, 2002], np.int32)
    posteriors = np.zeros((1, 1, 7, 5), np.float32)  # of planes 3 to 9 of 12
    posteriors[0, 0, :3, 1], posteriors[0, 0, :3, 2] = (0.9, 0.1, 0.9), (0.1, 0.9, 0.1)
    posteriors[0, 0, 3:6, 3] = posteriors[0, 0, 6, 4] = 1
    own = own_grid.GridLabels(np.array([3, 3, 3, 2], np.int32).reshape(1, 1, 4), [28], [])
    cortex = own.labels == 3
    own_grid.parcels_on_grid(own, cortex, posteriors, values, [0, 1, 2, 3, 4], np.array([1, 1, 3]), (0, 0, 3))
    # Nothing is known of the first voxel: background. The last is no cortex, so that 2002 has no voxel; 1002, the
    # likeliest in a plane of the second, is not that in the whole of it.
    assert own.labels.ravel().tolist() == [0, 1001, 2001, 2]
    assert own.missing == [28, 1002, 2002]


def test_parcels_that_do_not_occur_on_the_networks_grid_do_not_appear():
    values = np.array([0, 1001, 1002], np.int32)
    posteriors = np.zeros((2, 1, 1, 3), np.float32)
    posteriors[..., 1], posteriors[..., 2] = 0.4, 0.6
    own = own_grid.GridLabels(np.full((2, 1, 1), 42, np.int32), [], [])
    own_grid.parcels_on_grid(own, own.labels == 42, posteriors, values, [1], None, (0, 0, 0), threads=2)
    assert (own.labels.ravel().tolist(), own.missing) == ([1001, 1001], [])


factors = st.floats(0.3, 6.0).map(lambda f: round(f, 3))


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 7)] * 3), factor=st.tuples(factors, factors, factors), seed=st.integers(0, 2**16)
)
def test_only_labels_of_the_network_grid_and_none_forgotten(shape, factor, seed):
    posteriors = random_posteriors(network_shape(shape, factor), seed=seed)
    there = set(VALUES[posteriors.argmax(axis=-1)].ravel()) | {0}
    result = labels_on_grid(posteriors, VALUES, factor, shape)
    here = set(result.labels.ravel()) | {0}
    assert result.labels.shape == shape
    assert here <= there
    assert here | set(result.missing) == there and not here & set(result.missing)
    assert set(result.rescued) <= here
    nearest = nearest_labels(VALUES[posteriors.argmax(axis=-1)], factor, shape)
    assert set(nearest.labels.ravel()) | set(nearest.missing) | {0} == there
