"""Files that a run leaves: label map, margin map, volumes, sidecar. All of them or none."""

import csv
import errno
import hashlib
import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np

from .errors import SynthSegError

MARGIN_STEP = 1e-6


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
            destination.parent.mkdir(parents=True, exist_ok=True)
        part = destination.with_name(f".part-{os.getpid()}-{destination.name}")
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
    digest.update(np.ascontiguousarray(array, dtype="<i4").tobytes())
    return digest.hexdigest()


def save_labels(path, labels, affine, header):
    """Save int32 labels (X, Y, Z) as NIfTI with the input's header, as SynthSeg does.

    Where the grid is the input's, its sform, qform and codes stay; on a new grid nibabel sets the sform alone.
    """
    image = nib.Nifti1Image(np.asarray(labels, dtype=np.int32), affine, header)
    image.set_data_dtype(np.int32)
    nib.save(image, path)


def save_margin(path, margin, affine, header):
    """Save margins (X, Y, Z) in [0, 0.0655] as uint16 steps of 1e-6 on the grid of the label map."""
    image = nib.Nifti1Image(np.rint(margin / MARGIN_STEP).astype(np.uint16), affine, header)
    image.set_data_dtype(np.uint16)
    image.header["cal_min"], image.header["cal_max"] = 0, 0
    image.header.set_slope_inter(MARGIN_STEP, 0)  # nibabel then stores the integers as they are
    nib.save(image, path)


def soft_volumes(segmentation, voxel_mm) -> np.ndarray:
    """Sum of posteriors per channel, in mm3 (N,), float64."""
    return segmentation.soft * np.prod(voxel_mm, dtype=np.float64)


def save_volumes_csv(path, image_name, labels, volumes):
    """SynthSeg's own table: header and one row, CR LF, lower-case names, mm3 rounded to 3 decimals.

    volumes : (N,) soft volumes, background first. Models with label 24 open with the total intracranial volume.
    """
    names, values = list(labels.names[1:]), list(volumes[1:])
    if labels.has_total_intracranial:
        names.insert(0, "total intracranial")
        values.insert(0, sum(values))
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["subject", *names])
        writer.writerow([image_name.replace(".nii.gz", ""), *(str(round(float(v), 3)) for v in values)])


def save_volumes_tsv(path, labels, volumes, counts, voxel_mm):
    """One row per structure: soft volume (sum of posteriors) and voxel count, both also in mm3.

    volumes (N,) in mm3, or None where only a label map is known; counts (N,) voxels. A volume that is no number is n/a.
    """
    size = float(np.prod(voxel_mm, dtype=np.float64))
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["index", "name", "freesurfer_name", "soft_volume_mm3", "n_voxels", "voxel_volume_mm3"])
        for channel in range(1, len(labels)):
            writer.writerow([
                labels.index[channel],
                labels.names[channel],
                labels.freesurfer_names[channel],
                "n/a" if volumes is None or not np.isfinite(volumes[channel]) else f"{volumes[channel]:.3f}",
                counts[channel],
                f"{counts[channel] * size:.3f}",
            ])  # fmt: skip


def sidecar(record) -> dict:
    """BIDS metadata of a label map, from its run record."""
    engine, voxel_mm = record["engine"], "x".join(f"{v:g}" for v in record["output"]["voxel_mm"])
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
        "Resolution": f"{voxel_mm} mm, axes as in the input image",
        **method,
    }


def save_json(path, content):
    """Write JSON for people and programs; numbers that are not finite are an error."""
    Path(path).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
