"""From the results of every run to the tables of the cohort. docs/results.md describes the files."""

import csv
import io
import os
import re
from collections import Counter
from pathlib import Path

from synthseg_native import __version__
from synthseg_native.cohort.paths import Patterns, failure_of, read_json, write_json, write_text
from synthseg_native.cohort.tables import MISSING, as_text, read_tsv, write_tsv
from synthseg_native.compare import verdict_text
from synthseg_native.networks.cards import CSF, read_labels
from synthseg_native.results import quality, volumes
from synthseg_native.results.outputs import VOLUME_COLUMNS

REFERENCE = "reference"
BIDS_VERSION = "1.10.0"
BIDS_IGNORE = "*_run.json\n*_compare.json\n*_volumes.tsv\n*_margin.nii.gz\n*_qc.png\n"

# summary.tsv: column -> (unit or "", meaning), in the order of the columns.
COLUMNS = {
    "participant_id": ("", "Participant, with sub-"),
    "session_id": ("", "Session, with ses-"),
    "acq": ("", "Acquisition label"),
    "run": ("", "Run label"),
    "suffix": ("", "BIDS suffix of the image"),
    "status": ("", "Native run: ok, failed, or missing (has not run)"),
    "error_code": ("", "Why it failed: bad_input (the image must change) or a passing cause (oom, disk, timeout, ...)"),
    "error": ("", "One line of text; 'reference: ...' where only the reference failed"),
    "qc_flags": ("", "What is odd about the segmentation, comma-separated, as docs/quality.md lists; none: nothing"),
    "model": ("", "Network that made the label map"),
    "research_grade": ("", "false: the model is for trying the software only"),
    "mode": ("", "Mode of the pipeline: default, or fast (no mirror image averaged in, no topology step)"),
    "engine": ("", "Engine that ran the network"),
    "engine_version": ("", "Version of the engine's runtime"),
    "precision": ("", "Number format of the network"),
    "device": ("", "Device that ran the network"),
    "threads": ("", "Threads of the native run"),
    "verdict": ("", "identical, equivalent, different or not_compared: native label map against the reference's"),
    "verdict_reason": ("", "The sentence behind the verdict"),
    "reference_kind": ("", "What it was compared with: own, upstream or existing"),
    "reference_runtime": ("", "What ran the reference: local, docker, podman, apptainer or none"),
    "reference_id": ("", "Image ID of the container, or hash of the existing label map"),
    "reference_emulated": ("", "true: the reference ran under emulation of another processor"),
    "geometry_equal": ("", "Same shape, position in space and axis order"),
    "n_voxels_foreground": ("voxels", "Union of the foregrounds of both maps"),
    "n_voxels_different": ("voxels", "Voxels with another label"),
    "n_voxels_contralateral": ("voxels", "Differing voxels that are left in one map and right in the other"),
    "min_dice": ("", "Lowest Dice overlap of a label that is in either map"),
    "min_dice_label": ("", "The label with it"),
    "max_volume_difference_mm3": (
        "mm3",
        "Largest volume difference of a label, native minus reference: soft volumes where both runs have them, "
        "else voxel counts times voxel size",
    ),
    "max_volume_difference_label": ("", "The label with it"),
    "native_wall_s": ("s", "Wall time of the native run, start of the interpreter included; one run, not a benchmark"),
    "reference_wall_s": ("s", "The same of the reference run"),
    "native_peak_rss_mib": ("MiB", "Peak resident memory of the native run"),
    "reference_peak_rss_mib": ("MiB", "The same of the reference run"),
    "input_shape": ("voxels", "Shape of the image"),
    "input_voxel_mm": ("mm", "Voxel size of the image"),
    "input_orientation": ("", "Axis directions of the image, as RAS"),
    "obliquity_deg": ("degrees", "Largest angle between an axis of the image and its nearest anatomical axis"),
    "header_flags": ("", "What is odd about its header, comma-separated, as docs/input.md lists; none: nothing"),
    "output_voxel_mm": ("mm", "Voxel size of the label map on the network's grid"),
    "brain_mm3": ("mm3", "Sum of the soft volumes of all labels, ventricles included, label 24 (csf) left out"),
    "total_intracranial_mm3": ("mm3", "Sum of the soft volumes of all labels; only models with label 24 (csf)"),
    "n_labels_missing": ("labels", "Labels of the model without a voxel in the label map"),
    "labels_at_fov_edge": ("", "Names of labels that touch the edge of the image, comma-separated; none: no label"),
    "mean_confidence": ("", "Mean posterior of the labels given, over the foreground"),
    "cpu": ("", "Processor of the machine that the native run was on"),
    "native_predicted_peak_mib": ("MiB", "Peak memory that was predicted for the native run"),
    "reference_predicted_peak_mib": ("MiB", "Peak memory that was predicted for the reference run"),
    "input_sha256": ("", "Hash of the image file"),
    "weights_sha256": ("", "Hash of the weights file"),
    "labels_sha256": ("", "Hash of the native label array (shape and values)"),
    "reference_labels_sha256": ("", "Hash of the reference's label array"),
    "label_map": ("", "Native label map on the network's grid, relative to the results folder"),
    "label_map_native": ("", "The same on the image's own grid"),
    "picture": ("", "Its picture: outlines on the image"),
    "run_record": ("", "Its run record"),
}
MOST_SHOWN = 10  # scans that the table for people names as worth a look
ENTITIES = ("participant_id", "session_id", "acq", "run", "suffix")
FILES = {"label_map": "dseg", "label_map_native": "dseg_native", "picture": "picture", "run_record": "record"}
# What a cohort should not mix: columns of summary.tsv.
HOMOGENEOUS = ("engine_version", "precision", "device", "threads", "cpu")
COMPARED = tuple(COLUMNS)[tuple(COLUMNS).index("geometry_equal") : tuple(COLUMNS).index("native_wall_s")]


