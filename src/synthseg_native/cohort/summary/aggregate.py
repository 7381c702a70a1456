"""From what every run left to the rows of the tables."""

import os
import re
from pathlib import Path

from synthseg_native.cohort.manifest import REFERENCE, Manifest, Scan
from synthseg_native.cohort.summary.rows import COLUMNS, ENTITIES, SCORES, Row
from synthseg_native.cohort.summary.run_results import RunResult
from synthseg_native.files import is_there, read_sealed
from synthseg_native.networks.cards import CORTEX, CSF, Labels
from synthseg_native.results import quality

Runs = dict[str, RunResult]  # of a scan: engine -> what its run left
FILES = {"label_map": "dseg", "label_map_native": "dseg_native", "picture": "picture", "run_record": "record"}
COMPARED = tuple(COLUMNS)[tuple(COLUMNS).index("geometry_equal") : tuple(COLUMNS).index("native_wall_s")]
COMPARED += ("n_parcels_different", "max_score_difference")
PREFIXES = {"participant_id": "sub-", "session_id": "ses-"}


def summary_row(manifest: Manifest, scan: Scan, engine: str, runs: Runs, labels: Labels) -> Row:
    """A row of summary.tsv, of a scan and an engine. runs: the scan's."""
    results = Path(manifest.results)
    native, reference = runs[engine], runs.get(REFERENCE)
    about = _reference_of(manifest, reference)
    names = dict(zip(labels.index.tolist(), labels.names, strict=True))
    error_code, error = native.error_code, native.error
    if native.status == "ok" and reference and reference.status != "ok":
        error_code, error = reference.error_code, f"reference: {reference.error or reference.reason}"
    structures = [row for row in native.volumes if row["index"] in names]
    soft = [row["soft_volume_mm3"] for row in structures if row["index"] != CSF]
    csf = [row["soft_volume_mm3"] for row in structures if row["index"] == CSF]
    brain = sum(soft) if soft and None not in soft else None
    total = brain + csf[0] if brain is not None and csf and csf[0] is not None else None
    found = quality.of_record(native.record, labels) or {}
    at_edge = found.get("labels_at_fov_edge")
    return Row(
        **entity_cells(scan),
        status=native.status,
        error_code=error_code,
        error=error and without_folders(error),
        qc_flags=_listed(found.get("flags")),
        model=manifest.model["name"],
        research_grade=manifest.model["research_grade"],
        mode=native.get("mode"),
        engine=engine,
        engine_version=native.get("engine", "version"),
        precision=native.get("precision"),
        device=native.get("device"),
        threads=native.get("threads"),
        **_comparison(native, reference),
        reference_kind=about.get("kind"),
        reference_runtime=about.get("runtime"),
        reference_id=about.get("id"),
        reference_emulated=about.get("emulated"),
        native_wall_s=native.get("wall_s"),
        reference_wall_s=reference and reference.get("wall_s"),
        native_peak_rss_mib=native.get("peak_rss_mib"),
        reference_peak_rss_mib=reference and reference.get("peak_rss_mib"),
        input_shape=_times(native.get("input", "shape")),
        input_voxel_mm=_times(native.get("input", "voxel_mm")),
        input_orientation=native.get("input", "orientation"),
        obliquity_deg=native.get("input", "obliquity_deg"),
        header_flags=_listed(native.get("input", "header_flags")),
        output_voxel_mm=_times(native.get("output", "voxel_mm")),
        brain_mm3=brain,
        total_intracranial_mm3=total,
        n_labels_missing=_missing(native.volumes, manifest.model.get("parcels")),
        labels_at_fov_edge=_listed(at_edge and [names[value] for value in at_edge]),
        mean_confidence=native.get("output", "mean_confidence"),
        **_scores(native.get("output", "qc") or {}),
        state_reason=native.reason,
        cpu=native.get("machine", "cpu"),
        native_predicted_peak_mib=native.get("predicted_peak_mib"),
        reference_predicted_peak_mib=reference and reference.get("predicted_peak_mib"),
        input_sha256=native.get("input", "sha256"),
        weights_sha256=native.get("model", "weights_sha256"),
        labels_sha256=native.get("output", "labels_sha256"),
        reference_labels_sha256=reference and reference.get("output", "labels_sha256"),
        **{column: native.place(name, results) for column, name in FILES.items()},
        sheet={name: value for name, value in scan.sheet.items() if name not in ("error_code", "error")},
    )


