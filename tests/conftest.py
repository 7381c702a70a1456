"""Interpreters of the environments, for tests that run what they need as a subprocess."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _python(name: str) -> str:
    from synthseg_native.cohort import environments

    return os.environ.get(f"SYNTHSEG_{name.upper()}_PYTHON") or str(environments.ensure(name))


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def tensorflow_python() -> str:
    """The interpreter of the tensorflow environment (SYNTHSEG_TENSORFLOW_PYTHON, else made where it is missing)."""
    return _python("tensorflow")


@pytest.fixture(scope="session")
def demo_python() -> str:
    """The interpreter of the demo environment, which has nilearn."""
    return _python("demo")
