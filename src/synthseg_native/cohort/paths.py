"""Where every result lies."""

from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Patterns:
    """Where results lie: the patterns that the rules show, of each rule by the names of its outputs.

    They stand in the rules alone; workflow/Snakefile collects them here. A pattern is a path relative to the working
    directory, with {engine} and {scan} where a rule has these wildcards.
    """

    verify_env: dict[str, str]
    native: dict[str, str]
    picture: dict[str, str]
    compare: dict[str, str]
    reference: dict[str, str]
    benchmark: dict[str, str]
    summary: dict[str, str]

    @classmethod
    def of_rules(cls, rules: Any) -> "Patterns":
        """The patterns of Snakemake's `rules`."""
        names = (field.name for field in fields(cls))
        return cls(**{rule: {n: str(path) for n, path in getattr(rules, rule).output.items()} for rule in names})

    @property
    def of_engine(self) -> dict[str, str]:
        """All that there is of an engine's run on a scan: its own files, its picture and its comparison."""
        return self.native | self.picture | self.compare

    def path(self, name: str, engine: str, scan: str) -> str:
        """One file of a run of `engine` ("reference" is one) on a scan.

        name: dseg, sidecar, volumes or record; of an engine also margin, dseg_native and sidecar_native (the label map
        on the scan's own grid), and what is made from them: compare and picture. scan: the composed name, as
        "sub-01/anat/sub-01_T1w".
        """
        patterns = self.reference if engine == "reference" else self.of_engine
        return patterns[name].format(engine=engine, scan=scan)


def failure_of(failures: str | PathLike, engine: str, scan: str, record: str | PathLike) -> Path:
    """Where a failed run leaves its record: below the folder `failures`, named as the good run's would be.

    >>> scan, record = "sub-01/anat/sub-01_T1w", "results/llvm/sub-01/anat/sub-01_T1w_seg-x_res-1mm_run.json"
    >>> failure_of("results/.state/failed", "llvm", scan, record).as_posix()
    'results/.state/failed/llvm/sub-01/anat/sub-01_T1w_seg-x_res-1mm.json'
    """
    name = Path(record).name.removesuffix("_run.json").removesuffix(".json")
    return Path(failures, engine, scan).with_name(f"{name}.json")
