"""A model folder: ``card.yaml`` (network, input, post-processing) and ``labels.tsv`` (one row per channel)."""

import csv
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from synthseg_native.errors import SynthSegError

# Label 24 is the fluid around the brain. Only with it is the sum over all structures the volume of the cavity.
CSF = 24


@dataclass(frozen=True)
class Labels:
    """The label table, one entry per channel of the network, background first.

    index : (N,) int32, label values · flip : (N,) int, the channel of the mirrored structure
    topology : (N,) int, channels of one class are kept connected, 0 for none
    names, freesurfer_names, hemispheres ("left", "right", "none"), colors ("#rrggbb") : lists of str
    """

    index: np.ndarray
    flip: np.ndarray
    topology: np.ndarray
    names: list
    freesurfer_names: list
    hemispheres: list
    colors: list

    def __len__(self):
        return len(self.index)

    @property
    def has_total_intracranial(self) -> bool:
        """Whether the volumes open with "total intracranial", as SynthSeg 2.0's do."""
        return CSF in self.index


@dataclass(frozen=True)
class Model:
    """What a card says. resolution in mm, pad_multiple and min_size in voxels, smoothing_sigma in voxels.

    memory_mb : what one run may take
    """

    name: str
    folder: Path
    card: dict
    labels: Labels
    resolution: float
    pad_multiple: int
    min_size: int
    smoothing_sigma: float
    threshold: float
    research_grade: bool
    memory_mb: int


def find_folder(name_or_folder) -> Path:
    """The folder of a model: a folder with a card, or a name below $SYNTHSEG_NATIVE_MODELS, ./models, the checkout."""
    places = [Path(name_or_folder), Path("models", name_or_folder)]
    places.append(Path(__file__).resolve().parents[3] / "models" / name_or_folder)
    if "SYNTHSEG_NATIVE_MODELS" in os.environ:
        places.insert(1, Path(os.environ["SYNTHSEG_NATIVE_MODELS"], name_or_folder))
    for folder in places:
        if (folder / "card.yaml").is_file():
            return folder
    raise SynthSegError(
        "usage", f"{name_or_folder}: no such model: give a folder with card.yaml and labels.tsv, or one of its names"
    )


def load(name_or_folder) -> Model:
    """Read and check a model folder. Raises SynthSegError("usage") with the file and the field that is wrong."""
    folder = find_folder(name_or_folder)
    path = folder / "card.yaml"
    try:
        card = yaml.safe_load(path.read_text(encoding="utf-8"))
        model = Model(
            name=card["name"],
            folder=folder,
            card=card,
            labels=read_labels(folder / "labels.tsv"),
            resolution=float(card["input"]["resolution_mm"]),
            pad_multiple=int(card["input"]["pad_multiple"]),
            min_size=int(card["input"]["min_size"]),
            smoothing_sigma=float(card["posterior"]["smoothing_sigma"]),
            threshold=float(card["posterior"]["threshold"]),
            research_grade=bool(card.get("research_grade", False)),
            memory_mb=int(card["memory_mb"]),
        )
        channels, levels = card["network"]["labels"], card["network"]["levels"]
    except (KeyError, TypeError, ValueError, OverflowError, yaml.YAMLError) as error:
        reason = f"lacks the field {error}" if isinstance(error, KeyError) else f"{error}".splitlines()[0]
        raise SynthSegError("usage", f"{path}: not a usable model card, {reason}: correct it") from error
    if channels != len(model.labels):
        raise SynthSegError(
            "usage", f"{path}: {channels} labels, but {len(model.labels)} rows in labels.tsv: make them agree"
        )
    if model.memory_mb < 1:
        raise SynthSegError("usage", f"{path}: memory_mb {card['memory_mb']} is no positive number: correct it")
    if model.pad_multiple % 2 ** (levels - 1):
        raise SynthSegError(
            "usage", f"{path}: pad_multiple {model.pad_multiple} is no multiple of {2 ** (levels - 1)}: correct it"
        )
    return model


def read_labels(path) -> Labels:
    """Read labels.tsv. Raises SynthSegError("usage") when it is missing, has other columns, or contradicts itself."""
    path = Path(path)
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        labels = Labels(
            index=np.array([int(row["index"]) for row in rows], dtype=np.int32),
            flip=np.array([int(row["flip_channel"]) for row in rows]),
            topology=np.array([int(row["topology_class"]) for row in rows]),
            names=[row["name"] for row in rows],
            freesurfer_names=[row["freesurfer_name"] for row in rows],
            hemispheres=[row["hemisphere"] for row in rows],
            colors=[row["color"] for row in rows],
        )
        channels = [int(row["channel"]) for row in rows]
    except OSError as error:
        raise SynthSegError("usage", f"{path}: {error.strerror}: a model folder needs its label table") from error
    except (KeyError, TypeError, ValueError) as error:
        raise SynthSegError("usage", f"{path}: not a usable label table, {error}: correct it") from error
    n = len(labels)
    if channels != list(range(n)) or n < 2 or labels.index[0] != 0:
        raise SynthSegError("usage", f"{path}: channels must count from 0, background first: correct the rows")
    if len(set(labels.index.tolist())) != n:
        raise SynthSegError("usage", f"{path}: a label value occurs twice: correct column index")
    if not np.array_equal(np.sort(labels.flip), np.arange(n)) or np.any(labels.flip[labels.flip] != np.arange(n)):
        raise SynthSegError("usage", f"{path}: flipping twice must give each channel back: correct flip_channel")
    return labels
