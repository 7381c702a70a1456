"""Cards and label tables of every shipped model, against the specification's sections 1, 8 and 9."""

import csv
import hashlib
import re
from pathlib import Path

import pytest
import yaml

from synthseg_native.networks import cards, layers, weights

MODELS = Path(__file__).resolve().parents[2] / "models"
NAMES = sorted(path.parent.name for path in MODELS.glob("*/card.yaml"))
# Structures that are cut to one connected component together (label values); the rest of 1..23 are alone.
COMMON = [{2, 3, 4, 5}, {7, 8}, {41, 42, 43, 44}, {46, 47}]
MIDLINE = {14, 15, 16}
TESTED = ("compact2mm", "golden2")  # small networks of this project, for tests and trials
WITH_CSF = ("golden2", "synthseg2")
QC_GROUPS = {
    1: {2, 41, 11, 50, 26, 58, 28, 60},
    2: {3, 42},
    3: {4, 5, 14, 15, 43, 44},
    4: {7, 8, 46, 47},
    5: {16},
    6: {10, 49},
    7: {12, 13, 51, 52},
    8: {17, 18, 53, 54},
}


def load(name):
    card = yaml.safe_load((MODELS / name / "card.yaml").read_text())
    with (MODELS / name / "labels.tsv").open(newline="") as stream:
        rows = list(csv.DictReader(stream, delimiter="\t"))
    return card, rows


def network_of(card):
    """The one that segments, which stands first."""
    network = card["networks"][0]
    assert network["name"] == "segmentation"
    return network


def test_the_shipped_models():
    assert NAMES == ["compact2mm", "golden2", "synthseg1", "synthseg2"]


@pytest.mark.parametrize("name", NAMES)
def test_labels(name):
    card, rows = load(name)
    assert [int(row["channel"]) for row in rows] == list(range(network_of(card)["outputs"]["channels"]))
    values = [int(row["index"]) for row in rows]
    assert values == sorted(set(values)) and values[0] == 0
    assert (24 in values) == (name in WITH_CSF)
    assert len({row["name"] for row in rows}) == len({row["freesurfer_name"] for row in rows}) == len(rows)
    assert all(re.fullmatch("#[0-9a-f]{6}", row["color"]) for row in rows)


@pytest.mark.parametrize("name", NAMES)
def test_flip_is_an_involution_that_changes_sides(name):
    _, rows = load(name)
    other_side = {"left": "right", "right": "left", "none": "none"}
    for channel, row in enumerate(rows):
        flipped = rows[int(row["flip_channel"])]
        assert int(flipped["flip_channel"]) == channel
        assert flipped["hemisphere"] == other_side[row["hemisphere"]]
        if row["hemisphere"] == "none":
            assert flipped is row
            assert not row["name"].startswith(("left", "right"))
        else:
            side, structure = row["name"].split(" ", 1)
            assert side == row["hemisphere"]
            assert flipped["name"] == f"{other_side[side]} {structure}"
            assert row["freesurfer_name"].lower().startswith(side)
    sides = [row["hemisphere"] for row in rows]
    assert sides.count("left") == sides.count("right") == 14


@pytest.mark.parametrize("name", NAMES)
def test_topology_classes(name):
    _, rows = load(name)
    classes = {}
    for row in rows:
        classes.setdefault(int(row["topology_class"]), set()).add(int(row["index"]))
    assert classes.pop(0) == ({0, 24} if name in WITH_CSF else {0})
    assert sorted(classes) == list(range(1, 24))
    assert [members for members in classes.values() if len(members) > 1] == COMMON
    assert {next(iter(classes[k])) for k in (1, 2, 3)} == MIDLINE
    flip = {int(row["index"]): int(rows[int(row["flip_channel"])]["index"]) for row in rows}
    for number in range(4, 14):
        assert {flip[value] for value in classes[number]} == classes[number + 10]


@pytest.mark.parametrize("name", NAMES)
def test_qc_groups(name):
    _, rows = load(name)
    groups = {}
    for row in rows:
        groups.setdefault(int(row["qc_group"]), set()).add(int(row["index"]))
    assert groups.pop(0) == ({0, 24} if name in WITH_CSF else {0})
    assert groups == QC_GROUPS


@pytest.mark.parametrize("name", NAMES)
def test_card(name):
    card, _ = load(name)
    assert card["name"] == name
    assert card["research_grade"] is (name not in TESTED)
    network = network_of(card)
    assert set(network["layers"]) == {"levels", "features", "convolutions_per_level", "kernel", "activation"}
    # A grid of a multiple of 2^(levels - 1) can be halved on every level.
    assert network["grid"]["pad_multiple"] % 2 ** (network["layers"]["levels"] - 1) == 0
    assert network["grid"]["min_size"] % network["grid"]["pad_multiple"] == 0
    assert network["inputs"] == ["image"]
    outputs = network["outputs"]
    assert (outputs["smoothing_sigma"], outputs["threshold"], outputs["end"]) == (0.5, 0.25, "softmax")
    assert re.fullmatch("[0-9a-f]{64}", network["weights"]["sha256"])


@pytest.mark.parametrize("name", TESTED)
def test_the_small_models_are_whole(name):
    for network in cards.load(MODELS / name).networks.values():
        assert weights.mismatch(network.folder / network.weights.file, network.weights) is None


