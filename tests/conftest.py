"""Interpreters of the environments, for tests that run what they need as a subprocess."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Files in the order in which the processes of `make test` take them: what takes longest first, so that they end
# together, and the project that all of tests/workflow shares is made by one while another is busy elsewhere.
LONG = ("training", "verify", "benchmarks_run", "locks", "cli_many", "state", "fuzzed_headers", "environments")
ORDER = (
    *("tests/workflow/test_failures.py", "tests/golden/", "tests/workflow/", "tests/container/"),
    *(f"tests/unit/test_{name}.py" for name in LONG),
    "",
)


def _python(name: str) -> str:
    from synthseg_native.cohort import environments

    return os.environ.get(f"SYNTHSEG_{name.upper()}_PYTHON") or str(environments.ensure(name))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        path = item.path.relative_to(ROOT).as_posix()
        return next(number for number, start in enumerate(ORDER) if path.startswith(start))

    items.sort(key=place)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def tensorflow_python() -> str:
    """The interpreter of the tensorflow environment (SYNTHSEG_TENSORFLOW_PYTHON, else made where it is missing)."""
    return _python("tensorflow")


@pytest.fixture(scope="session")
def llvm_python() -> str:
    """The interpreter of the llvm environment (SYNTHSEG_LLVM_PYTHON, else made where it is missing)."""
    return _python("llvm")


@pytest.fixture(scope="session")
def torch_python() -> str:
    """An interpreter with PyTorch: SYNTHSEG_TORCH_PYTHON, or the torch environment where it was made for a GPU.

    It is not made for the tests: on Linux it brings gigabytes of CUDA.
    """
    from synthseg_native.cohort import environments

    if "SYNTHSEG_TORCH_PYTHON" not in os.environ and not environments.python("torch").exists():
        pytest.skip("SYNTHSEG_TORCH_PYTHON is not set")
    return _python("torch")


@pytest.fixture(scope="session")
def demo_python() -> str:
    """The interpreter of the demo environment, which has nilearn."""
    return _python("demo")
