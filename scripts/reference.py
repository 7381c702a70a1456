"""Run the reference on one image, or take the user's label map: whole or not at all, else a record of the failure."""

import argparse
import json
import sys
from pathlib import Path

from synthseg_native.cohort import runs
from synthseg_native.cohort.paths import failure_of


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scan", required=True, help="composed name, sub-01/anat/sub-01_T1w")
    parser.add_argument("--image", required=True, type=Path)
    parser.add_argument("--settings", required=True, type=json.loads, metavar="JSON", help="rerun key of the run")
    parser.add_argument("--python", required=True, help="interpreter for runtime local")
    parser.add_argument("--model", required=True, type=Path, metavar="DIR")
    parser.add_argument("--weights", required=True, type=Path, metavar="H5")
    parser.add_argument("--failures", required=True, type=Path, metavar="DIR", help="for the record of a failure")
    parser.add_argument("--timeout-min", type=float, metavar="MINUTES")
    parser.add_argument("--memory-mb", type=int, metavar="MB", help="limit of a container")
    for name in (*runs.REFERENCE_FILES, "record"):
        parser.add_argument(f"--{name}", required=True, type=Path, metavar="OUT")
    args = parser.parse_args(argv)

    def run(work):
        timeout = None if args.timeout_min is None else 60 * args.timeout_min
        return runs.run_reference(
            args.scan, args.image, args.settings, args.python, args.model, args.weights, work, timeout, args.memory_mb
        )

    places = {name: getattr(args, name) for name in (*runs.REFERENCE_FILES, "record")}
    failure = failure_of(args.failures, "reference", args.scan, args.record)
    return runs.step(args.scan, args.settings, places, failure, run)


if __name__ == "__main__":
    sys.exit(main())
