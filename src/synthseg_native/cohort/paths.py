"""Where every result lies, and how a file appears there whole or not at all."""

import json
import os
from pathlib import Path


def paths(results, engine: str, scan: str, model: str, resolution: str) -> dict[str, Path]:
    """The files of one run of `engine` ("reference" is one) on one scan.

    `scan` is the composed name, as "sub-01/anat/sub-01_T1w"; `resolution` is "1mm" or "2mm", of the network's grid.
    Keys: dseg, sidecar, volumes, record; for a native engine also margin, dseg_native and sidecar_native (the label map
    on the input's own grid), and what is made from them: compare and picture.
    """
    start, res = f"{Path(results, engine, scan)}_seg-{model}", f"res-{resolution}"
    endings = {
        "dseg": f"{res}_dseg.nii.gz",
        "sidecar": f"{res}_dseg.json",
        "volumes": f"{res}_volumes.tsv",
        "record": f"{res}_run.json",
    }
    if engine != "reference":
        endings |= {
            "margin": f"{res}_margin.nii.gz",
            "dseg_native": "res-native_dseg.nii.gz",
            "sidecar_native": "res-native_dseg.json",
            "compare": f"{res}_compare.json",
            "picture": f"{res}_qc.png",
        }
    return {key: Path(f"{start}_{ending}") for key, ending in endings.items()}


def failure_record(results, engine: str, scan: str, model: str, resolution: str) -> Path:
    """Where the record of a failed run lies; there is none after a success."""
    record = paths(results, engine, scan, model, resolution)["record"]
    return failure_of(Path(results, ".state", "failed"), engine, scan, record)


def failure_of(failures, engine: str, scan: str, record) -> Path:
    """The same from the folder of the failures and the path of the run record, whose name has model and resolution."""
    name = Path(record).name.removesuffix("_run.json").removesuffix(".json")
    return Path(failures, engine, scan).with_name(f"{name}.json")


def read_json(path):
    """The contents of a JSON file; None where it is missing or damaged."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def write_text(path, text: str) -> None:
    """Write a file beside its place, then rename it: it is there whole or not at all. Line ends stay as given."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_text(text, encoding="utf-8", newline="")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_json(path, value) -> None:
    """Write strict JSON (no NaN) whole or not at all."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
