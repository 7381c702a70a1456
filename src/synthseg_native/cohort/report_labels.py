"""What Snakemake's report (`./snakemake --report report.zip`) says of a result in its tables."""

from pathlib import Path
from typing import Any

from synthseg_native.files import read_sealed
from synthseg_native.networks.cards import Labels
from synthseg_native.results import quality


def of_picture(wildcards: Any, input: Any, labels_table: Labels) -> dict[str, str]:
    """Labels of a picture: the scan, and what is odd about its segmentation. labels_table: `cards.Labels`."""
    qc = quality.of_record(read_sealed(input.record) or {}, labels_table) or {}
    return {"scan": _name(wildcards.scan), "worth a look": ", ".join(qc.get("flags") or []) or "-"}


def of_comparison(wildcards: Any, output: Any) -> dict[str, str]:
    """Labels of a comparison: the scan, the verdict and how many voxels differ."""
    found = read_sealed(output.compare) or {}
    different = found.get("n_voxels_different")
    return {
        "scan": _name(wildcards.scan),
        "verdict": found.get("verdict") or "-",
        "voxels that differ": "-" if different is None else str(different),
    }


def _name(scan: str) -> str:
    return Path(scan).name
