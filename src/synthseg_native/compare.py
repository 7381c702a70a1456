"""Is one label map the same segmentation as another? The verdict of a native run against its reference."""

import math
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import aff2axcodes, apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

from synthseg_native.errors import SynthSegError
from synthseg_native.networks.cards import CORTEX, WHITE_MATTER, read_labels, with_parcels
from synthseg_native.pipeline.labels import MAX_MARGIN
from synthseg_native.results import volumes
from synthseg_native.results.hashes import labels_sha256

DEFAULT_THRESHOLDS = {
    "max_fraction_different": 1e-5,  # of the union of both foregrounds
    "max_margin": 1e-3,  # best minus second-best posterior, of every differing voxel
    "max_volume_difference_percent": 0.5,  # per label; the larger of these two is allowed
    "max_volume_difference_mm3": 10.0,
}
CASCADE = 10  # parcels that may differ for each voxel of cortex that does
MAX_SCORE_DIFFERENCE = 5e-4  # of SynthSeg's quality scores
FORM_TOLERANCE = 1e-3  # of a sum of parcels' volumes that tells its form
GEOMETRY_TOLERANCE_MM = 0.01  # how far a corner of the grid may move: far below a voxel, above header rounding
DISTANCE_EDGES_MM = [0, 0.5, 1, 2, 3, 5, 10]
_LARGEST_LABEL = 1_000_000
_SIDES = {"left": 1, "right": -1}


def compare_label_maps(
    native_path: str | PathLike,
    reference_path: str | PathLike,
    labels_path: str | PathLike,
    margin_path: str | PathLike | None = None,
    thresholds: Mapping[str, float] | None = None,
    native_volumes: str | PathLike | None = None,
    reference_volumes: str | PathLike | None = None,
    parcels_path: str | PathLike | None = None,
    scores: Sequence[dict[str, float] | None] = (None, None),
) -> dict:
    """Compare two label maps voxel by voxel and label by label.

    Parameters
    ----------
    native_path, reference_path : path of a label map (NIfTI or MGH, integer values >= 0)
    labels_path : path of the model's labels.tsv (columns index, name, hemisphere)
    margin_path : path of the native run's margin map on the native grid, or None
    thresholds : dict that overrides entries of DEFAULT_THRESHOLDS
    native_volumes, reference_volumes : paths of volumes.tsv (columns index, soft_volume_mm3), or None
    parcels_path : path of the model's parcels.tsv, where the maps have parcels of the cortex
    scores : SynthSeg's quality scores of both runs, {group: score}, or None

    Returns
    -------
    dict that JSON can hold; docs/results.md lists its entries. Numbers that need both maps on one grid are None
    where the grids differ.

    Raises
    ------
    SynthSegError ``bad_input`` when a file is missing or is no label map, ``usage`` for an unknown
    threshold or a label table that is wrong.

    Notes
    -----
    Dice = 2 |A and B| / (|A| + |B|). Volume differences are native minus reference, percentages are of the reference.
    The distance of a differing voxel from the label boundary is that of its centre to the nearest centre of a voxel
    that has a 6-neighbour of another label: 0 when it is such a voxel itself. It is taken in both maps; the larger
    counts, so that a speck inside a structure is seen whichever map it is in.

    Parcels: another network makes them from the image and from where there is cortex, so that one voxel of cortex more
    or less may change parcels far from it. Structures, all of the cortex taken as one of them, have the limits of a map
    without parcels; where they differ in the cortex, CASCADE voxels more may be another parcel for each such voxel, and
    margins of parcels excuse nothing. Parcels' volumes are compared as shares of their hemisphere: their sums have
    several forms (`parcel_volumes` says which the reference has).
    """
    limits = {**DEFAULT_THRESHOLDS, **(thresholds or {})}
    if unknown := sorted(set(limits) - set(DEFAULT_THRESHOLDS)):
        raise SynthSegError("usage", f"thresholds: unknown {', '.join(unknown)}: use {', '.join(DEFAULT_THRESHOLDS)}")
    structures = read_labels(labels_path)
    parcels = read_labels(parcels_path) if parcels_path else None
    table = with_parcels(structures, parcels)
    names = dict(zip(table.index.tolist(), table.names, strict=True))
    # Parcels have none here: nothing keeps a left one out of the right hemisphere.
    sides = dict(zip(structures.index.tolist(), structures.hemispheres, strict=True))
    native, native_affine = _read_map(native_path)
    stored, stored_affine = _read_map(reference_path)
    reference, reference_affine = _same_axis_order(stored, stored_affine, native_affine)

    shift = _corner_shift_mm(native.shape, native_affine, reference.shape, reference_affine)
    same_grid = shift is not None and shift <= GEOMETRY_TOLERANCE_MM
    orientations = ["".join(aff2axcodes(affine)) for affine in (native_affine, stored_affine)]
    result = {
        "geometry_equal": same_grid and orientations[0] == orientations[1],
        "geometry": {
            "shape": {"native": list(native.shape), "reference": list(stored.shape)},
            "orientation": {"native": orientations[0], "reference": orientations[1]},
            "voxel_mm": {"native": _voxel_mm(native_affine), "reference": _voxel_mm(stored_affine)},
            "max_corner_shift_mm": shift,
        },
        "labels_sha256": {"native": labels_sha256(native), "reference": labels_sha256(stored)},
        "thresholds": limits,
    }
    different = _overlap(result, native, reference, sides, native_affine) if same_grid else _no_overlap(result)
    judged = different
    if parcels is not None and same_grid:
        judged = _parcels(result, native, reference, different, parcels)
    _margins(result, margin_path, native.shape, judged, limits["max_margin"])
    _labels(result, native, reference, different, names, native_affine, reference_affine)
    _volumes(result, native_volumes, reference_volumes, limits, parcels)
    _scores(result, *scores)
    result["verdict"], result["verdict_reason"] = _verdict(result, same_grid, limits)
    return result


