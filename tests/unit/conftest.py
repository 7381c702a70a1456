"""Fixtures of the tests that run the command without a network."""

import shutil
from types import SimpleNamespace

import nibabel as nib
import pytest
from stand_in import Brightness, Whole, affine, head

from synthseg_native import engines, memory
from synthseg_native.networks import layers


@pytest.fixture
def stand_in(monkeypatch):
    calls = []

    def build(table, weights, **options):
        calls.append(options)
        return Brightness()

    monkeypatch.setattr(engines, "load", lambda *_: SimpleNamespace(build=build, check=lambda table: None))
    monkeypatch.setattr(Brightness, "passes", 0)
    monkeypatch.setattr(Brightness, "shapes", ())
    monkeypatch.setattr(memory, "own_peak_mib", lambda: None)  # the tests' own, which nobody predicted
    return calls


@pytest.fixture
def whole_stand_in(monkeypatch):
    """For a model of several networks, whose weights nobody reads."""
    load = SimpleNamespace(build=lambda table, weights, **options: Whole(table), check=lambda table: None)
    monkeypatch.setattr(engines, "load", lambda *_: load)
    monkeypatch.setattr(layers, "read_weights", lambda *_: {})
    monkeypatch.setattr(Whole, "passes", 0)
    monkeypatch.setattr(Whole, "shapes", ())
    monkeypatch.setattr(Whole, "built", ())
    monkeypatch.setattr(memory, "own_peak_mib", lambda: None)


@pytest.fixture
def scan(tmp_path):
    nib.save(nib.Nifti1Image(head(), affine()), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def smaller(root, tmp_path_factory, name, size, *changes):
    """A model's folder on a grid of so many voxels, not 64: these scans would be a twentieth of that."""
    folder = tmp_path_factory.mktemp("models") / name
    shutil.copytree(root / "models" / name, folder)
    card = (folder / "card.yaml").read_text()
    for old, new in (("min_size: 64", f"min_size: {size}"), *changes):
        assert old in card
        card = card.replace(old, new)
    (folder / "card.yaml").write_text(card)
    return folder


@pytest.fixture(scope="session")
def small_model(root, tmp_path_factory):
    """compact2mm, and no companion: that one's grid is another."""
    return smaller(root, tmp_path_factory, "compact2mm", 32, ("companions: golden2", "# no companions"))


@pytest.fixture(scope="session")
def whole_model(root, tmp_path_factory):
    """golden2, which has all that SynthSeg 2.0 has."""
    return smaller(root, tmp_path_factory, "golden2", 16)
