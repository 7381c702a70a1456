"""The summary for people, on a terminal."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from synthseg_native.cohort.manifest import REFERENCE, Manifest
from synthseg_native.cohort.summary import homogeneity
from synthseg_native.cohort.summary.homogeneity import counted
from synthseg_native.cohort.summary.rows import Row, read_rows
from synthseg_native.cohort.tables import MISSING, as_text, read_tsv
from synthseg_native.errors import few
from synthseg_native.results.verdicts import verdict_text

MOST_SHOWN = 10  # scans that are named as worth a look
MOST_ROWS = 200  # of the table; of more their number is told, and summary.tsv has them


def print_summary(manifest: Manifest) -> None:
    """Print what came out: rows, failures, what is worth a look, the benchmark's ratio, where the files are.

    Reads the tables that were written. Raises FileNotFoundError where there are none.
    """
    results = Path(manifest.results)
    for line in lines(manifest, read_rows(results / "summary.tsv")):
        print(line)


def lines(manifest: Manifest, rows: list[Row]) -> Iterator[str]:
    """The same as lines of text."""
    results, engines = Path(manifest.results), {row.engine for row in rows}
    yield from _table(rows, engines) if len(rows) <= MOST_ROWS else _counts(rows)
    if failed := [row for row in rows if row.error]:
        yield f"\nFailed ({results / 'failed.tsv'} is a sample sheet of these):"
        yield from (f"  {line}" for line in _once(failed, "error", engines))
    for status, meaning in (
        ("stale", "made with other settings, code or image than today's, and left out of the tables; call again"),
        ("edited", "changed by hand since, kept and left out of the tables"),
    ):
        if these := [row for row in rows if row.status == status]:
            yield f"\n{status.capitalize()} ({meaning}):"
            yield from (f"  {line}" for line in _at_most(_once(these, "state_reason", engines)))
    odd = [row for row in rows if row.qc_flags not in (None, "none")]
    if odd:
        yield "\nWorth a look:"
        yield from (f"  {line.replace(',', ', ')}" for line in _at_most(_once(odd, "qc_flags", engines)))
    if flagged := _by_header_flag(rows):
        yield "\nOdd in the scan's header or values (docs/input.md says what it means for volumes):"
        for flag, names in flagged.items():
            yield f"  {flag}: {few(names)}"
    for row in rows:
        if row.verdict == "different":
            yield f"\n{_said_of(row, {row.engine}, engines)} differs: {row.verdict_reason}"
    if manifest.benchmark and (results / "benchmark.tsv").is_file():
        yield ""
        for row in read_tsv(results / "benchmark.tsv"):
            if row["scan"] == "all" and (row["engine"] != REFERENCE or row["n"] == "0"):
                yield benchmark_line(row)
    if any(row.research_grade is False for row in rows):
        yield "\nThe model is for trying the software only, not for research."
    alike = json.loads((results / "homogeneity.json").read_text(encoding="utf-8"))
    if alike:
        yield ""
        yield from (homogeneity.sentence(engine, found) for engine, found in alike.items())
    yield f"\n{results / 'summary.tsv'} has everything and names each picture, {results / 'volumes.tsv'} the volumes."


def _counts(rows: list[Row]) -> Iterator[str]:
    for column in ("status", "verdict"):
        numbers = Counter(as_text(getattr(row, column)).replace("_", " ") for row in rows)
        yield f"{column}: {', '.join(f'{value} {number}' for value, number in numbers.most_common())}"


def _table(rows: list[Row], engines: set[str]) -> Iterator[str]:
    header = ["scan", "status", "verdict", "different", "wall s", "peak MiB"]
    cells = [
        [
            _said_of(row, {row.engine}, engines),
            row.status,
            verdict_text(row.verdict, row.reference_kind or MISSING),
            as_text(row.n_voxels_different),
            MISSING if row.native_wall_s is None else f"{row.native_wall_s:.1f}",
            MISSING if row.native_peak_rss_mib is None else f"{row.native_peak_rss_mib:.0f}",
        ]
        for row in rows
    ]
    widths = [max(len(line[column]) for line in [header, *cells]) for column in range(len(header))]
    for line in [header, *cells]:
        text = [cell.ljust(w) if i < 3 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))]
        yield "  ".join(text).rstrip()


def benchmark_line(row: dict[str, str]) -> str:
    """One row of benchmark.tsv as a sentence; the only place where a time ratio is put into words."""
    if row["n"] == "0":
        return f"Benchmark: {row['engine']} failed in all {row['n_failed']} runs: benchmark_runs.tsv says why"
    spread = "" if row["sd_wall_s"] == MISSING else f" ± {_rounded(row['sd_wall_s'], 1)}"
    mean = f"mean {_rounded(row['mean_wall_s'], 1)}{spread} s"
    start = f"Benchmark: {row['engine']} {_rounded(row['median_wall_s'], 1)} s (median of {row['n']}, {mean})"
    about = f"{counted(row['threads'], 'thread')}, {row['cpu']}"
    if row["time_ratio_geomean"] == MISSING:
        return f"{start}, {about}"
    interval = f"95 % interval {_rounded(row['time_ratio_ci95_low'], 2)} to {_rounded(row['time_ratio_ci95_high'], 2)}"
    interval = "no interval below 5 pairs" if row["time_ratio_ci95_low"] == MISSING else interval
    emulated = ", emulated" if row["reference_emulated"] == "true" else ""
    reference = f"the {row['reference_kind']} reference ({row['reference_runtime']}{emulated})"
    ratio = f"{_rounded(row['time_ratio_geomean'], 2)} of the time of {reference}"
    return f"{start}; {ratio} ({counted(row['n_pairs'], 'pair')}, {interval}), {about}"


def _by_header_flag(rows: Iterable[Row]) -> dict[str, list[str]]:
    """{flag: names of the scans that have it}, whichever engine ran them."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        for flag in (row.header_flags or "none").split(","):
            if flag != "none":
                found.setdefault(flag, {})[row.name] = None
    return {flag: list(names) for flag, names in found.items()}


def _at_most(said: list[str]) -> Iterator[str]:
    yield from said[:MOST_SHOWN]
    if len(said) > MOST_SHOWN:
        yield f"and {len(said) - MOST_SHOWN} more"


def _once(rows: Iterable[Row], column: str, engines: set[str]) -> list[str]:
    """Lines "scan: value", one where all engines say the same of a scan."""
    found: dict[tuple, list[Row]] = {}
    for row in rows:
        found.setdefault((row.name, getattr(row, column)), []).append(row)
    return [
        f"{_said_of(same[0], {row.engine for row in same}, engines)}: {value}" for (_, value), same in found.items()
    ]


def _said_of(row: Row, these: set[str], engines: set[str]) -> str:
    """The scan's name, and where others are compared the engines that something holds for, unless it is all."""
    return " ".join([row.name, *([] if these == engines else sorted(these))])


def _rounded(text: str, digits: int) -> str:
    return text if text == MISSING else f"{float(text):.{digits}f}"
