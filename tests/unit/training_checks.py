"""Checks of the training code, one function each; run by test_training.py in an interpreter that has PyTorch.

python training_checks.py FOLDER [NAME ...]    runs them (all without a name), each in a folder of its own below FOLDER,
                                               and prints one JSON object: name -> null, or the traceback
"""

import contextlib
import copy
import json
import sys
import traceback
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
MODEL = ROOT / "models" / "compact2mm"

STILL = {"rotation_deg": 0, "scaling": 0, "size": 0, "shear": 0, "shift_mm": 0, "offset_mm": [0, 0, 0]}
STILL |= {"elastic_mm": 0, "elastic_wide_mm": 0}


def config():
    import yaml

    return yaml.safe_load((ROOT / "training" / "compact2mm.yaml").read_text())


def tiny():
    """A configuration that trains in seconds: 3 levels of 4 features, 24 voxels, plain images."""
    found = config()
    found["model"], found["network"] = MODEL, {"levels": 3, "features": 4}
    found |= {"device": "cpu", "threads": 1, "precision": "float32"}
    found["training"] |= {"iterations": 60, "warm_up": 2, "learning_rate": 5e-3, "free_moments": 8}
    found["training"] |= {"sizes": [[[24, 24, 24], 1]], "validate_every": 30, "save_every": 1000}
    found["generation"] |= {"contrasts": {"t1": 1}, "contrast_jitter": 0.2, "stripped": 0, "invert": 0, "noise": 1}
    found["validation"] |= {"size": [24, 24, 24], "seeds": 1}
    return found


def still():
    """Settings of the generator that change no shape."""
    found = config()["generation"]
    found["deformation"], found["flip"], found["cut"] = STILL, 0, {"chance": 0, "share": 0}
    return found


