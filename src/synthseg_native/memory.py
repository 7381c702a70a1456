"""How much memory a run takes, before it starts, and whether this machine has it.

The peak is the largest of these stages. All but the first are above what the interpreter, the runtime and its copies of
the weights take, and the posteriors: one array of all, which the second pass adds to, or the brain's alone, where both
passes go in step; where a picture is to be drawn, the scan is kept through them.

read      the scan as it is kept, in float64 while it is resampled and scaled, and what the network gets
features  what the engine has of the finest level's features: whole tensors, some planes of them, or slabs
smoothing the finest level's features, and posteriors while they are smoothed and handed out
labels    masks of the padded volume while components are found
own grid  labels, and bytes per voxel of the scan
others    of robust mode, parcels and scores: what those networks' features and slabs take, one network at a time,
          beside maps and volumes of the scan
write     posteriors once more, where they are a result and the scan was cropped
picture   what drawing takes, no posteriors

benchmarks/fit_memory.py fits the table below to measurements (benchmarks/memory.tsv), and prints it.
Standard library only at import.
"""

import contextlib
import ctypes
import gc
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
LITTLE_MIB = 512  # so much too high a prediction is nobody's trouble: of a small crop it is mostly the program itself
REFERENCE = "reference"
START_MIB = 80  # of the interpreter and the libraries that read a scan, before the engine is there
PICTURE_MIB = 240  # of the libraries that draw, and of the canvas
DRAWN_MIB = 110  # what pictures leave for the scans after them, of 3 to 50: libraries, and gaps
DRAWING = 8  # bytes per voxel of the network's grid while a picture is drawn: labels, and their copy
MASKS = 16  # bytes per padded voxel while labels are found: masks, and the parts of two classes at a time
FOUND, OWN = 8, 6  # bytes per padded voxel of labels and margins; per voxel of the scan on its own grid
HANDED = 22  # planes of posteriors that the llvm engine has at a time: of each pass six, and the slab that it hands out
MAPS = 20  # bytes per padded voxel of the image and of maps that wait while another network runs
NEAR = 0.4  # share of the padded volume that the cortex's surroundings are, whose parcels are kept for the own grid
ENCODER = 0.45  # of a U-Net's finest features: an encoder has no skip tensors, and nothing is put together
SLAB = 2**27  # bytes of a tensor, at most, where the torch engine computes in slabs (engines.torch.SLAB_BYTES)
STEP_MIB = 70  # of the interpreter and libraries of a step that runs no network
COMPARISON = 48  # bytes per voxel that two label maps and their differences take, at most
OWN_GROUPS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Coefficients:
    """base : MiB · weights : copies, in float32, of the weights · network : of the finest level's features, whole
    planes : of these · slabs : tensors of SLAB · posterior : further copies of posteriors while they are smoothed
    kept : share of the posteriors that are there at the end of a pass
    read : bytes per voxel of the network's grid while the scan is read, beside what is kept
    """

    base: float
    weights: float
    network: float
    planes: float = 0
    slabs: float = 0
    posterior: float = 0
    kept: float = 1
    read: float = 12


# (engine, precision, device). Where a row is missing, the closest one stands in: see `coefficients`.
TABLE = {
    ("tensorflow", "float32", "cpu"): Coefficients(530, 2.24, 9.75, posterior=3.04),
    ("llvm", "float32", "cpu"): Coefficients(177, 5.46, 0.673, planes=46, kept=0.2),
    ("torch", "float32", "cpu"): Coefficients(856, 2.46, 1.55, slabs=3.22),
    (REFERENCE, "float32", "cpu"): Coefficients(577, 1.39, 12.5, posterior=4.93, read=100),
}


def coefficients(engine: str, precision: str = "float32", device: str = "cpu") -> Coefficients:
    """The row of the table; of what was not measured that of float32, of the CPU, and at last TensorFlow's."""
    for key in ((engine, precision, device), (engine, "float32", device), (engine, precision, "cpu")):
        if key in TABLE:
            return TABLE[key]
    return TABLE.get((engine, "float32", "cpu"), TABLE["tensorflow", "float32", "cpu"])


