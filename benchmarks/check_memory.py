"""Is memory what was predicted? Whole commands on scans of ten shapes, one by one, and on a folder of small ones, by
every engine and by reference.py, with networks of several sizes; each peak beside its prediction.

    sh scripts/launch.sh run dev -- benchmarks/check_memory.py              # what memory.tsv lacks is measured
        [--engines llvm] [--networks compact2mm] [--scans 0 3] [--folder 50]
    sh scripts/launch.sh run dev -- benchmarks/check_memory.py --report     # of what was measured, nothing is run

Each run is a row of memory.tsv at once; a row that is there is not measured again. fit_memory.py fits to the same
table. A prediction that is more than a fifth off ends it with status 1.
"""

import argparse
import shlex
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import nibabel as nib  # noqa: E402
import numpy as np  # noqa: E402
import yaml  # noqa: E402

from synthseg_native import memory  # noqa: E402
from synthseg_native.cohort import environments  # noqa: E402
from synthseg_native.cohort.benchmark import weights  # noqa: E402
from synthseg_native.cohort.benchmark.contestants import Contestant, available_mib  # noqa: E402
from synthseg_native.cohort.runs import child  # noqa: E402
from synthseg_native.cohort.tables import read_tsv  # noqa: E402
from synthseg_native.files import read_json  # noqa: E402
from synthseg_native.networks import cards  # noqa: E402
from synthseg_native.networks.layers import read_weights  # noqa: E402

MEASURED = Path(__file__).parent / "memory.tsv"
COLUMNS = ("engine", "precision", "device", "network", "shape", "voxel_mm", "type", "slope", "options", "scans",
           "peak_rss_mib")  # fmt: skip
ENGINES = ("llvm", "tensorflow", "torch", memory.REFERENCE)
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
# Of the networks that have them: robust mode, parcels and scores.
FULL_SCANS = (
    ((128, 128, 128), (1, 1, 1), "int16", 1, ("--robust",)),
    ((128, 128, 128), (1, 1, 1), "int16", 1, ("--parc",)),
    ((128, 128, 128), (1, 1, 1), "int16", 1, ("--qc",)),
    ((256, 256, 256), (1, 1, 1), "int16", 1, ("--robust", "--parc", "--qc")),
)
SMALL = (46, 56, 46), (4, 4, 4), "uint8", 1  # of the folder
# Networks as what differs from the card of this model: layers, channels. Of narrow and many, whose weights are random,
# the llvm engine is not measured: by them nearly all is brain, and it keeps posteriors of that.
NETWORKS = {
    "synthseg1": ("synthseg1", {}, 32),
    "narrow": ("compact2mm", {"levels": 3, "features": 8}, 12),
    "wide": ("compact2mm", {"levels": 5, "features": 32}, 32),
    "many": ("compact2mm", {"features": 12}, 60),
}
FULL = {
    "golden2": "golden2",
    weights.FAMILY: "synthseg2",
}  # all networks of SynthSeg 2.0: the card whose sizes they have
FILES = {"--qc": "scores.csv", "--native-grid": "own.nii", "--picture": "picture.png", "--post": "posteriors.nii",
         "--resample": "resampled.nii", "--margin": "margin.nii.gz"}  # fmt: skip
ALONE = {*FILES} - {"--qc"}  # what reference.py does not make, or the workflow does not ask it for
THREADS = 2


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


def network_of(name: str) -> cards.Network:
    """A network of NETWORKS, or that of a model's structures."""
    if name not in NETWORKS:
        return cards.load(ROOT / "models" / FULL.get(name, name)).network
    model, layers, channels = NETWORKS[name]
    base = cards.load(ROOT / "models" / model).network
    layers = base.layers | layers
    grid = replace(base.grid, pad_multiple=2 ** layers["levels"])
    return replace(base, layers=layers, grid=grid, outputs=replace(base.outputs, channels=channels))


def model_of(name: str, folder: Path) -> tuple[Path, Path]:
    """The folder and the weights of a model: one of models/, or made here, with random weights."""
    network = network_of(name)
    if name in FULL:
        made = ROOT / "models" / name if name == FULL[name] else weights.make_family(folder / name, ROOT / "models")
        return made, made
    if name not in NETWORKS:
        shipped = ROOT / "models" / name
        return shipped, shipped / network.weights.file
    made, file = folder / name, folder / name / "weights.h5"
    made.mkdir()
    card = cards.load(ROOT / "models" / NETWORKS[name][0]).card
    about = card["networks"][0] | network.computed_from() | {"weights": {"file": file.name}}
    card = {key: value for key, value in card.items() if key != "companions"}
    card = card | {"name": f"{name}size", "title": "Random weights.", "research_grade": False, "networks": [about]}
    (made / "card.yaml").write_text(yaml.safe_dump(card), encoding="utf-8")
    (made / network.outputs.table).write_text(_labels(network.outputs.channels), encoding="utf-8")
    weights.write_h5(file, network.table(), _weights(network))
    return made, file


