"""The files that the rows become: TSV for programs, CSV as SynthSeg writes it, JSON that says what is what."""

import csv
import io
from pathlib import Path

from synthseg_native import __version__
from synthseg_native.cohort.manifest import REFERENCE, Manifest
from synthseg_native.cohort.summary.aggregate import Runs, failed_rows, good_runs
from synthseg_native.cohort.summary.rows import COLUMNS, ENTITIES, Row
from synthseg_native.cohort.tables import read_tsv, write_tsv
from synthseg_native.files import write_json, write_text
from synthseg_native.networks.cards import Labels, with_parcels
from synthseg_native.results.tables import VOLUME_COLUMNS, csv_columns

BIDS_VERSION = "1.10.0"
BIDS_IGNORE = "*_run.json\n*_compare.json\n*_volumes.tsv\n*_margin.nii.gz\n*_qc.png\n"


TABLES = ("failed.tsv", "volumes.tsv", "volumes_wide.tsv", "volumes_synthseg.csv", "homogeneity.json", "summary.json",
          "summary.tsv")  # fmt: skip
DESCRIPTIONS = ("dataset_description.json", "dseg.tsv", ".bidsignore")


def made(manifest: Manifest) -> list[Path]:
    """All files that a summary writes, those of the derivative datasets where there are any."""
    results = Path(manifest.results)
    described = [results / engine / name for engine in (*manifest.engines, REFERENCE) for name in DESCRIPTIONS]
    return [*(results / name for name in TABLES), *(path for path in described if path.is_file())]


def write_summary(manifest: Manifest, rows: list[Row]) -> None:
    """summary.tsv, what its columns mean, and failed.tsv."""
    results = Path(manifest.results)
    sheet = dict.fromkeys(f"sheet_{name}" for row in rows for name in row.sheet)
    columns = [*COLUMNS, *sheet]
    write_tsv(results / "failed.tsv", *failed_rows(manifest, rows))
    write_json(results / "summary.json", describe_columns(columns))
    write_tsv(results / "summary.tsv", columns, [row.cells() for row in rows])


def describe_columns(columns: list[str]) -> dict:
    """summary.json: BIDS keys, one entry per column of summary.tsv."""
    described = {}
    for name in columns:
        unit, meaning = COLUMNS.get(name, ("", f"Column {name.removeprefix('sheet_')} of the sample sheet"))
        described[name] = {"Description": meaning, **({"Units": unit} if unit else {})}
    return described


def write_volumes(manifest: Manifest, runs: Runs, labels: Labels, parcels: Labels | None = None) -> None:
    """volumes.tsv (a row per structure), volumes_wide.tsv (a column per structure), volumes_synthseg.csv.

    parcels : their table, where label maps have parcels
    """
    table = with_parcels(labels, parcels)
    results = Path(manifest.results)
    good = list(good_runs(manifest, runs))
    long = [{**entities, "engine": run.engine, **row} for entities, run in good for row in run.volumes]
    write_tsv(results / "volumes.tsv", [*ENTITIES, "engine", *VOLUME_COLUMNS], long)
    names = {
        int(index): f"{name}_soft_volume_mm3"
        for index, name in zip(table.index, table.freesurfer_names, strict=True)
        if index != 0
    }
    wide = [
        {
            **entities,
            "engine": run.engine,
            **{names[row["index"]]: row["soft_volume_mm3"] for row in run.volumes if row["index"] in names},
        }
        for entities, run in good
    ]
    write_tsv(results / "volumes_wide.tsv", [*ENTITIES, "engine", *names.values()], wide)
    _write_volumes_synthseg(results / "volumes_synthseg.csv", manifest, runs, labels, parcels)


def _write_volumes_synthseg(path: Path, manifest: Manifest, runs: Runs, labels: Labels, parcels: Labels | None) -> None:
    """Soft volumes of the first engine as SynthSeg writes them: its header and order, CR LF, mm3 with 3 decimals."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["subject", *csv_columns(labels, parcels)])
    for scan in manifest.scans:
        run = runs[scan.scan, manifest.engines[0]]
        soft = {row["index"]: row["soft_volume_mm3"] for row in run.volumes}
        values = [soft.get(int(index)) for index in labels.index[1:]]
        more = [soft.get(int(index)) for index in parcels.index[1:]] if parcels else []
        if run.status != "ok" or None in values + more:
            continue
        values = [*([sum(values)] if labels.has_total_intracranial else []), *values, *more]
        writer.writerow([Path(scan.scan).name, *(str(round(value, 3)) for value in values)])
    write_text(path, text.getvalue())


def _rows_there(path: Path, columns: list[str]) -> list[dict]:
    """The rows of a dseg.tsv; none of one that is not there, or not as we write it."""
    try:
        return [{**row, "index": int(row["index"])} for row in read_tsv(path) if list(row) == columns]
    except (OSError, KeyError, ValueError, TypeError, UnicodeError):
        return []


def describe_derivative(engine: str, manifest: Manifest, runs: Runs, labels: Labels) -> None:
    """dataset_description.json, dseg.tsv and .bidsignore of one derivative dataset, where it has a folder."""
    folder = Path(manifest.results, engine)
    if not folder.is_dir():
        return
    run = next((run for (_, name), run in runs.items() if name == engine and run.status == "ok"), None)
    model, about = manifest.model["name"], (run and run.get("reference")) or manifest.reference or {}
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
    grade = "" if manifest.model["research_grade"] else " (not for research)"
    name = f"Brain structures by {model}{grade}, {engine}"
    if engine == REFERENCE and about["kind"] == "existing":  # nobody knows what made them
        name = made_by["Description"] = "Existing label maps"
    description = {"Name": name, "BIDSVersion": BIDS_VERSION, "DatasetType": "derivative", "GeneratedBy": [made_by]}
    write_json(folder / "dataset_description.json", description)
    table = zip(labels.index.tolist(), labels.names, labels.freesurfer_names, labels.colors, strict=True)
    columns = ["index", "name", "freesurfer_name", "color"]
    rows = {row[0]: dict(zip(columns, row, strict=True)) for row in table}
    for row in _rows_there(folder / "dseg.tsv", columns):  # of label maps of earlier calls, with parcels say
        rows.setdefault(row["index"], row)
    write_tsv(folder / "dseg.tsv", columns, [rows[index] for index in sorted(rows)])
    write_text(folder / ".bidsignore", BIDS_IGNORE)
