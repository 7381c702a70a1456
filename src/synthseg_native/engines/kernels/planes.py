"""Planes of features, made when a kernel asks for them and kept until they were read; memory that serves again; and
where nothing but the same number is read, so that results need not be computed twice."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from synthseg_native.engines.kernels.layout import TILE, Layout, zeros
from synthseg_native.networks.layers import Layer

BLOCK = TILE  # planes done at a time


class Memory:
    """Arrays for planes. One that is given back serves again, also in the next pass: a page that the system hands out
    anew is cleared first, on a virtual machine at a tenth of the speed at which memory is written. Kernels write zeros
    outside the volume, or nothing, so an array can serve planes of the same layout as it is."""

    def __init__(self):
        self._free = defaultdict(list)

    def take(self, layout: Layout, planes: int) -> np.ndarray:
        """An array for so many planes; what it holds may be of an earlier use."""
        free = self._free[layout, planes]
        return free.pop() if free else zeros((planes, *layout.plane), ahead=layout.halo)

    def give(self, layout: Layout, array: np.ndarray) -> None:
        """Give an array back."""
        self._free[layout, len(array)].append(array)

    def release(self) -> None:
        """Give all that serves nobody back to the system."""
        self._free.clear()


class Planes:
    """Planes 0 to `count` of features, made when asked for; outside these there is zero padding.

    memory : a `Memory`, which gives the array when the first plane is made, and gets it when nobody has the planes any
    more · kept : how many are kept, those made last; None for all · backwards : whether the last planes are made first
    make : to be set; called with the first plane of a block, it makes that (or more, where all are kept) and returns
    the first plane after them
    made : planes from and to
    alike : (blocks of planes, tiles of rows) bool: those that hold what all others of these hold, as nothing but the
    same number lies around them in all that is read; None where there are none
    """

    def __init__(self, memory, layout, count, kept=None, backwards=False):
        self.layout, self.count, self.make, self.array, self.alike = layout, count, None, None, None
        self.backwards, self.made = backwards, (count, count) if backwards else (0, 0)
        self._memory, self._kept = memory, kept or -(-count // BLOCK) * BLOCK

    def __del__(self):
        if self.array is not None:
            self._memory.give(self.layout, self.array)

    @classmethod
    def of(cls, memory: Memory, read: "Given", lanes: int, halo: int, kept: int, backwards: bool) -> "Planes":
        """Planes of volumes that are read: of an image a channel, of a map of whole numbers one for each."""
        channels, shape = sum(layer.channels for layer in read.layers), read.volumes[0].shape
        planes = cls(memory, Layout(shape[1:], channels, lanes, halo), len(read.volumes[0]), kept, backwards)

        def make(x):
            for i in range(x, min(x + BLOCK, planes.count)):
                (inside,), channel = planes.layout.inside(planes.array[i % len(planes.array)][None]), 0
                for layer, volume in zip(read.layers, read.volumes, strict=True):
                    for n in range(layer.channels):
                        inside[..., channel + n] = volume[i] if layer.kind == "input" else volume[i] == n
                    channel += layer.channels
            return x + BLOCK

        planes.make, planes.alike = make, read.alike
        return planes

    @property
    def whole(self) -> bool:
        """Whether all planes are kept."""
        return self._kept >= self.count

    def need(self, start: int, stop: int) -> None:
        """Make the planes from `start` to `stop`, and all that come before these."""
        if self.array is None:
            self._take()
        first, last = self.made
        while self.backwards and first > max(start, 0):
            first = (first - 1) // BLOCK * BLOCK
            self.make(first)
        while not self.backwards and last < min(stop, self.count):
            last = min(self.make(last), self.count)
        self.made = first, last
        if self.made == (0, self.count):
            self.make = None  # it knows this object: both would stay in memory

    def addresses(self, start: int, stop: int, outside: int) -> list[int]:
        """Addresses of planes; outside : that of a plane of zeros."""
        first = self.array.ctypes.data
        return [
            first + i % len(self.array) * self._size if 0 <= i < self.count else outside for i in range(start, stop)
        ]

    def rows(self, x: int, start: int, stop: int) -> list[np.ndarray]:
        """Rows of the tiles from `start` to `stop` of the planes of a block: (rows, channels, row) of each."""
        first, last = (self.layout.halo + tile * TILE for tile in (start, stop))
        return [self.array[i % len(self.array), first:last] for i in range(x, x + BLOCK)]

    def _take(self):
        self.array = self._memory.take(self.layout, self._kept)
        self._size = self.array[0].nbytes


class Given:
    """What a run reads. layers, volumes : the network's inputs, and the (X, Y, Z) of each · alike : of `Planes`"""

    def __init__(self, layers: Sequence[Layer], volumes: dict[str, np.ndarray]):
        self.layers, self.volumes = layers, [volumes[layer.name] for layer in layers]
        # Outside of a head cut out of its image, in the margins that fill it up, and in a map of labels.
        same = np.logical_and.reduce([(volume == volume[0, 0, 0]).all(axis=2) for volume in self.volumes])
        same = np.pad(same, [(0, -n % TILE) for n in same.shape])
        self.alike = any_alike(same.reshape(len(same) // TILE, TILE, -1, TILE).all(axis=(1, 3)))


def around(alike: np.ndarray) -> np.ndarray:
    """Of tiles that a convolution reads those of its result: it reads the neighbours too."""
    return np.lib.stride_tricks.sliding_window_view(np.pad(alike, 1), (3, 3)).all(axis=(2, 3))


def halved(alike: np.ndarray) -> np.ndarray:
    """Of tiles that a pooling reads those of its result."""
    alike = np.pad(alike, [(0, n % 2) for n in alike.shape])
    return alike.reshape(len(alike) // 2, 2, -1, 2).all(axis=(1, 3))


def any_alike(alike: np.ndarray) -> np.ndarray | None:
    """The tiles, or None where none is alike."""
    return alike if alike.any() else None
