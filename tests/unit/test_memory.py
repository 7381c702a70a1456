"""The prediction of memory, what a machine has, and what is told where it is not enough."""

import dataclasses
import os
import sys

import nibabel as nib
import numpy as np
import pytest

from synthseg_native import engines, memory
from synthseg_native.cohort.tables import read_tsv
from synthseg_native.errors import SynthSegError
from synthseg_native.networks import cards as model
from synthseg_native.networks import layers
from synthseg_native.scan import grid, reading

SIZE = memory.Size((192, 256, 192), 192 * 256 * 192, features=24, labels=32)
CONTESTANTS = [("tensorflow", "float32"), ("llvm", "float32"), ("torch", "float32")]


@pytest.fixture(scope="module")
def cards(root):
    return {name: model.load(root / "models" / name).network for name in ("synthseg1", "compact2mm")}


def test_every_engine_and_the_reference_have_a_row():
    measured = {engine for engine, _, device in memory.TABLE if device == "cpu"}
    assert measured == {*engines.NAMES, memory.REFERENCE}
    assert all(min(dataclasses.astuple(row)) >= 0 for row in memory.TABLE.values())
    unmeasured = memory.coefficients("torch", "bf16", "gpu")
    assert unmeasured in memory.TABLE.values() and memory.coefficients("a new engine") in memory.TABLE.values()


@pytest.mark.parametrize(("engine", "precision"), [*CONTESTANTS, (memory.REFERENCE, "float32")])
def test_more_of_anything_never_takes_less(engine, precision):
    least = memory.predict(SIZE, engine, precision)
    for more in (
        {"padded": (256, 256, 256)},
        {"features": 32},
        {"labels": 40},
        {"voxels": 10 * SIZE.voxels},
        {"padded": (256, 256, 256), "labels": 40, "voxels": 10 * SIZE.voxels},
        {"bytes": 8},
        {"picture": True},
        {"post": True, "grid": 256**3},
        {"loaded": True},
    ):
        assert memory.predict(dataclasses.replace(SIZE, **more), engine, precision) >= least, more
    assert memory.predict(dataclasses.replace(SIZE, own_grid=False), engine, precision) <= least
    # One whole array of posteriors is always there.
    assert least > 4 * SIZE.labels * SIZE.voxels / 2**20


MIB = 2**20
BARE = memory.Coefficients(base=100, weights=0, network=0)  # an engine that takes nothing but its posteriors


def peak(c, size, **more):
    return memory.peak(c, dataclasses.replace(size, **more))


def test_the_prediction_is_that_of_the_formula():
    # 1 Mi voxels whose planes have 16 Ki: a float of each takes 4 MiB, of a plane's 1/16 MiB.
    size = memory.Size((64, 128, 128), MIB, features=1, labels=5, grid=MIB, own_grid=False)
    assert peak(BARE, size) == 100 + 4 * 5 + 16, "masks"
    assert peak(BARE, size, own_grid=True, voxels=3 * MIB) == 100 + 4 * 5 + 8 + 6 * 3
    assert peak(dataclasses.replace(BARE, weights=2), size, parameters=5 * MIB) == peak(BARE, size) + 4 * 2 * 5
    # Posteriors of a crop are put into a frame of the whole; a picture keeps the scan, and takes something itself.
    assert peak(BARE, size, grid=2 * MIB, voxels=2 * MIB, post=True) == 100 + 4 * 5 + 4 * 2 * 5
    assert peak(BARE, size, picture=True) == 100 + 2 + 8 + memory.PICTURE_MIB
    size = dataclasses.replace(size, features=10)
    assert peak(dataclasses.replace(BARE, network=2), size) == 100 + 4 * 5 + 4 + 4 * 2 * 10
    assert peak(dataclasses.replace(BARE, planes=64), size) == 100 + 4 * 5 + 4 + (64 * 10 + 22 * 5) / 16
    assert peak(dataclasses.replace(BARE, slabs=3), size) == 100 + 4 * 5 + 4 + 3 * 4 * 10
    assert peak(dataclasses.replace(BARE, slabs=3), size, labels=40) == 100 + 4 * 40 + 4 + 3 * 128
    assert peak(dataclasses.replace(BARE, posterior=7), size) == 100 + 4 * 5 + 4 * 10 + 7 * 4 * 5
    assert peak(dataclasses.replace(BARE, network=90), size, picture=True) == 100 + 4 * 5 + 4 + 4 * 90 * 10 + 2