def phantom(number=1, n=64):
    """A head of nested balls in n voxels of 1 mm: skin, bone, fluid, cortex, white matter, four structures a side."""
    from training import maps

    x, y, z = np.meshgrid(*[(np.arange(n) + 0.5 - n / 2) / (n / 2)] * 3, indexing="ij")

    def inside(radius, at=(0, 0, 0)):
        return (abs(x) - at[0]) ** 2 + (y - at[1]) ** 2 + (z - at[2] - 0.02 * number) ** 2 < radius**2

    labels = np.zeros((n, n, n), dtype=int)
    for radius, label in [(0.95, 511), (0.88, 515), (0.8, 24), (0.75, 3), (0.6, 2)]:
        labels[inside(radius)] = label
    for radius, at, label in [
        (0.15, (0.2, 0.25, 0), 4),
        (0.16, (0.3, -0.1, 0.1), 12),
        (0.14, (0.15, -0.3, 0), 10),
        (0.13, (0.35, 0, -0.3), 17),
        (0.2, (0, -0.2, -0.45), 16),
    ]:
        labels[inside(radius, at)] = label
    mirrored = dict(maps.PAIRS)
    right = labels[n // 2 :]
    labels[n // 2 :] = np.vectorize(lambda label: mirrored.get(label, label))(right)
    classes = np.searchsorted(maps.LABELS, labels).astype(np.uint8)
    return maps.LabelMap(number, classes, np.full(3, (n - 1) / 2))


def channels():
    from training import maps

    from synthseg_native.networks.cards import read_labels

    return maps.channel_of(read_labels(MODEL / "labels.tsv").index)


# The generator -------------------------------------------------------------------------------------------------------


def check_every_label_finds_its_channel(folder):
    from training import maps

    from synthseg_native.networks.cards import read_labels

    labels = read_labels(MODEL / "labels.tsv")
    found = dict(zip(maps.LABELS.tolist(), channels().tolist(), strict=True))
    assert [found[int(value)] for value in labels.index] == list(range(32))
    # The mirrored class has the mirrored channel, for lesions and plexus too.
    assert np.array_equal(channels()[maps.MIRROR], labels.flip[channels()])
    assert found[25] == found[2] and found[164] == found[44] and found[24] == found[30] == found[515] == 0
    assert set(maps.LABELS[np.flatnonzero(maps.MIRROR - np.arange(len(maps.LABELS)))]) == {
        v for pair in maps.PAIRS for v in pair
    }


def check_no_deformation_gives_the_map_itself(folder):
    from training.generate import generate

    head = phantom()
    sample = generate(head, channels(), (64, 64, 64), 5, still(), resolution=1.0)
    assert np.array_equal(sample.target.numpy(), channels()[head.classes])
    assert sample.image.min() >= 0 and sample.image.max() <= 1 and sample.image.std() > 0.05


def check_flip_mirrors_and_swaps_sides(folder):
    from training.generate import generate

    from synthseg_native.networks.cards import read_labels

    flip = read_labels(MODEL / "labels.tsv").flip
    head = phantom()
    head.classes[:20] = 0  # so that the sides differ
    plain, flipped = (
        generate(head, channels(), (64, 64, 64), 5, still() | {"flip": chance}, resolution=1.0).target.numpy()
        for chance in (0, 1)
    )
    assert np.array_equal(flipped, flip[plain[::-1]])
    assert not np.array_equal(plain, flipped) and not np.array_equal(plain, plain[::-1])


def check_deformation_moves_but_invents_nothing(folder):
    from training.generate import generate

    head, settings = phantom(), config()["generation"] | {"cut": {"chance": 0, "share": 0}, "flip": 0}
    settings["deformation"] = settings["deformation"] | {"shift_mm": 0, "offset_mm": [0, 0, 0]}
    plain = channels()[head.classes]
    before = np.bincount(plain.ravel(), minlength=32)
    seen = set()
    for seed in range(2):
        target = generate(head, channels(), (80, 80, 80), seed, settings, resolution=1.0).target.numpy()
        after = np.bincount(target.ravel(), minlength=32)
        assert not np.any(after[before == 0]) and np.all(after[before > 0] > 0)
        assert np.all(after[1:][before[1:] > 0] < 3 * before[1:][before[1:] > 0])
        assert np.mean(target[8:-8, 8:-8, 8:-8] != plain) > 0.02
        seen.add(target.tobytes())
    assert len(seen) == 2


def check_the_target_is_the_most_frequent_label(folder):
    import torch
    from training.generate import _majority

    labels = np.random.default_rng(1).integers(0, 4, (6, 8, 4)).astype(np.uint8)
    labels[:2, :2] = 3
    found = _majority(torch.from_numpy(labels), 2, 4).numpy()
    for x, y, z in np.ndindex(found.shape):
        block = labels[2 * x : 2 * x + 2, 2 * y : 2 * y + 2, 2 * z : 2 * z + 2]
        assert found[x, y, z] == np.bincount(block.ravel(), minlength=4).argmax()


def check_thick_slices(folder):
    from training.generate import acquisition_matrix

    from synthseg_native.scan import grid as image

    thick, fine = acquisition_matrix(40, 2.0, 8.0, 3.4), acquisition_matrix(40, 2.0, 1.0, 0.1)
    for matrix in (thick, fine):
        assert matrix.shape == (40, 80) and np.allclose(matrix.sum(axis=1), 1)
        ramp = matrix @ (np.arange(80) + 0.5)  # positions stay where they are
        assert np.allclose(ramp[6:-6], 2 * (np.arange(40) + 0.5)[6:-6], atol=0.05)
    assert np.linalg.matrix_rank(thick) == 10 and np.linalg.matrix_rank(fine) > 30
    detail = np.sin(np.arange(80) * 2 * np.pi / 8)
    assert abs(thick @ detail).max() < 0.3 < 0.6 < abs(fine @ detail).max()
    # An isotropic scan is resampled as the engine does it.
    scan = np.random.default_rng(2).standard_normal(80).cumsum()
    by_engine, _ = image.resample(np.broadcast_to(scan[:, None, None], (80, 2, 2)), np.eye(4), 2.0)
    assert np.abs(fine @ scan - by_engine[:, 0, 0])[2:-2].max() < 0.15 * scan.std()


def check_field_of_view(folder):
    from training.generate import generate

    head = phantom()
    cut = 0
    for seed in range(6):
        settings = still() | {"cut": {"chance": 0.7, "share": 0.4}}
        sample = generate(head, channels(), (32, 32, 32), seed, settings)
        outside = np.ones((32, 32, 32), dtype=bool)
        outside[sample.box] = False
        assert not sample.image.numpy()[outside].any() and not sample.target.numpy()[outside].any()
        assert sample.target[sample.box].any() and float(sample.image[sample.box].max()) == 1
        cut += outside.any()
    assert cut > 3


def check_same_seed_same_sample(folder):
    import torch
    from training.generate import generate

    head, settings = phantom(), config()["generation"]
    a, b, other = (generate(head, channels(), (32, 32, 32), seed, settings) for seed in ([1, 2], [1, 2], [1, 3]))
    assert torch.equal(a.image, b.image) and torch.equal(a.target, b.target)
    assert not torch.equal(a.image, other.image)


def check_skull_stripping_and_contrast(folder):
    from training import maps
    from training.contrast import means
    from training.generate import generate

    head = phantom()
    settings = still() | {"stripped": 1, "noise": 0, "bias": 0, "contrasts": {"t1": 1}, "invert": 0}
    settings["acquisition"] = settings["acquisition"] | {"thick": 0, "fine": 1, "blur_mm": [0, 0]}
    sample = generate(head, channels(), (32, 32, 32), 3, settings)
    bone = (maps.LABELS[head.classes] == 515).reshape(32, 2, 32, 2, 32, 2).all(axis=(1, 3, 5))
    assert sample.image.numpy()[bone].mean() < 0.03 < 0.3 < sample.image.numpy()[sample.target.numpy() == 1].mean()
    rng = np.random.default_rng(0)
    for kind in ("t1", "t2", "flair", "pd", "tissue", "random"):
        found = means(kind, rng)
        assert np.array_equal(found, found[maps.MIRROR]) and found.min() >= 0 and found.max() <= 255
    white, grey, fluid = means("t1", rng, 0)[np.searchsorted(maps.LABELS, [2, 3, 4])]
    assert white > grey > fluid
    white, grey, fluid = means("t2", rng, 0)[np.searchsorted(maps.LABELS, [2, 3, 4])]
    assert white < grey < fluid


# The network and its loss --------------------------------------------------------------------------------------------


def _random_network():
    import torch
    from training.network import Network, Norm

    torch.manual_seed(3)
    network = Network(levels=3, features=4, labels=5)
    for layer in network.layers.values():
        if isinstance(layer, Norm):
            layer.gamma.data.uniform_(0.5, 2)
            layer.beta.data.normal_()
            layer.moving_mean.normal_()
            layer.moving_variance.uniform_(0.5, 2)
        else:
            layer.bias.data.normal_(0, 0.1)
    return network


def check_export_gives_the_same_numbers(folder):
    import torch
    from training.network import Network, write_weights

    from synthseg_native.networks import layers as engine
    from synthseg_native.verification.probes import FORMULAS

    network = _random_network()
    write_weights(folder / "weights.h5", network.weights())
    table = engine.layer_table(levels=3, features=4, labels=5)
    weights = engine.read_weights(folder / "weights.h5", table)
    volume = np.random.default_rng(4).random((16, 12, 8), dtype=np.float32)
    expected = FORMULAS["network"](table, weights, volume, smoothing=0)
    with torch.no_grad():
        found = network(torch.from_numpy(volume)[None, None]).softmax(dim=1)[0].movedim(0, -1).numpy()
    assert expected.std() > 0.05 and np.abs(found - expected).max() < 1e-5

    again = Network(levels=3, features=4, labels=5)
    again.read(folder / "weights.h5")
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in network.state_dict().items())
    assert [p.name for p in folder.iterdir()] == ["weights.h5"]


def check_moments(folder):
    import torch
    from training.network import Norm

    x = torch.randn(1, 3, 4, 5, 6, generator=torch.Generator().manual_seed(1)) * 3 + 1
    norm = Norm(3)
    norm.free = True
    y = norm(x)
    assert torch.allclose(y.mean(dim=(0, 2, 3, 4)), torch.zeros(3), atol=1e-5)
    values = x[0].flatten(1).numpy()
    assert np.allclose(norm.moving_mean, 0.01 * values.mean(axis=1), atol=1e-6)
    assert np.allclose(norm.moving_variance, 0.99 + 0.01 * values.var(axis=1), atol=1e-6)  # biased, as Keras' is
    norm.free, before = False, norm.moving_mean.clone()
    norm(x)
    assert torch.equal(norm.moving_mean, before)


def check_loss_and_its_gradient(folder):
    import torch
    from training.loss import dice, loss

    rng = torch.Generator().manual_seed(2)
    logits = torch.randn(1, 4, 3, 4, 5, generator=rng, requires_grad=True)
    target = torch.randint(0, 3, (1, 3, 4, 5), generator=rng)  # channel 3 is not there
    weight = torch.tensor([0.2, 1.0, 2.0, 3.0])
    found = loss(logits, target, weight)
    (gradient,) = torch.autograd.grad(found, logits)

    p = logits.softmax(dim=1)
    one_hot = torch.nn.functional.one_hot(target, 4).movedim(-1, 1)
    overlap = (p * one_hot).sum(dim=(0, 2, 3, 4)) / (p + one_hot).sum(dim=(0, 2, 3, 4))
    expected = torch.nn.functional.cross_entropy(logits, target, weight) + 1 - 2 * overlap[:3].mean()
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(gradient, expected_gradient, atol=1e-6) and gradient.abs().max() > 1e-3

    assert np.allclose(dice(target, target, 4)[:3], 1) and np.isnan(dice(target, target, 4)[3])
    a, b = torch.tensor([1, 1, 2, 0]), torch.tensor([1, 2, 2, 0])
    assert np.allclose(dice(a, b, 3), [1, 2 / 3, 2 / 3])


# Training ------------------------------------------------------------------------------------------------------------


def _trainer(settings=None):
    from training.train import Trainer

    return Trainer(settings or tiny(), [phantom(1, 48), phantom(2, 48)], [phantom(3, 48)])


def check_loss_falls_and_moments_freeze(folder):
    trainer = _trainer()
    before = trainer.validate()["t1"]
    losses = [trainer.step() for _ in range(60)]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:10]), losses
    moments = trainer.network.state_dict()["layers.unet_bn_down_0.moving_mean"].clone()
    assert moments.abs().max() > 0
    trainer.step()
    assert bool((trainer.network.state_dict()["layers.unet_bn_down_0.moving_mean"] == moments).all())
    assert trainer.validate()["t1"] > before + 0.008