def _read_map(path):
    """A label map as an int32 array of three axes, and its affine."""
    path = Path(path)
    if not path.is_file():
        raise SynthSegError("bad_input", f"{path}: no such file: run the step that makes it")
    try:
        image = nib.load(path)
        data = np.asanyarray(image.dataobj)
    except Exception as error:
        raise SynthSegError("bad_input", f"{path}: cannot be read ({error}): make it again") from error
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim != 3:
        raise SynthSegError("bad_input", f"{path}: has {data.ndim} dimensions: a label map has three")
    low, high = (data.min(), data.max()) if data.size else (0, 0)
    if not (low >= 0 and high <= _LARGEST_LABEL):  # also false for NaN
        raise SynthSegError("bad_input", f"{path}: has values from {low} to {high}: labels are 0 to {_LARGEST_LABEL}")
    labels = data.astype(np.int32, copy=False)
    if labels.dtype != data.dtype and not np.array_equal(labels, data):
        raise SynthSegError("bad_input", f"{path}: has values that are not whole numbers: give a label map")
    return labels, image.affine


def _same_axis_order(data, affine, target_affine):
    """The map with its axes permuted and flipped into the order of the target; no voxel is moved in space."""
    change = ornt_transform(io_orientation(affine), io_orientation(target_affine))
    return apply_orientation(data, change), affine @ inv_ornt_aff(change, data.shape)


def _corner_shift_mm(shape, affine, other_shape, other_affine):
    """The largest distance between the same corners of two grids, in mm; None where the shapes differ."""
    if tuple(shape) != tuple(other_shape):
        return None
    corners = np.array([[*corner, 1] for corner in np.ndindex(2, 2, 2)]) * [*(np.array(shape) - 1), 1]
    return float(np.linalg.norm(((corners @ (affine - other_affine).T)[:, :3]), axis=1).max())


def _voxel_mm(affine):
    return [round(float(size), 6) for size in np.linalg.norm(affine[:3, :3], axis=0)]


