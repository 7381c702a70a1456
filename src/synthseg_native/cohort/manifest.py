"""What one call of the workflow is to do: a line for the cohort, then a line per scan with all its runs.

Written once per call, when it is planned, and named by its content. A job reads its scan's line and nothing else, so
that a cluster's jobs do not plan the cohort anew; the summary reads all of it. A dry run writes none.
"""

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TextIO

from synthseg_native.errors import SynthSegError
from synthseg_native.files import write_text
from synthseg_native.identity import keys

SCHEMA = 1
REFERENCE = "reference"  # the name of the reference where an engine's could stand


@dataclass(frozen=True)
class Run:
    """One run of an engine, or of the reference, on one scan.

    files : name ("dseg", "record", "compare", ...) -> path · failure : where the record of a failed run lies
    identity : what the run's results depend on; results that say otherwise are stale
    """

    files: dict[str, str]
    failure: str
    identity: dict


@dataclass(frozen=True)
class Scan:
    """One row of the sheet. scan : its composed name · entities : BIDS entities · sheet : the user's further columns
    row : the sheet's cells as they were · runs : engine -> `Run`, of all engines and, where it is compared, "reference"
    """

    scan: str
    image: str
    entities: dict[str, str]
    sheet: dict[str, str]
    row: dict[str, str]
    runs: dict[str, Run] = field(default_factory=dict)

    @property
    def compared(self) -> bool:
        """Whether it has a reference run."""
        return REFERENCE in self.runs


@dataclass(frozen=True)
class Manifest:
    """A call's runs. results : folder · model : name, dir, research_grade · reference : kind, runtime, or None
    benchmark : whether one is asked for
    """

    results: str
    engines: list[str]
    model: dict
    reference: dict | None
    benchmark: bool
    scans: list[Scan]

    def text(self) -> str:
        """JSON lines: the cohort's, then one per scan in the order of the sheet."""
        head = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "scans"}
        scans = ({**vars(scan), "runs": {name: vars(run) for name, run in scan.runs.items()}} for scan in self.scans)
        return "".join(_line(content) for content in ({"schema": SCHEMA, **head}, *scans))

    def write(self, folder: Path) -> Path:
        """Write it into a folder, whole or not at all; returns its path.

        Named by its content: another call cannot change the manifest of a run in progress.
        """
        text, path = self.text(), self.path(folder)
        if not path.is_file() or path.read_bytes() != text.encode():
            write_text(path, text)
        return path

    def path(self, folder: Path) -> Path:
        """Where `write` puts it."""
        return Path(folder, f"manifest-{self._digest}.jsonl")

    @functools.cached_property
    def _digest(self) -> str:
        return keys.digest(self.text())


def read(path: Path) -> Manifest:
    """Raises SynthSegError("usage") for a file that is not there, damaged or of another version."""
    with _opened(path) as stream:
        found = _manifest(stream, path)
        found.scans.extend(_scan(line, path) for line in stream)
        return found


def read_scan(path: Path, name: str) -> tuple[Manifest, Scan]:
    """The cohort's line, without scans, and the line of one scan; no other line is parsed. Raises as `read`."""
    mark = _line({"scan": name}).removesuffix("}\n") + ","  # how its line begins
    with _opened(path) as stream:
        found = _manifest(stream, path)
        line = next((line for line in stream if line.startswith(mark)), None)
    if line is None:
        raise SynthSegError("usage", f"{path}: no line for {name}: call the workflow again")
    return found, _scan(line, path)


def _line(content: dict) -> str:
    return json.dumps(content, separators=(",", ":")) + "\n"


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    try:
        with Path(path).open(encoding="utf-8", errors="replace") as stream:
            yield stream
    except OSError as error:
        raise SynthSegError("usage", f"{path}: {error.strerror}: call the workflow again") from None


def _manifest(stream: TextIO, path: Path) -> Manifest:
    """The cohort's line, without scans."""
    with _damage(path):
        head = json.loads(next(stream, "null"))
        if isinstance(head, dict) and head.pop("schema", None) != SCHEMA:
            raise SynthSegError("usage", f"{path}: of another version of synthseg-native: call the workflow again")
        return Manifest(**head, scans=[])


def _scan(line: str, path: Path) -> Scan:
    with _damage(path):
        content = json.loads(line)
        runs = {engine: Run(**run) for engine, run in content["runs"].items()}
        return Scan(**{**content, "runs": runs})


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """One line for a manifest that is not as it was written."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError):
        raise SynthSegError("usage", f"{path}: damaged: call the workflow again") from None
