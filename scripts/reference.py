"""Run the reference on one image, or take the user's label map: whole or not at all, else a record of the failure."""

import sys
from pathlib import Path

from synthseg_native import stopping
from synthseg_native.cohort.paths import failure_of
from synthseg_native.cohort.runs import files, reference, steps


def main(argv: list[str] | None = None) -> int:
    """Run the step; return the exit status."""
    parser = steps.step_parser(__doc__, files.REFERENCE_FILES)
    parser.add_argument("--memory-mb", type=steps.megabytes, metavar="MB", help="limit of a container")
    args = parser.parse_args(argv)

    def run(work: Path) -> dict:
        given = args.scan, args.image, args.settings, args.python, args.model, args.weights
        return reference.run_reference(*given, work, args.timeout, args.memory_mb)

    places = {name: getattr(args, name) for name in (*files.REFERENCE_FILES, "record")}
    failure = failure_of(args.failures, "reference", args.scan, args.record)
    return steps.step(args.scan, args.settings, places, failure, run)


if __name__ == "__main__":
    sys.exit(stopping.run(main))
