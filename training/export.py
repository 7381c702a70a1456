"""A model folder from a checkpoint: weights in upstream's layout, label table, card."""

import datetime
import hashlib
import shutil
from pathlib import Path

import numpy as np
import yaml

from synthseg_native.networks import cards

from .maps import HELD_OUT
from .network import Network, read_checkpoint, take, write_weights

MEASURED = ("accuracy", "accuracy_per_structure", "agreement")  # entries of a card


def export(checkpoint, config, folder):
    """Write the averaged weights of a checkpoint as a model folder; returns the folder.

    Raises SynthSegError("usage") where there is no checkpoint or it is of another network.
    """
    base = cards.load(config["model"])
    network = Network(**(base.network.shape() | config.get("network", {})))
    state = read_checkpoint(checkpoint)
    take(network, state["average"], checkpoint)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / f"{config['name']}.h5"
    write_weights(weights, network.weights())
    if (folder / "labels.tsv").resolve() != (base.folder / "labels.tsv").resolve():
        shutil.copy(base.folder / "labels.tsv", folder / "labels.tsv")
    content = weights.read_bytes()
    entry = base.card["networks"][0]
    card = base.card | {
        "name": config["name"],
        "networks": [
            entry
            | {
                "weights": {"file": weights.name, "size": len(content), "sha256": hashlib.sha256(content).hexdigest()},
                "layers": entry["layers"] | config.get("network", {}),
            }
        ],
        "trained": {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "iterations": state["iteration"],
            "hours": round(state["seconds"] / 3600, 1),
            "seed": config["seed"],
            "data": "18 of the 20 SynthSeg label maps, domain randomisation (training/)",
            "held_out": list(HELD_OUT),
        },
    }
    for measured in MEASURED:  # of other weights; evaluate and look measure it anew
        card.pop(measured, None)
    write_card(folder, card)
    return folder


def read_card(folder):
    return yaml.safe_load(Path(folder, "card.yaml").read_text(encoding="utf-8"))


def write_card(folder, card):
    """Write card.yaml, whole or not at all."""
    partial = Path(folder) / "card.part"
    # None: the innermost dictionaries on one line
    text = yaml.safe_dump(card, sort_keys=False, width=110, allow_unicode=True, default_flow_style=None)
    partial.write_text(text, encoding="utf-8")
    partial.replace(Path(folder) / "card.yaml")


def note_accuracy(folder, means, structures):
    """Put measured Dice into the card.

    means : {contrast: {slice thickness: value}} · structures : {contrast: {name: value}}
    """
    card = read_card(folder)
    card["accuracy"] = {"of": "mean Dice, synthetic held-out, n = 2 anatomies", **_rounded(means)}
    card["accuracy_per_structure"] = _rounded(structures)
    write_card(folder, card)


def note_agreement(folder, measures):
    """Put what `look` measured into the card; what was measured of another subject stays.

    measures : {"template: grey matter": value, ...}
    """
    card = read_card(folder)
    found = card.setdefault("agreement", {})
    for name, value in _rounded(measures).items():
        subject, measure = name.split(": ")
        found.setdefault(subject, {})[measure] = value
    write_card(folder, card)


def _rounded(table):
    return {str(k): _rounded(v) if isinstance(v, dict) else round(float(np.round(v, 3)), 3) for k, v in table.items()}
