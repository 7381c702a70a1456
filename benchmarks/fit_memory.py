"""Fit the table in memory.py to measurements, and print it with how far off every prediction is.

    sh scripts/launch.sh run dev -- benchmarks/check_memory.py        # measures: appends to memory.tsv
    sh scripts/launch.sh run dev -- benchmarks/fit_memory.py [TSV]    # fits: copy what it prints into memory.py

The fit is held, weakly, to where it starts: numbers that no measurement tells about stay there. A number that is 0 is a
term that the engine does not have. What the stages of all engines share, bytes per voxel, was counted in the code.
"""

import argparse
import sys
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

import numpy as np  # noqa: E402
from benchmarks.check_memory import MEASURED, size_of, told  # noqa: E402
from scipy.optimize import least_squares  # noqa: E402

from synthseg_native import memory  # noqa: E402
from synthseg_native.cohort.tables import read_tsv  # noqa: E402

HELD = 0.02  # a number twice its start costs as much as one prediction that is 1.4 % off
# A stage that is not the largest one has no slope: the fit also begins where these take three times as much.
STARTS = ((), ("network",), ("planes", "slabs"), ("posterior",), ("base",), ("weights",))


def fit(sizes, peaks, start, held=()) -> memory.Coefficients:
    """The coefficients, none negative, whose predictions miss the peaks (MiB) least, relatively.

    start: `memory.Coefficients` · held: names of numbers that stay as they are there
    """
    names = [name for name, value in asdict(start).items() if value and name not in ("read", "kept", *held)]
    first = np.log([getattr(start, name) for name in names])

    def made(logs):
        return replace(start, **{name: float(f"{value:.3g}") for name, value in zip(names, np.exp(logs), strict=True)})

    def misses(logs):
        c = replace(start, **dict(zip(names, np.exp(logs), strict=True)))
        off = [np.log(memory.peak(c, size) / peak) for size, peak in zip(sizes, peaks, strict=True)]
        return [*off, *(HELD * (logs - first))]

    found = [least_squares(misses, first + [1.1 * (name in more) for name in names]) for more in STARTS]
    return made(min(found, key=lambda result: result.cost).x)


def written(c: memory.Coefficients) -> str:
    """Coefficients as they stand in memory.py."""
    given = []
    for field in fields(c):
        value = getattr(c, field.name)
        if value != field.default:
            given.append(f"{value:g}" if field.default is MISSING else f"{field.name}={value:g}")
    return f"Coefficients({', '.join(given)})"


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", nargs="?", type=Path, default=MEASURED, metavar="TSV")
    path = parser.parse_args(argv).measured
    if not path.is_file():
        print(f"{path}: no measurements: make them with benchmarks/check_memory.py", file=sys.stderr)
        return 2
    rows = read_tsv(path)
    for key in dict.fromkeys((row["engine"], row["precision"], row["device"]) for row in rows):
        mine = [row for row in rows if (row["engine"], row["precision"], row["device"]) == key]
        sizes, peaks = [size_of(row) for row in mine], [float(row["peak_rss_mib"]) for row in mine]
        memory.TABLE[key] = fit(sizes, peaks, memory.coefficients(*key))
    print("TABLE = {")
    for key, c in memory.TABLE.items():
        name = "REFERENCE" if key[0] == memory.REFERENCE else f'"{key[0]}"'
        print(f'    ({name}, "{key[1]}", "{key[2]}"): {written(c)},')
    print("}")
    print("\n".join(told(row)[0] for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
