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

NAMES = ["compact2mm", "golden2", "synthseg1", "synthseg2"]
SMALL, WITH_CSF = ("compact2mm", "golden2"), ("golden2", "synthseg2")
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
    assert n == (33 if name in WITH_CSF else 32)
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
    assert labels.has_total_intracranial == (name in WITH_CSF)


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
    assert settings.research_grade is (name not in SMALL)
    assert settings.resolution == (2.0 if name in SMALL else 1.0)
    assert settings.memory_mb == (3000 if name in SMALL else 20000)


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
        ("card.yaml", "networks:", "networks: []\nold:", "no network is named segmentation: name the one that gives"),
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


def test_a_copy_of_an_official_model_s_earlier_card_passes(root, tmp_path):
    """It has the segmentation alone."""
    copy = tmp_path / "mine"
    shutil.copytree(root / "models/synthseg2", copy)
    card = yaml.safe_load((copy / "card.yaml").read_text())
    card["networks"] = card["networks"][:1]
    (copy / "card.yaml").write_text(yaml.safe_dump(card))
    assert list(cards.load(copy).networks) == ["segmentation"]


def test_a_network_that_occurs_twice_is_refused(folder):
    card = yaml.safe_load((folder / "card.yaml").read_text())
    card["networks"] *= 3
    (folder / "card.yaml").write_text(yaml.safe_dump(card))
    with pytest.raises(SynthSegError, match=r"card\.yaml: .* networks\[1\].name segmentation occurs twice"):
        cards.load(folder)


# Several networks, and those of another model ------------------------------------------------------------------------


@pytest.fixture
def whole(root, tmp_path):
    """golden2's card and tables, for edits."""
    folder = tmp_path / "whole"
    folder.mkdir()
    for file in ("card.yaml", "labels.tsv", "parcels.tsv", "scores.tsv"):
        shutil.copy(root / "models" / "golden2" / file, folder)
    return folder


def without(card, *names):
    return card | {"networks": [network for network in card["networks"] if network["name"] not in names]}


def of(name, part, **values):
    """A change of one network of a card."""

    def change(card):
        (network,) = (network for network in card["networks"] if network["name"] == name)
        network[part] = network.get(part, {}) | values
        return card

    return change


def again(name):
    return lambda card: card | {"networks": [*card["networks"], *(n for n in card["networks"] if n["name"] == name)]}


def with_inputs(name, *inputs):
    def change(card):
        (network,) = (network for network in card["networks"] if network["name"] == name)
        network["inputs"] = list(inputs)
        return card

    return change


