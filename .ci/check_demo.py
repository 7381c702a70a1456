"""Fail unless every TensorFlow row of a summary is identical to a reference that ran in Docker, and names its image."""

import csv
import sys
from pathlib import Path

SHOWN = ("participant_id", "engine", "status", "verdict", "reference_kind", "reference_runtime", "reference_id")


def main(path):
    with Path(path).open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.DictReader(stream, delimiter="\t") if row["engine"] == "tensorflow"]
    for row in rows:
        print("  ".join(row[name] for name in SHOWN))
    if not rows:
        return f"{path}: no TensorFlow row"
    bad = [row["participant_id"] for row in rows if row["verdict"] != "identical"]
    if bad:
        return f"{path}: not identical: {', '.join(bad)}"
    if not all(row["reference_runtime"] == "docker" and row["reference_id"].startswith("sha256:") for row in rows):
        return f"{path}: a row does not name the Docker image that it was compared with"
    print(f"{len(rows)} TensorFlow rows identical to the reference in Docker")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
