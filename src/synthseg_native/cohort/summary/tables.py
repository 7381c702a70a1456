"""The files that the rows become: TSV for programs, CSV as SynthSeg writes it, JSON that says what is what."""

import csv
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from synthseg_native import __version__
from synthseg_native.cohort.manifest import REFERENCE, Manifest, Scan
from synthseg_native.cohort.summary.aggregate import Runs, entity_cells, failed_rows
from synthseg_native.cohort.summary.rows import COLUMNS, ENTITIES, Row
from synthseg_native.cohort.summary.run_results import RunResult
from synthseg_native.cohort.tables import as_text, read_tsv, tsv_writer, write_tsv
from synthseg_native.files import write_json, write_text, writing
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
    write_tsv(results / "summary.tsv", columns, (row.cells() for row in rows))


def describe_columns(columns: list[str]) -> dict:
    """summary.json: BIDS keys, one entry per column of summary.tsv."""
    described = {}
    for name in columns:
        unit, meaning = COLUMNS.get(name, ("", f"Column {name.removeprefix('sheet_')} of the sample sheet"))
        described[name] = {"Description": meaning, **({"Units": unit} if unit else {})}
    return described


@contextmanager
def volumes_writer(
    manifest: Manifest, labels: Labels, parcels: Labels | None = None
) -> Iterator[Callable[[Scan, Runs], None]]:
    """What adds a scan's good runs to volumes.tsv (a row per structure), volumes_wide.tsv (a column per structure) and
    volumes_synthseg.csv (of the first engine, as SynthSeg writes it: its header and order, CR LF, mm3 with 3 decimals).

    parcels : their table, where label maps have parcels. The tables are there whole when the block ends, or not at all.
    """
    results, table = Path(manifest.results), with_parcels(labels, parcels)
    names = {
        int(index): f"{name}_soft_volume_mm3"
        for index, name in zip(table.index, table.freesurfer_names, strict=True)
        if index != 0
    }
    with ExitStack() as stack:
        long = stack.enter_context(tsv_writer(results / "volumes.tsv", [*ENTITIES, "engine", *VOLUME_COLUMNS]))
        columns = [*ENTITIES, "engine", *names.values()]
        wide = stack.enter_context(tsv_writer(results / "volumes_wide.tsv", columns))
        part = stack.enter_context(writing(results / "volumes_synthseg.csv"))
        theirs = csv.writer(stack.enter_context(part.open("w", encoding="utf-8", newline="")))
        theirs.writerow(["subject", *csv_columns(labels, parcels)])

        def add(scan: Scan, runs: Runs) -> None:
            for engine in [name for name in (*manifest.engines, REFERENCE) if name in runs]:
                run = runs[engine]
                if run.status != "ok":
                    continue
                whose = [as_text(value) for value in (*entity_cells(scan).values(), engine)]
                for row in run.volumes:
                    long([*whose, *(as_text(row.get(name)) for name in VOLUME_COLUMNS)])
                soft = {row["index"]: row["soft_volume_mm3"] for row in run.volumes}
                wide([*whose, *(as_text(soft.get(index)) for index in names)])
                if engine == manifest.engines[0] and (values := _as_synthseg(soft, labels, parcels)):
                    theirs.writerow([Path(scan.scan).name, *values])

        yield add


def _as_synthseg(soft: dict, labels: Labels, parcels: Labels | None) -> list[str]:
    """The cells of SynthSeg's own table; none where a structure has no volume. soft : {label value: mm3 or None}"""
    values = [soft.get(int(index)) for index in labels.index[1:]]
    more = [soft.get(int(index)) for index in parcels.index[1:]] if parcels else []
    if None in values + more:
        return []
    values = [*([sum(values)] if labels.has_total_intracranial else []), *values, *more]
    return [str(round(value, 3)) for value in values]


def _rows_there(path: Path, columns: list[str]) -> list[dict]:
    """The rows of a dseg.tsv; none of one that is not there, or not as we write it."""
    try:
        return [{**row, "index": int(row["index"])} for row in read_tsv(path) if list(row) == columns]
    except (OSError, KeyError, ValueError, TypeError, UnicodeError):
        return []


def describe_derivative(engine: str, manifest: Manifest, run: RunResult | None, labels: Labels) -> None:
    """dataset_description.json, dseg.tsv and .bidsignore of one derivative dataset, where it has a folder.

    run : a good one of this engine's, if there is any
    """
    folder = Path(manifest.results, engine)
    if not folder.is_dir():
        return
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