def check_resuming_is_as_not_stopping(folder):
    import torch

    settings = tiny()
    settings["training"]["batch"] = 2
    straight = _trainer(settings)
    straight.run(folder / "a", 12)
    _trainer(settings).run(folder / "b", 7)
    assert sorted(p.name for p in (folder / "b").iterdir()) == ["checkpoint.pt", "curve.tsv"]
    resumed = _trainer(settings)
    resumed.resume(folder / "b" / "checkpoint.pt")
    assert resumed.iteration == 7
    resumed.run(folder / "b", 5)
    for mine, other in (
        (straight.network.state_dict(), resumed.network.state_dict()),
        (straight.average, resumed.average),
    ):
        assert all(torch.equal(value, other[key]) for key, value in mine.items())
    rows = [line.split("\t") for line in (folder / "b" / "curve.tsv").read_text().splitlines()]
    assert [row[0] for row in rows] == ["iteration", "7", "12"] and len({len(row) for row in rows}) == 1
    assert all(0 <= float(value) <= 1 for row in rows[1:] for value in row[4:])


def check_improving_given_weights(folder):
    """A model folder is exported, trained further from its weights, and its loss falls; it then runs in the engine."""
    import yaml
    from training.export import export

    from synthseg_native.errors import SynthSegError
    from synthseg_native.networks import cards, weights

    first = _trainer()
    first.run(folder / "first", 20)
    made = export(folder / "first" / "checkpoint.pt", tiny(), folder / "model")
    found = cards.load(made)
    assert weights.resolve(found.weights, found.name, made) == made / "compact2mm.h5"
    assert found.network.layers["levels"] == 3 and found.card["trained"]["iterations"] == 20
    assert found.card["trained"]["held_out"] == [19, 20] and "accuracy" not in found.card

    second = _trainer()
    second.start_from(made / "compact2mm.h5")
    moments = copy.deepcopy(second.network.state_dict()["layers.unet_bn_up_0.moving_mean"])
    losses = [second.step() for _ in range(30)]
    assert np.mean(losses[-8:]) < 0.9 * np.mean(losses[:8]), losses
    assert bool((second.network.state_dict()["layers.unet_bn_up_0.moving_mean"] == moments).all())

    (folder / "broken.pt").write_bytes(b"no checkpoint")
    for path in (folder / "broken.pt", folder / "none.pt"):
        try:
            export(path, tiny(), folder / "other")
        except SynthSegError as error:
            assert str(path) in error.message and len(error.message.splitlines()) == 1
        else:
            raise AssertionError(path)
    assert not (folder / "other").exists()
    assert yaml.safe_load((made / "card.yaml").read_text())["research_grade"] is False


