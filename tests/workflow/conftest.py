"""One finished project for all tests of the workflow; each works on a copy."""

import pytest
from project import Project


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tensorflow_python) -> Project:
    """A project whose two images are segmented, compared and summarised."""
    project = Project.create(tmp_path_factory.mktemp("finished") / "project")
    call = project.run()
    call.expect(
        "native 01", "native 02", "reference 01", "reference 02", "compare 01", "compare 02", "verify_env", "summary"
    )
    assert [row["verdict"] for row in project.summary()] == ["identical", "identical"], project.summary()
    return project
