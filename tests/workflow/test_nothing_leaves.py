"""Nothing leaves the machine, and nothing is written but where docs/privacy.md says: of a whole run of the workflow.

It is the run that makes the finished project of all these tests: verification, engine, reference, pictures, summary.
The engines one by one: tests/golden/.
"""

import os
import subprocess
import sys

import pytest
from project import Project

import outside

pytestmark = pytest.mark.slow


def test_a_whole_run_knocks_nowhere(finished):
    outside.need()
    assert outside.tries(finished.folder.parent / "counters") == 0


def test_a_whole_run_writes_only_what_is_listed(finished, tmp_path):
    assert outside.undocumented(finished.folder.parent / "home") == []
    fresh = Project.create(tmp_path / "fresh").folder
    before = {path.name for path in fresh.iterdir()}
    assert {path.name for path in finished.folder.iterdir()} - before == {"results", ".snakemake"}
    assert {path.name for path in (finished.folder / "images").iterdir()} == {"sub-01.nii", "sub-02.nii"}


@pytest.mark.parametrize("knock", ["import urllib.request as u; u.urlopen('http://example.org')",
                                   "import socket; socket.create_connection(('192.0.2.1', 443), 3)",
                                   "import socket; socket.getaddrinfo('example.org', 443)"])  # fmt: skip
def test_who_knocks_is_heard(knock, tmp_path):
    outside.need()
    command = outside.within([sys.executable, "-c", knock], tmp_path / "counters")
    assert subprocess.run(command, env=os.environ | outside.hostile(tmp_path / "home"), capture_output=True).returncode
    assert outside.tries(tmp_path / "counters") > 0
