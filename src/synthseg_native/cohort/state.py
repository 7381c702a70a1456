"""What a call makes again, why, and what it leaves for the next one.

What is current the results themselves say (`identity.current`). Snakemake's own records are not asked: they may be of
another folder, or gone.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from synthseg_native.cohort.benchmark.in_turn import COLUMNS, RUN_COLUMNS, never_came_through
from synthseg_native.errors import TRANSIENT, few
from synthseg_native.files import is_there, read_sealed, seal_of, sha256_of, write_sealed, write_text
from synthseg_native.identity import current, keys

if TYPE_CHECKING:
    from synthseg_native.cohort.manifest import Manifest
    from synthseg_native.cohort.plan import Plan

FOLDER = ".state"
LINES = 20  # that are said of runs


def failed_mark(state: Path) -> Path:
    """The file that says the last run did not finish well, so that its summary is not taken for a good one."""
    return Path(state) / "last_run_failed"


def mark_failed(state: Path) -> None:
    """Leave that mark; the next summary that is made after all its inputs removes it."""
    write_text(failed_mark(state), "The last run did not finish well; the next one makes the summary again.\n")


def to_make(plan: Plan) -> set[str]:
    """Files that have to be made, or made again, of all that the sheet asks for. plan: a `plan.Plan`.

    Snakemake looks at what a target needs only where the target itself is stale; it does not see that a picture is
    missing below a summary that is there. So every file that is missing is among them.
    """
    found = {
        plan.path("record", *pair)
        for pair, state in plan.identities.states.items()
        if state.word != current.CURRENT
        and not plan.identities.is_kept(*pair)
        and not plan.identities.is_lasting(*pair)
    }
    wanted = [*plan.wanted_runs(), *plan.wanted_once(), *plan.aggregates().values()]
    found |= {path for path in wanted if not is_there(path)} | set(plan.identities.redone)
    found |= set(plan.patterns.benchmark.values()) if _benchmark_again(plan) else set()
    summary = plan.aggregates()["summary"]
    return found | ({summary} if failed_mark(plan.state).exists() or not says_what_is(plan) else set())


def told_of(found: current.State, follows: Mapping[str, str]) -> str:
    """What a summary tells of a run, as a word: its state; of a current one which run, comparison and picture it is.

    follows: where its comparison ("compare") and its picture are, which a reference run has not.
    """
    if found.word != current.CURRENT:
        return found.word
    compared, drawn = (follows.get(name) for name in ("compare", "picture"))
    return " ".join(
        [found.word, found.seal, (compared and seal_of(compared)) or "", str(is_there(drawn)) if drawn else ""]
    )


def told(manifest: Manifest, words: dict[tuple[str, str], str]) -> str:
    """What a summary tells, as a digest: the rows of the sheet and every run.

    words: (engine, scan) -> `told_of`. Paths and identities are not in it: a summary does not tell them, or the state
    does.
    """
    about = [manifest.engines, manifest.model["name"], manifest.reference, manifest.benchmark]
    rows = [
        [scan.scan, scan.entities, scan.sheet, *(words[e, scan.scan] for e in scan.runs)] for scan in manifest.scans
    ]
    return keys.digest(json.dumps([about, rows], sort_keys=True))


def told_file(results: str | Path) -> Path:
    """Where the summary leaves `told`, and the hashes of the files that it made."""
    return Path(results, FOLDER, "told.json")


def tell(manifest: Manifest, words: dict[tuple[str, str], str], made: Iterable[Path]) -> None:
    """Leave what a summary told, and in which files, for `says_what_is`. made: its files, the last of which is done."""
    results = Path(manifest.results)
    hashes = {path.relative_to(results).as_posix(): sha256_of(path) for path in made}
    write_sealed(told_file(results), {"told": told(manifest, words), "files": hashes})


def says_what_is(plan: Plan) -> bool:
    """Whether a summary is of today's sheet and of the states that runs have now, and its files are as it made them."""
    found = read_sealed(told_file(plan.results)) or {}
    return found.get("told") == told(plan.manifest, plan.identities.told) and not changed_tables(plan)


