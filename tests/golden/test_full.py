"""SynthSeg's unmodified command at full size: 1 mm, 5 levels, 24 features. Needs SYNTHSEG_GOLDEN_FULL (README.md)."""

import os
import shutil
from pathlib import Path

import pytest
import yaml

FULL = os.environ.get("SYNTHSEG_GOLDEN_FULL")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FULL, reason="SYNTHSEG_GOLDEN_FULL is not set")]


@pytest.fixture(scope="module")
def model(root, tmp_path_factory):
    """The model folder of SynthSeg 1.0 with the stand-in weights."""
    folder = tmp_path_factory.mktemp("model")
    shutil.copy(root / "models" / "synthseg1" / "labels.tsv", folder)
    card = yaml.safe_load((root / "models" / "synthseg1" / "card.yaml").read_text())
    card.update(name="golden", research_grade=False, weights={"file": "weights.h5"})
    (folder / "card.yaml").write_text(yaml.safe_dump(card))
    (folder / "weights.h5").symlink_to(Path(FULL).resolve() / "weights.h5")
    return folder


def test_engine_equals_upstream_at_full_size(runs, check, model):
    folder = runs.engine("t1", model, "full")
    check(folder, "t1_", margin=folder / "margin.nii.gz", golden_folder=Path(FULL))


def test_reference_equals_upstream_at_full_size(runs, check, model):
    check(runs.reference("t1", "full", model=model), "t1_", golden_folder=Path(FULL))
