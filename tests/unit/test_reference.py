"""The reference stands alone, and the layers of the package keep to their side."""

import ast
import sys

import numpy as np
import pytest

from synthseg_native import reference

ALLOWED = {"numpy", "scipy", "nibabel", "h5py", "yaml", "tensorflow"}


def imports(path):
    """(level, module, at_top) of every import in a file, also inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                yield 0, name.name, node in tree.body
        elif isinstance(node, ast.ImportFrom):
            if node.module is None:
                for name in node.names:
                    yield node.level, name.name, node in tree.body
            else:
                yield node.level, node.module, node in tree.body


@pytest.fixture
def package(root):
    return root / "src" / "synthseg_native"


def test_reference_imports_nothing_of_the_package(package):
    found = list(imports(package / "reference.py"))
    assert len(found) > 5
    for level, module, _ in found:
        top = module.split(".")[0]
        assert level == 0
        assert top in ALLOWED or top in sys.stdlib_module_names


def test_engine_never_imports_the_cohort(package):
    files = [path for path in package.rglob("*.py") if "cohort" not in path.parts]
    assert len(files) > 10
    for path in files:
        for _, module, _ in imports(path):
            assert "cohort" not in module.split("."), f"{path.name} imports {module}"


def test_only_the_tensorflow_engine_and_the_reference_import_tensorflow_and_only_when_they_run(package):
    where = set()
    for path in package.rglob("*.py"):
        for level, module, at_top in imports(path):
            if level == 0 and module.split(".")[0] in ("tensorflow", "keras"):
                assert not at_top, f"{path.name} imports {module} before it is needed"
                where.add(path.name)
    assert {"reference.py", "tensorflow.py"} <= where
    assert all(name in ("reference.py", "tensorflow.py") or name.startswith("verify") for name in where)


def test_crop_boxes():
    assert reference.crop_box((99, 117, 95), (64, 80, 48)) == (slice(17, 81), slice(18, 98), slice(23, 71))
    assert reference.crop_box((50, 117, 95), (64, 80, 96)) == (slice(0, 50), slice(18, 98), slice(0, 95))


def test_fast_mode_crops_first_and_uses_a_threshold_on_every_voxel():
    posteriors = np.zeros((6, 4, 4, 3), np.float32)
    posteriors[..., 0] = 1
    posteriors[0:2] = [0.1, 0.9, 0]  # the larger part lies in the padding
    posteriors[3] = [0.5, 0.3, 0.2]
    posteriors[4] = [0.5, 0.15, 0.35]
    box = (slice(3, 6), slice(0, 4), slice(0, 4))
    result = reference.postprocess(posteriors, box, np.array([0, 1, 2]), 0.25, fast=True)
    assert result.shape == (3, 4, 4, 3)
    np.testing.assert_allclose(result[0, 0, 0], [0.625, 0.375, 0])  # 0.2 itself does not pass
    np.testing.assert_allclose(result[1, 0, 0], [0.5 / 0.85, 0, 0.35 / 0.85], rtol=1e-6)
