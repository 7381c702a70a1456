"""Fit the table in memory.py to measurements, and print it with how far off every prediction is.

    python benchmarks/run.py --memory        # measures: appends to benchmarks/memory.tsv
    python benchmarks/fit_memory.py [TSV]    # fits: copy what it prints into src/synthseg_native/memory.py

A row of the table has seven numbers and a contestant few measurements, so that the fit is held, weakly, to where it
starts: numbers that no measurement tells about stay there.
"""

import argparse
import sys
from dataclasses import astuple, fields, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import numpy as np  # noqa: E402
from scipy.optimize import least_squares  # noqa: E402

from synthseg_native import memory  # noqa: E402
from synthseg_native.cohort.tables import read_tsv  # noqa: E402
from synthseg_native.networks import cards as models  # noqa: E402

MEASURED = Path(__file__).parent / "memory.tsv"
HELD = 0.02  # a number twice its start costs as much as one prediction that is 1.4 % off
STARTS = (
    (),
    ("read",),
    ("mask",),
    ("own",),
    ("network",),
    ("read", "own"),
    ("read", "mask", "own"),
    ("read", "network", "own"),
)
LEAST = 1e-3  # of a number, so that its logarithm is one


def sizes_of(rows) -> list:
    """The `memory.Size` of each measurement (a dict of text, as run.py writes them)."""
    found = []
    for row in rows:
        network = models.load(ROOT / "models" / row["model"]).network
        shape, voxel_mm = [int(row[f"input_{axis}"]) for axis in "xyz"], float(row["voxel_mm"])
        size = memory.size_of(network, shape, (voxel_mm,) * 3, own_grid=row["native_grid"] == "true")
        found.append(replace(size, padded=tuple(int(row[f"padded_{axis}"]) for axis in "xyz")))
    return found


def fit(sizes, peaks, start) -> memory.Coefficients:
    """The coefficients, none negative, whose predictions miss the peaks (MiB) least, relatively.

    start: `memory.Coefficients`
    """
    first = np.log(np.maximum(astuple(start), LEAST))

    def misses(logs):
        c = memory.Coefficients(*np.exp(logs))
        off = [np.log(memory.peak(c, size) / peak) for size, peak in zip(sizes, peaks, strict=True)]
        return [*off, *(HELD * (logs - first))]

    # A stage that is not the largest one has no slope: begin also where others take ten times as much.
    names = [field.name for field in fields(start)]
    shifts = [[2.3 * (name in more) for name in names] for more in STARTS]
    found = [least_squares(misses, first + shift) for shift in shifts]
    best = min(found, key=lambda result: result.cost)
    return memory.Coefficients(*(float(f"{value:.3g}") for value in np.exp(best.x)))


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", nargs="?", type=Path, default=MEASURED, metavar="TSV")
    path = parser.parse_args(argv).measured
    if not path.is_file():
        print(f"{path}: no measurements: make them with benchmarks/run.py --memory", file=sys.stderr)
        return 2
    rows = read_tsv(path)
    table, lines = dict(memory.TABLE), []
    for key in dict.fromkeys((row["engine"], row["precision"], row["device"]) for row in rows):
        mine = [row for row in rows if (row["engine"], row["precision"], row["device"]) == key]
        sizes, peaks = sizes_of(mine), [float(row["peak_rss_mib"]) for row in mine]
        table[key] = fit(sizes, peaks, memory.coefficients(*key))
        for row, size, peak in zip(mine, sizes, peaks, strict=True):
            predicted = memory.peak(table[key], size)
            grid = ", own grid" if size.own_grid else ""
            about = f"{' '.join(key)}, {row['model']}, {'x'.join(map(str, size.padded))}, {size.voxels} voxels{grid}"
            lines.append(f"{peak / predicted - 1:+7.1%}  {about}: {peak:.0f} MiB, predicted {predicted:.0f}")
    print("TABLE = {")
    for key, c in table.items():
        name = "REFERENCE" if key[0] == memory.REFERENCE else f'"{key[0]}"'
        print(f'    ({name}, "{key[1]}", "{key[2]}"): Coefficients({", ".join(f"{n:g}" for n in astuple(c))}),')
    print("}")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
