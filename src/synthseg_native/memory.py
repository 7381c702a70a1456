"""How much memory a run takes, before it starts, and whether this machine has it.

The peak is the largest of three stages, above what the interpreter, the runtime and its copies of the weights take:

read     bytes per voxel of the scan
network  copies of the finest level's features, and of the posteriors, per voxel of the padded volume
finish   one array of posteriors and the masks of the padded volume; bytes per voxel of the scan for its own grid

benchmarks/fit_memory.py fits the numbers to measurements (benchmarks/memory.tsv) and prints the table below.
Standard library only at import.
"""

import contextlib
import math
import resource
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from synthseg_native.errors import SynthSegError

if TYPE_CHECKING:
    from synthseg_native.networks.cards import Network

MIB = 2**20
TOLERANCE = 0.2  # a larger miss is told, and a job asks for so much more than the prediction
REFERENCE = "reference"
OWN_GROUPS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Coefficients:
    """base : MiB · weights, network, posterior : copies, of float32, of the weights, of the features of the finest
    level and of the posteriors · read, own : bytes per voxel of the scan · mask : bytes per padded voxel while labels
    are found"""

    base: float
    weights: float
    read: float
    network: float
    posterior: float
    mask: float
    own: float


# (engine, precision, device). Where a row is missing, the closest one stands in: see `coefficients`.
TABLE = {
    ("tensorflow", "float32", "cpu"): Coefficients(510, 1.08, 12.6, 8.4, 1.97, 16.2, 29.2),
    ("openvino", "float32", "cpu"): Coefficients(244, 7.94, 10.7, 0.804, 0.994, 73.7, 3.49),
    ("openvino", "bf16", "cpu"): Coefficients(229, 6.98, 11.2, 0.0247, 1.63, 79.7, 3.8),
    ("torch", "float32", "cpu"): Coefficients(1050, 7.61, 12.2, 1.73, 0.872, 149, 2.7),
    (REFERENCE, "float32", "cpu"): Coefficients(503, 1.95, 17.1, 7.44, 4.89, 16, 0.001),
}


def coefficients(engine: str, precision: str = "float32", device: str = "cpu") -> Coefficients:
    """The row of the table; of what was not measured that of float32, of the CPU, and at last TensorFlow's."""
    for key in ((engine, precision, device), (engine, "float32", device), (engine, precision, "cpu")):
        if key in TABLE:
            return TABLE[key]
    return TABLE.get((engine, "float32", "cpu"), TABLE["tensorflow", "float32", "cpu"])


@dataclass(frozen=True)
class Size:
    """What a run's memory depends on beside its engine. padded : (3,) voxels of the padded volume · voxels : of the
    scan · features, labels : of the network · own_grid : whether a label map on the scan's own grid is made
    parameters : of the network"""

    padded: tuple
    voxels: int
    features: int
    labels: int
    own_grid: bool = True
    parameters: int = 0


def size_of(
    network: "Network",
    shape: Sequence[int],
    voxel_mm: Sequence[float],
    crop: Sequence[int] | None = None,
    own_grid: bool = True,
) -> Size:
    """The size of a run. network : a `cards.Network` · shape, voxel_mm : (3,) of the scan, in the order of its axes

    crop : (3,) voxels, or None
    """
    from synthseg_native.networks.layers import count_parameters

    padded, voxels = padded_shape(network, shape, voxel_mm, crop), math.prod(map(int, shape))
    features, labels = network.layers["features"], network.outputs.channels
    return Size(padded, voxels, features, labels, own_grid, count_parameters(network.table()))


def padded_shape(
    network: "Network", shape: Sequence[int], voxel_mm: Sequence[float], crop: Sequence[int] | None = None
) -> tuple[int, ...]:
    """The shape (3,) that the network gets: resampled to its resolution, cropped, padded to its multiple.

    >>> from types import SimpleNamespace
    >>> network = SimpleNamespace(grid=SimpleNamespace(resolution_mm=1, pad_multiple=32, min_size=128))
    >>> padded_shape(network, shape=(181, 217, 40), voxel_mm=(1, 1, 5))
    (192, 224, 224)
    >>> padded_shape(network, shape=(181, 217, 40), voxel_mm=(1, 1, 5), crop=(96, 100, 96))
    (96, 128, 96)
    """
    grid = network.grid
    target, multiple, smallest = grid.resolution_mm, grid.pad_multiple, grid.min_size
    if any(abs(size - target) > 0.05 for size in voxel_mm):
        shape = [math.ceil(n * size / target - 1e-6) for n, size in zip(shape, voxel_mm, strict=True)]
    if crop:  # a smaller image is padded to it
        return tuple(_up(n, multiple) for n in crop)
    return tuple(max(_up(n, multiple), _up(smallest, multiple)) for n in shape)


