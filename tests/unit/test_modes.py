"""Which posteriors are taken for what, in every combination of --fast, --robust, --parc and --qc.

The networks are fields of numbers with marks in them, at which one sees whether they were smoothed, or averaged.
"""

import numpy as np
import pytest
import yaml

from synthseg_native.engines.capabilities import Capabilities
from synthseg_native.networks import cards
from synthseg_native.pipeline import core, modes

# SynthSeg's table, in its own words: flags; P returned, P for the cortex map, Q returned, P for `qc`.
TABLE = """
default              | averaged | -        | -        | -
default + parc       | averaged | averaged | smoothed | -
default + qc         | averaged | -        | -        | averaged
default + parc + qc  | averaged | averaged | raw      | averaged
fast                 | smoothed | -        | -        | -
fast + parc          | raw      | smoothed | smoothed | -
fast + qc            | raw      | -        | -        | smoothed
fast + parc + qc     | raw      | smoothed | raw      | raw
robust               | raw      | -        | -        | -
robust + parc        | raw      | raw      | smoothed | -
robust + qc          | raw      | -        | -        | raw
robust + parc + qc   | raw      | raw      | raw      | raw
"""
ROWS = [[cell.strip() for cell in line.split("|")] for line in TABLE.strip().splitlines()]
SHAPE = (32, 16, 16)  # what the networks see; the left side of the head first
BACKGROUND, WHITE, CORTEX, HIPPOCAMPUS = 0, 1, 2, 14  # channels, of the left side
# A voxel that smoothing takes away; one whose mirror image speaks against it; cortex in any case, with a voxel of
# another parcel in it, which smoothing takes away; and a part that is no part of the brain.
SINGLE, ONE_SIDED, SURE, ISLAND = (8, 3, 4), (9, 6, 6), (8, 11, 6), (1, 7, 7)


def mirrored(part):
    return (slice(SHAPE[0] - part[0].stop, SHAPE[0] - part[0].start), *part[1:])


def head(flip):
    """Posteriors (X, Y, Z, 33) that are the same for every image, mirrored or not."""
    found = np.zeros((*SHAPE, 33), np.float32)
    found[..., BACKGROUND] = 1

    def put(part, channel, share=1.0, both=True):
        for side, of_side in ((part, channel), (mirrored(part), flip[channel]))[: 1 + both]:
            found[side] = 0
            found[(*side, of_side)] = share
            found[(*side, flip[WHITE] if of_side == flip[channel] and both else WHITE)] += 1 - share

    put((slice(4, 16), slice(2, 14), slice(2, 14)), WHITE)
    put(tuple(slice(n, n + 1) for n in SINGLE), CORTEX, 0.6, both=False)
    put((slice(8, 11), slice(5, 8), slice(5, 8)), CORTEX, 0.55, both=False)
    put((slice(6, 11), slice(10, 13), slice(4, 9)), CORTEX)
    put((slice(0, 3), slice(6, 9), slice(6, 9)), HIPPOCAMPUS)
    return found


class Field:
    """An engine whose network gives the same whatever it sees, and which keeps what that is."""

    can = Capabilities(smooths=False)

    def __init__(self, values):
        self.values, self.seen = values, []

    def release(self):
        pass

    def run(self, inputs):
        self.seen.append({name: np.array(array) for name, array in inputs.items()})
        for x in range(0, len(self.values), 7):
            yield x, self.values[x : x + 7]


@pytest.fixture(scope="module")
def model(root, tmp_path_factory):
    """golden2 on a grid of 16 voxels."""
    folder = tmp_path_factory.mktemp("model")
    card = yaml.safe_load((root / "models" / "golden2" / "card.yaml").read_text())
    card["networks"][0]["grid"]["min_size"], card["networks"][5]["grid"]["box"] = 16, 32
    (folder / "card.yaml").write_text(yaml.safe_dump(card, sort_keys=False))
    for name in ("labels", "parcels", "scores"):
        (folder / f"{name}.tsv").write_bytes((root / "models" / "golden2" / f"{name}.tsv").read_bytes())
    return cards.load(folder)


@pytest.fixture
def engines(model):
    """By role. The denoiser finds group 3 where the groups' network finds group 2."""
    segmented = head(model.labels.flip)
    groups, parcels = np.zeros((*SHAPE, 5), np.float32), np.zeros((*SHAPE, 69), np.float32)
    groups[..., 0] = 0.4
    groups[4:28, 2:14, 2:14, 2] = 0.6
    parcels[..., 0], parcels[..., 1] = 0.7, 0.3  # background is likelier everywhere
    parcels[SURE] = 0
    parcels[(*SURE, 40)] = 0.3  # of the other side
    return {
        "segmentation": Field(segmented),
        "groups": Field(groups),
        "denoised": Field(groups[..., [0, 1, 3, 2, 4]]),
        "robust": Field(segmented),
        "parcellation": Field(parcels),
        "quality": Field(np.float32([0.5, -0.2, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1.7]).reshape(1, 1, 1, 9)),
    }


