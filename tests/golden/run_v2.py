"""reference.py on golden cases of SynthSeg 2.0 in full, in one process; run by the interpreter that has TensorFlow:

    PYTHONPATH=src python tests/golden/run_v2.py FOLDER [CASE ...]

Writes each case's label map, volumes and scores as upstream names them, a case with mistakes in it, and found.json: how
networks fare that are fed with the golden result of the network before, and how long each case took. What a network
gives for one input is computed once, though several cases ask for it: nearly all time goes there.
"""

import contextlib
import hashlib
import json
import resource
import sys
import time
from pathlib import Path
from unittest import mock

import nibabel as nib
import numpy as np

from synthseg_native import reference

HERE = Path(__file__).parent
V2 = HERE / "v2"
MODELS = HERE.parents[1] / "models"
CROP = ["--crop", "64", "80", "48"]
# Golden case -> flags of the command.
ALL = {
    "t1_default": [],
    "t1_parc": ["--parc"],
    "t1_qc": ["--qc"],
    "t1_parc_qc": ["--parc", "--qc"],
    "t1_fast": ["--fast"],
    "t1_fast_parc": ["--fast", "--parc"],
    "t1_fast_qc": ["--fast", "--qc"],
    "t1_fast_parc_qc": ["--fast", "--parc", "--qc"],
    "t1_robust": ["--robust"],
    "t1_robust_parc": ["--robust", "--parc"],
    "t1_robust_qc": ["--robust", "--qc"],
    "t1_robust_parc_qc": ["--robust", "--parc", "--qc"],
    "t1_crop_parc": ["--parc", *CROP],
    "t1_v1_parc_qc": ["--parc", "--qc"],
    "oblique_default": [],
    "oblique_fast_parc": ["--fast", "--parc"],
    "oblique_robust_parc_qc": ["--robust", "--parc", "--qc"],
    "thick_default": [],
    "thick_parc_qc": ["--parc", "--qc"],
    "thick_robust_parc_qc": ["--robust", "--parc", "--qc"],
}


def swap_sides_of_parcels(rows):
    """Left values on right channels."""
    values = [row["index"] for row in rows]
    for row in rows:
        row["index"] = values[int(row["flip_channel"])]


def wrong_table(role, change):
    """A table of the network of this role that is not what it should be."""
    right = reference.load_network

    def load_network(folder, asked, companions=None):
        network = right(folder, asked, companions)
        if asked == role:
            change(network["rows"])
        return network

    return {"load_network": load_network}


# The cheapest case with parcels, each time with one mistake: what of reference.py is another thing.
MISTAKES = {
    "parcels_not_smoothed": {"TAKEN": {("default", True, False): ("averaged", "averaged", "raw", None)}},
    "sides_of_parcels": wrong_table("parcellation", swap_sides_of_parcels),
    "cortex_and_not_cortex": {"cortex_of": lambda *given, right=reference.cortex_of: 1 - right(*given)},
}


def remember(function, last=6):
    """The same function, which computes what it gives for each input once, not to be changed in place.

    The last results alone are kept: some are large.
    """
    known = {}

    def digest(value):
        return hashlib.sha256(np.ascontiguousarray(value)).digest() if isinstance(value, np.ndarray) else value

    def remembered(*given):
        key = tuple(digest(value) for value in given)
        known[key] = known.pop(key) if key in known else function(*given)
        if len(known) > last:
            del known[next(iter(known))]
        return known[key]

    return remembered


def spare(postprocess):
    """`reference.postprocess`, which leaves what it is given as it is."""
    return lambda posteriors, *given: postprocess(posteriors.copy(), *given)


def remember_models(load):
    """`reference.load`, which loads each network once."""
    known = {}

    def remembered(network, *given):
        key = (network["folder"], network["name"], *given)
        if key not in known:
            known[key] = load(network, *given)
        return known[key]

    return remembered


def run(case, folder, name=None, more=(), **changed):
    """Run a golden case; with changed attributes of the module, under another name."""
    image, flags = case.split("_")[0], ALL[case]
    model = MODELS / ("compact2mm" if "_v1_" in case else "golden2")
    out = folder / (name or case)
    words = ["--i", HERE / f"{image}_image.nii.gz", "--model", model, "--threads", 2]
    words += ["--o", f"{out}_dseg.nii.gz", "--vol", f"{out}_volumes.csv", *flags, *more]
    if "--qc" in flags:
        words.insert(words.index("--qc") + 1, f"{out}_qc.csv")
    with contextlib.ExitStack() as mistakes:
        for attribute, value in {**changed, "sys.argv": ["reference.py", *map(str, words)]}.items():
            mistakes.enter_context(mock.patch(f"synthseg_native.reference.{attribute}", value))
        reference.main()


