"""The prediction of memory, what a machine has, and what is told where it is not enough."""

import dataclasses
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
CONTESTANTS = [("tensorflow", "float32"), ("openvino", "float32"), ("openvino", "bf16"), ("torch", "float32")]


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
    ):
        assert memory.predict(dataclasses.replace(SIZE, **more), engine, precision) >= least, more
    assert memory.predict(dataclasses.replace(SIZE, own_grid=False), engine, precision) <= least
    # One whole array of posteriors is always there.
    assert least > 4 * SIZE.labels * SIZE.voxels / 2**20


def test_the_prediction_is_that_of_the_formula():
    c = memory.Coefficients(base=100, weights=0, read=8, network=2, posterior=3, mask=4, own=2)
    mib = 2**20
    size = memory.Size((128, 128, 64), mib, features=10, labels=5)
    assert memory.peak(c, size) == 100 + 4 * (2 * 10 + 3 * 5)
    large = dataclasses.replace(size, voxels=100 * mib, grid=3 * mib)
    assert memory.peak(c, large) == 100 + (2 + 8) * 100 + 8 * 3
    assert memory.peak(c, dataclasses.replace(large, bytes=4)) == 100 + (4 + 8) * 100 + 8 * 3
    weighty = dataclasses.replace(size, parameters=5 * mib)
    assert memory.peak(dataclasses.replace(c, weights=2), weighty) == memory.peak(c, size) + 4 * 2 * 5
    finish = dataclasses.replace(c, read=0, network=0, posterior=0)
    assert memory.peak(finish, size) == 100 + 4 * 5 + 4
    own = dataclasses.replace(finish, own=7)
    assert memory.peak(own, size) == 100 + 4 * 5 + 7
    assert memory.peak(own, dataclasses.replace(size, own_grid=False)) == 100 + 4 * 5 + 4
    # Posteriors of a crop are put into a frame of the whole; a picture keeps the scan, and takes something itself.
    post = dataclasses.replace(size, grid=2 * mib, post=True)
    assert memory.peak(finish, post) == 100 + 4 * 5 + 4 * 2 * 5
    assert memory.peak(finish, dataclasses.replace(post, post=False)) == 100 + 4 * 5 + 4
    drawn = dataclasses.replace(size, picture=True)
    assert memory.peak(finish, drawn) == 100 + memory.PICTURE_MIB + 2
    assert memory.peak(dataclasses.replace(finish, mask=900), drawn) == 100 + 4 * 5 + 900 + 2


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
    limit = max(need[key] for key in need if key[0] == "openvino") + 10
    assert limit < need["tensorflow", "float32"]
    with pytest.raises(SynthSegError) as caught:
        memory.check("scan.nii", SIZE, "tensorflow", network=cards["synthseg1"], limit=limit)
    said = caught.value.message
    assert caught.value.code == "oom" and "\n" not in said
    assert said.startswith("scan.nii: would take ") and "--engine openvino (" in said
    assert "--engine openvino --precision bf16 (" in said and "torch" not in said
    crop = int(said.partition("--crop ")[2].split()[0])
    fits, larger = (dataclasses.replace(SIZE, padded=(n,) * 3) for n in (crop, crop + 32))
    assert memory.predict(fits, "tensorflow") <= limit < memory.predict(larger, "tensorflow")


def test_where_nothing_fits_a_larger_machine_is_named(cards):
    with pytest.raises(SynthSegError, match=r"there are 0\.1 GB: what fits: a machine with more memory"):
        memory.check("scan.nii", SIZE, "openvino", "bf16", network=cards["synthseg1"], limit=100)
    with pytest.raises(SynthSegError, match="what fits: --crop"):  # the reference has no other engine
        memory.check("scan.nii", SIZE, memory.REFERENCE, network=cards["synthseg1"], limit=4000)


def test_a_run_that_fits_gives_its_prediction():
    assert memory.check("scan.nii", SIZE, "openvino", limit=10**6) == memory.predict(SIZE, "openvino")


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
    assert memory.remark(1000, 500) == "the peak of 500 MiB is 50 % below the predicted 1000 MiB"
    # A job asks for as much as the prediction may be off untold; in MB, not MiB.
    assert memory.declared_mb(1000) == 1259


@pytest.mark.slow
def test_the_peak_of_this_process_is_its_own():
    before = memory.own_peak_mib()
    block = np.ones(int(before * 2**20 / 8) + 2**24)  # more than the peak so far
    assert memory.own_peak_mib() >= before + 100 and len(block)


def test_it_needs_no_package_at_import(root):
    import subprocess

    code = "import sys; from synthseg_native import memory; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=root / "src", capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_layer_table_has_the_features_that_the_size_names(cards):
    table = cards["synthseg1"].table()
    size = memory.size_of(cards["synthseg1"], (181, 217, 181), (1, 1, 1))
    assert (size.features, size.labels) == (table[1].channels, table[-1].channels)
    assert size.parameters == layers.count_parameters(table)


def test_the_fit_finds_what_made_the_measurements(root, monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(root)
    from benchmarks import fit_memory

    from synthseg_native.cohort.benchmark.peaks import MEMORY_COLUMNS, MEMORY_SCANS

    made_from = memory.Coefficients(base=310, weights=5, read=30, network=4.2, posterior=1.5, mask=10, own=20)
    lines = ["\t".join(MEMORY_COLUMNS)]
    for name in ("synthseg1", "compact2mm"):
        card = model.load(root / "models" / name).network
        for shape, voxel_mm, own_grid in MEMORY_SCANS:
            padded = memory.padded_shape(card, shape, (voxel_mm,) * 3)
            peak = memory.peak(made_from, memory.size_of(card, shape, (voxel_mm,) * 3, own_grid=own_grid))
            cells = [
                "openvino",
                "float32",
                "cpu",
                name,
                *shape,
                voxel_mm,
                *padded,
                str(own_grid).lower(),
                f"{peak:.1f}",
            ]
            lines.append("\t".join(map(str, cells)))
    (tmp_path / "memory.tsv").write_text("\n".join(lines) + "\n")
    assert fit_memory.main([str(tmp_path / "memory.tsv")]) == 0
    said = capsys.readouterr().out
    table = {}
    exec(said.partition("\n}\n")[0] + "\n}", {"Coefficients": memory.Coefficients, "REFERENCE": "reference"}, table)
    assert set(table["TABLE"]) == set(memory.TABLE)
    misses = [float(line.split("%")[0]) for line in said.partition("\n}\n")[2].splitlines()]
    assert len(misses) == 2 * len(MEMORY_SCANS) and max(map(abs, misses)) < 3
    assert fit_memory.main([str(tmp_path / "nowhere.tsv")]) == 2


@pytest.mark.slow
def test_the_table_fits_every_measurement_that_is_kept(root, monkeypatch):
    monkeypatch.syspath_prepend(root)
    from benchmarks import fit_memory

    rows = read_tsv(fit_memory.MEASURED)
    assert {(row["engine"], row["precision"], row["device"]) for row in rows} == set(memory.TABLE)
    for row, size in zip(rows, fit_memory.sizes_of(rows), strict=True):
        predicted = memory.predict(size, row["engine"], row["precision"], row["device"])
        assert memory.remark(predicted, float(row["peak_rss_mib"])) is None, row