def _overlap(result, native, reference, sides, affine):
    """Voxel counts of two maps on one grid; returns the mask of differing voxels."""
    different = native != reference
    pairs = native[different], reference[different]
    highest = max(native.max(initial=0), reference.max(initial=0))
    side = np.zeros(highest + 1, np.int8)
    for label, hemisphere in sides.items():
        if label <= highest:
            side[label] = _SIDES.get(hemisphere, 0)
    n_foreground = int(np.count_nonzero((native > 0) | (reference > 0)))
    n_different = len(pairs[0])
    result |= {
        "identical": n_different == 0,
        "n_voxels_foreground": n_foreground,
        "n_voxels_different": n_different,
        "fraction_different": n_different / n_foreground if n_foreground else 0.0,
        "n_voxels_contralateral": int(np.count_nonzero(side[pairs[0]] * side[pairs[1]] < 0)),
        "max_difference": int(np.abs(pairs[0] - pairs[1]).max(initial=0)),
        "boundary_distance_mm": _boundary_distance(native, reference, different, affine),
    }
    return different


def _parcels(result, native, reference, different, parcels):
    """Of maps on one grid what differs in structures, in where there is cortex, and in parcels alone; returns the mask
    of the differing voxels that a margin has to excuse: of parcels none where another cortex was their reason."""
    cortex = [np.isin(labels, [*CORTEX, *parcels.index[1:]]) for labels in (native, reference)]
    both = different & cortex[0] & cortex[1]
    elsewhere = int(np.count_nonzero(cortex[0] != cortex[1]))
    result |= {
        "n_structures_different": int(np.count_nonzero(different & ~both)),
        "n_cortex_different": elsewhere,
        "n_parcels_different": int(np.count_nonzero(both)),
    }
    return different & ~both if elsewhere else different


def _no_overlap(result):
    result |= dict.fromkeys(
        (
            "n_voxels_foreground",
            "n_voxels_different",
            "fraction_different",
            "n_voxels_contralateral",
            "max_difference",
            "boundary_distance_mm",
        )
    )
    result["identical"] = False


def _boundary_distance(native, reference, different, affine):
    """Largest distance and histogram of the differing voxels' distances from the label boundary; see above."""
    from scipy import ndimage  # here: label maps mostly agree, and it takes as long to import as they to compare

    where = np.nonzero(different)
    if not where[0].size:
        return {"max": None, "histogram_edges": DISTANCE_EDGES_MM, "histogram": [0] * len(DISTANCE_EDGES_MM)}
    # Every boundary voxel lies within one voxel of the foreground: nothing outside this box matters.
    foreground = ((native > 0) | (reference > 0)).view(np.uint8)
    box = tuple(slice(max(part.start - 1, 0), part.stop + 1) for part in ndimage.find_objects(foreground)[0])
    inside = tuple(axis - part.start for axis, part in zip(where, box, strict=True))
    distance = np.zeros(where[0].size)
    for labels in (native[box], reference[box]):
        boundary = _boundary(labels)
        if boundary.any() and not boundary[inside].all():
            # Where the nearest one is, for all voxels; how far away, for those that differ alone: it takes much less.
            sampling = np.array(_voxel_mm(affine))
            nearest = ndimage.distance_transform_edt(~boundary, sampling, return_distances=False, return_indices=True)
            steps = (nearest[(slice(None), *inside)] - np.array(inside)) * sampling[:, None]
            distance = np.maximum(distance, np.sqrt(np.add.reduce(steps * steps, axis=0)))
    counts, _ = np.histogram(distance, [*DISTANCE_EDGES_MM, math.inf])
    return {
        "max": round(float(distance.max()), 4),
        "histogram_edges": DISTANCE_EDGES_MM,
        "histogram": counts.tolist(),
    }