def check_evaluation(folder):
    """Scans are rendered, segmented by the command and compared: an untrained network is bad, in every structure."""
    from training import evaluate
    from training.export import export

    settings = tiny()
    settings["evaluation"] = {"slice_mm": [1, 5], "contrasts": {"t1": 1}}
    _trainer(settings).run(folder / "out", 2)
    made = export(folder / "out" / "checkpoint.pt", settings, folder / "model")
    rows = evaluate.evaluate(made, settings, [phantom(3)], table=folder / "table.tsv", say=lambda line: None)
    assert {(row["contrast"], row["slice_mm"]) for row in rows} == {("t1", 1), ("t1", 5)} and len(rows) == 2 * 32
    evaluate.write_to_card(made, rows)
    import yaml

    card = yaml.safe_load((made / "card.yaml").read_text())
    assert set(card["accuracy"]["t1"]) == {"1mm", "5mm"} and 0 <= card["accuracy"]["t1"]["1mm"] < 0.5
    assert len((folder / "table.tsv").read_text().splitlines()) == 1 + len(rows)

    from training.export import MEASURED, note_agreement

    note_agreement(made, {"template: grey matter": 0.91234, "scan: noisy": 0.5})
    card = yaml.safe_load((made / "card.yaml").read_text())
    assert card["agreement"] == {"template": {"grey matter": 0.912}, "scan": {"noisy": 0.5}}
    assert set(MEASURED) <= set(card)
    settings["model"] = made  # other weights have other figures
    again = yaml.safe_load((export(folder / "out" / "checkpoint.pt", settings, folder / "n") / "card.yaml").read_text())
    assert not set(MEASURED) & set(again)


