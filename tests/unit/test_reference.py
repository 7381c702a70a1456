"""The reference stands alone, and the layers of the package keep to their side."""

import ast
import shutil
import sys
from math import prod
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

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


def test_a_voxel_without_any_posterior_is_background_and_adds_to_no_volume():
    posteriors = np.zeros((2, 1, 1, 3), np.float32)
    posteriors[0] = [0, 0.19, 0.15]  # nothing passes, and the background has underflowed
    posteriors[1] = [0, 0.9, 0]
    result = reference.postprocess(posteriors, (slice(None),) * 3, np.array([0, 1, 2]), 0.25, fast=True)
    assert result[:, 0, 0].tolist() == [[0, 0, 0], [0, 1, 0]]
    assert reference.soft_sums(result).tolist() == [0, 1, 0]


def test_the_cube_of_the_quality_network(root):
    with np.load(root / "tests" / "golden" / "v2" / "boxes.npz") as golden:
        names = golden["names"].tolist()
        assert len(names) == 13
        for k, name in enumerate(names):
            found = reference.quality_box(golden[f"map_{k}"], int(golden[f"edge_{k}"]))
            np.testing.assert_array_equal(found, golden[f"box_{k}"], err_msg=name)


def test_parcels_take_the_place_of_the_cortex_and_nothing_else():
    values = np.array([0, 1001, 2001])
    labels = np.array([3, 42, 42, 2, 0, 3], np.int32).reshape(6, 1, 1)
    posteriors = np.zeros((6, 1, 1, 3), np.float32)
    posteriors[:, 0, 0] = [[0.9, 0.06, 0.04], [0, 0.5, 0.5], [0.2, 0.6, 0.2], [0.5, 0.25, 0.25], [1, 0, 0], [1, 0, 0]]
    before = posteriors.copy()
    found, normalised = reference.label_parcels(labels, posteriors, values)
    np.testing.assert_array_equal(posteriors, before)
    # Background wins in no cortex, the first one on a tie, a left parcel in the right hemisphere; and in the last voxel
    # no parcel is left at all.
    assert found.ravel().tolist() == [1001, 1001, 1001, 2, 0, 0]
    np.testing.assert_allclose(normalised[0, 0, 0], [0, 0.6, 0.4], rtol=1e-6)
    np.testing.assert_allclose(normalised[3, 0, 0], np.array([1, 0.25, 0.25]) / 1.5, rtol=1e-6)  # counts, outside too
    assert normalised[5].tolist() == [[[0, 0, 0]]]
    assert np.isfinite(reference.soft_sums(normalised)).all()


def test_parcels_without_any_posterior_have_no_volume():
    structures = {2: 5.0, 41: 6.0, 3: 7.0, 42: 8.0}
    for form in reference.VOLUMES:
        assert reference.scale_parcels(np.zeros(2), ["left", "right"], structures, form).tolist() == [0, 0]
    left_only = reference.scale_parcels(np.array([2.0, 0]), ["left", "right"], structures)
    assert left_only.tolist() == [7, 0]
    # SynthSeg 1.0 takes both cortices; 2.0, which knows the fluid, the white matter.
    for more, total in (({}, 15), ({24: 1.0}, 11)):
        found = reference.scale_parcels(
            np.array([1.0, 3]), ["left", "right"], {**structures, **more}, "upstream-66342c1"
        )
        assert found.tolist() == [total / 4, total * 3 / 4]


def test_networks_of_companions(root, tmp_path):
    for name, companions in (("synthseg1", "synthseg2"), ("compact2mm", "golden2")):
        found = reference.load_network(root / "models" / name, "parcellation")
        assert found["folder"] == root / "models" / companions
        assert len(found["rows"]) == found["outputs"]["channels"] == 69
        assert reference.load_network(root / "models" / name, "segmentation")["folder"] == root / "models" / name
        with pytest.raises(ValueError, match=r"card.yaml: has no network robust: take a model that has"):
            reference.load_network(root / "models" / name, "robust")
    # They are not needed as long as nobody asks for them.
    shutil.copytree(root / "models" / "synthseg1", tmp_path / "alone")
    assert reference.load_network(tmp_path / "alone", "segmentation")["outputs"]["channels"] == 32
    with pytest.raises(FileNotFoundError, match="synthseg2"):
        reference.load_network(tmp_path / "alone", "quality")
    card = yaml.safe_load((tmp_path / "alone" / "card.yaml").read_text())
    del card["companions"]
    (tmp_path / "alone" / "card.yaml").write_text(yaml.safe_dump(card))
    with pytest.raises(ValueError, match="has no network quality"):
        reference.load_network(tmp_path / "alone", "quality")