def summarise(plan: dict, results) -> None:
    """Write every table and BIDS description of the cohort into the results folder, each whole or not at all.

    plan: model {name, dir, research_grade}, engines, reference {kind, runtime} or None, patterns (`Patterns`, a dict),
    and scans: a list of {scan, entities, sheet (further columns), row (as in the sheet), image (path), reference
    (whether compared)}.
    """
    results = Path(results)
    labels = read_labels(Path(plan["model"]["dir"]) / "labels.tsv")
    runs = {
        (scan["scan"], engine): _Run(results, engine, scan["scan"], plan)
        for scan in plan["scans"]
        for engine in [*plan["engines"], *([REFERENCE] if scan["reference"] else [])]
    }
    rows = [_row(plan, results, scan, engine, runs, labels) for scan in plan["scans"] for engine in plan["engines"]]
    columns = [*COLUMNS, *(f"sheet_{name}" for name in _sheet_columns(plan))]
    write_tsv(results / "failed.tsv", *_failed(plan, results, rows))
    write_tsv(results / "volumes.tsv", *_volumes_long(plan, runs))
    write_tsv(results / "volumes_wide.tsv", *_volumes_wide(plan, runs, labels))
    _write_volumes_synthseg(results / "volumes_synthseg.csv", plan, runs, labels)
    for engine in [*plan["engines"], *([REFERENCE] if plan["reference"] else [])]:
        _describe_derivative(results / engine, engine, plan, runs, labels)
    write_json(results / "homogeneity.json", homogeneity(rows))
    write_json(results / "summary.json", _describe_columns(columns))
    write_tsv(results / "summary.tsv", columns, rows)


class _Run:
    """What is known of one run: status "ok", "failed" or "missing", its record ({} unless ok) and its error."""

    def __init__(self, results, engine, scan, plan):
        self.engine, self.scan = engine, scan
        patterns = Patterns(**plan["patterns"])
        names = patterns.reference if engine == REFERENCE else patterns.of_engine
        self.files = {name: Path(patterns.path(name, engine, scan)) for name in names}
        record = read_json(self.files["record"]) if self.files["dseg"].is_file() else None
        failure = read_json(failure_of(results / ".state/failed", engine, scan, self.files["record"]))
        if failure and record and (failure.get("finished") or "") < (record.get("finished") or ""):
            failure = None  # of an attempt before the success
        self.status = "failed" if failure else "ok" if record else "missing"
        self.record = record if self.status == "ok" else {}
        self.failure = failure or {}
        error = self.failure.get("error") or {}
        self.error_code = error.get("code")
        self.error = {"ok": None, "missing": "has not run"}.get(self.status, error.get("message") or "no message")
        self.outcome = f"failed: {self.error}" if failure else self.error
        there = self.status == "ok" and self.files["volumes"].is_file()
        self.volumes = list(volumes.read(self.files["volumes"]).values()) if there else []

    def get(self, *keys):
        """The entry of the run record at these keys, None where there is none."""
        value = self.record
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def place(self, name, results):
        """The path of one of its files below the results folder; None where the run or the file is not there."""
        there = self.status == "ok" and self.files[name].is_file()
        return self.files[name].relative_to(results).as_posix() if there else None


