"""What a call makes again, why, and what it leaves for the next one.

What is current the results themselves say (`identity.current`). Snakemake's own records are not asked: they may be of
another folder, or gone.
"""

from pathlib import Path

from synthseg_native.cohort.paths import write_text
from synthseg_native.identity import current

FOLDER = ".state"
NAMED = 3  # scans that a line names before it counts the others


def write_if_changed(path: Path, text: str) -> None:
    """Write a text file whole or not at all; untouched where it already says the same."""
    path = Path(path)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def failed_mark(state: Path) -> Path:
    """The file that says the last run did not finish well, so that its summary is not taken for a good one."""
    return Path(state) / "last_run_failed"


def mark_failed(state: Path) -> None:
    """Leave that mark; the next summary that is made after all its inputs removes it."""
    write_text(failed_mark(state), "The last run did not finish well; the next one makes the summary again.\n")


def to_make(plan) -> set[str]:
    """Files that have to be made, or made again, of all that the sheet asks for. plan: a `plan.Plan`.

    Snakemake looks at what a target needs only where the target itself is stale; it does not see that a picture is
    missing below a summary that is there. So every file that is missing is among them.
    """
    found = {
        plan.path("record", *pair)
        for pair, state in plan.states.items()
        if state.word != current.CURRENT and not plan.is_kept(*pair) and not plan.is_lasting(*pair)
    }
    wanted = [*plan.wanted_runs(), *plan.wanted_once(), *plan.aggregates().values()]
    found |= {path for path in wanted if not Path(path).exists()}
    return found | ({plan.aggregates()["summary"]} if failed_mark(plan.state).exists() else set())


def lines(plan) -> list[str]:
    """What a call says before its first job: what is made again and why, what was edited, what cannot be made again."""
    alike: dict[tuple[str, str], list] = {}
    for (engine, scan), state in plan.states.items():
        kind = "reference" if engine == "reference" else "native"
        if state.word == current.EDITED:
            what = f"{kind} label map", ("kept" if plan.is_kept(engine, scan) else "overwritten")
        elif state.word == current.STALE:
            again = "not again, the image is gone" if plan.is_lasting(engine, scan) else "again"
            what = f"{kind} run", f"{again}: {', '.join(state.why)}"
        else:
            continue
        alike.setdefault(what, []).append(scan)
    return [_line(what, how, scans) for (what, how), scans in alike.items()]


EDITED = {
    "kept": "changed by hand: kept, without picture, comparison and numbers; edited: overwrite in the configuration "
    "makes it again",
    "overwritten": "changed by hand: made again, as edited: overwrite in the configuration says",
}


def _line(what: str, how: str, scans: list[str]) -> str:
    names = sorted({Path(scan).name for scan in scans})
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    number = f"{len(scans)} {what}{'' if len(scans) == 1 else 's'}"
    return f"{number} {EDITED.get(how, how)} ({', '.join(names[:NAMED])}{more})"
