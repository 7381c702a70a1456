"""Reading a volumes.tsv; `tables` writes it."""

import csv
import math
from pathlib import Path

NUMBERS = {"soft_volume_mm3": float, "n_voxels": int, "voxel_volume_mm3": float, "mean_posterior": float}


def read(path: str | Path) -> dict:
    """The rows of a volumes.tsv, {label value: row}; numbers as numbers, None for n/a and for what is not finite.

    Columns that the file lacks are None where they are numbers. Raises OSError, KeyError, ValueError.
    """
    with Path(path).open(encoding="utf-8", newline="") as file:
        rows = {int(row["index"]): row for row in csv.DictReader(file, delimiter="\t")}
    for index, row in rows.items():
        row["index"] = index
        for name, kind in NUMBERS.items():
            number = kind(row[name]) if row.get(name, "n/a") != "n/a" else None
            row[name] = number if number is not None and math.isfinite(number) else None
    return rows
