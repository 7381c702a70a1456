"""What is known of one run from the files that it left."""

from pathlib import Path
from typing import Any

from synthseg_native.cohort import state
from synthseg_native.cohort.manifest import Run
from synthseg_native.files import read_sealed
from synthseg_native.identity import current
from synthseg_native.identity.contents import Contents
from synthseg_native.results import volumes

FOLLOWING = ("compare", "picture")  # made from a run, and no part of it


class RunResult:
    """A run's state, record and volumes.

    status : "ok", "failed", "missing", "stale" or "edited" · reason : why it is stale or edited, else None
    record : the run record, {} unless ok, so that no number of another run is counted · failure : the record of the
    failure that came after it, or {} · told : `state.told_of` · volumes : rows of its volumes.tsv, [] unless ok
    """

    def __init__(self, run: Run, engine: str, contents: Contents):
        self.engine = engine
        self.files = {name: Path(path) for name, path in run.files.items()}
        made = {name: path for name, path in run.files.items() if name not in FOLLOWING}
        found, self.record = current.run_read(made, run.identity, contents, run.failure)
        self.status = "ok" if found.word == current.CURRENT else found.word
        self.told = state.told_of(found, {name: run.files[name] for name in FOLLOWING if name in run.files})
        self.reason = ", ".join(found.why) if self.status in (current.STALE, current.EDITED) else None
        self.failure = read_sealed(run.failure) or {} if self.status == current.FAILED else {}
        error = self.failure.get("error") or {}
        self.error_code: str | None = error.get("code")
        self.error = ", ".join(found.why) if self.status in (current.MISSING, current.FAILED) else None
        self.outcome = f"failed: {self.error}" if self.status == current.FAILED else self.error or self.reason
        there = self.status == "ok" and self.files["volumes"].is_file()
        self.volumes = list(volumes.read(self.files["volumes"]).values()) if there else []

    def get(self, *keys: str) -> Any:
        """The entry of the run record at these keys, None where there is none."""
        value = self.record
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def place(self, name: str, results: Path) -> str | None:
        """The path of one of its files below the results folder; None where the run or the file is not there."""
        there = self.status == "ok" and self.files[name].is_file()
        return self.files[name].relative_to(results).as_posix() if there else None
