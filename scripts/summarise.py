"""Write the cohort's tables from the results of all runs; with --show only print the summary for people."""

import argparse
import json
import sys
from pathlib import Path

from synthseg_native.cohort.summary import print_table, summarise
from synthseg_native.errors import SynthSegError


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", required=True, type=Path, help="the results folder")
    parser.add_argument("--plan", required=True, type=Path, help="JSON: which images, engines, model and reference")
    parser.add_argument("--show", action="store_true", help="print the table that was written, write nothing")
    arguments = parser.parse_args(argv)
    try:
        plan = json.loads(arguments.plan.read_text(encoding="utf-8"))
        (print_table if arguments.show else summarise)(plan, arguments.results)
    except FileNotFoundError as error:
        print(f"summarise: {error.filename}: no such file: run the workflow first", file=sys.stderr)
        return 1
    except SynthSegError as error:
        print(f"summarise: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
