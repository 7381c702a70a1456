"""Run native and reference in turn on some images; write every run and the statistics."""

import argparse
import contextlib
import json
import sys
from pathlib import Path

from synthseg_native import shared_disk, stopping
from synthseg_native.cohort import runs
from synthseg_native.cohort.benchmark import COLUMNS, RUN_COLUMNS, run_benchmark, statistics_of
from synthseg_native.cohort.benchmark.in_turn import WORK
from synthseg_native.cohort.tables import write_tsv
from synthseg_native.errors import SynthSegError


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, type=json.loads, help="JSON: repeats, warmups, threads, ...")
    parser.add_argument("--scan", required=True, nargs="+", action="extend", metavar="NAME=IMAGE")
    parser.add_argument("--pythons", required=True, type=json.loads, help="JSON: interpreter of every environment")
    parser.add_argument("--model", required=True, type=Path, metavar="DIR")
    parser.add_argument("--weights", required=True, type=Path, metavar="H5")
    parser.add_argument("--verification", required=True, type=Path, metavar="DIR", help="verified environments")
    parser.add_argument("--memory-mb", type=runs.megabytes, help="limit of a reference container")
    parser.add_argument("--timeout-min", type=float, metavar="MINUTES", help="limit of one run")
    parser.add_argument("--work", required=True, type=Path, metavar="DIR", help="for the runs' work folders")
    parser.add_argument("--runs", required=True, type=Path, metavar="TSV", help="every run")
    parser.add_argument("--out", required=True, type=Path, metavar="TSV", help="the statistics")
    args = parser.parse_args(argv)
    timeout = None if args.timeout_min is None else 60 * args.timeout_min
    given = args.model, args.weights

    def native(scan: str, image: Path, settings: dict, work: Path) -> dict:
        python = args.pythons[settings["engine"]]
        return runs.run_native(scan, image, settings, python, *given, args.verification, work, timeout)

    def reference(scan: str, image: Path, settings: dict, work: Path) -> dict:
        python = args.pythons["tensorflow"]
        return runs.run_reference(scan, image, settings, python, *given, work, timeout, args.memory_mb)

    shared_disk.collect(args.work, f"{WORK}*")  # what a killed benchmark left
    try:
        scans = dict(pair.split("=", 1) for pair in args.scan)
        rows = run_benchmark(scans, args.settings, native, reference, args.work, say=progress)
        write_tsv(args.runs, RUN_COLUMNS, rows)
        write_tsv(args.out, COLUMNS, statistics_of(rows))
    except SynthSegError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    finally:
        with contextlib.suppress(OSError):
            args.work.rmdir()
    return 0


def progress(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(stopping.run(main))
