"""Run native and reference in turn on some images; write every run and the statistics.

Every run is kept as soon as it has ended, so that a benchmark that is stopped goes on where it was.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path

from synthseg_native import shared_disk, stopping
from synthseg_native.cohort.benchmark import COLUMNS, RUN_COLUMNS, run_benchmark, statistics_of
from synthseg_native.cohort.benchmark.in_turn import WORK, never_came_through
from synthseg_native.cohort.runs import steps
from synthseg_native.cohort.runs.native import run_native
from synthseg_native.cohort.runs.reference import run_reference
from synthseg_native.cohort.tables import write_tsv
from synthseg_native.errors import SynthSegError
from synthseg_native.files import read_json
from synthseg_native.results import record


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--order", required=True, type=Path, metavar="JSON", help="settings and scans: {name: image}")
    parser.add_argument("--pythons", required=True, type=json.loads, help="JSON: interpreter of every environment")
    parser.add_argument("--model", required=True, type=Path, metavar="DIR")
    parser.add_argument("--weights", required=True, type=Path, metavar="H5")
    parser.add_argument("--verification", required=True, type=Path, metavar="DIR", help="verified environments")
    parser.add_argument("--memory-mb", type=steps.megabytes, help="limit of a reference container")
    parser.add_argument("--timeout-min", type=float, metavar="MINUTES", help="limit of one run")
    parser.add_argument("--work", required=True, type=Path, metavar="DIR", help="for the runs' work folders")
    parser.add_argument("--runs", required=True, type=Path, metavar="TSV", help="every run")
    parser.add_argument("--out", required=True, type=Path, metavar="TSV", help="the statistics")
    args = parser.parse_args(argv)
    timeout = None if args.timeout_min is None else 60 * args.timeout_min
    given = args.model, args.weights

    def native(scan: str, image: Path, settings: dict, work: Path) -> dict:
        python = args.pythons[settings["engine"]]
        return run_native(scan, image, settings, python, *given, args.verification, work, timeout)

    def reference(scan: str, image: Path, settings: dict, work: Path) -> dict:
        python = args.pythons["tensorflow"]
        return run_reference(scan, image, settings, python, *given, work, timeout, args.memory_mb)

    shared_disk.collect(args.work, f"{WORK}*")  # what a killed benchmark left
    try:
        order = read_json(args.order)
        if not isinstance(order, dict) or not {"settings", "scans"} <= set(order):
            raise SynthSegError("usage", f"{args.order}: missing or damaged: call the workflow again")
        kept = Kept(args.work / f"{args.order.stem}.jsonl")
        known = kept.rows()
        rows = run_benchmark(
            order["scans"], order["settings"], native, reference, args.work, progress, known, kept.append
        )
        write_tsv(args.runs, RUN_COLUMNS, rows)
        write_tsv(args.out, COLUMNS, statistics_of(rows))
        if not any(never_came_through(row for row in rows if row["scan"] == scan) for scan in order["scans"]):
            kept.remove()
    except SynthSegError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    finally:
        with contextlib.suppress(OSError):
            args.work.rmdir()
    return 0


class Kept:
    """The rows of a benchmark that has not ended, a line of JSON each. Those of other settings beside it are removed.

    path: named by what the benchmark is to do
    """

    def __init__(self, path: Path):
        self.path = path
        for other in path.parent.glob("benchmark-*.jsonl"):
            if other != path:
                Kept.remove_file(other)

    def rows(self) -> list[dict]:
        """The rows of the same processor, without what a kill has cut off."""
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError):
            return []
        found, cpu = [], record.new("native", [])["machine"]["cpu"]
        for line in lines:
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and set(row) == set(RUN_COLUMNS) and row["cpu"] == cpu:
                    found.append(row)
        if found:
            progress(f"benchmark: {len(found)} runs of an earlier call are kept")
        return found

    def remove(self) -> None:
        """Forget them."""
        self.remove_file(self.path)

    @staticmethod
    def remove_file(path: Path) -> None:
        """Remove a file; what cannot be removed is left, and does no harm."""
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)

    def append(self, row: dict) -> None:
        """Keep a row."""
        with contextlib.suppress(OSError):  # of a full disk: the run itself counts all the same
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")


def progress(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(stopping.run(main))