def _weights(network):
    """Weights of a network: compact2mm within it, where that has room, so that as much as in a head becomes brain."""
    small = cards.load(ROOT / "models/compact2mm").network
    room = network.layers["levels"] > small.layers["levels"] and network.outputs.channels == small.outputs.channels
    if room:
        of_small = read_weights(ROOT / "models/compact2mm" / small.weights.file, small.table())
        return weights.full_size(small.shape(), of_small, network.shape())
    rng = np.random.default_rng(0)
    return {layer.name: _random(rng, layer.weights) for layer in network.table()}


def _labels(channels):
    """A table of labels: background, and structures each of a topology class of its own, the last ones in pairs."""
    lines = ["channel\tindex\tname\themisphere\tflip_channel\ttopology_class\tqc_group\tfreesurfer_name\tcolor"]
    pairs = (channels - 1) // 3
    for n in range(channels):
        other, side = n, "none"
        if n >= channels - 2 * pairs:
            left = n < channels - pairs
            other, side = (n + pairs, "left") if left else (n - pairs, "right")
        name = "background" if n == 0 else f"structure {n}"
        lines.append(f"{n}\t{n}\t{name}\t{side}\t{other}\t{n}\t0\t{name.title().replace(' ', '-')}\t#{n:06x}")
    return "\n".join(lines) + "\n"


def _random(rng, shapes):
    """Weights of a layer, {name: shape}."""
    made = {name: np.full(shape, name in ("gamma", "moving_variance"), np.float32) for name, shape in shapes.items()}
    if "kernel" in made:
        shape = shapes["kernel"]
        made["kernel"] = rng.normal(0, np.sqrt(2 / np.prod(shape[:-1])), shape).astype(np.float32)
    return made


def size_of(row: dict) -> memory.Size:
    """The `memory.Size` of a measurement, a row of the table."""
    shape = [int(n) for n in row["shape"].split("x")]
    voxel_mm = [float(np.float32(size)) for size in row["voxel_mm"].split("x")]  # as a header has them: 0.6 is more
    options = row["options"].split()
    crop = (int(options[options.index("--crop") + 1]),) * 3 if "--crop" in options else None
    kept = 8 if float(row["slope"]) != 1 else np.dtype(row["type"]).itemsize
    networks = [network_of(row["network"])]
    if row["network"] in FULL:
        asked = (flag in options for flag in ("--robust", "--parc", "--qc"))
        networks = cards.load(ROOT / "models" / FULL[row["network"]]).needed(*asked)
    return memory.size_of(
        cards.segmenting(networks), shape, voxel_mm, crop, "--native-grid" in options, networks,
        bytes=kept, picture="--picture" in options, post="--post" in options, loaded=row["scans"] != "1",
    )  # fmt: skip


def told(row: dict) -> tuple[str, float]:
    """A line about a measurement, and how far off its prediction is."""
    size, peak = size_of(row), float(row["peak_rss_mib"])
    predicted = memory.predict(size, row["engine"], row["precision"], row["device"])
    off = peak / predicted - 1
    what = [row["engine"], row["precision"], row["network"], row["shape"], row["type"] + "*" * (row["slope"] != "1")]
    what += [f"{row['scans']} scans"] * (row["scans"] != "1") + [row["options"]] * (row["options"] != "n/a")
    return f"{off:+7.1%}  {' '.join(what)}: {peak:.0f} MiB, predicted {predicted}", off


def command_of(
    python: Path, contestant: Contestant, scan: Path, model: tuple[Path, Path], options: list, out: Path
) -> list:
    """The words of the command on a scan or a folder of them."""
    folder = scan.is_dir()
    words = [(word, out if folder else out / FILES[word]) if word in FILES else (word,) for word in options]
    given = ["--i", scan, "--o", out if folder else out / "labels.nii", "--model", model[0], "--weights", model[1]]
    given += ["--threads", THREADS, *(part for word in words for part in word)]
    if contestant.engine == memory.REFERENCE:
        return [python, ROOT / "src" / "synthseg_native" / "reference.py", *given]
    given += ["--engine", contestant.engine, "--precision", contestant.precision, "--device", contestant.device]
    return [python, "-m", "synthseg_native", *given]


