"""Images for the benchmark: a synthetic head around the ICBM 152 T1 template, on grids of the sizes asked for.

The template is the one that the golden tests keep; skull, scalp and noise are `cohort.phantoms`'. No scan of anybody.
"""

import gzip
from collections.abc import Iterable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np

from synthseg_native.cohort import environments, phantoms

TEMPLATE = environments.ROOT / "tests" / "golden" / "t1_image.nii.gz"
NOISE = 0.012  # white matter is about 0.9


def make(
    sizes: Iterable[tuple[int, int, int]], voxel_mm: float = 1.0, template: Path = TEMPLATE
) -> Iterator[tuple[tuple[int, int, int], nib.Nifti1Image]]:
    """Yield (size, NIfTI image) for grids of (X, Y, Z) isotropic voxels, RAS, with the head in the middle; int16."""
    image = nib.load(template)
    phantom = phantoms.make_phantom(np.asarray(image.dataobj, np.float32) / 255, image.affine)
    head, centre = phantom.image(), image.affine[:3, :3] @ ((np.array(image.shape) - 1) / 2) + image.affine[:3, 3]
    for size in sizes:
        affine = np.diag([voxel_mm] * 3 + [1.0])
        affine[:3, 3] = centre - voxel_mm * (np.array(size) - 1) / 2
        values = np.clip(phantoms.on_grid(head, phantom.affine, affine, size), 0, None)
        values = phantoms.add_noise(values.astype(np.float32), NOISE, seed=11) * 1000
        made = nib.Nifti1Image(np.rint(values).astype(np.int16), affine)
        made.header.set_xyzt_units("mm", "sec")
        made.set_qform(affine, code=1)
        made.set_sform(affine, code=1)
        made.header["descrip"] = b"template-derived phantom, not a scan"
        yield tuple(size), made


def save(image: nib.Nifti1Image, path: Path | str) -> None:
    """Write a .nii.gz whole or not at all, the same bytes on every call."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.part")
    beside.write_bytes(gzip.compress(image.to_bytes(), 6, mtime=0))
    beside.replace(path)
