"""How planes of features lie in memory, for all kernels.

A plane of features (Y, Z) is an array (rows, channels, row) of float32: each row (y, channel) has its Z numbers between
zeros, and rows of zeros lie before and after those of the volume. So a convolution reads its zero padding there, and
registers go along z whatever the number of channels. A kernel takes planes by their addresses, each may lie anywhere.
"""

from dataclasses import dataclass

import numpy as np

from synthseg_native.engines.kernels.language import Machine

TILE = 4  # planes, and rows, of a result that are done at a time
VECTORS = 2  # registers of a row in the innermost loop; of an upsampled image one of even results, one of odd ones


@dataclass(frozen=True)
class Layout:
    """How a plane (Y, Z) of features lies in memory.

    lanes : numbers in a register · halo : zeros before a row, rows of zeros before those of the volume
    """

    shape: tuple
    channels: int
    lanes: int
    halo: int = 1

    @property
    def row(self) -> int:
        """Numbers in a row: whole registers are written, and read from beyond its end."""
        step = VECTORS * self.lanes
        return -(-self.shape[1] // step) * step + max(self.lanes, 2 * self.halo)

    @property
    def rows(self) -> int:
        """Rows of a plane, those of zeros among them."""
        return -(-self.shape[0] // TILE) * TILE + 2 * self.halo

    @property
    def plane(self) -> tuple:
        """The shape of a plane."""
        return self.rows, self.channels, self.row

    def inside(self, planes: np.ndarray) -> np.ndarray:
        """The volume's part (planes, Y, Z, channels) of an array of planes."""
        (y, z), halo = self.shape, self.halo
        return planes[:, halo : halo + y, :, halo : halo + z].swapaxes(2, 3)


def zeros(shape: tuple[int, ...], ahead: int = 0) -> np.ndarray:
    """An array of float32 zeros, the number after the first `ahead` at the start of a line of the processor's cache:
    registers that lie across two lines take twice as long to be read and written."""
    size, line = int(np.prod(shape)), 16
    flat = np.zeros(size + 2 * line, dtype=np.float32)
    start = -(flat.ctypes.data // 4 + ahead) % line
    return flat[start : start + size].reshape(shape)


def block_of(channels: int, machine: Machine) -> int:
    """How many channels of a result the innermost loop does at a time, as the registers allow; a divisor."""
    most = (machine.registers - 8) // VECTORS if machine.registers > 16 else 6
    return max(n for n in range(1, most + 1) if channels % n == 0)
