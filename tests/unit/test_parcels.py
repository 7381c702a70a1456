"""Parcels of the cortex and their volumes, on small arrays."""

import dataclasses
from itertools import pairwise

import numpy as np
import pytest

from synthseg_native.errors import SynthSegError
from synthseg_native.networks import cards
from synthseg_native.pipeline import parcels
from synthseg_native.pipeline.labels import MAX_MARGIN

VALUES = np.array([0, 1001, 1002, 2001], np.int32)  # background, two parcels of the left, one of the right
WHOLE = (slice(None),) * 3


def slabs_of(posteriors, *cuts):
    """As an engine yields them."""
    places = [0, *cuts, len(posteriors)]
    return [(start, posteriors[start:stop].copy()) for start, stop in pairwise(places)]


def parcellate(posteriors, labels, margin=None, box=WHOLE, values=VALUES, cuts=(), **more):
    labels = np.asarray(labels, np.int32)
    margin = np.full(labels.shape, 0.05, np.float32) if margin is None else margin
    return parcels.parcellate(slabs_of(np.float32(posteriors), *cuts), labels, margin, box, values, **more)


def some(shape, n=4, seed=3):
    """Random posteriors and labels, a third of which are cortex."""
    rng = np.random.default_rng(seed)
    values = rng.random((*shape, n), dtype=np.float32) ** 4
    return values / values.sum(axis=-1, keepdims=True), rng.choice([0, 2, 3, 42, 14, 41], shape).astype(np.int32)


@pytest.fixture(scope="module")
def tables(root):
    """Of the parcels, and of the structures of 1.0 and 2.0."""
    folders = root / "models"
    files = (folders / "synthseg2/parcels.tsv", folders / "synthseg1/labels.tsv", folders / "synthseg2/labels.tsv")
    return [cards.read_labels(file) for file in files]


def test_cortex_becomes_its_likeliest_parcel_and_the_rest_stays():
    labels = [3, 42, 3, 42, 2, 0, 53]
    posteriors = [
        [0.9, 0.06, 0.04, 0],  # background cannot win inside
        [0.0, 0.1, 0.2, 0.7],
        [0.1, 0.2, 0.1, 0.6],  # a parcel of the right in the left hemisphere
        [0.0, 0.4, 0.5, 0.1],  # and the other way round
        [0.0, 1.0, 0.0, 0],  # no cortex
        [0.0, 0.0, 1.0, 0],
        [0.0, 0.0, 0.0, 1],
    ]
    found = parcellate(np.reshape(posteriors, (7, 1, 1, 4)), np.reshape(labels, (7, 1, 1)))
    assert found.labels.ravel().tolist() == [1001, 2001, 2001, 1002, 2, 0, 53]
    assert found.labels.dtype == np.int32
    assert found.counts.tolist() == [0, 1, 1, 2]
    np.testing.assert_allclose(found.confidences, [np.nan, 0.6, 0.5, (0.7 + 0.6 / 0.9) / 2], rtol=1e-6)
    # In the cortex of what is without background; outside it against a background of 1.
    np.testing.assert_allclose(found.soft[1:], np.add([0.6 + 0.1 + 0.2 / 0.9 + 0.4, 0.4 + 0.2 + 0.1 / 0.9 + 0.5,
                                                       0.7 + 0.6 / 0.9 + 0.1], 0.5), rtol=1e-6)  # fmt: skip


def test_ties_voxels_without_any_and_margins():
    labels = np.reshape([3, 3, 3, 2], (4, 1, 1))
    margin = np.float32([0.01, 0.06, 0.05, 0.02]).reshape(4, 1, 1)
    posteriors = np.zeros((4, 1, 1, 4))
    posteriors[0, 0, 0] = [0, 0.2, 0.6, 0.2]
    posteriors[1, 0, 0] = [0.5, 0, 0.3, 0.3]  # the first on a tie
    posteriors[2, 0, 0] = [1, 0, 0, 0]  # no parcel at all: background, and no NaN anywhere
    posteriors[3, 0, 0] = [0, 0.5, 0.5, 0]
    found = parcellate(posteriors, labels, margin)
    assert found.labels.ravel().tolist() == [1002, 1002, 0, 2]
    np.testing.assert_allclose(found.margin.ravel(), [0.01, 0, 0, 0.02], rtol=1e-6)  # the smaller one, in the cortex
    assert np.isfinite(found.soft).all() and found.counts.tolist() == [1, 0, 2, 0]
    sure = parcellate(posteriors, labels, np.full((4, 1, 1), 1, np.float32))
    assert sure.margin[0, 0, 0] == np.float32(MAX_MARGIN)


def test_two_that_rounding_makes_equal_go_to_the_lower_channel():
    """The division must not be left out, as in SynthSeg: it can round two close posteriors to one number."""
    rng = np.random.default_rng(0)
    first = rng.random(400, dtype=np.float32) * np.float32(0.02) + np.float32(0.22)
    posteriors = np.zeros((1, 1, 400, 5), np.float32)
    posteriors[0, 0, :, 1], posteriors[0, 0, :, 2] = first, np.nextafter(first, np.float32(1))
    posteriors[0, 0, :, 3:] = 0.18
    values = np.array([0, 1001, 1002, 2001, 2002], np.int32)
    found = parcellate(posteriors, np.full((1, 1, 400), 3), values=values)
    divided = posteriors[0, 0] / posteriors[0, 0].sum(axis=-1, keepdims=True)
    np.testing.assert_array_equal(found.labels[0, 0], values[divided.argmax(axis=-1)])
    assert set(found.labels.ravel().tolist()) == {1001, 1002}


