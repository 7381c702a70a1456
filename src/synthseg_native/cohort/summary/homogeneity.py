"""Whether all runs of an engine were made alike: a cohort whose numbers are compared should be."""

from collections import Counter

from synthseg_native.cohort.manifest import REFERENCE
from synthseg_native.cohort.summary.run_results import RunResult
from synthseg_native.cohort.tables import MISSING, as_text
from synthseg_native.identity import current

# What is said of runs that are alike.
SAID = ("engine_version", "precision", "device", "threads", "cpu")


class Counts:
    """What the engines' good runs were made with, counted one run after the other."""

    def __init__(self):
        self._made: dict[str, Counter[tuple]] = {}

    def add(self, run: RunResult) -> None:
        """Count a good run; the reference's are none of the engines'."""
        if run.engine != REFERENCE:
            made = tuple((name, as_text(value)) for name, value in current.made_by(run.record).items())
            self._made.setdefault(run.engine, Counter())[made] += 1

    def found(self) -> dict:
        """Per engine {"runs", "homogeneous", name of `current.HOMOGENEOUS`: {value: number}}."""
        return {engine: _alike(counts) for engine, counts in self._made.items()}


def _alike(made: Counter[tuple]) -> dict:
    kinds: dict[str, Counter[str]] = {name: Counter() for one in made for name, _ in one}
    for one, number in made.items():
        values = dict(one)
        for name, counts in kinds.items():
            counts[values.get(name, MISSING)] += number
    alike = all(len(counts) == 1 for counts in kinds.values())
    return {"runs": made.total(), "homogeneous": alike, **{name: dict(counts) for name, counts in kinds.items()}}


def sentence(engine: str, found: dict) -> str:
    """One entry of `Counts.found` for people.

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
