"""Is memory what was predicted? The command on scans of ten shapes, one by one, and on a folder of small ones, with
networks of several sizes; each peak beside its prediction.

    .envs/openvino-HASH/bin/python benchmarks/check_memory.py [--engine openvino] [--networks compact2mm narrow wide]
        [--folder 50] [--out memory_check.tsv]

Runs in the interpreter of an engine's environment. A prediction that is more than a fifth off ends it with status 1.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import nibabel as nib  # noqa: E402
import numpy as np  # noqa: E402
import yaml  # noqa: E402

from synthseg_native import memory  # noqa: E402
from synthseg_native.cohort.benchmark.weights import write_h5  # noqa: E402
from synthseg_native.networks import cards  # noqa: E402

# Shape, voxel size in mm, type of the voxels, slope, further results and options.
SCANS = (
    ((64, 72, 60), (3, 3, 3), "int16", 1, ()),
    ((128, 128, 128), (1, 1, 1), "int16", 1, ("--native-grid",)),
    ((192, 256, 192), (1, 1, 1), "uint8", 1, ("--picture",)),
    ((256, 256, 256), (1, 1, 1), "int16", 1, ("--native-grid", "--picture")),
    ((256, 256, 192), (1, 1, 1), "float32", 1, ("--crop", "96", "--post")),
    ((512, 512, 30), (0.45, 0.45, 5), "int16", 0.5, ("--native-grid",)),
    ((320, 416, 320), (0.6, 0.6, 0.6), "int16", 1, ("--picture",)),
    ((320, 416, 320), (0.6, 0.6, 0.6), "float32", 1, ("--native-grid",)),
    ((448, 448, 256), (0.5, 0.5, 0.8), "uint8", 1, ("--resample", "--margin")),
    ((512, 512, 512), (0.5, 0.5, 0.5), "int16", 1, ()),
)
NETWORKS = {"narrow": {"levels": 3, "features": 8}, "wide": {"levels": 5, "features": 32}}  # of random weights
SMALL = (46, 56, 46), (4, 4, 4), "uint8", 1
FILES = {"--native-grid": "own.nii", "--picture": "picture.png", "--post": "posteriors.nii",
         "--resample": "resampled.nii", "--margin": "margin.nii.gz"}  # fmt: skip


def save_scan(path: Path, shape, voxel_mm, dtype: str, slope: float, seed: int = 0) -> Path:
    """A ball of noise around one of other noise, in air; made plane by plane."""
    rng, data = np.random.default_rng(seed), np.zeros(shape, dtype, order="F")
    x, y, z = (np.linspace(-1.1, 1.1, n) for n in shape)
    for k, plane in enumerate(np.moveaxis(data, 2, 0)):
        radius = np.sqrt(x[:, None] ** 2 + y**2 + z[k] ** 2)
        plane[...] = (radius < 1) * (100 + 60 * (radius < 0.7) + rng.integers(0, 40, radius.shape))
    image = nib.Nifti1Image(data, np.diag([*voxel_mm, 1.0]))
    image.header.set_slope_inter(slope, 0)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
    return path


def model_of(name: str, folder: Path) -> Path:
    """The folder of a model: one of models/, or made here, with random weights."""
    shipped = ROOT / "models" / name
    if name not in NETWORKS:
        return shipped if shipped.is_dir() else Path(name)
    base, made = cards.load(ROOT / "models" / "compact2mm"), folder / name
    made.mkdir()
    network = base.card["networks"][0] | {"weights": {"file": "weights.h5"}}
    network["layers"] = network["layers"] | NETWORKS[name]
    network["grid"] = network["grid"] | {"pad_multiple": 2 ** NETWORKS[name]["levels"]}
    (made / "labels.tsv").write_bytes(base.labels_file.read_bytes())
    card = {"name": name, "title": "Random weights.", "research_grade": False, "networks": [network]}
    (made / "card.yaml").write_text(yaml.safe_dump({**base.card, **card}), encoding="utf-8")
    rng, table = np.random.default_rng(0), cards.load(made).network.table()
    write_h5(made / "weights.h5", table, {layer.name: _random(rng, layer.weights) for layer in table})
    return made


def _random(rng, shapes):
    """Weights of a layer, {name: shape}."""
    made = {name: np.full(shape, name in ("gamma", "moving_variance"), np.float32) for name, shape in shapes.items()}
    if "kernel" in made:
        shape = shapes["kernel"]
        made["kernel"] = rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32)
    return made


def run(scan: Path, model: Path, engine: str, options: list, work: Path) -> dict:
    """The last run record of the command on a scan or a folder of them."""
    folder, out = scan.is_dir(), work / "out"
    more = [str(out / FILES[word]) if word in FILES and not folder else str(out) for word in options if word in FILES]
    words = [part for word in options for part in ((word, more.pop(0)) if word in FILES else (word,))]
    command = [sys.executable, "-m", "synthseg_native", "--i", scan, "--o", out if folder else out / "labels.nii"]
    command += ["--record", out if folder else out / "run.json", "--model", model, "--engine", engine, *words]
    done = subprocess.run(
        list(map(str, command)), env={**os.environ, "PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True
    )
    records = [json.loads(path.read_text()) for path in sorted(out.glob("*run.json"))]
    if done.returncode or not records:
        raise SystemExit(f"{scan}: {done.stderr}")
    last = max(records, key=lambda record: record["peak_rss_mib"])
    for path in out.iterdir():
        path.unlink()
    return last | {"predicted_peak_mib": max(record["predicted_peak_mib"] for record in records)}


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--networks", nargs="+", default=["compact2mm", *NETWORKS], help="names, or model folders")
    parser.add_argument("--scans", nargs="+", type=int, default=range(len(SCANS)), help="numbers of the table")
    parser.add_argument("--folder", type=int, default=50, help="scans of the folder, 0 for none")
    parser.add_argument("--out", type=Path, help="a table of what was found")
    a = parser.parse_args(argv)
    lines = ["\t".join(("network", "scan", "options", "predicted_mib", "peak_mib", "off"))]
    off = []
    with tempfile.TemporaryDirectory() as place:
        work = Path(place)
        models = {name: model_of(name, work) for name in a.networks}
        cases = [(SCANS[n][:4], list(SCANS[n][4]), 1) for n in a.scans]
        cases += [(SMALL, ["--picture"], a.folder), (SMALL, [], a.folder)] if a.folder else []
        for (shape, voxel_mm, dtype, slope), options, number in cases:
            scan = work / "scan.nii"
            if number > 1:
                scan = work / "folder"
                scan.mkdir(exist_ok=True)
                for n in range(number):
                    save_scan(scan / f"{n:03}.nii", shape, voxel_mm, dtype, slope, n)
            else:
                save_scan(scan, shape, voxel_mm, dtype, slope)
            for name, model in models.items():
                record = run(scan, model, a.engine, options, work)
                predicted, peak = record["predicted_peak_mib"], record["peak_rss_mib"]
                off.append(peak / predicted - 1)
                what = f"{'x'.join(map(str, shape))} {dtype}{' scaled' * (slope != 1)}"
                what += f", {number} scans" * (number > 1)
                cells = (name, what, " ".join(options), f"{predicted}", f"{peak:.0f}", f"{off[-1]:+.1%}")
                lines.append("\t".join(cells))
                print(lines[-1], flush=True)
    if a.out:
        a.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return int(max(map(abs, off)) > memory.TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