class Layers:
    """The layers of Keras that reference.py takes, as names and shapes alone: TensorFlow takes seconds for them.

    made : shapes of the weights, by the name of the layer
    """

    def __init__(self):
        self.made = {}

    def _made(self, name, channels, weights=()):
        assert name not in self.made
        self.made[name] = list(weights)
        return SimpleNamespace(shape=(None, None, None, None, channels))

    def Input(self, shape, name):
        return self._made(name, shape[-1])

    def Conv3D(self, channels, size, padding, activation, name):
        assert padding == "same"
        return lambda x: self._made(name, channels, [(size, size, size, x.shape[-1], channels), (channels,)])

    def BatchNormalization(self, fused, name):
        assert not fused
        return lambda x: self._made(name, x.shape[-1], [x.shape[-1:]] * 4)

    def Concatenate(self, name):
        return lambda several: self._made(name, sum(x.shape[-1] for x in several))

    def Add(self, name):
        def add(several):
            (channels,) = {x.shape[-1] for x in several}
            return self._made(name, channels)

        return add

    def __getattr__(self, kind):
        assert kind in ("Activation", "MaxPooling3D", "UpSampling3D", "Softmax", "GlobalAveragePooling3D")
        return lambda *_, name, **__: lambda x: self._made(name, x.shape[-1])


@pytest.fixture
def official(root, monkeypatch):
    """A function: layers of a network of the official models, as names and shapes."""

    def build(model, role, inputs):
        layers = Layers()
        keras = SimpleNamespace(Model=lambda image, x: layers.made, layers=layers)
        monkeypatch.setitem(sys.modules, "tensorflow", SimpleNamespace(keras=keras))
        monkeypatch.setitem(sys.modules, "tensorflow.keras", keras)
        network = reference.load_network(root / "models" / model, role)
        outputs = network["outputs"]
        return reference.build_network(network["layers"], inputs, outputs["channels"], outputs["end"])

    return build


def weighted(layers):
    return {name for name, weights in layers.items() if weights}


@pytest.mark.parametrize(
    ("model", "role", "inputs", "prefix", "parameters"),
    [
        ("synthseg1", "segmentation", 1, "unet", 13_242_824),
        ("synthseg2", "segmentation", 1, "unet", 13_242_849),
        ("synthseg2", "groups", 1, "unet", 13_242_149),
        ("synthseg2", "denoised", 5, "l2l", 27_086_501),
        ("synthseg2", "robust", 6, "unet2", 13_246_089),
        ("synthseg2", "parcellation", 3, "unet_parc", 13_245_045),
    ],
)
def test_the_layers_of_official_u_nets(official, model, role, inputs, prefix, parameters):
    layers = official(model, role, inputs)
    assert sum(prod(shape) for weights in layers.values() for shape in weights) == parameters
    names = {f"conv_downarm_{level}_{i}" for level in range(5) for i in (0, 1)}
    names |= {f"conv_uparm_{number}_{i}" for number in (5, 6, 7, 8) for i in (0, 1)}
    names |= {f"bn_down_{level}" for level in range(5)} | {f"bn_up_{i}" for i in range(4)} | {"likelihood"}
    assert weighted(layers) == {f"{prefix}_{name}" for name in names}
    skips = (5, 6) if role == "denoised" else (5, 6, 7, 8)
    others = {"input", "prediction"} | {f"maxpool_{level}" for level in range(4)}
    others |= {f"up_{number}" for number in (5, 6, 7, 8)} | {f"merge_{number}" for number in skips}
    assert layers.keys() - weighted(layers) == {f"{prefix}_{name}" for name in others}
    size = 5 if role == "denoised" else 3
    features = 16 if role == "denoised" else 24
    assert layers[f"{prefix}_conv_downarm_0_0"][0] == (size, size, size, inputs, features)
    if role == "denoised":
        read = [layers[f"l2l_conv_uparm_{number}_0"][0][3:] for number in (5, 6, 7, 8)]
        assert read == [(384, 128), (192, 64), (64, 32), (32, 16)]


def test_the_layers_of_the_official_quality_network(official):
    layers = official("synthseg2", "quality", 9)
    assert sum(prod(shape) for weights in layers.values() for shape in weights) == 12_450_663
    parts = ("conv_downarm_{}_0", "conv_downarm_{}_1", "expand_down_merge_{}", "bn_down_{}")
    names = {part.format(level) for level in range(4) for part in parts} | {"final_conv_0", "final_conv_1"}
    assert weighted(layers) == {f"qc_{name}" for name in names}
    parts = ("res_down_merge_{}", "res_down_merge_act_{}", "maxpool_{}")
    others = {part.format(level) for level in range(4) for part in parts} | {"input", "final_pred"}
    assert layers.keys() - weighted(layers) == {f"qc_{name}" for name in others}
    assert layers["qc_final_conv_0"][0] == (5, 5, 5, 192, 9)


def test_the_posteriors_that_flags_take():
    """SynthSeg's rules, one by one."""
    assert len(reference.TAKEN) == 12
    for (mode, parc, qc), (labels, cortex, parcels, quality) in reference.TAKEN.items():
        smooth_ones = {"default": "averaged", "fast": "smoothed", "robust": "raw"}[mode]
        further = "raw" if mode == "fast" else smooth_ones  # --fast forgets to smooth what it returns with them
        assert labels == (further if parc or qc else smooth_ones)
        assert cortex == (smooth_ones if parc else None)
        assert parcels == (None if not parc else "raw" if qc else "smoothed")
        assert quality == (None if not qc else further if parc else smooth_ones)
