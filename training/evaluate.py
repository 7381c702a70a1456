"""Accuracy on the maps held out: scans rendered from them, segmented by the command itself, compared by Dice."""

import itertools
import shutil
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from synthseg_native.networks import cards

from . import maps
from .command import dice, segment
from .export import note_accuracy
from .generate import render

MEAN = "mean of all structures"


def evaluate(
    folder, config, held_out, *, python=sys.executable, engine="torch", threads=2, table=None, pictures=None, say=print
):
    """Measure a model folder; returns rows {contrast, slice_mm, structure, dice}, and writes them as TSV to `table`.

    pictures : folder for one picture per contrast and slice thickness, of the first map
    held_out : label maps · python, engine : what runs `synthseg-native` · Dice is that of label maps on the network's
    grid, the reference being each voxel's most frequent label; the mean over anatomies and seeds.
    Raises SynthSegError("internal") where the command fails.
    """
    settings = config["evaluation"]
    found = cards.load(folder)
    channels = maps.channel_of(found.labels.index)
    values = {}
    with tempfile.TemporaryDirectory() as work:
        for contrast, slice_mm in itertools.product(settings["contrasts"], settings["slice_mm"]):
            scans, results = Path(work, "scans"), Path(work, "labels")
            targets = {}
            for place in (scans, results):
                place.mkdir()
            for label_map, seed in itertools.product(held_out, range(settings["contrasts"][contrast])):
                image, target = render(
                    label_map,
                    channels,
                    contrast,
                    slice_mm,
                    [label_map.number, seed],
                    config["validation"]["generation"],
                    found.resolution,
                )
                name = f"{label_map.number}_{seed}"
                nib.Nifti1Image(np.round(image).astype(np.int16), np.diag([1, 1, slice_mm, 1])).to_filename(
                    scans / f"{name}.nii.gz"
                )
                targets[name] = target
            more = ["--picture", results] if pictures else []
            segment(folder, scans, results, *more, python=python, engine=engine, threads=threads)
            if pictures:
                shutil.copy(min(results.glob("*.png")), Path(pictures, f"{contrast}_{slice_mm}mm.png"))
            for name, target in targets.items():
                labels = np.asarray(nib.load(results / f"{name}_synthseg.nii.gz").dataobj)
                scores = dice(labels, target, found.labels.index[1:], range(1, len(found.labels.index)))
                values.setdefault((contrast, slice_mm), []).append(scores)
            say(f"{contrast:8} {slice_mm} mm  {np.nanmean(values[contrast, slice_mm]):.3f}")
            for file in [*scans.iterdir(), *results.iterdir()]:
                file.unlink()
            scans.rmdir(), results.rmdir()
    rows = [
        {"contrast": contrast, "slice_mm": slice_mm, "structure": name, "dice": value}
        for (contrast, slice_mm), scores in values.items()
        for name, value in [
            (MEAN, np.nanmean(scores)),
            *zip(found.labels.names[1:], np.nanmean(scores, axis=0), strict=True),
        ]
    ]
    if table:
        lines = ["contrast\tslice_mm\tstructure\tdice"]
        lines += [f"{r['contrast']}\t{r['slice_mm']}\t{r['structure']}\t{r['dice']:.4f}" for r in rows]
        Path(table).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return rows


def write_to_card(folder, rows):
    """Put the means, and the structures at 1 mm, into the model's card."""
    means, structures = {}, {}
    for row in rows:
        if row["structure"] == MEAN:
            means.setdefault(row["contrast"], {})[f"{row['slice_mm']}mm"] = row["dice"]
        elif row["slice_mm"] == 1:
            structures.setdefault(row["contrast"], {})[row["structure"]] = row["dice"]
    note_accuracy(folder, means, structures)