def _row(plan, results, scan, engine, runs, labels):
    """One row of summary.tsv, values not yet text."""
    native, reference = runs[scan["scan"], engine], runs.get((scan["scan"], REFERENCE))
    about = _reference_of(plan, reference)
    error_code, error = native.error_code, native.error
    if native.status == "ok" and reference and reference.status != "ok":
        error_code, error = reference.error_code, f"reference: {reference.error}"
    soft = [row["soft_volume_mm3"] for row in native.volumes if row["index"] != CSF]
    csf = [row["soft_volume_mm3"] for row in native.volumes if row["index"] == CSF]
    brain = sum(soft) if soft and None not in soft else None
    total = brain + csf[0] if brain is not None and csf and csf[0] is not None else None
    names = dict(zip(labels.index.tolist(), labels.names, strict=True))
    found = quality.of_record(native.record, labels) or {}
    at_edge = found.get("labels_at_fov_edge")
    return {
        **_entities(scan),
        "status": native.status,
        "error_code": error_code,
        "error": error and _without_folders(error),
        "qc_flags": _listed(found.get("flags")),
        "model": plan["model"]["name"],
        "research_grade": plan["model"]["research_grade"],
        "mode": native.get("mode"),
        "engine": engine,
        "engine_version": native.get("engine", "version"),
        "precision": native.get("precision"),
        "device": native.get("device"),
        "threads": native.get("threads"),
        **_comparison(native, reference),
        **{f"reference_{key}": about.get(key) for key in ("kind", "runtime", "id", "emulated")},
        "native_wall_s": native.get("wall_s"),
        "reference_wall_s": reference and reference.get("wall_s"),
        "native_peak_rss_mib": native.get("peak_rss_mib"),
        "reference_peak_rss_mib": reference and reference.get("peak_rss_mib"),
        "input_shape": _times(native.get("input", "shape")),
        "input_voxel_mm": _times(native.get("input", "voxel_mm")),
        "input_orientation": native.get("input", "orientation"),
        "obliquity_deg": native.get("input", "obliquity_deg"),
        "header_flags": _listed(native.get("input", "header_flags")),
        "output_voxel_mm": _times(native.get("output", "voxel_mm")),
        "brain_mm3": brain,
        "total_intracranial_mm3": total,
        "n_labels_missing": sum(row["n_voxels"] == 0 for row in native.volumes) if native.volumes else None,
        "labels_at_fov_edge": _listed(at_edge and [names[value] for value in at_edge]),
        "mean_confidence": native.get("output", "mean_confidence"),
        "cpu": native.get("machine", "cpu"),
        "native_predicted_peak_mib": native.get("predicted_peak_mib"),
        "reference_predicted_peak_mib": reference and reference.get("predicted_peak_mib"),
        "input_sha256": native.get("input", "sha256"),
        "weights_sha256": native.get("model", "weights_sha256"),
        "labels_sha256": native.get("output", "labels_sha256"),
        "reference_labels_sha256": reference and reference.get("output", "labels_sha256"),
        **{column: native.place(name, results) for column, name in FILES.items()},
        **{f"sheet_{name}": value for name, value in scan["sheet"].items()},
    }


def _reference_of(plan, reference):
    """Kind, runtime, id and emulation of a reference run; of one that failed what is known."""
    if reference is None:
        return {}
    known = reference.get("reference") or reference.failure.get("reference") or {}
    return {**plan["reference"], **{key: value for key, value in known.items() if value is not None}}


