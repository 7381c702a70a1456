"""Label tables and model cards."""

import shutil

import numpy as np
import pytest
import yaml

from synthseg_native.errors import SynthSegError
from synthseg_native.networks import cards

NAMES = ["compact2mm", "synthseg1", "synthseg2"]


@pytest.fixture
def folder(root, tmp_path):
    for name in ("card.yaml", "labels.tsv"):
        shutil.copy(root / "models" / "compact2mm" / name, tmp_path)
    return tmp_path


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("name", NAMES)
def test_shipped_label_tables_are_consistent(root, name):
    labels = cards.read_labels(root / "models" / name / "labels.tsv")
    n = len(labels)
    assert n == (33 if name == "synthseg2" else 32)
    assert np.all(np.diff(labels.index) > 0)  # channels are in ascending order of values
    np.testing.assert_array_equal(labels.flip[labels.flip], np.arange(n))
    opposite = {"left": "right", "right": "left", "none": "none"}
    for channel, mirrored in enumerate(labels.flip):
        side = labels.hemispheres[channel]
        assert labels.hemispheres[mirrored] == opposite[side]
        assert labels.names[mirrored] == labels.names[channel].replace(side, opposite[side])
        assert (mirrored == channel) == (side == "none")
    assert sorted(set(labels.topology.tolist())) == list(range(24))
    # Both sides have the same classes, and no class has both.
    for group in range(1, 24):
        assert len({labels.hemispheres[c] for c in np.flatnonzero(labels.topology == group)}) == 1
    assert labels.has_total_intracranial == (name == "synthseg2")


def test_topology_classes_of_the_specification(root):
    labels = cards.read_labels(root / "models" / "synthseg1" / "labels.tsv")
    classes = {
        group: labels.index[labels.topology == group].tolist()
        for group in np.unique(labels.topology[labels.topology > 0])
    }
    assert classes[4] == [2, 3, 4, 5]
    assert classes[5] == [7, 8]
    assert classes[14] == [41, 42, 43, 44]
    assert classes[15] == [46, 47]
    assert [classes[g] for g in (1, 2, 3, 23)] == [[14], [15], [16], [60]]


@pytest.mark.parametrize("name", NAMES)
def test_shipped_cards_load(root, name):
    settings = cards.load(root / "models" / name)
    assert settings.name == name
    assert settings.research_grade is (name != "compact2mm")
    assert settings.resolution == (2.0 if name == "compact2mm" else 1.0)
    assert settings.memory_mb == (3000 if name == "compact2mm" else 20000)


def test_models_are_found_by_name(root, tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    assert cards.load("compact2mm").folder == root / "models" / "compact2mm"
    monkeypatch.setenv("SYNTHSEG_NATIVE_MODELS", str(folder.parent))
    assert cards.load(folder.name).folder == folder
    with pytest.raises(SynthSegError, match="synthseg9: no such model") as caught:
        cards.load("synthseg9")
    assert caught.value.code == "usage"


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("card.yaml", "min_size", "smallest", "lacks the field 'min_size'"),
        ("card.yaml", "labels: 32", "labels: 33", "33 labels, but 32 rows"),
        ("card.yaml", "pad_multiple: 16", "pad_multiple: 12", "no multiple of 8"),
        ("card.yaml", "input: {", "input: {{", "not a usable model card"),
        ("card.yaml", "memory_mb", "memory", "lacks the field 'memory_mb'"),
        ("card.yaml", "memory_mb: 3000", "memory_mb: 0", "memory_mb 0 is no positive number"),
        ("card.yaml", "memory_mb: 3000", "memory_mb: much", "not a usable model card"),
        ("card.yaml", "memory_mb: 3000", "memory_mb: .inf", "not a usable model card"),
        ("labels.tsv", "flip_channel", "flip", "not a usable label table"),
        ("labels.tsv", "1\t2\tleft", "1\t3\tleft", "occurs twice"),
        ("labels.tsv", "1\t2\tleft", "7\t2\tleft", "must count from 0"),
        ("labels.tsv", "left\t18\t", "left\t19\t", "flipping twice"),
    ],
)
def test_unusable_models_are_refused(folder, file, old, new, words):
    edit(folder / file, old, new)
    with pytest.raises(SynthSegError, match=words) as caught:
        cards.load(folder)
    assert caught.value.code == "usage"
    assert str(folder / file) in caught.value.message
    assert "\n" not in caught.value.message


def test_a_missing_label_table_is_refused(folder):
    (folder / "labels.tsv").unlink()
    with pytest.raises(SynthSegError, match=r"labels\.tsv: No such file"):
        cards.load(folder)


def test_cards_are_plain_yaml(root):
    for name in NAMES:
        card = yaml.safe_load((root / "models" / name / "card.yaml").read_text())
        assert set(card["network"]) == {
            "levels",
            "features",
            "convolutions_per_level",
            "kernel",
            "activation",
            "labels",
        }
