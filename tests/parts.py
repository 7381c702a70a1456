"""What the programs that check a machine and write a page of it share: arm64.py, prove.py."""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Outcome:
    """words : for a table · failed : a line for each test that did · golden : (case, voxels that differ, of all)"""

    words: str
    failed: list[str] = field(default_factory=list)
    golden: list[tuple[str, str, str]] = field(default_factory=list)


def run_tests(words: Sequence[str], report: Path, given: Mapping[str, str] | None = None) -> Outcome:
    """Run pytest with these words. report : a file .xml to write · given : variables beside this process's own"""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    command += [f"--junitxml={report}", "-o", "junit_logging=system-out"]
    report.unlink(missing_ok=True)
    status = subprocess.run(command, env=os.environ | dict(given or {}), cwd=ROOT).returncode
    if not report.is_file():
        return Outcome(f"failed: pytest ended with status {status}")
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    counts = {word: int(suite.get(word)) for word in ("tests", "failures", "errors", "skipped")}
    bad = counts["failures"] + counts["errors"]
    passed = counts["tests"] - bad - counts["skipped"]
    said = "".join(element.text or "" for element in suite.iter("system-out"))
    golden = list(dict.fromkeys(re.findall(r"^(\w+?)_?: (\d+) of (\d+) foreground voxels differ", said, re.M)))
    failed = [
        f"{case.get('classname')}::{case.get('name')}: {' '.join(what.get('message', '').split())[:200]}"
        for case in suite.iter("testcase")
        for what in (*case.findall("failure"), *case.findall("error"))
    ]
    if status:
        return Outcome(f"failed: {bad} of {counts['tests']} tests", failed, golden)
    return Outcome(f"{passed} tests passed" + f", {counts['skipped']} skipped" * bool(counts["skipped"]), golden=golden)


def commit() -> str:
    """The state of this project, as git names it."""
    try:
        done = subprocess.run(["git", "-C", ROOT, "describe", "--always", "--dirty"], capture_output=True, text=True)
    except OSError:
        return "no git here"
    return done.stdout.strip() or "no clone"