@dataclass(frozen=True)
class Other:
    """Another network of a run: features, labels, parameters as of `Size` · box : edge of what it reads, None for the
    padded volume · near : whether posteriors around the cortex are kept · encoder : whether it is no U-Net
    smoothed : whether its posteriors are"""

    features: int
    labels: int
    parameters: int
    box: int | None = None
    near: bool = False
    encoder: bool = False
    smoothed: bool = False


@dataclass(frozen=True)
class Size:
    """What a run's memory depends on beside its engine. padded : (3,) voxels of the padded volume · voxels : of the
    scan · features, labels : of the network · own_grid : whether a label map on the scan's own grid is made
    parameters : of the network · bytes : per voxel of the scan, as it is kept · grid : voxels of the whole scan on the
    network's grid · picture, post : whether one is drawn, whether posteriors are written · loaded : whether the engine
    is there already, from a scan before · others : networks that run before or after
    """

    padded: tuple
    voxels: int
    features: int
    labels: int
    own_grid: bool = True
    parameters: int = 0
    bytes: int = 2
    grid: int = 0
    picture: bool = False
    post: bool = False
    loaded: bool = False
    others: tuple[Other, ...] = ()


def size_of(
    network: "Network",
    shape: Sequence[int],
    voxel_mm: Sequence[float],
    crop: Sequence[int] | None = None,
    own_grid: bool = True,
    networks: Sequence["Network"] = (),
    **more: int,
) -> Size:
    """The size of a run. network : a `cards.Network` · shape, voxel_mm : (3,) of the scan, in the order of its axes

    crop : (3,) voxels, or None · networks : all of the run, this one among them
    more : bytes, picture, post and loaded of `Size`
    """
    from synthseg_native.networks.layers import count_parameters

    padded, voxels = padded_shape(network, shape, voxel_mm, crop), math.prod(map(int, shape))
    features, labels = network.layers["features"], network.outputs.channels
    grid = math.prod(grid_shape(network, shape, voxel_mm))
    scored = any(other.name == "quality" for other in networks)  # then parcels are of raw posteriors: `modes.MODES`
    others = tuple(
        Other(
            features=other.layers["features"],
            labels=other.outputs.channels,
            parameters=count_parameters(other.table()),
            box=other.grid.box,
            near=own_grid and other.name == "parcellation",
            encoder=other.layers["form"] == "encoder",
            smoothed=other.name == "parcellation" and not scored,
        )
        for other in networks
        if other.name != network.name
    )
    parameters = count_parameters(network.table())
    return Size(padded, voxels, features, labels, own_grid, parameters, grid=grid, others=others, **more)


def grid_shape(network: "Network", shape: Sequence[int], voxel_mm: Sequence[float]) -> tuple[int, ...]:
    """The shape (3,) of a scan on the network's grid, for a scan's shape and voxel sizes in the order of its axes.

    >>> from types import SimpleNamespace
    >>> grid_shape(SimpleNamespace(grid=SimpleNamespace(resolution_mm=1)), shape=(181, 217, 40), voxel_mm=(1, 1, 5))
    (181, 217, 200)
    """
    target = network.grid.resolution_mm
    if all(abs(size - target) <= 0.05 for size in voxel_mm):
        return tuple(map(int, shape))
    return tuple(math.ceil(n * size / target - 1e-6) for n, size in zip(shape, voxel_mm, strict=True))


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
    multiple, smallest = network.grid.pad_multiple, network.grid.min_size
    shape = grid_shape(network, shape, voxel_mm)
    if crop:  # a smaller image is padded to it
        return tuple(_up(n, multiple) for n in crop)
    return tuple(max(_up(n, multiple), _up(smallest, multiple)) for n in shape)


def _up(size, multiple):
    return math.ceil(size / multiple) * multiple


def predict(size: Size, engine: str, precision: str = "float32", device: str = "cpu") -> int:
    """Peak resident memory of the whole command, MiB. engine : a name of `engines`, or "reference"."""
    if engine == REFERENCE:  # on whole arrays, and copies of them, whether parcels are smoothed or not
        size = replace(size, others=tuple(replace(other, smoothed=not other.encoder) for other in size.others))
    return round(peak(coefficients(engine, precision, device), size))