def _comparison(native, reference):
    """The columns that the comparison fills; its verdict only if it is about the label maps that are there."""
    found = read_json(native.files["compare"]) or {}
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
        reason = "the comparison has not run"
    elif made_from and made_from != there:
        reason = "the comparison is of other label maps than those there now"
    else:
        return {name: found.get(name) for name in ("verdict", "verdict_reason", *COMPARED)}
    return {"verdict": "not_compared", "verdict_reason": _without_folders(reason)}


def _entities(scan):
    prefixes = {"participant_id": "sub-", "session_id": "ses-"}
    labels = {name: scan["entities"].get(name) or "" for name in ENTITIES}
    return {name: (prefixes.get(name, "") + label) if label else None for name, label in labels.items()}


def _sheet_columns(plan):
    """Further columns of the sheet, in order; not those that an earlier failed.tsv brought along."""
    names = dict.fromkeys(name for scan in plan["scans"] for name in scan["sheet"])
    return [name for name in names if name not in ("error_code", "error")]


def _failed(plan, results, rows):
    """Columns and rows of failed.tsv: the sheet's own, so that it is a sheet again, and the first error."""
    columns = list(dict.fromkeys(name for scan in plan["scans"] for name in scan["row"]))
    columns = [name for name in columns if name not in ("error_code", "error")] + ["error_code", "error"]
    failed = []
    for number, scan in enumerate(plan["scans"]):
        of_scan = rows[number * len(plan["engines"]) : (number + 1) * len(plan["engines"])]
        first = next((row for row in of_scan if row["error"]), None)
        if first:
            image = Path(scan["image"])
            place = str(image) if image.is_absolute() else os.path.relpath(image, results)
            error = {name: first[name] for name in ("error_code", "error")}
            failed.append({**scan["row"], "image": place, **error})
    return columns, failed


def _volumes_long(plan, runs):
    rows = [
        {**entities, "engine": run.engine, **volume}
        for entities, run in _good_runs(plan, runs)
        for volume in run.volumes
    ]
    return [*ENTITIES, "engine", *VOLUME_COLUMNS], rows


def _volumes_wide(plan, runs, labels):
    """One row per image and engine, the reference's too: soft volumes, a column per label."""
    columns = {
        int(index): f"{name}_soft_volume_mm3"
        for index, name in zip(labels.index, labels.freesurfer_names, strict=True)
        if index != 0
    }
    rows = [
        {
            **entities,
            "engine": run.engine,
            **{columns[v["index"]]: v["soft_volume_mm3"] for v in run.volumes if v["index"] in columns},
        }
        for entities, run in _good_runs(plan, runs)
    ]
    return [*ENTITIES, "engine", *columns.values()], rows


def _good_runs(plan, runs):
    for scan in plan["scans"]:
        for engine in [*plan["engines"], REFERENCE]:
            run = runs.get((scan["scan"], engine))
            if run and run.status == "ok":
                yield _entities(scan), run


def _write_volumes_synthseg(path, plan, runs, labels):
    """Soft volumes of the first engine as SynthSeg writes them: its header and order, CR LF, mm3 with 3 decimals."""
    names = list(labels.names[1:])
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["subject", *(["total intracranial"] if labels.has_total_intracranial else []), *names])
    for scan in plan["scans"]:
        run = runs[scan["scan"], plan["engines"][0]]
        soft = {row["index"]: row["soft_volume_mm3"] for row in run.volumes}
        values = [soft.get(int(index)) for index in labels.index[1:]]
        if run.status != "ok" or None in values:
            continue
        values = [sum(values), *values] if labels.has_total_intracranial else values
        writer.writerow([Path(scan["scan"]).name, *(str(round(value, 3)) for value in values)])
    write_text(path, text.getvalue())