def taken(there):
    """Which posteriors have cortex `there`, a function of a voxel."""
    assert there(SURE)
    return {(True, True): "raw", (False, True): "smoothed", (False, False): "averaged"}[there(SINGLE), there(ONE_SIDED)]


@pytest.mark.parametrize(("flags", "labels", "cortex", "parcels", "scores"), ROWS, ids=[row[0] for row in ROWS])
def test_every_row_of_the_table_is_what_is_done(model, engines, flags, labels, cortex, parcels, scores):
    mode, *asked = flags.split(" + ")
    options = core.Options(
        fast=mode == "fast",
        robust=mode == "robust",
        parcellation="parc" in asked,
        scores="qc" in asked,
        posteriors=False,
    )
    row = modes.MODES[options.mode, options.parcellation, options.scores]
    written = [None if cell == "-" else cell for cell in (labels, cortex, parcels, scores)]
    assert [row.labels, row.cortex, row.parcels, row.scores] == written

    image = np.random.default_rng(1).random(SHAPE)
    given = core.image_of(image, np.diag([2.0, 2, 2, 1]))
    result = core.segment(given, model, lambda network: engines[network.name], options)
    of_cortex = (3, *range(1001, 2036))
    assert taken(lambda voxel: result.labels[voxel] in of_cortex) == labels
    assert result.labels[ISLAND] == 0

    passes = {name: len(engine.seen) for name, engine in engines.items()}
    expected = dict.fromkeys(passes, 0)
    expected |= {"groups": 1, "denoised": 1, "robust": 1} if mode == "robust" else {}
    expected |= {"segmentation": 2 if mode == "default" else 1} if mode != "robust" else {}
    assert passes == expected | {"parcellation": "parc" in asked, "quality": "qc" in asked}

    first = engines["groups" if mode == "robust" else "segmentation"].seen[0]["image"]
    assert np.any(first != first[::-1])
    if parcels != "-":
        (seen,) = engines["parcellation"].seen
        np.testing.assert_array_equal(seen["image"], first)  # never its mirror image
        assert list(seen) == ["image", "cortex"] and set(np.unique(seen["cortex"])) == {0, 1}
        assert taken(lambda voxel: seen["cortex"][voxel]) == cortex
        assert seen["cortex"][mirrored(tuple(slice(n, n + 1) for n in SURE))].all()  # label 42 is cortex too
        assert {2007: "raw", 1001: "smoothed"}[int(result.labels[SURE])] == parcels
        assert 3 not in result.labels and 42 not in result.labels
    if scores != "-":
        (seen,) = engines["quality"].seen
        at = lambda voxel: (voxel[0], voxel[1] + 8, voxel[2] + 8)  # noqa: E731 (the box is around all but background)
        assert list(seen) == ["quality_groups"] and seen["quality_groups"].shape == (32, 32, 32)
        assert taken(lambda voxel: seen["quality_groups"][at(voxel)] == 2) == scores
        assert seen["quality_groups"][at(ISLAND)] == 8, "scores are of what is there before parts are dropped"
        np.testing.assert_allclose(result.scores, [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 1])
    assert (result.parcels is None, result.scores is None) == (parcels == "-", scores == "-")
    if mode == "robust":
        groups, denoised = np.zeros((2, *SHAPE))
        groups[4:28, 2:14, 2:14], denoised[4:28, 2:14, 2:14] = 2, 3
        (seen,), (last,) = engines["denoised"].seen, engines["robust"].seen
        assert (list(seen), list(last)) == (["groups"], ["image", "denoised"])  # the denoiser sees no image
        np.testing.assert_array_equal(seen["groups"], groups)
        np.testing.assert_array_equal(last["denoised"], denoised)
        np.testing.assert_array_equal(last["image"], first)


def test_robust_mode_is_fast_in_any_case():
    assert modes.name_of(fast=True, robust=True) == modes.name_of(fast=False, robust=True) == "robust"


def test_the_stages_of_further_networks_are_told_in_their_order(model, engines):
    told = []
    options = core.Options(robust=True, parcellation=True, scores=True, own_grid=True)
    image = core.image_of(np.random.default_rng(1).random(SHAPE), np.diag([2.0, 2, 2, 1]))
    core.segment(image, model, lambda network: engines[network.name], options, on_stage=lambda *one: told.append(one))
    assert tuple(dict.fromkeys(stage for stage, _ in told)) == core.STAGES
    shares = [share for stage, share in told if stage == "network"]
    assert shares == sorted(shares) and (shares[0], shares[-1]) == (0.0, 1.0)


def test_on_the_own_grid_are_parcels_too(model, engines):
    """Of voxels as large as the network's the two maps are the same."""
    image = core.image_of(np.random.default_rng(1).random(SHAPE), np.diag([-2.0, 2, 2, 1]))
    options = core.Options(fast=True, parcellation=True, own_grid=True)
    result = core.segment(image, model, lambda network: engines[network.name], options)
    np.testing.assert_array_equal(result.own.labels, result.labels)
    assert 1001 in result.own.labels and result.own.missing == []
