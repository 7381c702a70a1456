"""Write the cohort's tables from the results of all runs; with --show only print the summary for people."""

import argparse
import sys
from pathlib import Path

from synthseg_native import stopping
from synthseg_native.cohort import manifest
from synthseg_native.cohort.summary import summarise
from synthseg_native.cohort.summary.terminal import print_summary
from synthseg_native.errors import SynthSegError


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--manifest", required=True, type=Path, help="what the call was to do")
    parser.add_argument("--show", action="store_true", help="print the table that was written, write nothing")
    arguments = parser.parse_args(argv)
    try:
        (print_summary if arguments.show else summarise)(manifest.read(arguments.manifest))
    except FileNotFoundError as error:
        print(f"summarise: {error.filename}: no such file: run the workflow first", file=sys.stderr)
        return 1
    except SynthSegError as error:
        print(f"summarise: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(stopping.run(main))
