"""Label tables and model cards."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from synthseg_native.errors import SynthSegError
from synthseg_native.networks import cards

NAMES = ["compact2mm", "synthseg1", "synthseg2"]
# Ten lists in each of ten lists, and so on, by reference: short until it is written out.
BOMB = "\n".join(["a0: &a0 [x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 30))])
BOMB += "\nname: *a29"


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
    shutil.copytree(root / "models/compact2mm", tmp_path / "models/synthseg2")
    shutil.copytree(root / "models/compact2mm", tmp_path / "synthseg1")
    for name in ("synthseg1", "synthseg2"):  # what lies where one stands is not taken for a shipped model
        assert cards.load(name).folder == root / "models" / name
    assert cards.load("./synthseg1").folder == Path("synthseg1")
    monkeypatch.setenv("SYNTHSEG_NATIVE_MODELS", str(folder.parent))
    assert cards.load(folder.name).folder == folder
    with pytest.raises(SynthSegError, match="synthseg9: no such model") as caught:
        cards.load("synthseg9")
    assert caught.value.code == "usage"


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("card.yaml", "min_size", "smallest", r"lacks the field networks\[0\].grid.min_size"),
        ("card.yaml", "channels: 32", "channels: 33", "33 channels, but 32 rows in labels.tsv"),
        ("card.yaml", "pad_multiple: 16", "pad_multiple: 12", r"grid.pad_multiple 12 is no multiple of 8"),
        ("card.yaml", "grid: {", "grid: {{", "not a usable model card"),
        ("card.yaml", "name: compact2mm", "- name", "not a usable model card"),
        ("card.yaml", "memory_mb", "memory", "lacks the field memory_mb"),
        ("card.yaml", "memory_mb: 3000", "memory_mb: 0", "memory_mb 0 is not 1 or more: correct it"),
        ("card.yaml", "memory_mb: 3000", "memory_mb: much", "memory_mb much is not a whole number"),
        ("card.yaml", "memory_mb: 3000", "memory_mb: .inf", "memory_mb inf is not a whole number"),
        ("card.yaml", "memory_mb: 3000", "memory_mb: true", "memory_mb True is not a whole number"),
        ("card.yaml", "research_grade: false", "research_grade: no way", "research_grade no way is not true or false"),
        ("card.yaml", "name: compact2mm", "name: 2", "name 2 is not text"),
        ("card.yaml", "levels: 4", "levels: four", r"networks\[0\].layers.levels four is not a whole number"),
        ("card.yaml", "kernel: 3", "kernel: 4", r"networks\[0\].layers.kernel 4 is even"),
        (
            "card.yaml",
            "activation: elu",
            "activation: gelu",
            "layers.activation gelu is not known: use one of elu, relu",
        ),
        ("card.yaml", "features: 16", "feature: 16", "lacks the field .*layers.features"),
        ("card.yaml", "kernel: 3", "kernel: 3, kernels: 3", "layers.kernels is not known: did you mean kernel"),
        ("card.yaml", "resolution_mm: 2.0", "resolution_mm: 0", "grid.resolution_mm 0 is not above 0"),
        ("card.yaml", "resolution_mm: 2.0", "resolution_mm: .nan", "grid.resolution_mm nan is no finite number"),
        (
            "card.yaml",
            "inputs: [image]",
            "inputs: [image, groups]",
            "inputs .*: give .image.: this version has no other",
        ),
        ("card.yaml", "inputs: [image]", "inputs: image", "inputs image is not a list"),
        ("card.yaml", "end: softmax", "end: sigmoid", "outputs.end sigmoid is not known: use one of softmax, linear"),
        ("card.yaml", "end: softmax", "end: linear", "outputs.end linear: give softmax"),
        ("card.yaml", "smoothing_sigma: 0.5", "smoothing_sigma: -1", "outputs.smoothing_sigma -1 is not 0 or more"),
        ("card.yaml", "table: labels.tsv", "table: [labels.tsv]", "outputs.table .* is not text"),
        ("card.yaml", "weights: {file", "weights: {path", "lacks the field .*weights.file"),
        ("card.yaml", "sha256: ", "sha: ", "weights.sha is not known: did you mean sha256"),
        ("card.yaml", "networks:", "networks: []\nold:", "0 networks: list one"),
        ("card.yaml", "networks:", "networks: [segmentation]\nold:", r"networks\[0\] is no mapping"),
        ("card.yaml", "networks:", "network:", "it has the old form .*: see models/README.md for networks"),
        ("card.yaml", "networks:", "nets:", "lacks the field networks"),
        # A card from anybody: what leads elsewhere, or has no end.
        *(("card.yaml", "file: compact2mm.h5", f"file: '{file}'", "weights.file .* is not the name of a file in")
          for file in ("../w.h5", "/etc/w.h5", "a/../w.h5", "..", ".", ".hidden", "a\\b.h5", "", "a\tb")),
        ("card.yaml", "table: labels.tsv", "table: ../labels.tsv", "outputs.table .* is not the name of a file in its"),
        *(("card.yaml", "name: compact2mm", f"name: {name}", "name .* is not letters and digits alone")
          for name in ("../compact2mm", "/a", "a/b", "seg-a", "a b", "'a\u202eb'", "''")),
        *(("card.yaml", "weights: {", f"weights: {{urls: ['{url}'], ", "weights.urls .* is not an https address")
          for url in ("http://a/w.h5", "file:///etc/passwd", "ftp://a/w", "//a/w", "https:///w", "https://a/ w", "w")),
        ("card.yaml", "weights: {", "weights: {urls: [[https://a/w]], ", "weights.urls .* is not an https address"),
        ("card.yaml", ", size: 5919960", ", urls: ['https://a/w']", "addresses, but not both size and sha256"),
        ("card.yaml", "sha256: e01e", "urls: ['https://a/w'], git_blob: 0123456789012345678901234567890123456789 #",
         "not a usable model card"),
        ("card.yaml", "sha256: e01e", "sha256: E01E", "weights.sha256 .* is not 64 hexadecimal digits"),
        ("card.yaml", "sha256: e01e", "sha256: '' #", "not a usable model card"),
        ("card.yaml", "size: 5919960", "git_blob: 12ab", "weights.git_blob 12ab is not 40 hexadecimal digits"),
        ("card.yaml", "size: 5919960", "size: -1", "weights.size -1 is not 1 or more"),
        *(("card.yaml", old, f"{old.split(':')[0]}: 1000000000000", "is above")
          for old in ("levels: 4", "features: 16", "convolutions_per_level: 2", "kernel: 3", "pad_multiple: 16",
                      "min_size: 64", "resolution_mm: 2.0", "channels: 32", "smoothing_sigma: 0.5", "threshold: 0.25")),
        ("card.yaml", "resolution_mm: 2.0", f"resolution_mm: 1{'0' * 400}", "grid.resolution_mm 10+.* is above 100"),
        ("card.yaml", "resolution_mm: 2.0", f"resolution_mm: -1{'0' * 400}", "resolution_mm -10+.* is not above 0"),
        ("card.yaml", "resolution_mm: 2.0", f"resolution_mm: 1{'0' * 5000}", "not a usable model card"),
        ("card.yaml", "name: compact2mm", "name: 2026-13-45", "not a usable model card"),
        ("card.yaml", "name: compact2mm", f"name: {'[' * 5000}", "not a usable model card"),
        ("card.yaml", "name: compact2mm", BOMB, r"name \[\[.* is not text"),
        ("labels.tsv", "#f5f5f5", "white", "color: each must be a colour such as #0099ff"),
        ("labels.tsv", "1\t2\tleft", "1\t99999999999\tleft", "not a usable label table"),
        ("labels.tsv", "left cerebral cortex", "left\x1b[2J cortex", "a name holds what cannot be printed"),
        ("labels.tsv", "left cerebral cortex", "x" * 200000, "not a usable label table"),
        ("labels.tsv", "flip_channel", "flip", "not a usable label table"),
        ("labels.tsv", "1\t2\tleft", "1\t3\tleft", "occurs twice"),
        ("labels.tsv", "1\t2\tleft", "7\t2\tleft", "must count from 0"),
        ("labels.tsv", "left\t18\t", "left\t19\t", "flipping twice"),
    ],
)  # fmt: skip
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


def test_what_yaml_repeats_by_reference_is_not_written_out(folder):
    edit(folder / "card.yaml", "name: compact2mm", BOMB.replace("name: *a29", "name: compact2mm"))
    edit(folder / "card.yaml", "inputs: [image]", "inputs: *a29")
    with pytest.raises(SynthSegError, match=r"inputs \[\[.*: give .image."):
        cards.load(folder)


def test_a_pipe_in_place_of_a_label_table_is_not_waited_for(folder):
    (folder / "labels.tsv").unlink()
    os.mkfifo(folder / "labels.tsv")
    with pytest.raises(SynthSegError, match=r"labels\.tsv: No file"):
        cards.load(folder)


def test_another_network_does_not_pass_for_an_official_one(root, tmp_path):
    """A copy of its folder does: its weights are held against the same hash."""
    copy = tmp_path / "mine"
    shutil.copytree(root / "models/synthseg2", copy)
    assert cards.load(copy).name == "synthseg2"
    edit(copy / "card.yaml", "sha256: f190", "sha256: 0190")
    with pytest.raises(SynthSegError, match=r"card\.yaml: .*synthseg2 is the name of another network: choose"):
        cards.load(copy)


def test_a_card_of_many_networks_is_refused(folder):
    card = yaml.safe_load((folder / "card.yaml").read_text())
    card["networks"] *= 3
    (folder / "card.yaml").write_text(yaml.safe_dump(card))
    with pytest.raises(SynthSegError, match=r"card\.yaml: .* 3 networks: list one"):
        cards.load(folder)


def test_what_a_network_is_computed_from(root, folder):
    """Title, addresses, accuracy and memory do not count; what decides about numbers does, and is JSON."""
    found = cards.load(folder).computed_from()
    assert found == json.loads(json.dumps(found))
    assert found == {
        "networks": [
            {
                "name": "segmentation",
                "layers": {
                    "levels": 4,
                    "features": 16,
                    "convolutions_per_level": 2,
                    "kernel": 3,
                    "activation": "elu",
                },
                "inputs": ["image"],
                "grid": {"resolution_mm": 2.0, "pad_multiple": 16, "min_size": 64},
                "outputs": {
                    "channels": 32,
                    "table": "labels.tsv",
                    "end": "softmax",
                    "smoothing_sigma": 0.5,
                    "threshold": 0.25,
                },
            }
        ]
    }
    for old, new in (("title: Small", "title: Smaller"), ("memory_mb: 3000", "memory_mb: 1"), ("0.829", "0.9")):
        edit(folder / "card.yaml", old, new)
    assert cards.load(folder).computed_from() == found
    edit(folder / "card.yaml", "threshold: 0.25", "threshold: 0.3")
    assert cards.load(folder).computed_from() != found


def test_the_network_of_a_card_is_typed(root):
    model = cards.load(root / "models" / "synthseg1")
    assert model.network is model.networks[0] and model.weights is model.network.weights
    assert model.weights.file == "synthseg_1.0.h5" and len(model.weights.urls) == 2
    assert model.labels_file == root / "models" / "synthseg1" / "labels.tsv"
    assert [layer.name for layer in model.network.table()][:2] == ["image", "unet_conv_downarm_0_0"]
    compact = cards.load(root / "models" / "compact2mm").weights
    assert (compact.urls, compact.git_blob, compact.size) == ((), None, 5919960)
