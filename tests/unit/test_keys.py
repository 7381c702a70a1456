"""Short hashes, settings as text, and what of a model is in them."""

import shutil

import pytest

from synthseg_native.identity import keys, stages
from synthseg_native.networks import cards


def test_parts_cannot_run_together():
    assert keys.digest("ab", "c") != keys.digest("a", "bc")


def test_settings_do_not_depend_on_order():
    assert keys.settings_json(a=1, b=None) == keys.settings_json(b=None, a=1)


WITH_ALL = {"robust": True, "parcellation": True, "scores": True}
RUNS = [{}, {"robust": True}, {"parcellation": True}, {"scores": True}, WITH_ALL]


@pytest.mark.parametrize(
    ("file", "old", "new", "counts_for"),
    [
        ("labels.tsv", "left\t19\t4\t1", "left\t19\t5\t1", RUNS),
        ("labels.tsv", "left\t19\t4\t1", "left\t19\t4\t2", [{"scores": True}, WITH_ALL]),  # its quality group
        ("parcels.tsv", "1\t1001\t", "1\t1004\t", [{"parcellation": True}, WITH_ALL]),
        ("card.yaml", "levels_without_skip: 2", "levels_without_skip: 1", [{"robust": True}, WITH_ALL]),
        ("card.yaml", "box: 80", "box: 96", [{"scores": True}, WITH_ALL]),
        ("labels.tsv", "#f5f5f5", "#000000", []),
        ("parcels.tsv", "#196428", "#000000", []),
        ("card.yaml", "title: Small", "title: Smaller", []),
    ],
)
def test_a_model_counts_by_the_networks_that_run(root, tmp_path, file, old, new, counts_for):
    folder = tmp_path / "golden2"
    shutil.copytree(root / "models" / "golden2", folder, ignore=shutil.ignore_patterns("*.h5"))
    before = cards.load(folder)
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1))
    after = cards.load(folder)
    digests = [[stages.model_digest(model, model.needed(**run)) for run in RUNS] for model in (before, after)]
    assert len(set(digests[0])) == len(RUNS)
    assert [run for run, old, new in zip(RUNS, *digests, strict=True) if old != new] == counts_for


def test_colours_of_parcels_count_where_they_are_shown(root, tmp_path):
    folder = tmp_path / "golden2"
    shutil.copytree(root / "models" / "golden2", folder, ignore=shutil.ignore_patterns("*.h5"))
    digests = []
    for color in ("#196428", "#000000"):
        text = (folder / "parcels.tsv").read_text().replace("#196428", color)
        (folder / "parcels.tsv").write_text(text)
        digests.append([stages.display_digest(cards.load(folder), parcels) for parcels in (False, True)])
    (plain, coloured), (same, other) = digests
    assert plain == same and len({plain, coloured, other}) == 3