def test_a_scan_is_read_before_the_engine_is_there_or_beside_it():
    size = memory.Size((64, 128, 128), 100 * MIB, features=1, labels=2, grid=100 * MIB, own_grid=False)
    start = memory.START_MIB
    assert peak(BARE, size) == start + 2 * 100 + 12 + 4, "cropped: what is scaled is no more than the network gets"
    assert peak(BARE, size, bytes=4, loaded=True) == 100 + 4 * 100 + 12 + 4
    # Resampled: two arrays of float64, then the one of the grid with what is scaled.
    assert peak(BARE, size, grid=MIB) == start + (2 + 8) * 100 + 8
    assert peak(BARE, size, grid=200 * MIB) == start + (2 + 8) * 100 + 8 * 200
    weighty = dataclasses.replace(BARE, weights=1)
    assert peak(weighty, size, parameters=MIB) + 20 + 4 == peak(weighty, size, parameters=MIB, loaded=True)


def test_a_picture_leaves_something_for_the_scans_after_it():
    size = memory.Size((64, 128, 128), MIB, features=1, labels=5, grid=MIB, own_grid=False, picture=True)
    assert peak(BARE, size, loaded=True) == peak(BARE, size) + memory.DRAWN_MIB


def test_a_slab_is_as_large_as_the_torch_engine_makes_it():
    from synthseg_native.engines import torch

    assert memory.SLAB == torch.SLAB_BYTES


@pytest.mark.parametrize(
    ("name", "shape", "voxel_mm", "crop", "expected"),
    [
        ("synthseg1", (181, 217, 181), (1, 1, 1), None, (192, 224, 192)),
        ("synthseg1", (181, 217, 181), (1.04, 0.96, 1), None, (192, 224, 192)),  # taken as they are
        ("synthseg1", (256, 256, 30), (0.5, 0.5, 5), None, (128, 128, 160)),
        ("synthseg1", (181, 217, 181), (1, 1, 1), (100, 160, 128), (128, 160, 128)),
        ("synthseg1", (60, 70, 80), (1, 1, 1), None, (128, 128, 128)),
        ("compact2mm", (197, 233, 189), (1, 1, 1), None, (112, 128, 96)),
    ],
)
def test_the_padded_shape_is_known_from_the_header(cards, name, shape, voxel_mm, crop, expected):
    assert memory.padded_shape(cards[name], shape, voxel_mm, crop) == expected
    assert all(n % 2 ** (cards[name].layers["levels"] - 1) == 0 for n in expected)


def test_the_padded_shape_is_the_one_of_the_pipeline(cards, tmp_path):
    """What image.prepare makes, for shapes, voxels and axes of all kinds."""
    rng = np.random.default_rng(3)
    network = cards["compact2mm"]
    for _ in range(12):
        shape, voxel_mm = rng.integers(20, 90, 3), rng.uniform(0.7, 4, 3).round(3)
        affine = np.diag([*voxel_mm, 1.0])[[*rng.permutation(3).tolist(), 3]]
        data = rng.integers(0, 99, shape, dtype=np.uint8)
        nib.save(nib.Nifti1Image(data, affine), tmp_path / "scan.nii")
        found = reading.read(tmp_path / "scan.nii", reading.ACCEPTABLE)
        gridded = grid.regrid(found, network.grid.resolution_mm)
        prepared = grid.prepare(
            gridded.data, gridded.affine, pad_multiple=16, min_size=64, ct=False, crop=None, autocrop=False
        )
        # In the order of the world's axes there, of the scan's here.
        assert sorted(memory.padded_shape(network, shape, voxel_mm)) == sorted(prepared.volume.shape)


