"""What stands beside a label map: BIDS metadata, as JSON."""

import json
from pathlib import Path


def sidecar(record: dict, grid: str = "network") -> dict:
    """BIDS metadata of a label map, from its run record.

    grid : "network", or "native" for the map on the input's own grid.
    """
    engine, of_grid = record["engine"], record["output"] if grid == "network" else record["output"]["native_grid"]
    voxel_mm = "x".join(f"{v:g}" for v in of_grid["voxel_mm"])
    if grid == "network":
        resolution = f"{voxel_mm} mm, axes as in the input image"
    else:
        how = {"posterior": "from resampled posteriors", "nearest": "by nearest neighbour"}[of_grid["interpolation"]]
        resolution = f"the input image's own grid ({voxel_mm} mm), labels {how}"
    if (record["reference"] or {}).get("kind") == "existing":  # nobody knows what made it
        method = {"SegmentationMethod": "existing label map"}
    else:
        method = {
            "SegmentationMethod": f"{method_of(record)} with {engine['name']} {engine['version']}",
            "ResearchGrade": record["model"]["research_grade"],
        }
    return {
        "Type": "Discrete",
        "SpatialReference": "orig",
        "Sources": [record["input"]["name"]],
        "Resolution": resolution,
        **method,
        "HeaderFlags": list(record["input"].get("header_flags") or []),  # what is odd about the scan's header
    }


def method_of(record: dict) -> str:
    """The model of a run record and what else was asked of it.

    >>> model = {"name": "a", "networks": {"robust": "", "quality": ""}, "companions": "b"}
    >>> method_of({"mode": "robust", "model": model})
    'a, robust, quality scores by b'
    """
    model, words = record["model"], []
    networks = model.get("networks") or {}
    for name, what in (("parcellation", "parcels"), ("quality", "quality scores")):
        words += [what + (f" by {model['companions']}" if model.get("companions") else "")] * (name in networks)
    return ", ".join([model["name"], *["robust"] * (record.get("mode") == "robust"), *words])


def save_json(path: str | Path, content: dict | list) -> None:
    """Write JSON for people and programs; numbers that are not finite are an error."""
    Path(path).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