def _missing(rows: list[dict], parcels: bool) -> int | None:
    """How many labels have no voxel; where there are parcels, no voxel is cortex."""
    replaced = CORTEX if parcels else ()
    return sum(row["n_voxels"] == 0 for row in rows if row["index"] not in replaced) if rows else None


def _scores(figures: dict) -> dict:
    """The columns of SynthSeg's quality scores."""
    scores = figures.get("scores") or {}
    if not scores:
        return {}
    lowest = min(scores, key=scores.__getitem__)
    known = {column: scores.get(name) for column, name in SCORES.items()}
    return {**known, "min_score": scores[lowest], "min_score_group": lowest}


def _reference_of(manifest: Manifest, reference: RunResult | None) -> dict:
    """Kind, runtime, id and emulation of a reference run; of one that failed what is known."""
    if reference is None:
        return {}
    known = reference.get("reference") or reference.failure.get("reference") or {}
    return {**manifest.reference, **{key: value for key, value in known.items() if value is not None}}


def _comparison(native: RunResult, reference: RunResult | None) -> dict:
    """The columns that the comparison fills; its verdict only if it is about the label maps that are there."""
    found = read_sealed(native.files["compare"]) or {}
    made_from = found.get("labels_sha256") or {}
    there = {"native": native.get("output", "labels_sha256")}
    there["reference"] = reference and reference.get("output", "labels_sha256")
    if reference is None:
        reason = "no reference asked for"
    elif native.status != "ok":
        reason = f"native run {native.outcome}"
    elif reference.status != "ok":
        reason = f"reference {reference.outcome}"
    elif not found:
        there = is_there(native.files["compare"])
        reason = "the comparison is not as it was made: call again" if there else "the comparison has not run"
    elif made_from and made_from != there:
        reason = "the comparison is of other label maps than those there now"
    else:
        return {name: found.get(name) for name in ("verdict", "verdict_reason", *COMPARED)}
    return {"verdict": "not_compared", "verdict_reason": without_folders(reason)}


def entity_cells(scan: Scan) -> dict:
    """The scan's entities as cells: participant and session with their prefixes, None for what it has not."""
    labels = {name: scan.entities.get(name) or "" for name in ENTITIES}
    return {name: (PREFIXES.get(name, "") + label) if label else None for name, label in labels.items()}


def failed_rows(manifest: Manifest, rows: list[Row]) -> tuple[list[str], list[dict]]:
    """Columns and rows of failed.tsv: the sheet's own, so that it is a sheet again, and the first error."""
    columns = list(dict.fromkeys(name for scan in manifest.scans for name in scan.row))
    columns = [name for name in columns if name not in ("error_code", "error")] + ["error_code", "error"]
    engines, failed = len(manifest.engines), []
    for number, scan in enumerate(manifest.scans):
        first = next((row for row in rows[number * engines : (number + 1) * engines] if row.error), None)
        if first:
            image = Path(scan.image)
            place = str(image) if image.is_absolute() else os.path.relpath(image, manifest.results)
            failed.append({**scan.row, "image": place, "error_code": first.error_code, "error": first.error})
    return columns, failed


def _listed(words: list[str] | None) -> str | None:
    return None if words is None else ",".join(words) or "none"


def _times(values: list[float] | None) -> str | None:
    return None if values is None else "x".join(f"{value:g}" for value in values)


def without_folders(text: str) -> str:
    """Text with every absolute path cut down to its last part.

    >>> without_folders("/data/a study/sub-02.nii: not an image")
    'a study/sub-02.nii: not an image'
    """
    return re.sub(r"""(?<![\w.~:/])/(?=\S)(?:[^/\s:'"]+/)*""", "", text)