def test_a_run_that_cannot_fit_names_what_would(cards):
    need = {key: memory.predict(SIZE, *key) for key in CONTESTANTS}
    limit = max(need[key] for key in need if key[0] == "llvm") + 10
    assert limit < need["tensorflow", "float32"]
    with pytest.raises(SynthSegError) as caught:
        memory.check("scan.nii", SIZE, "tensorflow", network=cards["synthseg1"], limit=limit)
    said = caught.value.message
    assert caught.value.code == "oom" and "\n" not in said
    assert said.startswith("scan.nii: would take ") and "--engine llvm (" in said
    assert "torch" not in said
    crop = int(said.partition("--crop ")[2].split()[0])
    fits, larger = (dataclasses.replace(SIZE, padded=(n,) * 3) for n in (crop, crop + 32))
    assert memory.predict(fits, "tensorflow") <= limit < memory.predict(larger, "tensorflow")


def test_where_nothing_fits_a_larger_machine_is_named(cards):
    with pytest.raises(SynthSegError, match=r"there are 0\.1 GB: what fits: a machine with more memory"):
        memory.check("scan.nii", SIZE, "llvm", network=cards["synthseg1"], limit=100)
    with pytest.raises(SynthSegError, match="what fits: --crop"):  # the reference has no other engine
        memory.check("scan.nii", SIZE, memory.REFERENCE, network=cards["synthseg1"], limit=4000)


def test_a_run_that_fits_gives_its_prediction():
    assert memory.check("scan.nii", SIZE, "llvm", limit=10**6) == memory.predict(SIZE, "llvm")


def test_the_limit_is_the_machines_or_the_smaller_one_of_its_group(monkeypatch, tmp_path):
    from synthseg_native.verification import verify

    monkeypatch.setattr(verify, "memory_bytes", lambda: 8 * 2**30)
    monkeypatch.setattr(memory, "_cgroup_limits", lambda: iter([]))
    assert memory.limit_mib() == 8 * 1024
    assert memory.packing_mb() == int(0.9 * 8 * 2**30 / 1e6)
    monkeypatch.setattr(memory, "_cgroup_limits", lambda: iter([2**30, 2**40]))
    assert memory.limit_mib() == 1024
    monkeypatch.setattr(verify, "memory_bytes", lambda: 0)
    monkeypatch.setattr(memory, "_cgroup_limits", lambda: iter([]))
    assert memory.limit_mib() is None and memory.packing_mb() is None
    assert memory.check("scan.nii", SIZE, "tensorflow") > 0, "unknown is no reason to stop"


@pytest.mark.parametrize(
    ("about", "files", "expected"),
    [
        ("0::/jobs/one\n", {"memory.max": "max", "jobs/memory.max": "3000", "jobs/one/memory.max": "9000"}, 3000),
        ("5:cpu:/a\n4:memory,hugetlb:/a\n", {"memory/a/memory.limit_in_bytes": "4000", "a/memory.max": "1"}, 4000),
        ("0::/\n", {}, None),
        ("0::/\n", {"memory.max": "max"}, None),
    ],
)
def test_control_groups_of_both_versions_are_read(monkeypatch, tmp_path, about, files, expected):
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text + "\n")
    (tmp_path / "cgroup").write_text(about)
    monkeypatch.setattr(memory, "GROUPS", tmp_path / "groups")
    monkeypatch.setattr(memory, "OWN_GROUPS", tmp_path / "cgroup")
    assert min(memory._cgroup_limits(), default=None) == expected


def test_a_miss_above_a_fifth_is_told():
    assert memory.remark(1000, 1190) is None and memory.remark(1000, 810) is None
    assert memory.remark(None, 500) is None and memory.remark(500, None) is None
    assert memory.remark(1000, 1310.4) == "the peak of 1310 MiB is 31 % above the predicted 1000 MiB"
    assert memory.remark(2000, 1000) == "the peak of 1000 MiB is 50 % below the predicted 2000 MiB"
    assert memory.remark(800, 310) is None  # a small crop, of which most is the program itself
    # A job asks for as much as the prediction may be off untold; in MB, not MiB.
    assert memory.declared_mb(1000) == 1259


@pytest.mark.parametrize("library", [object(), OSError("no such library")])
def test_freed_memory_is_given_back_where_the_library_can(monkeypatch, library):
    def open_library(name):
        if isinstance(library, Exception):
            raise library
        return library

    memory.give_back(rings=True)
    monkeypatch.setattr(memory.ctypes, "CDLL", open_library)
    memory.give_back()


