"""From the results of every run to the tables of the cohort. docs/results.md describes the files.

run_results: what each run left -> aggregate: typed rows -> tables, terminal: files and text.
"""

from pathlib import Path

from synthseg_native.cohort import state
from synthseg_native.cohort.manifest import REFERENCE, Manifest
from synthseg_native.cohort.summary import aggregate, homogeneity, tables
from synthseg_native.files import write_json
from synthseg_native.networks.cards import load, with_parcels


def summarise(manifest: Manifest) -> None:
    """Write every table and BIDS description of the cohort into its results folder, each whole or not at all."""
    results = Path(manifest.results)
    model = load(manifest.model["dir"])
    labels, parcels = model.labels, model.parcels if manifest.model.get("parcels") else None
    runs = aggregate.run_results(manifest)
    rows = aggregate.summary_rows(manifest, runs, labels)
    tables.write_volumes(manifest, runs, labels, parcels)
    for engine in [*manifest.engines, *([REFERENCE] if manifest.reference else [])]:
        tables.describe_derivative(engine, manifest, runs, with_parcels(labels, parcels))
    write_json(results / "homogeneity.json", homogeneity.of_runs(runs))
    tables.write_summary(manifest, rows)
    state.tell(manifest, {(engine, scan): run.told for (scan, engine), run in runs.items()}, tables.made(manifest))
