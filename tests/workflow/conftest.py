"""One finished project for all tests of the workflow; each works on a copy."""

import fcntl
import os
import shutil

import pytest
from project import AGREE, Project

import outside


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tensorflow_python, llvm_python) -> Project:
    """A project whose two images are segmented, compared and summarised; made once for all processes of a test run."""
    place = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = place.parent  # what pytest-xdist's processes have in common
    folder, done = place / "finished", place / "finished.done"
    with (place / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder / "project")
            done.touch()
    return Project(folder / "project")


class EnclosedProject(Project):
    """Runs where there is no way out of the machine (tests/outside.py), if this one gives such a place."""

    def command(self, *arguments) -> list[str]:
        command = super().command(*arguments)
        return outside.within(command, self.folder.parent / "counters") if outside.available() else command


def make(folder) -> None:
    """The project, and beside it what test_nothing_leaves.py looks at: its home, and what the kernel counted."""
    project = EnclosedProject.create(folder)
    call = project.run(**outside.hostile(folder.parent / "home"))
    call.expect(
        "native 01", "native 02", "reference 01", "reference 02", "compare 01", "compare 02", "verify_env", "summary"
    )
    assert {row["verdict"] for row in project.summary()} <= AGREE, project.summary()