@pytest.mark.slow
def test_the_peak_of_this_process_is_its_own():
    before = memory.own_peak_mib()
    block = np.ones(int(before * 2**20 / 8) + 2**24)  # more than the peak so far
    assert memory.own_peak_mib() >= before + 100 and len(block)


def test_it_needs_no_package_at_import(root):
    import subprocess

    code = "import sys; from synthseg_native import memory; print('numpy' in sys.modules)"
    env = os.environ | {"PYTHONPATH": str(root / "src")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_layer_table_has_the_features_that_the_size_names(cards):
    table = cards["synthseg1"].table()
    size = memory.size_of(cards["synthseg1"], (181, 217, 181), (1, 1, 1))
    assert (size.features, size.labels) == (table[1].channels, table[-1].channels)
    assert size.parameters == layers.count_parameters(table)


@pytest.mark.slow
def test_the_fit_finds_what_made_the_measurements(root, monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(root)
    monkeypatch.setattr(memory, "TABLE", dict(memory.TABLE))
    from benchmarks import check_memory, fit_memory

    made_from = memory.Coefficients(base=310, weights=5, network=0.8, planes=50, kept=0.2)
    arguments = check_memory.parser().parse_args(["--engines", "llvm", "--folder", "0"])
    rows = check_memory.rows_of(arguments)
    assert len(rows) == 10 * 5 + 4 * 2
    assert {row["network"] for row in rows} == {"compact2mm", *check_memory.NETWORKS, *check_memory.FULL}
    lines = ["\t".join(check_memory.COLUMNS)]
    for row in rows:
        lines.append("\t".join([*row.values(), f"{memory.peak(made_from, check_memory.size_of(row)):.1f}"]))
    (tmp_path / "memory.tsv").write_text("\n".join(lines) + "\n")
    assert fit_memory.main([str(tmp_path / "memory.tsv")]) == 0
    said = capsys.readouterr().out
    table = {}
    exec(said.partition("\n}\n")[0] + "\n}", {"Coefficients": memory.Coefficients, "REFERENCE": "reference"}, table)
    assert set(table["TABLE"]) == set(memory.TABLE)
    found = table["TABLE"]["llvm", "float32", "cpu"]
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(made_from), rel=0.05)
    misses = [float(line.split("%")[0]) for line in said.partition("\n}\n")[2].splitlines()]
    assert len(misses) == len(rows) and max(map(abs, misses)) < 3
    assert fit_memory.main([str(tmp_path / "nowhere.tsv")]) == 2


def test_the_networks_that_are_measured_are_the_ones_that_are_predicted(root, monkeypatch, tmp_path):
    """The model that is made for a command, and the network by which its row is predicted."""
    monkeypatch.syspath_prepend(root)
    from benchmarks import check_memory

    for name in ("narrow", "many"):
        folder, weights = check_memory.model_of(name, tmp_path)
        made = model.load(folder)
        assert made.network.shape() == check_memory.network_of(name).shape() and weights.is_file()
        assert made.network.grid == check_memory.network_of(name).grid
        assert len(made.labels) == check_memory.NETWORKS[name][2]
        layers.read_weights(weights, made.network.table())


@pytest.mark.slow
def test_the_table_fits_every_measurement_that_is_kept(root, monkeypatch):
    monkeypatch.syspath_prepend(root)
    from benchmarks import check_memory

    rows = read_tsv(check_memory.MEASURED)
    assert {(row["engine"], row["precision"], row["device"]) for row in rows} == set(memory.TABLE)
    for row in rows:
        said, off = check_memory.told(row)
        assert abs(off) <= memory.TOLERANCE, said


def test_the_reference_takes_as_much_where_parcels_are_not_smoothed(root):
    """The demonstration's runs, with parcels and scores: 2584 and 2616 MiB on two threads of a Xeon."""
    networks = model.load(root / "models" / "compact2mm").needed(False, True, True)
    size = memory.size_of(model.segmenting(networks), (197, 233, 189), (1, 1, 1), own_grid=False, networks=networks)
    assert abs(2600 / memory.predict(size, memory.REFERENCE) - 1) < memory.TOLERANCE
