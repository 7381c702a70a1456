"""What the workflow remembers between calls beside Snakemake's own records.

Snakemake does not make a missing intermediate again while the target is current, and takes a summary that was
written after a failure for a good one. So the summary has one more input, a token: `renew_token` writes it anew
when an expected file is missing or the last run failed, and that makes the summary stale.
"""

import hashlib
import json
import secrets
from pathlib import Path

from synthseg_native.cohort.paths import write_text

FOLDER = ".state"


def write_if_changed(path: Path, text: str) -> None:
    """Write a text file whole or not at all; untouched where it already says the same."""
    path = Path(path)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


def renew_token(token: Path, expected: list[str]) -> list[str]:
    """Renew the token if one of the expected files is missing or the last run left its mark; return the missing."""
    token = Path(token)
    missing = [path for path in expected if not Path(path).exists()]
    if missing or failed_mark(token.parent).exists():
        write_text(token, secrets.token_hex(8) + "\n")
    elif not token.exists():
        write_text(token, "complete\n")
    return missing


def failed_mark(state: Path) -> Path:
    """The file that says the last run did not finish well, so that its summary is not taken for a good one."""
    return Path(state) / "last_run_failed"


def mark_failed(state: Path) -> None:
    """Leave that mark; the next summary that is made after all its inputs removes it."""
    write_text(failed_mark(state), "The last run did not finish well; the next one makes the summary again.\n")


def records(paths: list[str]) -> dict[str, dict]:
    """The run records that can be read, by path."""
    found = {}
    for path in paths:
        try:
            found[path] = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
    return found


class Contents:
    """Digests of the contents of files, remembered by size and time stamp, so that a cohort is read once.

    Snakemake takes a file with an old time stamp for an old file. A scan that was replaced (`cp -p`, `rsync -t`) has
    one, so contents go into the rerun keys. Of a file that vanished the last digest stands: no reason to run again.
    """

    def __init__(self, memory: Path):
        self.memory = Path(memory)
        self.known = records([str(memory)]).get(str(memory), {})

    def digest(self, path: str) -> str | None:
        """12 hexadecimal digits of a file's SHA-256; of a file that is not there the last ones, or None."""
        try:
            stat = Path(path).stat()
            seen = [stat.st_size, stat.st_mtime_ns]
            known = self.known.get(path)
            if not known or known[:2] != seen:
                with Path(path).open("rb") as stream:
                    self.known[path] = [*seen, hashlib.file_digest(stream, "sha256").hexdigest()[:12]]
        except OSError:
            pass
        return self.known.get(path, [None])[-1]

    def remember(self, name: str, value: str | None) -> str | None:
        """Keep a value under a name; None gives the one kept before."""
        if value is not None:
            self.known[name] = [value]
        return self.known.get(name, [None])[-1]

    def save(self) -> None:
        write_if_changed(self.memory, json.dumps(self.known, indent=0, sort_keys=True) + "\n")


WHY = {
    "code": "the engine's code changed",
    "lock": "its locked environment changed",
    "model": "the model changed",
    "key": "the reference changed",
    "weights": "the weights changed",
    "content": "the image changed",
    "existing": "your label map changed",
}


def _said(value):
    return "none" if value is None or value == [] else value


def changed_settings(current: dict[str, str]) -> dict[str, int]:
    """Count results made with other settings than today's: {reason: how many}.

    current: path of a run record -> today's settings (JSON), as the rule passes them.
    """
    counts: dict[str, int] = {}
    for path, record in records(list(current)).items():
        old, new = record.get("key") or {}, json.loads(current[path])
        names = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
        if names:
            why = ", ".join(
                WHY.get(name, f"{name}: {_said(old.get(name))} to {_said(new.get(name))}") for name in names
            )
            counts[why] = counts.get(why, 0) + 1
    return counts