def last_first(card):
    return card | {"networks": [*card["networks"][:1], *reversed(card["networks"][1:])]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda card: without(card, "groups"), r"networks\[1\].inputs groups: put the network that it reads above it"),
        (lambda card: without(card, "denoised"), r"inputs image, denoised: put the network that it reads above it"),
        (lambda card: without(card, "robust"), "robust mode needs networks named groups, denoised and robust: add"),
        (lambda card: without(card, "denoised", "robust"), "robust mode needs networks named groups, denoised and"),
        (lambda card: without(card, "segmentation"), r"lacks the field networks\[0\].grid"),
        (again("quality"), r"networks\[6\].name quality occurs twice"),
        (last_first, r"networks\[3\].inputs image, denoised: put the network that it reads above it"),
        (with_inputs("groups", "image", "groups"), r"networks\[1\].inputs \['image', 'groups'\]: give \[image\]"),
        (with_inputs("denoised", "image"), r"inputs \['image'\]: give \[groups\]: .* no other for denoised"),
        (with_inputs("robust", "denoised", "image"), r"\['denoised', 'image'\]: give \[image, denoised\]"),
        (with_inputs("robust", "image", "groups"), r"\['image', 'groups'\]: give \[image, denoised\]"),
        (with_inputs("parcellation", "image"), r"\['image'\]: give \[image, cortex\]"),
        (with_inputs("quality", "cortex"), r"\['cortex'\]: give \[quality_groups\]"),
        (with_inputs("quality", ["quality_groups"], {}), r"\[\['quality_groups'\], {}\]: give \[quality_groups\]"),
        (with_inputs("quality"), r"inputs \[\]: give \[quality_groups\]"),
        (of("quality", "outputs", end="softmax"), "outputs.end softmax: give mean: quality is made of that"),
        (of("robust", "outputs", end="mean"), "outputs.end mean: give softmax: robust is made of that"),
        (of("quality", "grid", box=72), "quality: grid.box 72 is no multiple of 16"),
        (of("quality", "grid", box=0), "grid.box 0 is not 1 or more"),
        (of("quality", "grid", min_size=64), "grid.min_size is not known: the fields are resolution_mm, box"),
        (of("quality", "grid", resolution_mm=1.0), "quality and segmentation have other voxels: give both the same"),
        (of("robust", "grid", resolution_mm=2.0, pad_multiple=32, min_size=64), "robust has another grid than segm"),
        (of("denoised", "layers", levels=6), "denoised: grid.pad_multiple 16 is no multiple of 32"),
        (of("denoised", "layers", levels_without_skip=-1), "levels_without_skip -1 is not 0 or more"),
        (of("denoised", "layers", form="decoder"), "layers.form decoder is not known: use one of unet, encoder"),
        (of("denoised", "layers", prefix="a/b"), "layers.prefix a/b is not letters, digits and _ alone"),
        (of("robust", "outputs", table="parcels.tsv", channels=69), "robust and segmentation give other labels"),
        (of("parcellation", "outputs", table="labels.tsv"), "69 channels, but 33 rows in labels.tsv"),
        (of("parcellation", "outputs", table=None), r"lacks the field networks\[4\].outputs.table"),
        (of("quality", "outputs", channels=8), "8 channels, but 9 rows in scores.tsv"),
        (lambda card: card | {"companions": "nowhere9"}, "companions: nowhere9: no such model: give a folder"),
        (lambda card: card | {"companions": "../golden2"}, "companions ../golden2 is not letters and digits alone"),
        (lambda card: card | {"companions": ["golden2"]}, r"companions \['golden2'\] is not text"),
        (
            lambda card: without(card, "parcellation") | {"companions": "synthseg2"},
            "parcellation and segmentation have other voxels: leave companions out",
        ),
    ],
)
def test_networks_that_do_not_fit_together_are_refused(whole, change, words):
    card = change(yaml.safe_load((whole / "card.yaml").read_text()))
    (whole / "card.yaml").write_text(yaml.safe_dump(card, sort_keys=False))
    with pytest.raises(SynthSegError, match=words) as caught:
        cards.load(whole)
    assert caught.value.code == "usage" and "\n" not in caught.value.message
    assert caught.value.message.startswith(f"{whole / 'card.yaml'}: ")


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        (
            "labels.tsv",
            "left\t19\t4\t1\t",
            "left\t19\t4\t9\t",
            "labels.tsv has a qc_group beyond the quality network's",
        ),
        ("labels.tsv", "left\t19\t4\t1\t", "left\t19\t4\t-1\t", "labels.tsv: a qc_group is below 0"),
        ("labels.tsv", "left\t19\t4\t1\t", "left\t19\t4\tone\t", "labels.tsv: not a usable label table"),
        ("scores.tsv", "general csf", " ", "scores.tsv: a name is empty"),
        ("scores.tsv", "3\tgeneral csf", "4\tgeneral csf", "scores.tsv: channels must count from 0"),
        ("scores.tsv", "name", "title", "scores.tsv: not a usable label table"),
        ("parcels.tsv", "1\t1001\t", "1\t1002\t", "parcels.tsv: a label value occurs twice"),
    ],
)
def test_unusable_tables_of_further_networks_are_refused(whole, file, old, new, words):
    edit(whole / file, old, new)
    with pytest.raises(SynthSegError, match=words) as caught:
        cards.load(whole)
    assert caught.value.code == "usage" and "\n" not in caught.value.message
    assert caught.value.message.startswith(f"{whole}/")


def test_companions_lie_beside_the_card_where_no_model_is_shipped(root, tmp_path, monkeypatch):
    """As in the copy of the code that a cluster's jobs run, wherever they stand."""
    monkeypatch.setattr(cards, "SHIPPED", tmp_path / "models")
    monkeypatch.chdir(tmp_path)
    found = cards.load(root / "models" / "compact2mm").networks
    assert found["parcellation"].folder == root / "models" / "golden2"