def _boundary(labels):
    """Mask of the voxels that have a 6-neighbour of another label."""
    boundary = np.zeros(labels.shape, bool)
    for axis in range(3):
        ahead, behind = [slice(None)] * 3, [slice(None)] * 3
        ahead[axis], behind[axis] = slice(1, None), slice(None, -1)
        step = labels[tuple(ahead)] != labels[tuple(behind)]
        boundary[tuple(ahead)] |= step
        boundary[tuple(behind)] |= step
    return boundary


def _counts(labels, where=None):
    """How many voxels each label has, by planes: numpy makes 8 bytes of each voxel that it counts."""
    length, chosen = int(labels.max(initial=0)) + 1, [...] * len(labels) if where is None else where
    planes = (plane[part].ravel() for plane, part in zip(labels, chosen, strict=True))
    return sum((np.bincount(plane, minlength=length) for plane in planes), np.zeros(length, np.int64))


def _margins(result, path, shape, different, limit):
    """Margins of the differing voxels, from the native run's margin map (scaled by its header)."""
    result["margin"] = {"available": False, "max": None, "n_above": None}
    if path is None or different is None:
        return
    path = Path(path)
    if not path.is_file():
        raise SynthSegError("bad_input", f"{path}: no such file: run the native step again")
    image = nib.load(path)
    if image.shape != shape:
        raise SynthSegError(
            "bad_input", f"{path}: shape {image.shape} is not that of the label map, {shape}: run again"
        )
    result["margin"] = {"available": True, "max": None, "n_above": 0}
    if different.any():
        slope = 1.0 if math.isnan(image.dataobj.slope) else image.dataobj.slope
        # The header's slope is float32: 1000 steps of 1e-6 must still be 1e-3.
        values = np.round(image.dataobj.get_unscaled()[different] * float(slope), 7)
        # What a map holds as its largest is that or more: no close call, whatever the limit.
        above = np.count_nonzero(~(values < min(MAX_MARGIN, limit)))
        result["margin"] |= {"max": float(values.max()), "n_above": int(above)}


def _labels(result, native, reference, different, names, native_affine, reference_affine):
    """One entry for every label of the table or of a map, background left out."""
    counts = [_counts(labels) for labels in (native, reference)]
    both = _counts(native, ~different) if different is not None else None
    present = {int(label) for count in counts for label in np.nonzero(count)[0]}
    sizes = [abs(float(np.linalg.det(affine[:3, :3]))) for affine in (native_affine, reference_affine)]

    entries = []
    for label in sorted((set(names) | present) - {0}):
        ours, theirs = (int(count[label]) if label < len(count) else 0 for count in counts)
        shared = None if both is None else int(both[label]) if label < len(both) else 0
        volume = _difference(ours * sizes[0], theirs * sizes[1])
        entries.append(
            {
                "index": label,
                "name": names.get(label),
                "n_voxels_native": ours,
                "n_voxels_reference": theirs,
                "n_voxels_both": shared,
                "dice": 2 * shared / (ours + theirs) if shared is not None and ours + theirs else None,
                "n_voxels_difference": ours - theirs,
                "voxel_volume_difference_mm3": volume[0],
                "voxel_volume_difference_percent": volume[1],
            }
        )
    result["labels"] = entries
    result["labels_lost"] = [
        {"index": e["index"], "name": e["name"], "absent_in": "reference" if e["n_voxels_native"] else "native"}
        for e in entries
        if bool(e["n_voxels_native"]) != bool(e["n_voxels_reference"])
    ]
    result["labels_unknown"] = [e["index"] for e in entries if e["name"] is None]
    worst = min((e for e in entries if e["dice"] is not None), key=lambda e: e["dice"], default=None)
    result["min_dice"] = worst and worst["dice"]
    result["min_dice_label"] = worst and _title(worst)


