"""Segment one image with one engine: results whole or not at all, a record of the failure otherwise."""

import sys
from pathlib import Path

from synthseg_native import stopping
from synthseg_native.cohort.paths import failure_of
from synthseg_native.cohort.runs import files, native, steps


def main(argv: list[str] | None = None) -> int:
    """Run the step; return the exit status."""
    parser = steps.step_parser(__doc__, files.NATIVE_FILES)
    parser.add_argument("--verification", required=True, type=Path, metavar="DIR", help="verified environments")
    args = parser.parse_args(argv)

    def run(work: Path) -> dict:
        given = args.scan, args.image, args.settings, args.python, args.model, args.weights
        return native.run_native(*given, args.verification, work, args.timeout)

    places = {name: getattr(args, name) for name in (*files.NATIVE_FILES, "record")}
    failure = failure_of(args.failures, args.settings["engine"], args.scan, args.record)
    return steps.step(args.scan, args.settings, places, failure, run)


if __name__ == "__main__":
    sys.exit(stopping.run(main))