def test_networks_of_a_companion_are_those_that_a_card_lacks(whole, folder):
    edit(folder / "card.yaml", "companions: golden2", "companions: whole")
    card = without(yaml.safe_load((whole / "card.yaml").read_text()), "quality")
    (whole / "card.yaml").write_text(yaml.safe_dump(card | {"name": "whole"}, sort_keys=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SYNTHSEG_NATIVE_MODELS", str(folder))
        model = cards.load(folder)
    assert list(model.networks) == ["segmentation", "parcellation"]  # neither robust mode's, nor one that is nowhere
    assert model.networks["parcellation"].folder == whole and model.network.folder == folder
    assert (len(model.parcels), model.scores) == (69, ())
    assert [network.name for network in model.needed(parcellation=True)] == ["segmentation", "parcellation"]
    for asked, what in (({"scores": True}, "quality scores"), ({"robust": True}, "robust mode")):
        with pytest.raises(SynthSegError, match=f"^compact2mm: its card has no network for {what}: leave that out"):
            model.needed(**asked)


def test_companions_of_a_companion_do_not_count(root, whole, folder, monkeypatch):
    """Nor does it go round in circles where two cards name each other, or one itself."""
    monkeypatch.setenv("SYNTHSEG_NATIVE_MODELS", str(folder))
    card = without(yaml.safe_load((whole / "card.yaml").read_text()), "quality")
    edit(folder / "card.yaml", "companions: golden2", "companions: whole")
    shutil.copytree(folder, folder / "first", ignore=shutil.ignore_patterns("whole"))
    for name in ("first", "whole", "golden2"):
        (whole / "card.yaml").write_text(yaml.safe_dump(card | {"companions": name}, sort_keys=False))
        assert list(cards.load("first").networks) == ["segmentation", "parcellation"]
    networks = cards.load(whole).networks  # of golden2 is what it lacks, and nothing else
    assert (networks["parcellation"].folder, networks["quality"].folder) == (whole, root / "models" / "golden2")


def test_the_networks_of_a_run_are_in_the_order_in_which_they_run(root):
    model = cards.load(root / "models" / "golden2")
    everything = model.needed(robust=True, parcellation=True, scores=True)
    assert [network.name for network in everything] == ["groups", "denoised", "robust", "parcellation", "quality"]
    assert [network.name for network in model.needed()] == ["segmentation"]
    inputs = {network.name: network.inputs for network in everything}
    assert inputs == {
        "groups": {"image": 1},
        "denoised": {"groups": 5},
        "robust": {"image": 1, "denoised": 5},
        "parcellation": {"image": 1, "cortex": 2},
        "quality": {"quality_groups": 9},
    }


def test_the_table_of_a_map_with_parcels_has_both(root):
    model = cards.load(root / "models" / "compact2mm")
    both = cards.with_parcels(model.labels, model.parcels)
    assert len(both) == 32 + 68 and len(set(both.index.tolist())) == 100
    assert [both.names[c] for c in (0, 31, 32, 99)] == [
        "background", "right ventral DC", "ctx-lh-bankssts", "ctx-rh-insula",
    ]  # fmt: skip
    np.testing.assert_array_equal(both.flip[both.flip], np.arange(100))
    assert both.names[both.flip[32]] == "ctx-rh-bankssts"
    assert cards.with_parcels(model.labels, None) is model.labels


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
                    "form": "unet",
                    "prefix": "unet",
                    "levels_without_skip": 0,
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
    assert model.network is model.networks["segmentation"] and model.weights is model.network.weights
    assert model.weights.file == "synthseg_1.0.h5" and len(model.weights.urls) == 2
    assert model.labels_file == root / "models" / "synthseg1" / "labels.tsv"
    assert [layer.name for layer in model.network.table()][:2] == ["image", "unet_conv_downarm_0_0"]
    compact = cards.load(root / "models" / "compact2mm").weights
    assert (compact.urls, compact.git_blob, compact.size) == ((), None, 5919960)
