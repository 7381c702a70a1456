"""Files that a run leaves: label map, margin map, volumes, sidecar. All of them or none."""

import contextlib
import csv
import errno
import hashlib
import json
import os
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.openers import ImageOpener

from synthseg_native.errors import SynthSegError

MARGIN_STEP = 1e-6
# Of tables: file names need not be UTF-8, and go out as they came in.
TABLE = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}


class Staged:
    """Collects files beside their destinations and moves them there together when the block ends well.

    ``with Staged() as staged: write(staged.path(destination))``. A failure removes what was written. A full or
    read-only disk raises SynthSegError("disk").
    """

    def __init__(self):
        self._moves = []

    def path(self, destination) -> Path:
        destination = Path(destination)
        with _disk_errors(destination):
            if destination.is_dir():
                raise IsADirectoryError(errno.EISDIR, "a folder is in its place")
            destination.parent.mkdir(parents=True, exist_ok=True)
            part = destination.with_name(f".part-{os.getpid()}-{destination.name}")
            part.touch()  # where nothing can be written is known before the work, not after it
            part.unlink()
        self._moves.append((part, destination))
        return part

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        try:
            if kind is None:
                for part, destination in self._moves:
                    with _disk_errors(destination):
                        part.replace(destination)
            elif isinstance(error, OSError):
                with _disk_errors(self._moves[-1][1] if self._moves else "output"):
                    raise error
        finally:
            for part, _ in self._moves:
                with contextlib.suppress(OSError):  # of a disk that became read-only; what went wrong first is told
                    part.unlink(missing_ok=True)


class _disk_errors:
    def __init__(self, path):
        self.path = path

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            remedy = "make room" if full else "choose a place that can be written to"
            raise SynthSegError("disk", f"{self.path}: {error.strerror or error}: {remedy}") from error


def labels_sha256(array) -> str:
    """Hash of a label array: its shape as text, then its values as little-endian int32 in C order."""
    digest = hashlib.sha256(str(tuple(int(n) for n in array.shape)).encode())
    digest.update(np.ascontiguousarray(array, dtype="<i4"))
    return digest.hexdigest()


IMAGE_EXTENSIONS = (".nii.gz", ".nii", ".mgz", ".mgh")


def image_extension(path):
    """The extension of an image file's name, of IMAGE_EXTENSIONS; "" where it has none of them."""
    return next((ending for ending in IMAGE_EXTENSIONS if Path(path).name.lower().endswith(ending)), "")


def save_image(path, data, affine, header, dtype=None, tags=b""):
    """Save (X, Y, Z[, N]) data in the format that the name asks for, with the header of the input where it fits.

    Without a dtype the header's own is kept, so that a resampled int16 scan is int16 again, as SynthSeg saves it (with
    a slope where its values are no whole numbers). Where the grid is the input's, its sform, qform and codes stay; on a
    new grid nibabel sets the sform alone. tags : what stands behind the voxels of an .mgz.
    """
    if dtype is None:
        as_in_header = data.astype(header.get_data_dtype())
        data = as_in_header if np.array_equal(as_in_header, data) else data
    kind = nib.MGHImage if image_extension(path) in (".mgz", ".mgh") else nib.Nifti1Image
    image = kind(data, affine, header)
    if dtype is not None:
        image.set_data_dtype(dtype)
    if not tags:
        nib.save(image, path)
        return
    with ImageOpener(path, "wb") as file:
        file.write(image.to_bytes() + tags)


def save_labels(path, labels, affine, header, color_table=None):
    """Save int32 labels (X, Y, Z) with the input's header, as SynthSeg does.

    color_table : cards.Labels to embed, as FreeSurfer does; not in formats other than .mgz and .mgh, which hold none.
    """
    can_hold = color_table is not None and image_extension(path) in (".mgz", ".mgh")
    tags = color_table_tag(color_table) if can_hold else b""
    save_image(path, np.asarray(labels, dtype=np.int32), affine, header, np.int32, tags)


