"""SynthSeg's own quality scores, without their network."""

from types import SimpleNamespace

import numpy as np
import pytest

from synthseg_native.errors import SynthSegError
from synthseg_native.networks import cards
from synthseg_native.pipeline import scores

BOXES = range(13)


@pytest.fixture(scope="module")
def boxes(root):
    with np.load(root / "tests" / "golden" / "v2" / "boxes.npz") as file:
        return dict(file)


class Fixed:
    """An engine that gives nine numbers, and keeps what it saw."""

    def __init__(self, *numbers):
        self.numbers = np.float32(numbers).reshape(1, 1, 1, -1)

    def run(self, inputs):
        ((self.name, self.seen),) = inputs.items()
        yield 0, self.numbers


@pytest.mark.parametrize("k", BOXES)
def test_the_box_is_upstreams(boxes, k):
    found = scores.box_of(boxes[f"map_{k}"], int(boxes[f"edge_{k}"]))
    np.testing.assert_array_equal(found, boxes[f"box_{k}"], err_msg=boxes["names"][k])
    assert found.dtype == np.uint8


def test_there_is_no_box_that_is_not_tried(boxes):
    assert sum(name.startswith("map_") for name in boxes) == len(boxes["names"]) == len(BOXES)


@pytest.mark.parametrize("name", ["synthseg1", "synthseg2"])
def test_labels_count_for_their_groups(root, name):
    labels = cards.read_labels(root / "models" / name / "labels.tsv")
    channels = np.zeros((40, 3, 3), np.uint8)
    channels[: len(labels), 1, 1] = range(len(labels))
    engine = Fixed(*range(9))
    scores.predict(engine, channels, labels, 40)
    groups = engine.seen[:, 20, 20]
    by_label = {
        2: 1, 3: 2, 4: 3, 5: 3, 7: 4, 8: 4, 10: 6, 11: 1, 12: 7, 13: 7, 14: 3, 15: 3, 16: 5, 17: 8, 18: 8, 24: 0,
        26: 1, 28: 1, 41: 1, 42: 2, 43: 3, 44: 3, 46: 4, 47: 4, 49: 6, 50: 1, 51: 7, 52: 7, 53: 8, 54: 8, 58: 1, 60: 1,
    }  # fmt: skip
    expected = [by_label[value] for value in labels.index.tolist()[1:]]
    assert (engine.name, engine.seen.shape, engine.seen.dtype) == ("quality_groups", (40, 40, 40), np.uint8)
    assert groups[groups > 0].tolist() == [group for group in expected if group]
    assert np.count_nonzero(engine.seen) == np.count_nonzero(expected)


def test_scores_are_clipped_and_the_first_is_none():
    labels = SimpleNamespace(quality_groups=np.arange(9))
    numbers = (7, -0.1, 0, 0.25, 0.5, 0.75, 1, 1.0001, 80)
    found = scores.predict(Fixed(*numbers), np.ones((2, 2, 2), np.uint8), labels, 4)
    assert found.tolist() == [0, 0, 0.25, 0.5, 0.75, 1, 1, 1]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_no_score(value):
    labels = SimpleNamespace(quality_groups=np.arange(9))
    with pytest.raises(SynthSegError, match=r"^scores: some are no numbers: use another engine") as caught:
        scores.predict(Fixed(*[0.5] * 8, value), np.ones((2, 2, 2), np.uint8), labels, 4)
    assert caught.value.code == "internal"
