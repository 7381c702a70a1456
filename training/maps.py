"""The label maps to train on: fetched by address and hash, read as arrays of class numbers.

They hold more labels than the network has channels: lesions, vessels, choroid plexus and the tissues around the brain.
Which is what was read off their position and neighbours in the maps.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from synthseg_native.errors import SynthSegError
from synthseg_native.networks import weights

from . import ROOT

LIST = Path(__file__).with_name("maps.tsv")  # number, bytes, sha256, address
FOLDER = ROOT / "training" / "data"
HELD_OUT = (19, 20)

# Labels in pairs (left, right); all others are their own mirror image.
PAIRS = [
    *[(2, 41), (3, 42), (4, 43), (5, 44), (7, 46), (8, 47), (10, 49), (11, 50), (12, 51), (13, 52), (17, 53), (18, 54)],
    *[(26, 58), (28, 60), (25, 57), (30, 62), (136, 163), (137, 164)],
]
NEUTRAL = [0, 14, 15, 16, 24, 72, 85, 502, 506, 507, 508, 509, 511, 512, 514, 515, 516, 530]
# Labels without a channel that belong to a structure: lesions to white matter, plexus to ventricles. The rest is
# background.
PART_OF = {25: 2, 57: 41, 136: 4, 163: 43, 137: 5, 164: 44}
# What skull stripping takes away, now and then with the fluid (24).
OUTSIDE = [0, 502, 506, 507, 508, 509, 511, 512, 514, 515, 516, 530]

LABELS = np.array(sorted(NEUTRAL + [label for pair in PAIRS for label in pair]))  # (K,) label value per class number
MIRROR = np.arange(len(LABELS))  # (K,) class number of the mirrored class
for left, right in PAIRS:
    a, b = np.searchsorted(LABELS, [left, right])
    MIRROR[a], MIRROR[b] = b, a


@dataclass
class LabelMap:
    """classes : (X, Y, Z) uint8 class numbers, RAS, 1 mm · centre : (3,) voxel position of the middle of the brain"""

    number: int
    classes: np.ndarray
    centre: np.ndarray


def channel_of(label_values) -> np.ndarray:
    """(K,) the network's channel of each class, for the label values of its channels (N,)."""
    channels = {int(value): channel for channel, value in enumerate(label_values)}
    return np.array([channels.get(PART_OF.get(int(label), int(label)), 0) for label in LABELS])


def listed():
    """Rows of the list of maps: number (int), name, bytes (int), sha256, address."""
    with LIST.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            name = row["address"].rsplit("/", 1)[1]
            yield int(row["number"]), name, int(row["bytes"]), row["sha256"], row["address"]


def fetch(folder=FOLDER, log=None):
    """Fetch the maps that are missing or damaged in the folder. Raises SynthSegError where one cannot be had."""
    for _, name, size, sha256, address in listed():
        file = weights.WeightsFile(name, size, sha256, urls=(address,))
        weights.fetch(file, Path(folder) / name, log=log)


def read(path, number) -> LabelMap:
    """Read a label map and cut the air around the head. Raises SynthSegError("usage") where it has other labels."""
    try:
        image = nib.as_closest_canonical(nib.load(path))
        labels = np.asarray(image.dataobj).astype(np.int32)
    except (OSError, nib.filebasedimages.ImageFileError) as error:
        raise SynthSegError(
            "usage", f"{path}: no readable label map: run python -m training fetch-maps, or name a folder with --maps"
        ) from error
    classes = np.searchsorted(LABELS, labels).clip(0, len(LABELS) - 1)
    if not np.array_equal(LABELS[classes], labels):
        raise SynthSegError("usage", f"{path}: has labels that are not of the SynthSeg training maps: use those maps")
    brain = np.argwhere(np.isin(labels, [2, 3, 41, 42]))
    inside = np.argwhere(labels > 0)
    low, high = inside.min(axis=0), inside.max(axis=0) + 1
    classes = classes[tuple(slice(a, b) for a, b in zip(low, high, strict=True))].astype(np.uint8)
    return LabelMap(number, np.ascontiguousarray(classes), (brain.min(axis=0) + brain.max(axis=0)) / 2 - low)


def load(folder, held_out=False) -> list[LabelMap]:
    """The maps to train on, or those held out."""
    wanted = [(n, Path(folder, name)) for n, name, *_ in listed() if (n in HELD_OUT) == held_out]
    return [read(path, number) for number, path in wanted]