def changed_tables(plan: Plan) -> list[str]:
    """The files of the last summary that are no longer as it made them: cut, edited, of elsewhere."""
    place = told_file(plan.results)
    made = (read_sealed(place) or {}).get("files") or {}
    paths = {str(Path(plan.results, name)): sha256 for name, sha256 in made.items()}
    about = place.stat() if paths else None
    return [path for path, sha256 in paths.items() if not plan.contents.is_as_made(path, sha256, about)]


def _benchmark_again(plan: Plan) -> str | None:
    """Why the benchmark runs again although its tables are there: one is damaged, or a contestant never came through
    an image for a cause that may have passed. None where nothing says so."""
    runs, table = (Path(plan.patterns.benchmark[name]) for name in ("runs", "table"))
    if not plan.benchmarked or not (runs.exists() and table.exists()):
        return None
    rows = _rows(runs, RUN_COLUMNS)
    if rows is None or _rows(table, COLUMNS) is None:
        return "its tables are damaged"
    for scan in dict.fromkeys(row["scan"] for row in rows):
        for engine, code in never_came_through(row for row in rows if row["scan"] == scan).items():
            if code in TRANSIENT:
                return f"{engine} failed in all runs of {Path(scan).name} ({code})"
    return None


def _rows(path: Path, columns: Sequence[str]) -> list[dict] | None:
    """The rows of a table; None where it is none with these columns, or was cut within a row."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            table = csv.DictReader(file, delimiter="\t")
            rows = list(table)
    except (OSError, ValueError, csv.Error):
        return None
    whole = all(None not in row and None not in row.values() for row in rows)
    return rows if whole and rows and table.fieldnames == list(columns) else None


def lines(plan: Plan) -> list[str]:
    """What a call says before its first job: what is made again and why, what was edited, what cannot be made again."""
    alike: dict[tuple[str, str], list] = {}
    for (engine, scan), state in plan.identities.states.items():
        kind = "reference" if engine == "reference" else "native"
        if state.word == current.EDITED:
            what = f"{kind} label map", ("kept" if plan.identities.is_kept(engine, scan) else "overwritten")
        elif state.word == current.STALE or (state.word == current.MISSING and state.why != (current.NOT_RUN,)):
            again = "not again, the image is gone" if plan.identities.is_lasting(engine, scan) else "again"
            what = f"{kind} run", f"{again}: {', '.join(state.why)}"
        else:
            continue
        alike.setdefault(what, []).append(scan)
    changed = [path for path in changed_tables(plan) if is_there(path)]
    tables = [f"{path} was changed since it was made: made again" for path in changed]
    if why := _benchmark_again(plan):
        tables.append(f"the benchmark again: {why}")
    said = [_line(what, how, scans) for (what, how), scans in alike.items()]
    more = [f"and runs for {len(said) - LINES} other reasons"] if len(said) > LINES else []
    return said[:LINES] + more + _redone(plan) + tables


REDONE = {
    "picture": "again: cut, changed, another's, or drawn by other code or limits",
    "comparison": "again: changed, another's, or made by other code or thresholds",
}


def _redone(plan: Plan) -> list[str]:
    """Lines about pictures and comparisons that are made again though their run is current."""
    found: dict[str, list[str]] = {}
    for path, (what, engine, scan) in plan.identities.redone.items():
        if plan.identities.states[engine, scan].word == current.CURRENT and is_there(path):
            found.setdefault(what, []).append(scan)
    return [_line(what, REDONE[what], scans) for what, scans in found.items()]


EDITED = {
    "kept": "changed by hand: kept, without picture, comparison and numbers; edited: overwrite in the configuration "
    "makes it again",
    "overwritten": "changed by hand: made again, as edited: overwrite in the configuration says",
}


def _line(what: str, how: str, scans: list[str]) -> str:
    names = sorted({Path(scan).name for scan in scans})
    number = f"{len(scans)} {what}{'' if len(scans) == 1 else 's'}"
    return f"{number} {EDITED.get(how, how)} ({few(names)})"
