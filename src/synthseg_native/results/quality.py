"""What is odd about one segmentation: limits, flags and sentences, applied to the figures that its record keeps.

A flag says "look at the picture", not "discard". docs/quality.md says where the limits come from.
"""

import numpy as np

from synthseg_native.networks.cards import CSF, Labels

# Volumes (left - right) / mean beyond these are odd; 2 is a structure on one side only.
ASYMMETRY_LIMITS = {
    "cerebral white matter": 0.15,
    "cerebral cortex": 0.20,
    "cerebellum cortex": 0.20,
    "ventral DC": 0.30,
    "thalamus": 0.35,
    "caudate": 0.35,
    "putamen": 0.35,
    "cerebellum white matter": 0.40,
    "hippocampus": 0.40,
    "amygdala": 0.60,
    "pallidum": 0.70,
    "accumbens area": 0.70,
    "lateral ventricle": 1.20,
    "inferior lateral ventricle": 1.80,
}
ASYMMETRY_LIMIT_OTHER = 0.70
BRAIN_ML = (600, 2200)
MIN_CONFIDENCE = 0.70
MIN_LABEL_CONFIDENCE = 0.50
MAX_REMOVED = 0.05

MIN_SCORE = 0.65  # of SynthSeg's own quality scores, as its paper has it

FLAGS = {
    "no_foreground": "no voxel has a label",
    "brain_volume": f"the brain, ventricles included, is not within {BRAIN_ML[0]} to {BRAIN_ML[1]} mL",
    "low_confidence": f"the mean posterior of the labels given is below {MIN_CONFIDENCE:.2f}",
    "low_scores": f"a quality score of SynthSeg's is below {MIN_SCORE:.2f}",
    "labels_low_confidence": f"the same of one label is below {MIN_LABEL_CONFIDENCE:.2f}",
    "labels_missing": "a label of the model has no voxel",
    "labels_at_fov_edge": "a label has a voxel in the first or last plane of an axis",
    "asymmetry": "the volumes of a paired structure differ by more than the limit of that structure",
    "components_removed": f"detached parts of more than {MAX_REMOVED:.0%} of the foreground were dropped",
}


def assess(figures: dict, labels_table: Labels) -> dict:
    """What is odd about a segmentation by today's limits, ready for JSON.

    figures : what `figures.measure` found, maybe long ago · labels_table : `cards.Labels` of its model

    Returns flags (names of FLAGS), remarks (a sentence per flag or structure, in the same order), brain_mm3 (soft,
    ventricles included, without label 24), labels_missing, labels_at_fov_edge and labels_low_confidence (label
    values), asymmetry (structure: (left - right) / mean of the soft volumes, None where neither side has a voxel),
    scores_low (names), removed_mm3 and removed_fraction (of the foreground, None without one).
    """
    volumes, counts = (np.array(figures[name]) for name in ("soft_mm3", "voxels"))
    index = labels_table.index
    foreground, removed = int(counts[1:].sum()), sum(figures["removed_voxels"].values())
    low = [confidence is not None and confidence < MIN_LABEL_CONFIDENCE for confidence in figures["confidence"]]
    pairs = side_pairs(labels_table)
    sides = {name: volumes[list(pair)] for name, pair in pairs.items() if counts[list(pair)].any()}
    found = {
        "brain_mm3": round(float(volumes[(index != 0) & (index != CSF)].sum()), 3),
        "labels_missing": _values(index, counts == 0),
        "labels_at_fov_edge": _values(index, [str(value) in figures["edge_voxels"] for value in index.tolist()]),
        "labels_low_confidence": _values(index, low),
        "asymmetry": {name: _asymmetry(*sides[name]) if name in sides else None for name in pairs},
        "scores_low": [name for name, score in (figures.get("scores") or {}).items() if score < MIN_SCORE],
        "removed_mm3": round(removed * figures["voxel_mm3"], 3),
        "removed_fraction": round(removed / foreground, 6) if foreground else None,
    }
    if foreground:
        remarks = _remarks(found, labels_table, figures, sides)
    else:
        remarks = {"no_foreground": ["no voxel has a label"]}  # which says it all
    flags = [flag for flag in FLAGS if remarks.get(flag)]
    return {"flags": flags, "remarks": [remark for flag in flags for remark in remarks[flag]], **found}


