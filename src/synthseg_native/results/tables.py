"""Tables of volumes that a run leaves: SynthSeg's own CSV, and a TSV with voxel counts and confidence."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from synthseg_native.networks.cards import Labels

# File names need not be UTF-8, and go out as they came in.
TABLE = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}


def csv_row(
    image_name: str, labels: Labels, volumes: np.ndarray, parcel_volumes: np.ndarray | None = None
) -> list[str]:
    """What SynthSeg's table says of one image: its name, then mm3 rounded to 3 decimals.

    volumes : (N,) soft volumes, background first · parcel_volumes : (M,) the same of parcels, where there are any
    Models with label 24 open with the total intracranial volume.
    """
    values = [float(v) for v in volumes[1:]]
    if labels.has_total_intracranial:
        values.insert(0, sum(values))
    if parcel_volumes is not None:
        values += [float(v) for v in parcel_volumes[1:]]
    return [_subject(image_name), *(str(round(value, 3)) for value in values)]


def scores_row(image_name: str, scores: np.ndarray) -> list[str]:
    """What SynthSeg's table of quality scores says of one image: its name, then the scores (N,) with 4 decimals."""
    return [_subject(image_name), *(f"{score:.4f}" for score in scores)]


def _subject(image_name):
    return image_name.replace(".nii.gz", "")


def save_csv(path: str | Path, columns: Sequence[str], rows: list, first_cell: str = "subject") -> None:
    """A table as SynthSeg writes it: header and `csv_row`s or `scores_row`s, CR LF. For lists its first cell is empty.

    columns : behind the first
    """
    with Path(path).open("w", **TABLE) as file:
        writer = csv.writer(file)
        writer.writerow([first_cell, *columns])
        writer.writerows(rows)


def csv_columns(labels: Labels, parcels: Labels | None = None) -> list[str]:
    """The columns of SynthSeg's own table of volumes behind the first; parcels : their table, where there are any."""
    total = ["total intracranial"] if labels.has_total_intracranial else []
    return [*total, *labels.names[1:], *(parcels.names[1:] if parcels else [])]


VOLUME_COLUMNS = (
    "index",
    "name",
    "freesurfer_name",
    "soft_volume_mm3",
    "n_voxels",
    "voxel_volume_mm3",
    "mean_posterior",
    "at_fov_edge",
)


def volume_rows(
    labels: Labels,
    volumes: np.ndarray | None,
    counts: np.ndarray,
    voxel_mm: Sequence[float],
    confidences: np.ndarray | None = None,
    at_edge: list[int] | None = None,
) -> list[list]:
    """One row of VOLUME_COLUMNS per structure: soft volume (sum of posteriors) and voxel count, both also in mm3.

    volumes (N,) in mm3, or None where only a label map is known; counts (N,) voxels; confidences (N,) mean posterior
    of the label over its voxels; at_edge : label values that touch the edge of the image. What is not known is n/a.
    """
    size = float(np.prod(voxel_mm, dtype=np.float64))

    def number(values, channel, digits):
        return "n/a" if values is None or not np.isfinite(values[channel]) else f"{values[channel]:.{digits}f}"

    return [
        [
            int(labels.index[channel]),
            labels.names[channel],
            labels.freesurfer_names[channel],
            number(volumes, channel, 3),
            int(counts[channel]),
            f"{counts[channel] * size:.3f}",
            number(confidences, channel, 4),
            "n/a" if at_edge is None else str(int(labels.index[channel]) in at_edge).lower(),
        ]
        for channel in range(1, len(labels))
    ]


def is_volumes_tsv(path: str | Path) -> bool:
    """Whether a file is what `save_volumes_tsv` writes, by its first line, or empty."""
    with Path(path).open("rb") as file:
        start = file.read(1024).decode("utf-8", "replace")
    columns = start.partition("\n")[0].strip().split("\t")
    return not start.strip() or columns[columns[0] == "image" :][: len(VOLUME_COLUMNS)] == list(VOLUME_COLUMNS)


def save_volumes_tsv(path: str | Path, rows: list | dict) -> None:
    """Write `volume_rows`; with an image's name in front of each where `rows` is {name: rows}."""
    several = isinstance(rows, dict)
    with Path(path).open("w", **TABLE) as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow([*(["image"] if several else []), *VOLUME_COLUMNS])
        for name, part in rows.items() if several else [(None, rows)]:
            writer.writerows([[name, *row] for row in part] if several else part)