def peak(c: Coefficients, size: Size) -> float:
    """The prediction in MiB; see the module's text."""
    padded, scan = math.prod(size.padded), size.bytes * size.voxels
    features, posteriors = 4 * padded * size.features, 4 * padded * size.labels
    kept = c.kept * posteriors + scan * size.picture
    stages = (
        kept + 4 * padded + _running(c, size.padded, size.features, size.labels),
        kept + features + c.posterior * posteriors,
        kept + MASKS * padded,
        kept + (FOUND * padded + OWN * size.voxels) * size.own_grid,
        kept + 4 * size.labels * size.post * (size.grid * (size.grid > padded) + padded * (c.kept < 1)),
        (scan + DRAWING * size.grid + PICTURE_MIB * MIB) * size.picture,
    )
    engine = c.base + 4 * c.weights * size.parameters / MIB + DRAWN_MIB * (size.picture and size.loaded)
    others = [c.base + 4 * c.weights * other.parameters / MIB + _other(c, size, other) / MIB for other in size.others]
    # The float64 copy that is resampled is gone when the other one is scaled.
    resampled = size.grid != size.voxels
    within = min(size.grid, padded)
    read = scan + 8 * size.grid * resampled + max(8 * size.voxels * resampled, c.read * within + 4 * padded)
    return max((engine if size.loaded else START_MIB) + read / MIB, engine + max(stages) / MIB, *others)


def _running(c, padded, features, labels, share=1.0):
    """Bytes that an engine has while a network runs. share : of whole features, see ENCODER"""
    voxels = math.prod(padded)
    features, posteriors = 4 * voxels * features, 4 * voxels * labels
    # Planes lie across the axis from left to right, the shortest one of a head.
    plane = voxels / min(padded)
    planes = (c.planes * features + HANDED * posteriors * (c.planes > 0)) * plane / voxels
    return c.network * features * share + planes + c.slabs * min(SLAB, max(features, posteriors))


def _other(c, size, other):
    """Bytes while another network runs."""
    padded = (other.box,) * 3 if other.box else size.padded
    kept = MAPS * math.prod(size.padded) + size.bytes * size.voxels * size.picture
    kept += 4 * NEAR * other.labels * math.prod(size.padded) * other.near
    kept += 4 * size.labels * math.prod(size.padded) * size.post
    running = _running(c, padded, other.features, other.labels, ENCODER if other.encoder else 1.0)
    if other.encoder or c.planes:
        return kept + running
    # An engine without planes has the posteriors whole, and several times while they are smoothed.
    features, posteriors = (4 * math.prod(padded) * channels for channels in (other.features, other.labels))
    return kept + posteriors + max(running, (features + c.posterior * posteriors) * other.smoothed)


def picture_mib(size: Size) -> int:
    """Peak of the step that draws a picture, MiB: it reads the scan and the label map anew."""
    return round(
        STEP_MIB + PICTURE_MIB + ((size.bytes + 8 * (size.bytes == 8)) * size.voxels + DRAWING * size.grid) / MIB
    )


def comparison_mib(voxels: int) -> int:
    """Peak of the step that compares two label maps, MiB. voxels : of the larger one"""
    return round(STEP_MIB + COMPARISON * voxels / MIB)


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


def give_back(rings: bool = False) -> None:
    """Give freed memory back to the system, in 20 ms: glibc keeps up to 64 MiB of it for every thread that took some.

    Every scan has threads of its own: the peak of three small scans with pictures was between 559 and 762 MiB without
    this, between 531 and 553 with it.
    rings : first free what matplotlib leaves in rings, 5 MiB a picture, for which Python looks late; takes 0.1 to 0.5 s
    """
    if rings:
        gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def own_peak_mib() -> float:
    """Peak resident memory of this process so far, MiB, as measure.py takes it from outside."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (MIB if sys.platform == "darwin" else 2**10), 1)


def remark(predicted: float | None, reached: float | None) -> str | None:
    """A sentence where the peak was more than 20 % off the prediction (both in MiB), and LITTLE_MIB where it was less;
    None else, or where one lacks.

    >>> remark(predicted=500, reached=650)
    'the peak of 650 MiB is 30 % above the predicted 500 MiB'
    """
    if not predicted or not reached or abs(reached / predicted - 1) <= TOLERANCE:
        return None
    if 0 < predicted - reached <= LITTLE_MIB:
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
