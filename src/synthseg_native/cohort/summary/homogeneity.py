"""Whether all runs of an engine were made alike: a cohort whose numbers are compared should be."""

from collections import Counter

from synthseg_native.cohort.manifest import REFERENCE
from synthseg_native.cohort.summary.aggregate import Runs
from synthseg_native.cohort.summary.run_results import RunResult
from synthseg_native.cohort.tables import as_text
from synthseg_native.identity import current

# What is said of runs that are alike.
SAID = ("engine_version", "precision", "device", "threads", "cpu")


def of_runs(runs: Runs) -> dict:
    """Per engine {"runs", "homogeneous", name of `current.HOMOGENEOUS`: {value: number}}; only good runs count."""
    found: dict[str, list[RunResult]] = {}
    for (_, engine), run in runs.items():
        if engine != REFERENCE and run.status == "ok":
            found.setdefault(engine, []).append(run)
    return {engine: _alike([current.made_by(run.record) for run in good]) for engine, good in found.items()}


def _alike(made: list[dict]) -> dict:
    names = dict.fromkeys(name for one in made for name in one)
    kinds = {name: dict(Counter(as_text(one.get(name)) for one in made)) for name in names}
    return {"runs": len(made), "homogeneous": all(len(counts) == 1 for counts in kinds.values()), **kinds}


def sentence(engine: str, found: dict) -> str:
    """One entry of `of_runs` for people.

    >>> sentence("torch", {"runs": 2, "homogeneous": False, "cpu": {"M4": 1, "Zen 5": 1}, "mode": {"fast": 2}})
    'Mixed: 2 runs of torch differ in cpu: M4 (1), Zen 5 (1)'
    """
    runs = counted(found["runs"], "run")
    if found["homogeneous"]:
        said = {name: next(iter(found[name])) for name in SAID if name in found}
        if "threads" in said:
            said["threads"] = counted(said["threads"], "thread")
        return f"Homogeneous: {runs}, {engine} {', '.join(said.values())}"
    mixed = {name: counts for name, counts in found.items() if isinstance(counts, dict) and len(counts) > 1}
    said = (f"{name}: {', '.join(f'{value} ({n})' for value, n in counts.items())}" for name, counts in mixed.items())
    return f"Mixed: {runs} of {engine} differ in {'; '.join(said)}"


def counted(number: int | str, what: str) -> str:
    """A number of things.

    >>> counted(1, "run"), counted("4", "thread")
    ('1 run', '4 threads')
    """
    return f"{number} {what}" if str(number) == "1" else f"{number} {what}s"
