"""The plan as a job of a cluster sees it: its own scans, from their lines of the manifest."""

import os
from itertools import takewhile
from pathlib import Path

from synthseg_native.cohort import manifest as manifests
from synthseg_native.cohort.identities import Identities
from synthseg_native.cohort.plan import Plan
from synthseg_native.cohort.samples import Scan

VARIABLE = "SYNTHSEG_NATIVE_MANIFEST"  # jobs inherit it from the call that planned them


class JobPlan(Plan):
    """A `Plan` of the scans that a job is about; neither the sheet nor any other scan's files are looked at.

    config, root : as of Plan · manifest : what the call wrote · scans : composed names. Raises SynthSegError("usage").
    """

    def __init__(self, config: dict, root: Path, manifest: Path, scans: list[str]):
        self._rows = {name: manifests.read_scan(manifest, name)[1] for name in scans}
        super().__init__(config, root)
        self.identities = _AsPlanned(self, self._rows)

    def _read_scans(self) -> dict[str, Scan]:
        return {
            name: Scan(entities=row.entities, image=row.image, ct=False, sheet=row.sheet, row=row.row)
            for name, row in self._rows.items()
        }

    def _compared(self) -> list[str]:
        return [name for name, row in self._rows.items() if row.compared]


class _AsPlanned(Identities):
    """What the manifest says of each run."""

    def __init__(self, plan: Plan, rows: dict[str, manifests.Scan]):
        super().__init__(plan)
        self.rows = rows

    def of(self, engine: str, scan: str) -> dict:
        return self.rows[scan].runs[engine].identity


def plan_of(config: dict, root: Path, arguments: list[str]) -> JobPlan | None:
    """The plan of the jobs that Snakemake started this process for; None where one is not about a scan.

    arguments : the process's command line. Raises SynthSegError("usage").
    """
    manifest, targets = manifest_of_call(), targets_of(arguments)
    if manifest is None or not targets or any("scan" not in wildcards for _, wildcards in targets):
        return None
    return JobPlan(config, root, manifest, list(dict.fromkeys(wildcards["scan"] for _, wildcards in targets)))


def targets_of(arguments: list[str]) -> list[tuple[str, dict]]:
    """Rule and wildcards of each job in a command line of Snakemake's.

    >>> targets_of(["snakemake", "--target-jobs", "native:engine=torch,scan=sub-1/anat/sub-1_T1w", "--force"])
    [('native', {'engine': 'torch', 'scan': 'sub-1/anat/sub-1_T1w'})]
    """
    after = arguments[arguments.index("--target-jobs") + 1 :] if "--target-jobs" in arguments else []
    found = (word.partition(":") for word in takewhile(lambda word: not word.startswith("-"), after))
    return [(rule, dict(pair.split("=", 1) for pair in pairs.split(",") if pair)) for rule, _, pairs in found]


def manifest_of_call() -> Path | None:
    """The manifest of the call that this process is a job of; None where it says none."""
    path = os.environ.get(VARIABLE)
    return Path(path) if path else None
