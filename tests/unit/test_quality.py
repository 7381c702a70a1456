"""Quality flags, each on both sides of its limit, on made-up segmentations of real label tables."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest

from synthseg_native.networks import cards
from synthseg_native.results import figures, quality

# One side in mm3, about what adults have.
VOLUMES = {
    "cerebral white matter": 215000, "cerebral cortex": 230000, "lateral ventricle": 12000,
    "inferior lateral ventricle": 600, "cerebellum white matter": 14500, "cerebellum cortex": 53000, "thalamus": 7100,
    "caudate": 3600, "putamen": 5000, "pallidum": 1700, "hippocampus": 3800, "amygdala": 1500, "accumbens area": 500,
    "ventral DC": 4000, "3rd ventricle": 1200, "4th ventricle": 1800, "brain-stem": 21000, "csf": 300000,
}  # fmt: skip


@pytest.fixture(params=["synthseg1", "synthseg2"])
def table(request, root):
    return cards.read_labels(root / "models" / request.param / "labels.tsv")


def sound(table):
    """A segmentation at 1 mm in which nothing is odd, and a label map that touches no edge."""
    names = [name.removeprefix(f"{side} ") for name, side in zip(table.names, table.hemispheres, strict=True)]
    counts = np.array([4_000_000, *(VOLUMES[name] for name in names[1:])])
    labels = np.zeros((7, 8, 9), dtype=np.int32)
    labels[1:-1, 1:-1, 1:-1] = 2
    removed = {0: 300, **dict.fromkeys(np.unique(table.topology[1:]).tolist(), 1)}
    return SimpleNamespace(
        labels=labels, counts=counts, soft=counts.astype(float), confidence=0.85,
        confidences=np.full(len(counts), 0.8), removed=removed,
    )  # fmt: skip


def assess(table, case, voxel_mm=(1, 1, 1)):
    raw = figures.measure(table, case.labels, case, np.array(voxel_mm, dtype=np.float32))
    raw = json.loads(json.dumps(raw, allow_nan=False))  # as it comes out of a run record
    found = quality.assess(raw, table)
    json.dumps(found, allow_nan=False)
    assert found["flags"] == [flag for flag in quality.FLAGS if flag in found["flags"]]
    assert bool(found["flags"]) == bool(found["remarks"])
    return found


def channel(table, name):
    return table.names.index(name)


def set_volume(table, case, name, mm3):
    case.soft[channel(table, name)] = mm3
    case.counts[channel(table, name)] = round(mm3)


def test_nothing_odd(table):
    found = assess(table, sound(table))
    assert found["flags"] == found["remarks"] == []
    assert found["labels_missing"] == found["labels_at_fov_edge"] == found["labels_low_confidence"] == []
    assert set(found["asymmetry"].values()) == {0}
    sides = [2 * mm3 for name, mm3 in VOLUMES.items() if name in quality.ASYMMETRY_LIMITS]
    assert found["brain_mm3"] == sum(sides) + 1200 + 1800 + 21000  # and no label 24


def test_every_paired_structure_has_its_limit(table):
    pairs = quality.side_pairs(table)
    assert set(pairs) == set(quality.ASYMMETRY_LIMITS)
    for structure, (left, right) in pairs.items():
        assert (table.names[left], table.names[right]) == (f"left {structure}", f"right {structure}")


@pytest.mark.parametrize("structure", quality.ASYMMETRY_LIMITS)
@pytest.mark.parametrize(("large", "small"), [("left", "right"), ("right", "left")])
def test_asymmetry(table, structure, large, small):
    limit, mean = quality.ASYMMETRY_LIMITS[structure], VOLUMES[structure]
    for share, odd in ((0.99, False), (1.01, True)):
        case = sound(table)
        value = limit * share
        set_volume(table, case, f"{large} {structure}", mean * (1 + value / 2))
        set_volume(table, case, f"{small} {structure}", mean * (1 - value / 2))
        found = assess(table, case)
        assert found["asymmetry"][structure] == pytest.approx(value if large == "left" else -value, abs=1e-4)
        assert found["flags"] == (["asymmetry"] if odd else [])
    ratio = (1 + limit * 1.01 / 2) / (1 - limit * 1.01 / 2)
    assert found["remarks"][0].startswith(f"{large} {structure} is {ratio:.1f} times the {small} (")


def test_structures_without_a_limit_of_their_own(table):
    case = sound(table)
    table.names[channel(table, "left caudate")] = "left claustrum"
    for value, odd in ((0.69, False), (0.71, True)):
        set_volume(table, case, "left claustrum", 1000 * (1 + value / 2))
        set_volume(table, case, "right caudate", 1000 * (1 - value / 2))
        assert assess(table, case)["flags"] == (["asymmetry"] if odd else [])


def test_a_structure_on_one_side_or_on_none(table):
    case = sound(table)
    set_volume(table, case, "left amygdala", 0)
    found = assess(table, case)
    assert found["flags"] == ["labels_missing", "asymmetry"]
    assert found["labels_missing"] == [18]
    assert found["asymmetry"]["amygdala"] == -2
    assert found["remarks"] == [
        "no voxel of: left amygdala", "right amygdala is more than 100 times the left (1.5 mL and 0 mm3)",
    ]  # fmt: skip
    case.counts[channel(table, "right amygdala")] = 0  # traces of posterior on both sides say nothing
    found = assess(table, case)
    assert found["flags"] == ["labels_missing"]
    assert found["labels_missing"] == [18, 54]
    assert found["asymmetry"]["amygdala"] is None
    assert found["remarks"] == ["no voxel of: amygdala (both sides)"]


def test_missing_labels_are_named_both_sides_together(table):
    case = sound(table)
    for name in ("left caudate", "right caudate", "3rd ventricle", "left putamen"):
        case.counts[channel(table, name)] = 0
    found = assess(table, case)
    assert found["labels_missing"] == [11, 12, 14, 50]
    assert found["remarks"][0] == "no voxel of: caudate (both sides); left putamen, 3rd ventricle"


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("end", [0, -1])
def test_tissue_at_the_edge_of_the_field_of_view(table, axis, end):
    case = sound(table)
    place = [3, 3, 3]
    place[axis] = 1 if end == 0 else case.labels.shape[axis] - 2
    case.labels[tuple(place)] = 16
    assert assess(table, case)["labels_at_fov_edge"] == []
    place[axis] = end
    case.labels[tuple(place)] = 16
    found = assess(table, case)
    assert found["labels_at_fov_edge"] == [16]
    assert found["flags"] == ["labels_at_fov_edge"]
    assert found["remarks"] == ["cut by the edge of the image: brain-stem"]


@pytest.mark.parametrize(("ml", "odd"), [(599.9, True), (600.1, False), (2199.9, False), (2200.1, True)])
def test_brain_volume(table, ml, odd):
    case = sound(table)
    brain = ~np.isin(table.index, (0, 24))
    case.soft[brain] *= ml * 1000 / case.soft[brain].sum()
    found = assess(table, case)
    assert found["brain_mm3"] == pytest.approx(ml * 1000)
    assert found["flags"] == (["brain_volume"] if odd else [])


@pytest.mark.parametrize(("confidence", "odd"), [(0.699, True), (0.701, False)])
def test_low_confidence(table, confidence, odd):
    case = sound(table)
    case.confidence = confidence
    assert assess(table, case)["flags"] == (["low_confidence"] if odd else [])


@pytest.mark.parametrize(("confidence", "odd"), [(0.499, True), (0.501, False), (np.nan, False)])
def test_low_confidence_of_a_label(table, confidence, odd):
    case = sound(table)
    case.confidences[channel(table, "left caudate")] = confidence
    found = assess(table, case)
    assert found["flags"] == (["labels_low_confidence"] if odd else [])
    assert found["labels_low_confidence"] == ([11] if odd else [])


def test_low_scores(table):
    names = ("general white matter", "thalamus", "cerebellum")
    for scores, low in (((0.65, 0.66, 1), []), ((0.6499, 0, 0.9), ["general white matter", "thalamus"])):
        case = sound(table)
        raw = figures.measure(table, case.labels, case, (1, 1, 1), dict(zip(names, scores, strict=True)))
        found = quality.assess(json.loads(json.dumps(raw)), table)
        assert (found["scores_low"], found["flags"]) == (low, ["low_scores"] if low else [])
    assert found["remarks"] == ["quality scores below 0.65: general white matter 0.6499, thalamus 0.0000"]
    assert assess(table, sound(table))["scores_low"] == []  # of a run without scores


@pytest.mark.parametrize(("share", "odd"), [(0.049, False), (0.051, True)])
@pytest.mark.parametrize("group", [0, 10])
def test_many_components_removed(table, share, odd, group):
    case = sound(table)
    foreground = case.counts[1:].sum()
    case.removed = {0: 0, 10: 0, group: round(share * foreground)}
    found = assess(table, case)
    assert found["removed_fraction"] == pytest.approx(share, abs=1e-5)
    assert found["flags"] == (["components_removed"] if odd else [])


def test_fast_mode_has_no_classes(table):
    case = sound(table)
    case.removed = {0: 12}
    assert assess(table, case)["removed_mm3"] == 12


def test_volumes_are_in_mm3(table):
    one = assess(table, sound(table))
    case = sound(table)
    case.soft /= 6
    two = assess(table, case, (1, 2, 3))
    assert two["brain_mm3"] == pytest.approx(one["brain_mm3"])
    assert two["removed_mm3"] == 6 * one["removed_mm3"]


def test_no_foreground(table):
    n = len(table)
    case = SimpleNamespace(
        labels=np.zeros((5, 5, 5), np.int32), counts=np.array([125] + [0] * (n - 1)), soft=np.full(n, 0.1),
        confidence=np.nan, confidences=np.array([1.0] + [np.nan] * (n - 1)), removed={0: 0},
    )  # fmt: skip
    found = assess(table, case)
    assert found["flags"] == ["no_foreground"]
    assert found["remarks"] == ["no voxel has a label"]
    assert found["removed_fraction"] is None
    assert found["labels_missing"] == table.index[1:].tolist()


def test_figures_say_how_much_lies_at_which_face(table):
    case = sound(table)
    case.labels[1:3, 4, 0] = 16
    case.labels[0, 4, 4] = 2
    raw = figures.measure(table, case.labels, case, (1, 1, 1))
    assert raw["edge_voxels"] == {"2": {"left": 1}, "16": {"bottom": 2}}
    assert raw["soft_mm3"] == case.soft.tolist() and raw["values"] == table.index.tolist()


def test_limits_are_today_s_whatever_the_record_was_made_with(table, monkeypatch):
    case = sound(table)
    raw = figures.measure(table, case.labels, case, (1, 1, 1))
    record = {"output": {"qc": raw}}
    assert quality.of_record(record, table)["flags"] == []
    monkeypatch.setattr(quality, "MIN_CONFIDENCE", 0.9)
    assert quality.of_record(record, table)["flags"] == ["low_confidence"]


def test_records_of_earlier_versions_say_what_was_said_then(table):
    old = {"flags": ["labels_at_fov_edge"], "remarks": ["cut"], "brain_mm3": 1.0, "labels_at_fov_edge": [16]}
    assert quality.of_record({"output": {"qc": old}}, table) == old
    assert quality.of_record({"output": {"qc": None}}, table) is None
    assert quality.of_record({"output": None}, table) is None


def test_the_document_has_every_flag_and_every_limit(root):
    text = (root / "docs/quality.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", text, flags=re.MULTILINE))
    assert rows == quality.FLAGS
    limits = re.findall(r"^\| ([\w ]+) \| (\d\.\d\d) \| (\d+\.\d\d) ", text, flags=re.MULTILINE)
    expected = {**quality.ASYMMETRY_LIMITS, "any other": quality.ASYMMETRY_LIMIT_OTHER}
    assert {name: float(limit) for name, limit, _ in limits} == expected
    assert all(float(ratio) == round((2 + float(limit)) / (2 - float(limit)), 2) for _, limit, ratio in limits)