def run(command: list, work: Path) -> float:
    """The peak of a command, MiB."""
    status = child.call(child.wrapped(command, work, None), work / "log.txt", child.environment_of(THREADS))
    if status:
        raise SystemExit(f"{shlex.join(map(str, command))}: {(work / 'log.txt').read_text()}")
    return read_json(work / child.MEASURED)["peak_rss_mib"]


def rows_of(a: argparse.Namespace) -> list[dict]:
    """What is to be measured: rows of the table, without their peaks."""
    cases = [(*(*SCANS, *FULL_SCANS)[n], 1) for n in a.scans]
    cases += [(*SMALL, ("--picture",), a.folder)] if a.folder else []
    rows = []
    full = {"--robust", "--parc", "--qc"}
    for contestant in map(Contestant.parse, a.engines):
        for shape, voxel_mm, dtype, slope, options, scans in cases:
            if contestant.engine == memory.REFERENCE:
                if scans > 1:  # it takes one
                    continue
                options = [word for word in options if word not in ALONE]
            for name in a.networks:
                if (name in FULL) != bool(full.intersection(options)):
                    continue
                rows.append(dict(zip(COLUMNS, (
                    *(contestant.engine, contestant.precision, contestant.device, name),
                    *("x".join(f"{n:g}" for n in numbers) for numbers in (shape, voxel_mm)),
                    *(dtype, f"{slope:g}", " ".join(options) or "n/a", str(scans)),
                ), strict=False)))  # fmt: skip
    return rows


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", nargs="+", default=ENGINES, metavar="ENGINE[:PRECISION[:DEVICE]]")
    parser.add_argument(
        "--networks", nargs="+", default=["compact2mm", *NETWORKS, *FULL], help="of NETWORKS, or shipped"
    )
    parser.add_argument(
        "--scans",
        nargs="*",
        type=int,
        default=range(len(SCANS) + len(FULL_SCANS)),
        help="numbers of SCANS, then of FULL_SCANS",
    )
    parser.add_argument("--folder", type=int, default=50, help="scans of the folder, 0 for none")
    parser.add_argument("--most", type=int, default=10**6, metavar="MIB", help="leave out what would take more")
    parser.add_argument(
        "--python", action="append", default=[], metavar="ENVIRONMENT=PATH", help="an interpreter to use"
    )
    parser.add_argument("--table", type=Path, default=MEASURED, metavar="TSV", help="default: memory.tsv beside this")
    parser.add_argument("--report", action="store_true", help="only what is in the table")
    return parser


def main(argv=None) -> int:
    a = parser().parse_args(argv)
    if not a.table.is_file():
        a.table.write_text("\t".join(COLUMNS) + "\n", encoding="utf-8")
    known = read_tsv(a.table)
    have = {tuple(row.values())[:-1] for row in known}
    lines = [told(row) for row in known] if a.report else []
    pythons, models = dict(text.split("=", 1) for text in a.python), {}
    with tempfile.TemporaryDirectory() as place:
        for number, row in enumerate(() if a.report else rows_of(a)):
            wanted = memory.predict(size_of(row), row["engine"], row["precision"], row["device"])
            if tuple(row.values()) in have or wanted > min(a.most, 0.9 * (available_mib() or np.inf)):
                continue
            work = Path(place, f"{number}")
            (work / "out").mkdir(parents=True)
            if row["network"] not in models:
                models[row["network"]] = model_of(row["network"], Path(place))
            scan = _scans_of(row, work)
            options = [] if row["options"] == "n/a" else row["options"].split()
            contestant = Contestant(row["engine"], row["precision"], row["device"])
            python = pythons.get(contestant.environment) or environments.ensure(contestant.environment)
            command = command_of(python, contestant, scan, models[row["network"]], options, work / "out")
            row["peak_rss_mib"] = str(run(command, work))
            with a.table.open("a", encoding="utf-8") as file:
                file.write("\t".join(row.values()) + "\n")
            lines.append(told(row))
            print(lines[-1][0], flush=True)
            for path in (*work.glob("out/*"), *work.glob("scan*")):
                path.unlink() if path.is_file() else [file.unlink() for file in path.iterdir()]
    if a.report:
        print("\n".join(line for line, _ in lines))
    return int(max((abs(off) for _, off in lines), default=0) > memory.TOLERANCE)


def _scans_of(row, work):
    """The scan of a row, or the folder of its scans."""
    about = [tuple(map(kind, row[name].split("x"))) for name, kind in (("shape", int), ("voxel_mm", float))]
    about += [row["type"], float(row["slope"])]
    if row["scans"] == "1":
        return save_scan(work / "scan.nii", *about)
    (work / "scans").mkdir()
    for n in range(int(row["scans"])):
        save_scan(work / "scans" / f"{n:03}.nii", *about, n)
    return work / "scans"


if __name__ == "__main__":
    sys.exit(main())
