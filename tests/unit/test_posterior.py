"""Flip averaging, components, labels and volumes, on small arrays and without a network."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.ndimage import correlate

from synthseg_native import reference
from synthseg_native.engines.capabilities import Capabilities
from synthseg_native.errors import SynthSegError
from synthseg_native.networks.layers import gaussian_kernel
from synthseg_native.pipeline import labels as labels_of
from synthseg_native.pipeline import posteriors as posterior

FLIP = np.array([0, 2, 1, 3])
VALUES = np.array([0, 2, 41, 14], dtype=np.int32)
ALL = -1.0  # a threshold that keeps every voxel


class Echo:
    """An engine whose posteriors are a plain function of the volume, handed out in uneven slabs and any order."""

    can = Capabilities()

    def __init__(self, function, cuts=(0, 3, 4, 9, 10)):
        self.function, self.cuts, self.done = function, cuts, []

    def release(self):
        self.done.append("release")

    def run(self, inputs, smoothing=0):
        volume = inputs["image"]
        assert volume.dtype == np.float32 and smoothing == 0
        self.done.append("pass")
        result = self.function(volume)
        for start, stop in reversed(list(zip(self.cuts[:-1], self.cuts[1:], strict=True))):
            yield start, result[start:stop]


def random_posteriors(shape=(10, 9, 8), n=4, seed=0):
    values = np.random.default_rng(seed).random((*shape, n), dtype=np.float32) ** 4
    return values / values.sum(axis=-1, keepdims=True)


def predict(*arguments, **more):
    """All posteriors (X, Y, Z, N), and nothing else."""
    engine, inputs, flip, *sigma = arguments
    return posterior.predict(engine, inputs, flip, ALL, *sigma, **more)[0].whole()


def kept(posteriors, threshold=0.25):
    """Posteriors (X, Y, Z, N) as `predict` keeps them."""
    result = posterior.Posteriors(posteriors.shape[:3], posteriors.shape[3], threshold)
    for x, plane in enumerate(posteriors):
        result.put(x, [np.array(np.moveaxis(plane, 2, 0), order="C")])
    return result


def half_and_half(volume):
    """Channel 1 (left) in the first half of the first axis, channel 2 (right) in the second."""
    result = np.zeros((*volume.shape, 4), np.float32)
    half = len(volume) // 2
    result[:half, ..., 1] = volume[:half]
    result[half:, ..., 2] = volume[half:]
    return result


def test_flipping_the_volume_twice_is_the_identity():
    volume = np.random.default_rng(1).random((10, 4, 4), dtype=np.float32)
    swapped = predict(Echo(half_and_half), {"image": volume}, FLIP)
    # A symmetric network sees the mirrored right side as left: the average is what one pass gives.
    np.testing.assert_array_equal(swapped, half_and_half(volume))
    mirrored = predict(Echo(half_and_half), {"image": volume[::-1].copy()}, FLIP)
    np.testing.assert_array_equal(mirrored[::-1][..., FLIP], swapped)


def test_the_engine_smooths_where_it_offers_to_else_the_pipeline():
    rng = np.random.default_rng(5)
    fixed = rng.random((10, 4, 5, 4), dtype=np.float32)
    kernel = gaussian_kernel(0.8)[..., None]

    class InOrder(Echo):
        can = Capabilities(smooths=False)

        def run(self, inputs):
            return reversed(list(super().run(inputs, 0)))

    class Smoothing(Echo):
        def run(self, inputs, smoothing):
            assert smoothing == 0.8
            return ((start, slab + 1) for start, slab in super().run(inputs, 0))

    volume = np.zeros((10, 4, 5), np.float32)
    np.testing.assert_array_equal(predict(Smoothing(lambda v: fixed), {"image": volume}, None, 0.8), fixed + 1)
    expected = correlate(fixed, kernel, mode="constant")
    for cuts in ((0, 3, 4, 9, 10), (0, 10), tuple(range(11)), (0, 1, 10)):
        result = predict(InOrder(lambda v: fixed, cuts), {"image": volume}, None, 0.8)
        np.testing.assert_allclose(result, expected, atol=1e-6)
        same = predict(InOrder(lambda v: fixed, cuts), {"image": volume}, None, 0)
        np.testing.assert_array_equal(same, fixed)


def test_flip_average_is_half_the_sum_in_float32():
    volume = np.random.default_rng(2).random((10, 4, 4), dtype=np.float32)
    fixed = random_posteriors((10, 4, 4))
    result = predict(Echo(lambda v: fixed * v[..., None]), {"image": volume}, FLIP)
    first = fixed * volume[..., None]
    second = (fixed * volume[::-1][..., None])[::-1][..., FLIP]
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, np.float32(0.5) * (first + second))


def test_what_a_pass_leaves_is_kept_for_the_second_one_alone():
    engine = Echo(lambda volume: random_posteriors((10, 4, 4)))
    predict(engine, {"image": np.zeros((10, 4, 4), np.float32)}, FLIP)
    assert engine.done == ["release", "pass", "pass", "release"]


class BothWays(Echo):
    """An engine that hands out planes in order, and backwards where it is asked to."""

    can = Capabilities(backwards=True)

    def run(self, inputs, smoothing=0, backwards=False):
        slabs = list(super().run(inputs, smoothing))
        return iter(slabs if backwards else slabs[::-1])


@pytest.mark.parametrize("cuts", [(0, 3, 4, 9, 10), (0, 4, 8, 10), (0, 10), tuple(range(11))])
def test_both_passes_in_step_give_what_one_after_the_other_gives(cuts):
    volume = np.random.default_rng(4).random((10, 9, 8), dtype=np.float32)
    expected = predict(Echo(half_and_half), {"image": volume}, FLIP)
    engine, shares = BothWays(half_and_half, cuts), []
    result = predict(engine, {"image": volume}, FLIP, progress=shares.append, threads=2)
    np.testing.assert_array_equal(result, expected)
    # What the coarser levels took is given back before the finest one begins.
    assert engine.done == ["release", "pass", "pass", "release", "release"]
    assert shares == sorted(shares) and shares[0] > posterior.COARSE and shares[-1] == 1


def test_without_a_flip_table_there_is_one_pass():
    volume = np.random.default_rng(3).random((10, 4, 4), dtype=np.float32)
    shares = []
    result = predict(Echo(half_and_half), {"image": volume}, None, progress=shares.append)
    np.testing.assert_array_equal(result, half_and_half(volume))
    assert shares == [0.1, 0.6, 0.7, 1.0]


@pytest.mark.parametrize("threads", [1, 3])
def test_the_likeliest_channels_of_a_network_and_of_posteriors(threads):
    """Of slabs that never are one array, of posteriors, and of what smoothing makes of these; the first on a tie."""
    posteriors, shares = random_posteriors(), []
    posteriors[3, 4, 5] = [0.25, 0.3, 0.3, 0.15]
    engine = Echo(lambda volume: posteriors)
    found = posterior.likeliest_of(engine, {"image": np.zeros((10, 9, 8), np.float32)}, shares.append, threads)
    assert (found.dtype, found[3, 4, 5], engine.done[-1], shares[0]) == (np.uint8, 1, "release", 1.0)
    np.testing.assert_array_equal(found, posteriors.argmax(axis=-1))
    smooth = correlate(posteriors, gaussian_kernel(0.5)[..., None], mode="constant")
    inputs = {"image": np.zeros((10, 9, 8), np.float32)}
    _, maps = posterior.predict(engine, inputs, None, 0.25, likeliest=[0, 0.5], threads=threads)
    np.testing.assert_array_equal(maps[0], found)
    np.testing.assert_array_equal(maps[0.5], smooth.argmax(axis=-1))
    assert np.any(smooth.argmax(axis=-1) != found)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("channel", [0, 1, 3])
def test_nothing_is_the_likeliest_of_what_is_no_number(value, channel):
    posteriors = random_posteriors()
    posteriors[3, 4, 5, channel] = value
    engine, inputs = Echo(lambda volume: posteriors), {"image": np.zeros((10, 9, 8), np.float32)}
    for find in (
        lambda: posterior.predict(engine, inputs, None, 0.25),
        lambda: posterior.predict(engine, inputs, None, 0.25, likeliest=[0.5]),
        lambda: posterior.likeliest_of(engine, inputs),
    ):
        with pytest.raises(SynthSegError, match=r"^posteriors: some are no numbers"):
            find()


def test_largest_component_and_ties():
    mask = np.zeros((7, 3, 3), bool)
    mask[0:2, 1, 1] = mask[3:5, 1, 1] = True
    for function in (labels_of.largest_component, reference.largest_component):
        kept = function(mask)
        assert kept[0:2, 1, 1].all()  # two parts of two voxels: the first one stays
        assert kept.sum() == 2
        mask[5, 1, 1] = True
        assert function(mask)[3:6, 1, 1].all()
        mask[5, 1, 1] = False


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(arrays(bool, st.tuples(*[st.integers(1, 5)] * 3)))
def test_largest_component_is_the_references(mask):
    before = mask.copy()
    np.testing.assert_array_equal(labels_of.largest_component(mask), reference.largest_component(mask))
    np.testing.assert_array_equal(mask, before)


@pytest.mark.parametrize("n", [1, 2, 5, 7, 8, 9, 15, 16, 31, 32, 33, 69, 128])
def test_channels_are_summed_as_numpy_sums_a_last_axis(n):
    channels = np.random.default_rng(n).random((n, 20, 30), dtype=np.float32) ** 8
    expected = np.ascontiguousarray(np.moveaxis(channels, 0, 2)).sum(axis=-1)
    np.testing.assert_array_equal(posterior.channel_sum(channels), expected)


def laid_out(posteriors, order):
    """The same values, with the axes in another order in memory."""
    return np.ascontiguousarray(posteriors.transpose(order)).transpose(np.argsort(order))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 1, 2), (3, 0, 1, 2), (2, 1, 0, 3)])
@pytest.mark.parametrize("flip", [None, FLIP])
def test_slabs_in_any_layout_give_the_same(order, threads, flip, monkeypatch):
    monkeypatch.setattr(posterior, "ROWS", 4)
    volume = np.random.default_rng(4).random((10, 9, 8), dtype=np.float32)
    fixed = random_posteriors()
    expected = predict(Echo(lambda v: fixed * v[..., None]), {"image": volume}, flip)
    result = predict(Echo(lambda v: laid_out(fixed * v[..., None], order)), {"image": volume}, flip, threads=threads)
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("fast", [False, True])
def test_threads_change_no_bit(fast):
    posteriors = random_posteriors((20, 17, 15), n=10, seed=7)
    labels = SimpleNamespace(index=np.arange(10, dtype=np.int32), topology=np.array([0, 1, 1, 2, 3, 0, 4, 4, 5, 6]))
    box = (slice(2, 20), slice(0, 15), slice(1, 13))
    expected = labels_of.finish(kept(posteriors), box, labels, fast)
    result = labels_of.finish(kept(posteriors), box, labels, fast, threads=3)
    for field in ("labels", "margin", "soft", "counts", "confidences", "confidence"):
        np.testing.assert_array_equal(getattr(result, field), getattr(expected, field), field)
    np.testing.assert_array_equal(result.posteriors.whole(), expected.posteriors.whole())
    assert result.removed == expected.removed
    assert len(expected.removed) == (1 if fast else 7)


def test_what_is_kept_is_what_can_get_a_label():
    posteriors = random_posteriors((6, 5, 4), n=4, seed=3)
    posteriors[2, 3, 1] = 0  # nothing at all: it must not become background with a posterior of 1
    found = kept(posteriors, threshold=0.5)
    brain = posteriors[..., 1:].sum(axis=-1) > 0.5
    brain[2, 3, 1] = True
    assert 1 < brain.sum() < brain.size
    whole = np.where(brain[..., None], posteriors, np.eye(4, dtype=np.float32)[0])
    np.testing.assert_array_equal(found.whole(), whole)
    np.testing.assert_array_equal(np.stack([found.channel(c) for c in range(4)], axis=-1), whole)
    box = (slice(1, 6), slice(0, 3), slice(2, None))
    part = found.cropped(box)
    assert part.shape == (5, 3, 2, 4)
    np.testing.assert_array_equal(part.whole(), whole[box])
    for axis, along in enumerate(part.there()):
        others = tuple(n for n in range(3) if n != axis)
        np.testing.assert_array_equal(along[1:], (whole[box][..., 1:] > 0).any(axis=others).T)
        assert along[0].all()


def test_components_hang_together_by_faces_only():
    mask = np.zeros((3, 3, 3), bool)
    mask[0, 0, 0] = mask[1, 1, 0] = mask[1, 2, 0] = True
    assert np.argwhere(labels_of.largest_component(mask)).tolist() == [[1, 1, 0], [1, 2, 0]]


def test_an_empty_mask_stays_as_it_is():
    mask = np.zeros((3, 3, 3), bool)
    assert not labels_of.largest_component(mask).any()
    posteriors = np.zeros((3, 3, 3, 4), np.float32)
    posteriors[..., 0], posteriors[..., 1] = 0.9, 0.1
    for found in (kept(posteriors), kept(posteriors, ALL)):
        found.threshold = 0.25
        labels_of.keep_components(found, np.array([0, 1, 2, 3]))
        assert not found.whole()[..., 1:].any()


def test_islands_are_removed_from_their_class_alone():
    topology = np.array([0, 1, 1, 0])
    posteriors = np.zeros((12, 5, 5, 4), np.float32)
    posteriors[..., 0] = 1
    posteriors[1:9, 1:4, 1:4] = [0.1, 0, 0, 0.9]  # one bridge of channel 3, which has no class
    posteriors[1:4, 2, 2] = [0.1, 0.5, 0.4, 0]
    posteriors[7, 2, 2] = [0.1, 0.3, 0.3, 0.3]  # an island of class 1 inside the brain
    posteriors[11, 2, 2] = [0.1, 0.9, 0, 0]  # outside the brain's largest part
    found = kept(posteriors)
    removed = labels_of.keep_components(found, topology)
    posteriors = found.whole()
    assert removed == {0: 1, 1: 1}
    np.testing.assert_allclose(posteriors[7, 2, 2], [0.1, 0, 0, 0.3])
    np.testing.assert_allclose(posteriors[11, 2, 2], [0.1, 0, 0, 0])
    np.testing.assert_allclose(posteriors[2, 2, 2], [0.1, 0.5, 0.4, 0])


def test_the_threshold_is_exclusive():
    posteriors = np.zeros((3, 3, 3, 4), np.float32)
    posteriors[..., 0] = 0.75
    posteriors[1, 1, 1, 1] = 0.25
    found = kept(posteriors)
    labels_of.keep_components(found, np.array([0, 1, 2, 3]))
    assert not found.whole()[..., 1:].any()


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_engine_and_reference_post_process_alike(seed, fast):
    # Blocks of smooth noise make several components per class.
    posteriors = random_posteriors((14, 12, 10), n=6, seed=seed)
    posteriors[:, :, 5] *= np.float32(0.2)
    topology = np.array([0, 1, 1, 2, 3, 0])
    box = (slice(2, 13), slice(1, 11), slice(0, 10))
    values = np.array([0, 2, 3, 4, 41, 24], dtype=np.int32)
    labels = SimpleNamespace(index=values, topology=topology)
    ours = labels_of.finish(kept(posteriors), box, labels, fast)
    expected = reference.postprocess(posteriors.copy(), box, topology, 0.25, fast)
    np.testing.assert_array_equal(ours.labels, values[expected.argmax(axis=-1)])
    np.testing.assert_array_equal(ours.posteriors.whole(), expected)
    np.testing.assert_allclose(ours.soft, expected.sum(axis=(0, 1, 2), dtype=np.float64), rtol=1e-12)
    order = np.sort(expected, axis=-1)
    np.testing.assert_array_equal(ours.margin, np.minimum(order[..., -1] - order[..., -2], np.float32(0.0655)))


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_small_parts_within_and_across_the_edge_of_the_image_part(seed, fast):
    """Most channels fill a small box only, which the padding may cut, or which may lie in the padding alone."""
    rng = np.random.default_rng(seed)
    posteriors = np.zeros((16, 14, 12, 10), np.float32)
    posteriors[..., 0] = rng.random((16, 14, 12), dtype=np.float32) * np.float32(0.2)
    posteriors[2:14, 2:12, 2:10, 1] = 0.3
    for channel in range(2, 10):
        start = rng.integers(0, 10, 3)
        stop = start + rng.integers(1, 6, 3)
        part = tuple(map(slice, start, stop))
        posteriors[(*part, channel)] = rng.random(posteriors[(*part, channel)].shape, dtype=np.float32)
    topology = np.array([0, 1, 1, 2, 2, 0, 3, 4, 5, 5])
    box = (slice(3, 16), slice(0, 9), slice(4, 11))
    labels = SimpleNamespace(index=np.arange(10, dtype=np.int32), topology=topology)
    expected = reference.postprocess(posteriors.copy(), box, topology, 0.25, fast)
    ours = labels_of.finish(kept(posteriors), box, labels, fast, threads=2)
    np.testing.assert_array_equal(ours.posteriors.whole(), np.nan_to_num(expected))
    np.testing.assert_array_equal(ours.labels, np.nan_to_num(expected).argmax(axis=-1))
    np.testing.assert_allclose(ours.soft, np.nansum(expected, axis=(0, 1, 2), dtype=np.float64), rtol=1e-12)


def test_labels_ties_and_voxels_without_posterior():
    posteriors = np.zeros((10, 1, 1, 4), np.float32)
    posteriors[0, 0, 0] = [0, 0.4, 0.4, 0]  # a tie: the first
    posteriors[1, 0, 0] = [0, 0, 0, 0]  # nothing: background, and no NaN in the volumes
    posteriors[2:, 0, 0] = [0.25, 0, 0.2, 0.05]
    result = labels_of.label(kept(posteriors, 0.1), VALUES, {})
    assert result.labels.dtype == np.int32
    assert result.labels[:3, 0, 0].tolist() == [2, 0, 0]
    assert result.margin[:2, 0, 0].tolist() == [0, 0]
    np.testing.assert_allclose(result.margin[2, 0, 0], 0.0655)
    np.testing.assert_allclose(result.soft, [4, 0.5, 0.5 + 8 * 0.4, 8 * 0.1], rtol=1e-6)
    assert result.counts.tolist() == [9, 1, 0, 0]
    assert result.confidence == pytest.approx(0.5)
    np.testing.assert_allclose(result.confidences, [4 / 9, 0.5, np.nan, np.nan])


def test_confidence_without_foreground_is_not_a_number():
    posteriors = np.zeros((2, 2, 2, 4), np.float32)
    posteriors[..., 0] = 1
    assert np.isnan(labels_of.label(kept(posteriors), VALUES, {}).confidence)


def test_volumes_are_summed_in_float64():
    # 0.1 in float32 summed a million times in float32 drifts; in float64 it does not.
    posteriors = np.zeros((100, 100, 100, 2), np.float32)
    posteriors[...] = [0.9, 0.1]
    result = labels_of.label(kept(posteriors, ALL), np.array([0, 2], dtype=np.int32), {})
    assert result.soft.dtype == np.float64
    assert result.soft[1] == pytest.approx(1e6 * np.float64(np.float32(0.1)), rel=1e-9)
