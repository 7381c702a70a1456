"""The project's own engine: all layers by kernels that LLVM compiles for the processor at hand (`kernels`).

It needs NumPy and llvmlite and nothing else, computes in float32, and gives the same bytes for any number of threads.
"""

from collections.abc import Iterator

import numpy as np

from synthseg_native import engines
from synthseg_native.engines import capabilities
from synthseg_native.engines.kernels import language, library
from synthseg_native.engines.kernels.steps import Steps, Unlike, steps_of
from synthseg_native.engines.kernels.stream import Stream
from synthseg_native.errors import SynthSegError
from synthseg_native.networks.layers import Layer, Weights

CAN = capabilities.Capabilities(kernels=(1, 3, 5), backwards=True)


def check(table: list[Layer]) -> None:
    """See `engines`."""
    _steps(table)


def build(
    table: list[Layer], weights: Weights, *, device: str = "cpu", threads: int = 1, precision: str = "float32"
) -> "LLVMEngine":
    """See `engines`. Devices: cpu. Precisions: float32."""
    if device != "cpu":
        raise SynthSegError("usage", f"device {device}: the llvm engine runs on the cpu: ask for that")
    steps = _steps(table)
    language.llvm()  # says what to install, where it is not there
    if not library.may_run_code():
        others = " or ".join(f"--engine {name}" for name in engines.NAMES if name != "llvm")
        raise SynthSegError("usage", f"llvm: this system lets no program run code that it has made: use {others}")
    return LLVMEngine(steps, weights, threads)


def _steps(table: list[Layer]) -> Steps:
    capabilities.check("llvm", CAN, table)
    try:
        return steps_of(table)
    except Unlike as lack:
        raise capabilities.refuse("llvm", str(lack), table) from lack


class LLVMEngine:
    """An engine; see `engines` for the contract."""

    name, can = "llvm", CAN
    device, device_reason = "cpu", "the llvm engine has no other"

    def __init__(self, steps, weights, threads):
        self.version = language.llvm().__version__
        self._stream = Stream(steps, weights, threads)

    def run(
        self, inputs: dict[str, np.ndarray], smoothing: float = 0.0, backwards: bool = False
    ) -> Iterator[tuple[int, np.ndarray]]:
        """See `engines`."""
        return self._stream.run(inputs, smoothing, backwards)

    def release(self) -> None:
        """See `engines`."""
        self._stream.release()
