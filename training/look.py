"""What a model makes of scans without a truth: the ICBM 152 template, and a real head seen in several ways.

template : grey and white matter against nilearn's probability maps, and what is labelled outside its brain mask
a scan : the label map against those of the same head turned round in memory, mirrored, noisy, tilted
"""

import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from synthseg_native.errors import SynthSegError
from synthseg_native.networks import cards

from .command import dice, segment

GREY = [3, 8, 10, 11, 12, 13, 17, 18, 26, 42, 47, 49, 50, 51, 52, 53, 54, 58]
WHITE = [2, 7, 16, 28, 41, 46, 60]
NEAR_MM = 2  # beyond the brain mask: nearer is no leak, but half a voxel of the model and the mask's own doubt
NOISE = 0.03  # standard deviation, of the brightest tissue (99.5th percentile)
TILT_DEG = 8, -6, 10  # about the three axes
SEED = 2026


def look(folder, *, scan=None, pictures=None, python=sys.executable, engine="torch", threads=2, say=print):
    """Measure a model folder; returns {measure: value} and puts pictures into the folder `pictures`.

    scan : path of a real scan, or None: the template alone
    """
    found = cards.load(folder)
    images = {"template": template()}
    if scan is not None:
        images["scan"] = _read(scan)
        images |= views(images["scan"])
    with tempfile.TemporaryDirectory() as work:
        scans, results = Path(work, "scans"), Path(work, "labels")
        for place in (scans, results):
            place.mkdir()
        for name, image in images.items():
            image.to_filename(scans / f"{name}.nii.gz")
        more = ["--picture", pictures] if pictures else []
        segment(folder, scans, results, "--keepgeom", *more, python=python, engine=engine, threads=threads)
        labels = {name: nib.load(results / f"{name}_synthseg.nii.gz") for name in images}
        measures = against_template(labels["template"])
        if scan is not None:
            measures |= against_itself(labels, found.labels)
    for name, value in measures.items():
        say(f"{name:32} {value:.3f}")
    return measures


def template():
    """The ICBM 152 T1 template, 1 mm, as scanners number intensities."""
    from nilearn.datasets import load_mni152_template

    image = load_mni152_template(resolution=1)
    data = np.asarray(image.dataobj, dtype=np.float32)
    return nib.Nifti1Image(np.round(1000 * data / data.max()).astype(np.int16), image.affine)


def against_template(label_map) -> dict:
    """Dice of grey and of white matter with nilearn's maps above one half, and the share of the labelled volume more
    than NEAR_MM outside its brain mask. label_map : on the template's grid"""
    from nilearn.datasets import load_mni152_brain_mask, load_mni152_gm_template, load_mni152_wm_template

    loads = load_mni152_gm_template, load_mni152_wm_template
    grey, white = (np.asarray(load(resolution=1).dataobj) for load in loads)
    brain = np.asarray(load_mni152_brain_mask(resolution=1).dataobj) > 0
    labels = np.asarray(label_map.dataobj)
    if labels.shape != grey.shape:
        raise SynthSegError("internal", f"template: shapes {labels.shape} and {grey.shape}: report this")
    near = ndimage.distance_transform_edt(~brain) <= NEAR_MM
    return {
        "template: grey matter": float(dice(np.isin(labels, GREY), grey > 0.5, [True])[0]),
        "template: white matter": float(dice(np.isin(labels, WHITE), white > 0.5, [True])[0]),
        "template: outside the brain": float((labels[~near] > 0).sum() / max((labels > 0).sum(), 1)),
    }


def views(image) -> dict:
    """The same head seen otherwise: {name: image}."""
    data, affine = np.asarray(image.dataobj, dtype=np.float32), image.affine
    noise = np.random.default_rng(SEED).standard_normal(data.shape, dtype=np.float32)
    noisy = np.abs(data + NOISE * np.percentile(data, 99.5) * noise)  # magnitudes are never negative
    # From head to foot, back to front: the same points of the head in another order.
    order = nib.orientations.axcodes2ornt(("S", "L", "P"))
    turned = nib.Nifti1Image(noisy, affine).as_reoriented(
        nib.orientations.ornt_transform(nib.io_orientation(affine), order)
    )
    centre = (np.array(data.shape) - 1) / 2
    rotation = _rotation(np.deg2rad(TILT_DEG))
    tilted = ndimage.affine_transform(data, rotation, centre - rotation @ centre, order=1)
    return {
        "noisy": nib.Nifti1Image(noisy, affine),
        "turned": turned,
        # The head is another, its mirror image; the affine says the same.
        "mirrored": nib.Nifti1Image(data[::-1].copy(), affine),
        "tilted": nib.Nifti1Image(tilted, affine),
    }


def against_itself(labels, table) -> dict:
    """Mean Dice of all structures: the scan's label map against those of its `views`, brought back to its grid."""
    scan, affine, values = np.asarray(labels["scan"].dataobj), labels["scan"].affine, table.index[1:]
    back = nib.orientations.ornt_transform(nib.io_orientation(labels["turned"].affine), nib.io_orientation(affine))
    turned = np.asarray(labels["turned"].as_reoriented(back).dataobj)
    mirrored = np.asarray(labels["mirrored"].dataobj)[::-1]
    centre = (np.array(scan.shape) - 1) / 2
    rotation = _rotation(np.deg2rad(TILT_DEG))
    tilted = ndimage.affine_transform(
        np.asarray(labels["tilted"].dataobj), rotation.T, centre - rotation.T @ centre, order=0
    )
    partners = [values, values, [table.index[table.flip[n]] for n in range(1, len(table.index))], values]
    others = [np.asarray(labels["noisy"].dataobj), turned, mirrored, tilted]
    names = ["noisy", "re-oriented and noisy", "mirrored", "tilted"]
    return {
        f"scan: {name}": float(np.nanmean(dice(scan, other, values, partner)))
        for name, other, partner in zip(names, others, partners, strict=True)
    }


def _read(path):
    try:
        image = nib.load(path)
        return nib.Nifti1Image(np.asarray(image.dataobj, dtype=np.float32), image.affine)
    except (OSError, nib.filebasedimages.ImageFileError) as error:
        raise SynthSegError("usage", f"{path}: cannot be read ({error}): name a NIfTI image") from error


def _rotation(angles):
    """Matrix (3, 3) of rotations about x, then y, then z; angles in radians."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x
