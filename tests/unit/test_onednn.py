"""TensorFlow's oneDNN kernels are asked for before it is imported, by whoever imports it, on every processor."""

import os
import sys

import nibabel as nib
import numpy as np
import pytest

from synthseg_native import reference
from synthseg_native.engines import tensorflow as engine
from synthseg_native.networks.layers import layer_table
from synthseg_native.results import record
from synthseg_native.verification import tensorflow as verification

ASKED = "TF_ENABLE_ONEDNN_OPTS"


@pytest.fixture
def seen(tmp_path, monkeypatch):
    """What the variable is when TensorFlow, a stand-in that goes no further, is imported; the user says 0 before."""
    (tmp_path / "tensorflow.py").write_text(f"import os; raise SystemExit('oneDNN ' + os.environ[{ASKED!r}])")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorflow", raising=False)

    def by(call):
        monkeypatch.setenv(ASKED, "0")
        with pytest.raises(SystemExit) as caught:
            call()
        return str(caught.value)

    return by


def test_the_engine_asks_for_it(seen):
    assert seen(lambda: engine.build(layer_table(levels=2, features=2, labels=2), {})) == "oneDNN 1"


def test_the_verification_sees_what_the_engine_runs_with(seen):
    assert seen(lambda: verification.start("cpu")) == "oneDNN 1"


def test_the_reference_asks_for_it(seen, root, tmp_path, monkeypatch):
    values = np.random.default_rng(0).normal(size=(8, 8, 8))
    nib.save(nib.Nifti1Image(values, np.diag([2.0, 2.0, 2.0, 1.0])), tmp_path / "a.nii")
    words = ["--i", str(tmp_path / "a.nii"), "--o", str(tmp_path / "b.nii"), "--model", str(root / "models/compact2mm")]
    monkeypatch.setattr(sys, "argv", ["reference.py", *words])
    assert seen(reference.main) == "oneDNN 1"


def test_the_reference_s_container_says_so(root):
    assert f"ENV {ASKED}=1" in (root / "envs/reference/Dockerfile").read_text().splitlines()


def test_a_record_has_a_place_for_it():
    assert record.new("native", [])["engine"]["onednn"] is None


def test_a_tensorflow_that_does_not_say_is_unknown(seen, tmp_path, monkeypatch):
    (tmp_path / "tensorflow.py").write_text("")
    assert engine.has_onednn() is None
    assert ASKED not in os.environ or os.environ[ASKED] != "1"