def test_it_is_what_upstreams_steps_give():
    """The whole of them, in numpy, on 69 channels."""
    shape, box = (9, 8, 7), (slice(1, 8), slice(2, 8), slice(0, 5))
    posteriors, _ = some(shape, 69)
    _, labels = some((7, 6, 5), seed=8)
    values = np.arange(69, dtype=np.int32) + 1000 * (np.arange(69) > 0)
    q, cortex = posteriors[box].copy(), np.isin(labels, (3, 42))
    q[..., 0] = ~cortex
    q /= q.sum(axis=-1, keepdims=True)
    expected = np.where(cortex, values[q.argmax(axis=-1)], labels)
    found = parcellate(posteriors, labels, box=box, values=values, cuts=(2, 3))
    np.testing.assert_array_equal(found.labels, expected)
    np.testing.assert_allclose(found.soft, q.sum(axis=(0, 1, 2), dtype=np.float64), rtol=1e-12)
    assert found.near is None


def bytes_of(found):
    numbers = (found.labels, found.margin, found.soft, found.counts, found.confidences, found.near[0])
    return [np.ascontiguousarray(array).tobytes() for array in numbers]


def test_the_same_bytes_for_any_slabs_layout_and_number_of_threads():
    posteriors, labels = some((12, 9, 8))
    box = (slice(2, 11), slice(0, 9), slice(1, 8))
    part = (slice(1, 5), slice(0, 9), slice(2, 4))
    labels = labels[box]
    before = labels.copy()
    same = {"box": box, "near": part}
    expected = bytes_of(parcellate(posteriors, labels, **same))
    for cuts in ((1, 5, 6), (2,), (11,), tuple(range(1, 12))):
        for threads in (1, 3):
            assert bytes_of(parcellate(posteriors, labels, cuts=cuts, threads=threads, **same)) == expected
    planes = np.moveaxis(np.ascontiguousarray(np.moveaxis(posteriors, 3, 1)), 1, 3)
    assert bytes_of(parcels.parcellate([(0, planes)], labels, np.full(labels.shape, 0.05, np.float32), box, VALUES,
                                       part, 3)) == expected  # fmt: skip
    np.testing.assert_array_equal(labels, before)  # what is given is left alone


def test_posteriors_where_there_is_cortex_are_kept_normalised():
    posteriors, labels = some((6, 5, 4))
    near, box = parcellate(posteriors, labels, near=(slice(1, 4), slice(0, 5), slice(2, 4)), cuts=(2,)).near
    q = posteriors.copy()
    q[..., 0] = ~np.isin(labels, (3, 42))
    q /= q.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(near, q[box], rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_posteriors_that_are_no_numbers_make_no_parcels(value):
    posteriors, labels = some((4, 3, 3))
    posteriors[2, 1, 1, 3] = value
    with (
        np.errstate(invalid="ignore"),
        pytest.raises(SynthSegError, match=r"^parcels: some posteriors are no numbers") as caught,
    ):
        parcellate(posteriors, labels)
    assert caught.value.code == "internal"


# Volumes -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def counted():
    """Parcels of which the soft sums are known: 1 to 34 on the left, ten times that on the right."""
    soft = np.array([500, *range(1, 35), *range(10, 350, 10)], float)
    nothing = np.zeros((1, 1, 1))
    return parcels.Parcels(nothing, nothing, soft, np.zeros(69, int), np.zeros(69))


def structures(table):
    """Volumes of 100 times the label: cortex 300 and 4200, white matter 200 and 4100 mm3."""
    return table.index * 100.0


@pytest.mark.parametrize("version", [1, 2])
def test_the_parcels_of_a_hemisphere_add_up_to_its_cortex(tables, counted, version):
    table, labels = tables[0], tables[version]
    found = parcels.volumes_mm3(counted, table, structures(labels), labels)
    left = np.array(table.hemispheres) == "left"
    assert (found[0], found[left].sum(), found[~left].sum()) == (0, pytest.approx(300), pytest.approx(4200))
    assert found[1] == pytest.approx(300 / 595) and found[35] == pytest.approx(4200 / 595)
    np.testing.assert_allclose(found[1:35] * 14, found[35:])  # the same shares on both sides here


@pytest.mark.parametrize(("version", "total"), [(1, 300 + 4200), (2, 200 + 4100)])
def test_upstreams_form_scales_all_to_one_total(tables, counted, version, total):
    """With the labels of 2.0 to the white matter of both sides, with those of 1.0 to both cortices."""
    table, labels = tables[0], tables[version]
    found = parcels.volumes_mm3(counted, table, structures(labels), labels, "upstream-66342c1")
    assert found.sum() == pytest.approx(total) and found[0] == 0
    np.testing.assert_allclose(found[1:], counted.soft[1:] / counted.soft[1:].sum() * total)


def test_without_any_cortex_there_is_no_parcel_and_no_division_by_nothing(tables, counted):
    table, _, labels = tables
    none = dataclasses.replace(counted, soft=np.zeros(69))
    for form in parcels.VOLUMES:
        assert not parcels.volumes_mm3(none, table, structures(labels), labels, form).any()
    assert not parcels.volumes_mm3(counted, table, np.zeros(33), labels).any()