def _up(size, multiple):
    return math.ceil(size / multiple) * multiple


def predict(size: Size, engine: str, precision: str = "float32", device: str = "cpu") -> int:
    """Peak resident memory of the whole command, MiB. engine : a name of `engines`, or "reference"."""
    return round(peak(coefficients(engine, precision, device), size))


def peak(c: Coefficients, size: Size) -> float:
    """The prediction in MiB; see the module's text."""
    padded = math.prod(size.padded)
    stages = (
        c.read * size.voxels,
        4 * padded * (c.network * size.features + c.posterior * size.labels),
        padded * (4 * size.labels + c.mask) + c.own * size.voxels * size.own_grid,
    )
    return c.base + (4 * c.weights * size.parameters + max(stages)) / MIB


def limit_mib() -> float | None:
    """Memory of this machine in MiB, or that of this process's control group where it is less; None if unknown."""
    from synthseg_native.verification import verify

    limits = [verify.memory_bytes() or math.inf, *_cgroup_limits()]
    return None if min(limits) == math.inf else min(limits) / MIB


def _cgroup_limits():
    """Limits in bytes of the control groups that this process is in, version 2 and 1."""
    with contextlib.suppress(OSError):
        for line in OWN_GROUPS.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            top, name = ("", "memory.max") if not controllers else ("memory", "memory.limit_in_bytes")
            folder = GROUPS / top / path.strip("/")
            for place in (folder, *folder.parents):
                if not place.is_relative_to(GROUPS):
                    break
                with contextlib.suppress(OSError, ValueError):
                    yield int((place / name).read_text())


def check(
    name: str,
    size: Size,
    engine: str,
    precision: str = "float32",
    device: str = "cpu",
    network: "Network | None" = None,
    limit: float | None = None,
) -> int:
    """The prediction in MiB; SynthSegError("oom"), which names what would fit, where this machine has less.

    name : of the scan, for the message · network : `cards.Network`, where a crop may help · limit : MiB, this machine's
    """
    wanted = predict(size, engine, precision, device)
    limit = limit_mib() if limit is None else limit
    if limit is None or wanted <= limit:
        return wanted
    fits = " or ".join(_fitting(size, engine, precision, device, network, limit)) or "a machine with more memory"
    raise SynthSegError(
        "oom", f"{name}: would take {_gb(wanted)} of memory, and there are {_gb(limit)}: what fits: {fits}"
    )


def _fitting(size, engine, precision, device, network, limit):
    """What would fit into the limit, each with its prediction: another engine or precision, a crop."""
    others = [key for key in TABLE if key[0] != REFERENCE and key != (engine, precision, device)]
    # A GPU is not named: nobody knows here whether there is one.
    others = [] if engine == REFERENCE else [key for key in others if key[2] == "cpu" and key[0] != "torch"]
    for other, number, place in others:
        if (less := predict(size, other, number, place)) <= limit:
            what = [f"--engine {other}"] * (other != engine) + [f"--precision {number}"] * (number != precision)
            yield f"{' '.join(what)} ({_gb(less)})"
    if network:
        multiple = network.grid.pad_multiple
        for crop in range(max(size.padded) - multiple, 0, -multiple):
            smaller = replace(size, padded=(crop,) * 3)
            if (less := predict(smaller, engine, precision, device)) <= limit:
                yield f"--crop {crop} ({_gb(less)})"
                return


def _gb(mib):
    return f"{mib * MIB / 1e9:.1f} GB"


def own_peak_mib() -> float:
    """Peak resident memory of this process so far, MiB, as measure.py takes it from outside."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MIB if sys.platform == "darwin" else 2**10), 1)


def remark(predicted: float | None, reached: float | None) -> str | None:
    """A sentence where the peak was more than 20 % off the prediction (both in MiB); None else, or where one lacks.

    >>> remark(predicted=500, reached=650)
    'the peak of 650 MiB is 30 % above the predicted 500 MiB'
    """
    if not predicted or not reached or abs(reached / predicted - 1) <= TOLERANCE:
        return None
    way = "above" if reached > predicted else "below"
    share = abs(reached / predicted - 1)
    return f"the peak of {reached:.0f} MiB is {share:.0%} {way} the predicted {predicted:.0f} MiB".replace("%", " %")


def packing_mb() -> int | None:
    """What jobs that run at once may take together, in MB: nine tenths of `limit_mib`; the rest is the system's."""
    limit = limit_mib()
    return None if limit is None else int(0.9 * limit * MIB / 1e6)


def declared_mb(predicted: float) -> int:
    """What a job asks for, in MB (10^6 bytes): the prediction (MiB) and the miss that is not told."""
    return math.ceil(predicted * (1 + TOLERANCE) * MIB / 1e6)