def _volumes(result, native_path, reference_path, limits, parcels):
    """Soft volumes per label; the criterion uses them where both runs have them, else the voxel counts."""
    native, reference = _read_volumes(native_path), _read_volumes(reference_path)
    factors = {}
    if parcels is not None:
        result["parcel_volumes"] = {"native": _form(native, parcels), "reference": _form(reference, parcels)}
        factors = _hemisphere_factors(native, reference, parcels)
    result["labels_volume_exceeded"] = []
    worst = None
    for entry in result["labels"]:
        ours, theirs = native.get(entry["index"]), reference.get(entry["index"])
        same = theirs if theirs is None else theirs * factors.get(entry["index"], 1.0)
        soft = _difference(ours, same) if None not in (ours, same) else (None, None)
        entry |= {
            "soft_volume_native_mm3": ours,
            "soft_volume_reference_mm3": theirs,
            "soft_volume_difference_mm3": soft[0],
            "soft_volume_difference_percent": soft[1],
        }
        kind = "voxel" if soft[0] is None else "soft"
        delta, percent = (entry[f"{kind}_volume_difference_{unit}"] for unit in ("mm3", "percent"))
        within_percent = percent is not None and abs(percent) <= limits["max_volume_difference_percent"]
        if abs(delta) > limits["max_volume_difference_mm3"] and not within_percent:
            result["labels_volume_exceeded"].append(entry["index"])
        if worst is None or abs(delta) > abs(worst[0]):
            worst = delta, _title(entry), kind
    result["max_volume_difference_mm3"] = worst and worst[0]
    result["max_volume_difference_label"] = worst and worst[1]
    result["max_volume_difference_kind"] = worst and {"soft": "soft volume", "voxel": "voxel count"}[worst[2]]


def _form(volumes, parcels):
    """What the volumes of parcels add up to: "cortex", each hemisphere's to its own, as this project and SynthSeg since
    ca7ab2f have them; "both cortices"; "white matter" (SynthSeg before); None where it is none of these."""

    def total(values):
        return sum(volumes.get(int(value), 0.0) for value in values)

    def close(one, other):
        return other > 0 and abs(one / other - 1) <= FORM_TOLERANCE

    sides = [
        [value for value, side in zip(parcels.index, parcels.hemispheres, strict=True) if side == name]
        for name in ("left", "right")
    ]
    if all(close(total(side), total([value])) for side, value in zip(sides, CORTEX, strict=True)):
        return "cortex"
    whole = total(parcels.index[1:])
    forms = {"both cortices": CORTEX, "white matter": WHITE_MATTER}
    return next((form for form, values in forms.items() if close(whole, total(values))), None)


def _hemisphere_factors(native, reference, parcels):
    """By which the reference's volumes of parcels are multiplied, {parcel: factor}, so that each hemisphere has the
    native run's sum: what is left are shares."""
    found = {}
    for side in ("left", "right"):
        values = [int(v) for v, name in zip(parcels.index, parcels.hemispheres, strict=True) if name == side]
        ours, theirs = (sum(volumes.get(value, 0.0) for value in values) for volumes in (native, reference))
        found |= dict.fromkeys(values, ours / theirs if theirs > 0 else 1.0)
    return found


def _scores(result, native, reference):
    """The largest difference of a quality score, where both runs have scores."""
    result["max_score_difference"] = None
    if native and reference:
        differences = [abs(native[name] - reference[name]) for name in native if name in reference]
        result["max_score_difference"] = round(max(differences, default=0.0), 6)


def _read_volumes(path):
    """Soft volumes {label: mm3} of a volumes.tsv, without those that are missing or no number."""
    if path is None:
        return {}
    path = Path(path)
    if not path.is_file():
        raise SynthSegError("bad_input", f"{path}: no such file: run the step that makes it")
    found = {label: row["soft_volume_mm3"] for label, row in volumes.read(path).items()}
    return {label: volume for label, volume in found.items() if volume is not None}


def _difference(ours, theirs):
    """Native minus reference in mm3 and in percent of the reference (None where that is empty)."""
    delta = ours - theirs
    return round(delta, 3), round(100 * delta / theirs, 4) if theirs else None


def _title(entry):
    return entry["name"] or f"label {entry['index']}"