def check_rendered_scans_lie_on_the_reference(folder):
    """Perfect labels have Dice 1 on the engine's grid: voxels of scan, label map and reference coincide."""
    from training import maps
    from training.command import dice
    from training.generate import render

    from synthseg_native.scan import grid as image

    head, settings = phantom(n=70), config()["validation"]["generation"] | {"noise": 0, "bias": 0, "sd": [0, 0]}
    settings |= {"texture_outside": 0, "contrast_jitter": 0}
    for slice_mm in (1, 2, 5):
        scan, target = render(head, channels(), "t1", slice_mm, 1, settings)
        assert scan.shape == (80, 80, 80 // slice_mm)
        data, affine = image.resample(scan.astype(float), np.diag([1.0, 1, slice_mm, 1]), 2.0)
        assert data.shape == target.shape and np.allclose(np.diag(affine)[:3], 2)
        shifts = {d: np.corrcoef(np.roll(target == 1, d, 2).ravel(), data.ravel())[0, 1] for d in (-1, 0, 1)}
        assert max(shifts, key=shifts.get) == 0
    values = np.concatenate([[0], maps.LABELS[np.unique(channels(), return_index=True)[1][1:]]])
    assert np.nanmin(dice(values[target], target, values[1:], range(1, len(values)))) == 1
    wrong = dice(np.where(values[target] == 2, 0, values[target]), target, values[1:], range(1, len(values)))
    assert wrong[0] == 0 and np.nanmean(wrong) < 1


def check_views_of_a_scan_come_back(folder):
    """Label maps that are right for every view agree with the scan's; one that is not says so."""
    import nibabel as nib
    from training import look

    from synthseg_native.networks.cards import read_labels

    table = read_labels(MODEL / "labels.tsv")
    head = phantom(n=48)
    channel = channels()[head.classes][:, 2:-1, 1:]  # no two sizes alike
    affine = np.array([[0, 0, -1.0, 20], [-1, 0, 0, 30], [0, 1, 0, -25], [0, 0, 0, 1]])  # PSL
    look.NOISE = 0
    seen = {"scan": nib.Nifti1Image(10 * channel.astype(np.float32), affine)}
    seen |= look.views(seen["scan"])
    assert nib.aff2axcodes(seen["turned"].affine) == ("S", "L", "P")
    labels = {}
    for name, image in seen.items():
        found = np.round(image.get_fdata() / 10).astype(int)
        if name == "mirrored":  # left is right there
            found = np.asarray(table.flip)[found]
        labels[name] = nib.Nifti1Image(np.asarray(table.index)[found].astype(np.int16), image.affine)
    measures = look.against_itself(labels, table)
    assert all(measures[f"scan: {name}"] == 1 for name in ("noisy", "re-oriented and noisy", "mirrored")), measures
    labels["mirrored"] = nib.Nifti1Image(np.asarray(labels["scan"].dataobj)[::-1], affine)
    assert look.against_itself(labels, table)["scan: mirrored"] < 0.7

    # Between neighbours of nested shells the interpolation of a tilt finds no third label.
    x, y, z = np.meshgrid(*[np.arange(n) - n / 2 for n in channel.shape], indexing="ij")
    shells = sum(((x - 6) ** 2 + y**2 + (1.5 * z) ** 2 < radius**2).astype(np.float32) for radius in (18, 12, 6))
    seen = {"scan": nib.Nifti1Image(shells, affine)}
    seen |= look.views(seen["scan"])
    found = {name: np.array([0, 14, 15, 16], np.int16)[np.round(i.get_fdata()).astype(int)] for name, i in seen.items()}
    labels = {name: nib.Nifti1Image(found[name], image.affine) for name, image in seen.items()}
    assert 0.9 < look.against_itself(labels, table)["scan: tilted"] < 1
    labels["tilted"] = labels["scan"]
    assert look.against_itself(labels, table)["scan: tilted"] < 0.9


def run(name, folder):
    folder.mkdir()
    try:
        globals()[name](folder)
    except Exception:
        return traceback.format_exc()


if __name__ == "__main__":
    # What a check prints goes to stderr; the answer alone to stdout.
    with contextlib.redirect_stdout(sys.stderr):
        names = sys.argv[2:] or [name for name in globals() if name.startswith("check_")]
        found = {name: run(name, Path(sys.argv[1]) / name) for name in names}
    print(json.dumps(found))