def _describe_derivative(folder, engine, plan, runs, labels):
    """dataset_description.json, dseg.tsv and .bidsignore of one derivative dataset, where it has a folder."""
    if not folder.is_dir():
        return
    run = next((run for (_, name), run in runs.items() if name == engine and run.status == "ok"), None)
    model, about = plan["model"]["name"], (run and run.get("reference")) or plan["reference"] or {}
    made_by = {
        "Name": "synthseg-native",
        "Version": (run and run.get("engine", "package_version")) or __version__,
        "Description": f"{model} with {engine} {(run and run.get('engine', 'version')) or ''}".strip(),
    }
    if engine == REFERENCE:
        names = {"own": "synthseg-native reference.py", "upstream": "SynthSeg", "existing": "existing label maps"}
        made_by["Name"] = names[about["kind"]]
        made_by["Description"] = f"{model}, reference of kind {about['kind']}"
        if about["kind"] != "own":
            made_by["Version"] = "unknown"
        if about["runtime"] not in ("none", "local"):
            made_by["Container"] = {"Type": about["runtime"], "Tag": about.get("id") or "unknown"}
    grade = "" if plan["model"]["research_grade"] else " (not for research)"
    name = f"Brain structures by {model}{grade}, {engine}"
    if engine == REFERENCE and about["kind"] == "existing":  # nobody knows what made them
        name = made_by["Description"] = "Existing label maps"
    write_json(
        folder / "dataset_description.json",
        {
            "Name": name,
            "BIDSVersion": BIDS_VERSION,
            "DatasetType": "derivative",
            "GeneratedBy": [made_by],
        },
    )
    table = zip(labels.index.tolist(), labels.names, labels.freesurfer_names, labels.colors, strict=True)
    columns = ["index", "name", "freesurfer_name", "color"]
    write_tsv(folder / "dseg.tsv", columns, [dict(zip(columns, row, strict=True)) for row in table])
    write_text(folder / ".bidsignore", BIDS_IGNORE)


def _describe_columns(columns):
    """summary.json: BIDS keys, one entry per column of summary.tsv."""
    described = {}
    for name in columns:
        unit, meaning = COLUMNS.get(name, ("", f"Column {name.removeprefix('sheet_')} of the sample sheet"))
        described[name] = {"Description": meaning, **({"Units": unit} if unit else {})}
    return described


def _listed(words):
    return None if words is None else ",".join(words) or "none"


def _times(values):
    return None if values is None else "x".join(f"{value:g}" for value in values)


def _without_folders(text):
    """Text with every absolute path cut down to its last part."""
    return re.sub(r"""(?<![\w.~:/])/(?=\S)(?:[^/\s:'"]+/)*""", "", text)


def homogeneity(rows) -> dict:
    """What produced the cohort: per engine {"runs", "homogeneous", column of HOMOGENEOUS: {value: number of runs}}.

    rows: of summary.tsv; runs that are not ok do not count.
    """
    found = {}
    for engine in dict.fromkeys(row["engine"] for row in rows):
        good = [row for row in rows if row["engine"] == engine and row["status"] == "ok"]
        if good:
            kinds = {name: dict(Counter(as_text(row[name]) for row in good)) for name in HOMOGENEOUS}
            alike = all(len(counts) == 1 for counts in kinds.values())
            found[engine] = {"runs": len(good), "homogeneous": alike, **kinds}
    return found


def homogeneity_line(engine, found) -> str:
    """One entry of `homogeneity` as a sentence."""
    runs = _count(str(found["runs"]), "run")
    if found["homogeneous"]:
        version, precision, device, threads, cpu = (next(iter(found[name])) for name in HOMOGENEOUS)
        return f"Homogeneous: {runs}, {engine} {version}, {precision}, {device}, {_count(threads, 'thread')}, {cpu}"
    mixed = {name: counts for name, counts in found.items() if name in HOMOGENEOUS and len(counts) > 1}
    said = (f"{name}: {', '.join(f'{value} ({n})' for value, n in counts.items())}" for name, counts in mixed.items())
    return f"Mixed: {runs} of {engine} differ in {'; '.join(said)}"


# --- for people ---------------------------------------------------------------------------------------------------