def _verdict(result, same_grid, limits):
    """The verdict and the sentence that says why: the first criterion that is broken, with its numbers."""
    if not result["geometry_equal"]:
        return "different", _geometry_reason(result, same_grid)
    score = result["max_score_difference"]
    if score is not None and score > MAX_SCORE_DIFFERENCE:
        return "different", f"quality scores differ by up to {score:.4f} (allowed: {MAX_SCORE_DIFFERENCE:g})"
    foreground, n = result["n_voxels_foreground"], result["n_voxels_different"]
    exceeded = result["labels_volume_exceeded"]
    volumes = f"volumes differ by up to {abs(result['max_volume_difference_mm3'] or 0):g} mm3"
    if result["identical"]:
        reason = f"every voxel has the same label ({foreground} foreground voxels)"
        return "identical", f"{reason}, but {volumes} ({_exceeded(result)})" if exceeded else reason
    margin, fraction = result["margin"], result["fraction_different"]
    if result["n_voxels_contralateral"]:
        return "different", f"{result['n_voxels_contralateral']} voxels changed side (allowed: 0)"
    if result["labels_lost"]:
        lost = ", ".join(f"{_title(entry)} (not in the {entry['absent_in']})" for entry in result["labels_lost"])
        return "different", f"labels are in one map only: {lost}"
    if "n_parcels_different" in result:
        cascade, found = result["n_cortex_different"], result["n_parcels_different"]
        allowed = limits["max_fraction_different"] * foreground + CASCADE * cascade
        if found > allowed:
            where = f"{cascade} voxels are cortex in one map alone" if cascade else "both maps have the same cortex"
            return "different", f"{found} voxels are another parcel (allowed: {allowed:.0f}; {where})"
        fraction = result["n_structures_different"] / foreground
    if fraction > limits["max_fraction_different"]:
        allowed = f"allowed: {limits['max_fraction_different']:.2g}"
        return "different", f"{n} of {foreground} foreground voxels differ, a fraction of {fraction:.3g} ({allowed})"
    if not margin["available"]:
        return "different", f"{n} of {foreground} foreground voxels differ, and there is no margin map to excuse them"
    if margin["n_above"]:
        largest = f"margins up to {margin['max']:.3g} (allowed: below {limits['max_margin']:g})"
        return "different", f"{margin['n_above']} of {n} differing voxels were no close call: {largest}"
    if exceeded:
        return "different", f"{volumes}: {_exceeded(result)}"
    close = f"margins up to {margin['max'] or 0:.2g}"
    if cortex := result.get("n_cortex_different"):
        close += f", {result['n_parcels_different']} of them parcels, where {cortex} voxels of cortex differ"
    return "equivalent", f"{n} of {foreground} foreground voxels differ ({fraction:.2g}), {close}, {volumes}"


def _exceeded(result):
    """The labels whose volumes differ by more than allowed, for a sentence."""
    limits = result["thresholds"]
    allowed = f"{limits['max_volume_difference_percent']:g} % or {limits['max_volume_difference_mm3']:g} mm3"
    names = [_title(entry) for entry in result["labels"] if entry["index"] in result["labels_volume_exceeded"]]
    return f"more than {allowed} in {', '.join(names)}"


def _geometry_reason(result, same_grid):
    geometry = result["geometry"]
    orientation = "{native} and {reference}".format(**geometry["orientation"])
    if same_grid:
        n, foreground = result["n_voxels_different"], result["n_voxels_foreground"]
        labels = f"{n} of {foreground} foreground voxels differ" if n else "the labels at every position are the same"
        return f"the axes are stored in another order ({orientation}); {labels}"
    if geometry["max_corner_shift_mm"] is None:
        shapes = " and ".join("x".join(map(str, geometry["shape"][who])) for who in ("native", "reference"))
        return f"the grids differ, so that voxels cannot be paired: shapes {shapes} ({orientation})"
    shift = f"corners up to {geometry['max_corner_shift_mm']:.3g} mm apart"
    return f"the grids differ, so that voxels cannot be paired: same shape, {shift} ({orientation})"