def against(posteriors, expected):
    """How many voxels have another likeliest channel than expected, how far apart the best two are there, and how many
    are no background."""
    different = np.argmax(posteriors, axis=-1) != expected
    best = np.sort(posteriors[different], axis=-1)
    margin = float((best[:, -1] - best[:, -2]).max(initial=0))
    return {"different": int(different.sum()), "margin": margin, "foreground": int(np.count_nonzero(expected))}


def stages(volume, box):
    """Networks of --robust --parc --qc, fed with the golden map that they read, rightly and wrongly.

    volume : the padded t1 · box : the slices of the image in it
    """
    golden = np.load(V2 / "t1_robust_groups.npz")
    s1, denoised = golden["s1"].astype(int), golden["denoised"].astype(int)
    likeliest = np.load(V2 / "t1_robust_labels.npz")["likeliest"].astype(int)
    inputs = {"groups": 1, "denoised": 5, "robust": 6, "parcellation": 3, "quality": 9}
    network = {role: reference.load_network(MODELS / "golden2", role) for role in inputs}
    s1_model, l2l, s2, parc, qc = (reference.load(network[role], inputs[role], None) for role in inputs)
    found = {
        "groups": against(reference.predict(s1_model, volume[..., None]), s1),
        "denoised": against(reference.predict(l2l, reference.one_hot(s1, 5)), denoised),
        "structures": against(reference.robust_posteriors(s2, volume, denoised), likeliest),
    }
    values = reference.column(network["robust"], "index")[likeliest]
    cortex = np.isin(values, (reference.LEFT_CORTEX, reference.RIGHT_CORTEX)).astype(int)
    image = nib.load(V2 / "t1_robust_parc_qc_dseg.nii.gz")
    labels = reference.to_ras(np.asarray(image.dataobj), image.affine)
    parcels = reference.parcel_posteriors(parc, volume, cortex)[box][labels > 1000]
    parcels[:, 0] = 0  # background wins nowhere in the cortex
    expected = np.searchsorted(reference.column(network["parcellation"], "index"), labels[labels > 1000])
    found["parcels"] = against(parcels, expected)
    groups = reference.column(network["robust"], "qc_group")
    found["scores"] = reference.quality_scores(qc, likeliest, groups, network["quality"]["grid"]["box"]).tolist()

    small = tuple(slice(16, 16 + n) for n in (64, 80, 48))  # of the frame; enough to see a mistake
    volume, s1, denoised = volume[small], s1[small], denoised[small]
    right = reference.denoised_groups(l2l, s1)
    found["groups_permuted"] = against(reference.predict(l2l, reference.one_hot((s1 + 1) % 5, 5)), right)
    right = np.argmax(reference.robust_posteriors(s2, volume, denoised), axis=-1)
    found["not_denoised"] = against(reference.robust_posteriors(s2, volume, s1), right)
    found["channels_permuted"] = against(reference.robust_posteriors(s2, volume, (denoised + 1) % 5), right)

    layers = network["denoised"]["layers"]
    layers["levels_without_skip"] -= 1
    try:
        reference.load({**network["denoised"], "name": "a skip too many"}, 5, None)
    except ValueError as error:
        found["a_skip_too_many"] = str(error)
    return found


def main(folder, cases):
    """Run the cases, and in one that has it what else there is to look at; seconds and MB of each are in found.json."""
    reference.start_tensorflow(2)
    reference.predict, reference.smooth = remember(reference.predict), remember(reference.smooth)
    reference.resample, reference.postprocess = remember(reference.resample, 1), spare(reference.postprocess)
    reference.load = remember_models(reference.load)
    found, given = {"cases": {}, "scores": {}}, {}

    def keep(name, function):
        """The same function; what it was given and gave last is in `given`."""

        def kept(*arguments):
            given[name] = arguments, function(*arguments)
            return given[name][1]

        return kept

    pad, quality_scores, quality_box = (getattr(reference, name) for name in ("pad", "quality_scores", "quality_box"))
    for case in cases:
        start = time.perf_counter(), time.process_time()
        watched = {"pad": keep("volume", pad), "quality_scores": keep("scores", quality_scores)}
        run(case, folder, more=["--parcel-volumes", "upstream-66342c1"], **watched)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        found["cases"][case] = [time.perf_counter() - start[0], time.process_time() - start[1], peak]
        if "--qc" in ALL[case]:
            found["scores"][case] = given["scores"][1].tolist()
        if case == "t1_fast_qc":
            moved = {"quality_box": lambda *words: np.roll(quality_box(*words), 1, axis=2)}
            with mock.patch.multiple(reference, **moved):
                found["scores"]["moved"] = quality_scores(*given["scores"][0]).tolist()
        if case == "t1_robust_parc_qc":
            found["stages"] = stages(*given["volume"][1])
        if case == "t1_crop_parc":
            run(case, folder, "by_hemisphere")
            run(case, folder, "with_scores", more=["--qc", folder / "with_scores_qc.csv"])
            for name, changed in MISTAKES.items():
                run(case, folder, name, **changed)
    found["processor_s"] = time.process_time()
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or list(ALL))