def print_table(plan: dict, results) -> None:
    """Print what came out: rows, failures, what is worth a look, the benchmark's ratio, where the files are.

    plan: as for `summarise`; here benchmark, whether a benchmark belongs to it (an older one may still lie there).
    """
    results = Path(results)
    rows = read_tsv(results / "summary.tsv").to_dict("records")
    engines = {row["engine"] for row in rows}
    header = ["scan", "status", "verdict", "different", "wall s", "peak MiB"]
    cells = [
        [
            _said_of(row, {row["engine"]}, engines),
            row["status"],
            verdict_text(row["verdict"], row["reference_kind"]),
            row["n_voxels_different"],
            _rounded(row["native_wall_s"], 1),
            _rounded(row["native_peak_rss_mib"], 0),
        ]
        for row in rows
    ]
    widths = [max(len(line[column]) for line in [header, *cells]) for column in range(len(header))]
    for line in [header, *cells]:
        text = [cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
        print("  ".join(text).rstrip())
    if failed := [row for row in rows if row["error"] != MISSING]:
        print(f"\nFailed ({results / 'failed.tsv'} is a sample sheet of these):")
        for line in _once(failed, "error", engines):
            print(f"  {line}")
    if odd := _once([row for row in rows if row["qc_flags"] not in (MISSING, "none")], "qc_flags", engines):
        print("\nWorth a look:")
        for line in odd[:MOST_SHOWN]:
            print(f"  {line.replace(',', ', ')}")
        if len(odd) > MOST_SHOWN:
            print(f"  and {len(odd) - MOST_SHOWN} more")
    for row in rows:
        if row["verdict"] == "different":
            print(f"\n{_said_of(row, {row['engine']}, engines)} differs: {row['verdict_reason']}")
    if plan["benchmark"] and (results / "benchmark.tsv").is_file():
        print()
        for row in read_tsv(results / "benchmark.tsv").to_dict("records"):
            if row["scan"] == "all" and row["engine"] != REFERENCE:
                print(benchmark_line(row))
    if any(row["research_grade"] == "false" for row in rows):
        print("\nThe model is for trying the software only, not for research.")
    print()
    for engine, found in homogeneity(rows).items():
        print(homogeneity_line(engine, found))
    print(f"\n{results / 'summary.tsv'} has everything and names each picture, {results / 'volumes.tsv'} the volumes.")


def benchmark_line(row: dict) -> str:
    """One row of benchmark.tsv as a sentence; the only place where a time ratio is put into words."""
    spread = "" if row["sd_wall_s"] == MISSING else f" ± {_rounded(row['sd_wall_s'], 1)}"
    mean = f"mean {_rounded(row['mean_wall_s'], 1)}{spread} s"
    start = f"Benchmark: {row['engine']} {_rounded(row['median_wall_s'], 1)} s (median of {row['n']}, {mean})"
    about = f"{_count(row['threads'], 'thread')}, {row['cpu']}"
    if row["time_ratio_geomean"] == MISSING:
        return f"{start}, {about}"
    interval = f"95 % interval {_rounded(row['time_ratio_ci95_low'], 2)} to {_rounded(row['time_ratio_ci95_high'], 2)}"
    interval = "no interval below 5 pairs" if row["time_ratio_ci95_low"] == MISSING else interval
    emulated = ", emulated" if row["reference_emulated"] == "true" else ""
    reference = f"the {row['reference_kind']} reference ({row['reference_runtime']}{emulated})"
    ratio = f"{_rounded(row['time_ratio_geomean'], 2)} of the time of {reference}"
    return f"{start}; {ratio} ({_count(row['n_pairs'], 'pair')}, {interval}), {about}"


def _once(rows, column, engines) -> list:
    """Lines "scan: value", one where all engines say the same of a scan."""
    found = {}
    for row in rows:
        found.setdefault((_name(row), row[column]), []).append(row)
    return [
        f"{_said_of(same[0], {row['engine'] for row in same}, engines)}: {value}" for (_, value), same in found.items()
    ]


def _said_of(row, these, engines):
    """The scan's name, and where others are compared the engines that something holds for, unless it is all."""
    return " ".join([_name(row), *([] if these == engines else sorted(these))])


def _name(row):
    prefixes = {"acq": "acq-", "run": "run-"}
    return "_".join(prefixes.get(name, "") + row[name] for name in ENTITIES if row[name] != MISSING)


def _count(number, what):
    return f"{number} {what}" if number == "1" else f"{number} {what}s"


def _rounded(text, digits):
    return text if text == MISSING else f"{float(text):.{digits}f}"