def of_record(record: dict, labels_table: Labels) -> dict | None:
    """`assess` of what a run record holds, by today's limits.

    A record of an earlier version has no figures but what was said of them then, which is returned as it is; None
    where it has neither, as that of a run that failed or of a reference. KeyError, IndexError and TypeError where the
    figures are not those of this label table.
    """
    stored = (record.get("output") or {}).get("qc")
    return assess(stored, labels_table) if stored and "soft_mm3" in stored else stored


def _remarks(found, labels_table, figures, sides) -> dict:
    """Sentences per flag; none where nothing is odd. sides : {structure: (left, right) in mm3}"""
    brain_ml, removed, confidence = found["brain_mm3"] / 1000, found["removed_fraction"], figures["mean_confidence"]
    remarks = {
        "asymmetry": [_sides(name, *sides[name]) for name, value in found["asymmetry"].items() if _beyond(name, value)]
    }
    if not BRAIN_ML[0] <= brain_ml <= BRAIN_ML[1]:
        remarks["brain_volume"] = [f"brain of {brain_ml:.0f} mL, not within {BRAIN_ML[0]} to {BRAIN_ML[1]} mL"]
    if confidence < MIN_CONFIDENCE:
        remarks["low_confidence"] = [f"low confidence: mean posterior {confidence:.2f}"]
    for flag, text in (
        ("labels_low_confidence", "low confidence in"),
        ("labels_missing", "no voxel of"),
        ("labels_at_fov_edge", "cut by the edge of the image"),
    ):
        if found[flag]:
            remarks[flag] = [f"{text}: {_listed(labels_table, found[flag])}"]
    if found["scores_low"]:
        scores = ", ".join(f"{name} {figures['scores'][name]:.4f}" for name in found["scores_low"])
        remarks["low_scores"] = [f"quality scores below {MIN_SCORE:.2f}: {scores}"]
    if removed > MAX_REMOVED:
        remarks["components_removed"] = [
            f"detached parts were dropped: {found['removed_mm3'] / 1000:.1f} mL, {removed:.0%} of the foreground"
        ]
    return remarks


def side_pairs(labels_table: Labels) -> dict[str, tuple[int, int]]:
    """Channels (left, right) of the paired structures by their name without a side, from hemispheres and flip table."""
    return {
        labels_table.names[channel].removeprefix("left "): (channel, int(labels_table.flip[channel]))
        for channel, side in enumerate(labels_table.hemispheres)
        if side == "left" and labels_table.hemispheres[labels_table.flip[channel]] == "right"
    }


def _listed(labels_table, values) -> str:
    """Names of label values, structures of which both sides are meant first."""
    both, single = [], [i for i in range(len(labels_table)) if labels_table.index[i] in values]
    for structure, (left, right) in side_pairs(labels_table).items():
        if left in single and right in single:
            both.append(structure)
            single = [channel for channel in single if channel not in (left, right)]
    parts = [f"{', '.join(both)} (both sides)"] if both else []
    return "; ".join([*parts, *([", ".join(labels_table.names[channel] for channel in single)] if single else [])])


def _asymmetry(left, right) -> float:
    return round(float(2 * (left - right) / (left + right)), 4)


def _beyond(structure, asymmetry) -> bool:
    return asymmetry is not None and abs(asymmetry) > ASYMMETRY_LIMITS.get(structure, ASYMMETRY_LIMIT_OTHER)


def _sides(structure, left, right) -> str:
    """Both volumes (mm3) in a sentence."""
    large, small, name, other = (left, right, "left", "right") if left > right else (right, left, "right", "left")
    times = f"{large / small:.1f} times" if small > 0.01 * large else "more than 100 times"
    return f"{name} {structure} is {times} the {other} ({_amount(large)} and {_amount(small)})"


def _amount(mm3) -> str:
    return f"{mm3 / 1000:.1f} mL" if mm3 >= 1000 else f"{mm3:.0f} mm3"


def _values(index, chosen) -> list[int]:
    """Label values where chosen, without the background."""
    return [int(value) for value in index[np.asarray(chosen, dtype=bool)] if value]
