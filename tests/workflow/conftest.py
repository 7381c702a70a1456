"""One finished project for all tests of the workflow; each works on a copy."""

import fcntl
import os
import shutil

import pytest
from project import AGREE, Project


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tensorflow_python, openvino_python) -> Project:
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


def make(folder) -> None:
    project = Project.create(folder)
    call = project.run()
    call.expect(
        "native 01", "native 02", "reference 01", "reference 02", "compare 01", "compare 02", "verify_env", "summary"
    )
    assert {row["verdict"] for row in project.summary()} <= AGREE, project.summary()
