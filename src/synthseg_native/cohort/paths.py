"""Where every result lies."""

from pathlib import Path


def paths(results, engine: str, scan: str, model: str, resolution: str) -> dict[str, Path]:
    """The files of one run of `engine` ("reference" is one) on one scan.

    `scan` is the composed name, as "sub-01/anat/sub-01_T1w"; `resolution` is "1mm" or "2mm". Keys: dseg, sidecar,
    volumes, record; for a native engine margin and compare too.
    """
    start = f"{Path(results, engine, scan)}_seg-{model}_res-{resolution}"
    suffixes = {"dseg": "dseg.nii.gz", "sidecar": "dseg.json", "volumes": "volumes.tsv", "record": "run.json"}
    if engine != "reference":
        suffixes |= {"margin": "margin.nii.gz", "compare": "compare.json"}
    return {key: Path(f"{start}_{suffix}") for key, suffix in suffixes.items()}


def failure_record(results, engine: str, scan: str) -> Path:
    """Where the record of a failed run lies; there is none after a success."""
    return Path(results, ".state", "failed", engine, f"{scan}.json")
