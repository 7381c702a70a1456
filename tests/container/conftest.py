"""A Docker daemon and two images: the reference's own, and a small one that runs what a test tells it."""

import os
import subprocess
from pathlib import Path

import pytest

from synthseg_native.cohort import containers
from synthseg_native.errors import SynthSegError

BASE = os.environ.get("SYNTHSEG_BASE_IMAGE") or containers.BASE_IMAGE
PROBE = "0000000000ff"  # in place of the key of the own image

# Stands where reference.py does, and runs the "weights" as a program.
DOCKERFILE = f"""
FROM {BASE}
RUN command -v python || ln -s "$(command -v python3)" /usr/bin/python
RUN printf 'import sys\\nexec(open(sys.argv[sys.argv.index("--weights") + 1]).read())\\n' > /opt/reference.py
"""


def unless_required(reason, variable="REQUIRE_DOCKER"):
    """Skip where Docker (or what the variable names) is optional, fail where it is not."""
    if os.environ.get(variable) == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def docker():
    """What the daemon says of itself."""
    try:
        engine = containers.runtime("docker")
        present = containers.has_image("docker", BASE)
    except SynthSegError as error:
        unless_required(error.message)
    if not present and subprocess.run(["docker", "pull", BASE], capture_output=True).returncode != 0:
        unless_required(f"the base image {BASE} is not here and cannot be fetched (SYNTHSEG_BASE_IMAGE names another)")
    return engine


@pytest.fixture(scope="session")
def probe_image(docker):
    """Tag of the image that runs what a test tells it."""
    tag = containers.image_tag(PROBE)
    line = ["docker", "build", "--network", "none", "--tag", tag, "-"]
    done = subprocess.run(line, input=DOCKERFILE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return tag


@pytest.fixture(scope="session")
def own_image(docker):
    """Key of the reference's own image, built where it is missing."""
    containers.ensure_image({"runtime": "docker", "base_image": BASE, "platform": None})
    return containers.image_key(BASE)


@pytest.fixture(scope="session")
def root():
    return Path(__file__).parents[2]
