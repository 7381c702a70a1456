"""The llvm engine's kernels for the probes; see `process`."""

from typing import Any

import numpy as np

from synthseg_native.engines.kernels import language
from synthseg_native.verification.process import versions_of

TITLE, ENGINE = "LLVM", "llvm"
# A kernel does a convolution with all that belongs to it, so that whole networks are what can be asked for.
OPERATIONS = ("network",)


def start(kind: str) -> tuple[Any, dict[str, str], list[dict]]:
    """LLVM, its version, and the CPU that it makes code for."""
    machine = language.this_machine()
    registers = f"{machine.cpu}: {machine.registers} registers of {machine.lanes} numbers"
    seen = [{"name": "CPU:0", "kind": "cpu", "description": registers, "precisions": ["float32"]}]
    return language.llvm(), versions_of("llvmlite"), seen


def run(handle: Any, kind: str, operation: str, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, str]:
    """None: see OPERATIONS."""
    raise ValueError(f"{operation}: no kernel does it alone")


def clean(error: Exception) -> str:
    """The first line of the message: what follows is code."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