def color_table_tag(labels) -> bytes:
    """FreeSurfer's tag 1 of an .mgz file: version -2, size, no file name, then per label its value, name and colour."""
    entries = b""
    for index, name, color in zip(labels.index.tolist(), labels.freesurfer_names, labels.colors, strict=True):
        text = name.encode() + b"\0"
        red, green, blue = bytes.fromhex(color.removeprefix("#"))
        entries += struct.pack(">2i", index, len(text)) + text + struct.pack(">4i", red, green, blue, 0)
    return struct.pack(">5i", 1, -2, int(labels.index.max()) + 1, 0, len(labels)) + entries


def save_margin(path, margin, affine, header):
    """Save margins (X, Y, Z) in [0, 0.0655] as uint16 steps of 1e-6 on the grid of the label map."""
    steps = margin / MARGIN_STEP
    image = nib.Nifti1Image(np.rint(steps, out=steps).astype(np.uint16), affine, header)
    image.set_data_dtype(np.uint16)
    image.header["cal_min"], image.header["cal_max"] = 0, 0
    image.header.set_slope_inter(MARGIN_STEP, 0)  # nibabel then stores the integers as they are
    nib.save(image, path)


def soft_volumes(segmentation, voxel_mm) -> np.ndarray:
    """Sum of posteriors per channel, in mm3 (N,), float64."""
    return segmentation.soft * np.prod(voxel_mm, dtype=np.float64)


def csv_row(image_name, labels, volumes):
    """What SynthSeg's table says of one image: its name, then mm3 rounded to 3 decimals.

    volumes : (N,) soft volumes, background first. Models with label 24 open with the total intracranial volume.
    """
    values = [float(v) for v in volumes[1:]]
    if labels.has_total_intracranial:
        values.insert(0, sum(values))
    return [image_name.replace(".nii.gz", ""), *(str(round(value, 3)) for value in values)]


def save_volumes_csv(path, labels, rows, first_cell="subject"):
    """SynthSeg's own table: header and `csv_row`s, CR LF, lower-case names. For lists its first cell is empty."""
    total = ["total intracranial"] if labels.has_total_intracranial else []
    with Path(path).open("w", **TABLE) as file:
        writer = csv.writer(file)
        writer.writerow([first_cell, *total, *labels.names[1:]])
        writer.writerows(rows)


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


def volume_rows(labels, volumes, counts, voxel_mm, confidences=None, at_edge=None):
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


def save_volumes_tsv(path, rows):
    """Write `volume_rows`; with an image's name in front of each where `rows` is {name: rows}."""
    several = isinstance(rows, dict)
    with Path(path).open("w", **TABLE) as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow([*(["image"] if several else []), *VOLUME_COLUMNS])
        for name, part in rows.items() if several else [(None, rows)]:
            writer.writerows([[name, *row] for row in part] if several else part)


def sidecar(record, grid="network") -> dict:
    """BIDS metadata of a label map, from its run record.

    grid : "network", or "native" for the map on the input's own grid.
    """
    engine, of_grid = record["engine"], record["output"] if grid == "network" else record["output"]["native_grid"]
    voxel_mm = "x".join(f"{v:g}" for v in of_grid["voxel_mm"])
    if grid == "network":
        resolution = f"{voxel_mm} mm, axes as in the input image"
    else:
        how = {"posterior": "from resampled posteriors", "nearest": "by nearest neighbour"}[of_grid["interpolation"]]
        resolution = f"the input image's own grid ({voxel_mm} mm), labels {how}"
    method = {
        "SegmentationMethod": f"{record['model']['name']} with {engine['name']} {engine['version']}",
        "ResearchGrade": record["model"]["research_grade"],
    }
    if (record["reference"] or {}).get("kind") == "existing":  # nobody knows what made it
        method = {"SegmentationMethod": "existing label map"}
    return {
        "Type": "Discrete",
        "SpatialReference": "orig",
        "Sources": [record["input"]["name"]],
        "Resolution": resolution,
        **method,
    }


def save_json(path, content):
    """Write JSON for people and programs; numbers that are not finite are an error."""
    Path(path).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
