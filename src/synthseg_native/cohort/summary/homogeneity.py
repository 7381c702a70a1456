"""Whether all runs of an engine were made alike: a cohort whose numbers are compared should be."""

from collections import Counter

from synthseg_native.cohort.manifest import REFERENCE
from synthseg_native.cohort.summary.aggregate import Runs
from synthseg_native.cohort.summary.run_results import RunResult
from synthseg_native.cohort.tables import as_text

# What is said of runs that are alike.
SAID = ("engine_version", "precision", "device", "threads", "cpu")


def made_with(run: RunResult) -> dict[str, object]:
    """All that may change a run's numbers, beside the scan itself: name -> value."""
    return {
        "engine_version": run.get("engine", "version"),
        "precision": run.get("precision"),
        "device": run.get("device"),
        "threads": run.get("threads"),
        "cpu": run.get("machine", "cpu"),
        "mode": run.get("mode"),
        "model": run.get("model", "name"),
        "weights": run.get("model", "weights_sha256"),
    }


def of_runs(runs: Runs) -> dict:
    """Per engine {"runs", "homogeneous", name of `made_with`: {value: number of runs}}; only good runs count."""
    found: dict[str, list[RunResult]] = {}
    for (_, engine), run in runs.items():
        if engine != REFERENCE and run.status == "ok":
            found.setdefault(engine, []).append(run)
    return {engine: _alike([made_with(run) for run in good]) for engine, good in found.items()}


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
        version, precision, device, threads, cpu = (next(iter(found[name])) for name in SAID)
        return f"Homogeneous: {runs}, {engine} {version}, {precision}, {device}, {counted(threads, 'thread')}, {cpu}"
    mixed = {name: counts for name, counts in found.items() if isinstance(counts, dict) and len(counts) > 1}
    said = (f"{name}: {', '.join(f'{value} ({n})' for value, n in counts.items())}" for name, counts in mixed.items())
    return f"Mixed: {runs} of {engine} differ in {'; '.join(said)}"


def counted(number: int | str, what: str) -> str:
    """A number of things.

    >>> counted(1, "run"), counted("4", "thread")
    ('1 run', '4 threads')
    """
    return f"{number} {what}" if str(number) == "1" else f"{number} {what}s"
