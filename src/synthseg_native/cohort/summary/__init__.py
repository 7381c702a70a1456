"""From the results of every run to the tables of the cohort. docs/results.md describes the files.

run_results: what each run left -> aggregate: typed rows -> tables, terminal: files and text.
"""

from pathlib import Path

from synthseg_native.cohort import state
from synthseg_native.cohort.manifest import REFERENCE, Manifest
from synthseg_native.cohort.summary import aggregate, homogeneity, tables
from synthseg_native.cohort.summary.run_results import RunResult
from synthseg_native.files import write_json
from synthseg_native.identity.contents import Contents
from synthseg_native.networks.cards import load, with_parcels


def summarise(manifest: Manifest) -> None:
    """Write every table and BIDS description of the cohort into its results folder, each whole or not at all."""
    results = Path(manifest.results)
    model = load(manifest.model["dir"])
    labels, parcels = model.labels, model.parcels if manifest.model.get("parcels") else None
    contents = Contents(results / state.FOLDER / "contents.json")
    rows, told, first, alike = [], {}, {}, homogeneity.Counts()
    with tables.volumes_writer(manifest, labels, parcels) as add_volumes:
        for scan in manifest.scans:  # one at a time: all records of a large cohort would take gigabytes
            runs = {engine: RunResult(run, engine, contents) for engine, run in scan.runs.items()}
            rows += [aggregate.summary_row(manifest, scan, engine, runs, labels) for engine in manifest.engines]
            add_volumes(scan, runs)
            for engine, run in runs.items():
                told[engine, scan.scan] = run.told
                if run.status == "ok":
                    first.setdefault(engine, run)
                    alike.add(run)
    for engine in [*manifest.engines, *([REFERENCE] if manifest.reference else [])]:
        tables.describe_derivative(engine, manifest, first.get(engine), with_parcels(labels, parcels))
    write_json(results / "homogeneity.json", alike.found())
    tables.write_summary(manifest, rows)
    state.tell(manifest, told, tables.made(manifest))