# Of SynthSeg 2.0 in full: network, parameters of the official one, size of its file, what each file holds.
FULL = {
    "segmentation": (13242849, "synthseg_2.0.h5"),
    "groups": (13242149, "synthseg_robust_2.0.h5"),
    "denoised": (27086501, "synthseg_robust_2.0.h5"),
    "robust": (13246089, "synthseg_robust_2.0.h5"),
    "parcellation": (13245045, "synthseg_parc_2.0.h5"),
    "quality": (12450663, "synthseg_qc_2.0.h5"),
}


def test_the_networks_of_synthseg_2_have_the_parameters_of_the_official_files():
    model = cards.load(MODELS / "synthseg2")
    assert list(model.networks) == list(FULL)
    files = {}
    for name, (count, file) in FULL.items():
        network = model.networks[name]
        assert (layers.count_parameters(network.table()), network.weights.file) == (count, file)
        total, _ = files.get(file, (0, 0))
        files[file] = total + count, network.weights.size
    assert all(0 < size - 4 * count < 310_000 for count, size in files.values())
    assert (model.networks["robust"].outputs.smoothing_sigma, model.networks["quality"].grid.box) == (0, 224)
    # The three of robust mode lie in one file, fetched once: they must say the same of it.
    assert len({network.weights for name, network in model.networks.items() if name in cards.ROBUST}) == 1


@pytest.mark.parametrize("name", WITH_CSF)
def test_parcels_and_scores_are_the_specifications(name):
    """Channel c is 1000 + its place in FreeSurfer's atlas, which leaves out 1004; on the right 1000 more."""
    model = cards.load(MODELS / name)
    places = [1, 2, 3, *range(5, 36)]
    assert model.parcels.index.tolist() == [0, *(1000 + n for n in places), *(2000 + n for n in places)]
    assert (model.parcels.names[1], model.parcels.names[34], model.parcels.names[35], model.parcels.names[68]) == (
        "ctx-lh-bankssts", "ctx-lh-insula", "ctx-rh-bankssts", "ctx-rh-insula",
    )  # fmt: skip
    assert model.parcels.hemispheres == ["none", *["left"] * 34, *["right"] * 34]
    assert model.parcels.colors[1] == model.parcels.colors[35] == "#196428"
    assert all(
        name[4] == side[0] for name, side in zip(model.parcels.names[1:], model.parcels.hemispheres[1:], strict=True)
    )
    assert model.scores[1:] == (
        "general white matter", "general grey matter", "general csf", "cerebellum", "brainstem", "thalamus",
        "putamen+pallidum", "hippocampus+amygdala",
    )  # fmt: skip


@pytest.mark.parametrize(("name", "companion"), [("synthseg1", "synthseg2"), ("compact2mm", "golden2")])
def test_models_of_synthseg_1_take_parcels_and_scores_from_synthseg_2(name, companion):
    model, other = cards.load(MODELS / name), cards.load(MODELS / companion)
    assert list(model.networks) == ["segmentation", "parcellation", "quality"]
    for role in cards.COMPANIONS:
        assert model.networks[role] == other.networks[role] and model.networks[role].folder == other.folder
    assert (model.parcels.names, model.scores, len(model.labels)) == (other.parcels.names, other.scores, 32)


def parameters(card):
    """Number of weights in a network of the card's shape: convolutions with bias, four vectors per normalisation."""
    network = network_of(card)["layers"]
    levels, kernel = network["levels"], network["kernel"] ** 3
    width = [network["features"] * 2**level for level in range(levels)]
    total, channels = 0, 1

    def level(inputs, outputs):
        convolutions = [inputs] + [outputs] * (network["convolutions_per_level"] - 1)
        return sum(kernel * n * outputs + outputs for n in convolutions) + 4 * outputs

    for outputs in width:
        total += level(channels, outputs)
        channels = outputs
    for outputs in reversed(width[:-1]):
        total += level(channels + outputs, outputs)
        channels = outputs
    return total + (channels + 1) * network_of(card)["outputs"]["channels"]


@pytest.mark.parametrize(("name", "count"), [("synthseg1", 13242824), ("synthseg2", 13242849)])
def test_official_cards(name, count):
    card, _ = load(name)
    assert parameters(card) == count
    # Float32 weights and little else: the size on the card fits the network on the card.
    network, file = network_of(card), network_of(card)["weights"]
    assert 0 < file["size"] - 4 * count < 310_000
    assert network["grid"] == {"resolution_mm": 1.0, "pad_multiple": 32, "min_size": 128}
    assert len(set(file["urls"])) == (2 if name == "synthseg1" else 4)
    assert all(url.startswith("https://") for url in file["urls"])
    assert ("git_blob" in file) == (name == "synthseg1")


def test_the_annex_address_is_the_one_of_the_hash():
    """git-annex files a key under the first six hex digits of its MD5."""
    for network in load("synthseg2")[0]["networks"]:
        file = network["weights"]
        key = f"SHA256E-s{file['size']}--{file['sha256']}.0.h5"
        digest = hashlib.md5(key.encode()).hexdigest()
        assert file["urls"][0].endswith(f"/annex/objects/{digest[:3]}/{digest[3:6]}/{key}/{key}")
