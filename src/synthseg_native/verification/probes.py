"""One probe per operation that the network needs, the same formulas in NumPy, and how a device is judged by them.

No device is trusted because it is there: it must have every operation, run it itself, and give the CPU's numbers.
"""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from synthseg_native.networks.layers import GIVEN, NORMALISATION_EPSILON, Layer, Weights, gaussian_kernel, layer_table

# Largest difference to the CPU in results of order 1. Other orders of summation stay below 1e-5; reduced precision
# (TF32, bfloat16) and wrong kernels do not.
TOLERANCE = 1e-4
SMOOTHING = 0.5  # of what the networks give, in voxels, as SynthSeg does it
TOLERANCE_BF16 = 0.05  # of posteriors: with 8 bits of mantissa small networks stay below 0.02


class Device(Protocol):
    """What a runtime offers to be probed: a CPU or GPU that runs one operation of `FORMULAS` at a time."""

    name: str  # "CPU:0", "GPU:0"
    kind: str  # "cpu" or "gpu": what the engine is told
    precisions: list  # of "float32", "bf16": those that the device says it has
    operations: tuple | None  # those that it has; None for all
    description: str  # the maker's name for it, or ""

    def run(self, operation: str, inputs: dict) -> tuple[np.ndarray, str]:
        """Return the result and the name of the device that computed it. May raise anything; `DeviceLost` ends it."""


class DeviceLost(Exception):
    """The device crashed or does not answer: the remaining probes are not tried."""


@dataclass(frozen=True)
class Probe:
    """An operation with its inputs. Where it is not needed, the engines do without it: it is only reported."""

    name: str
    operation: str
    inputs: dict = field(repr=False)
    needed: bool = True
    precision: str = "float32"  # a device without it is not asked


def probes() -> list[Probe]:
    """The probes, cheapest first; the same numbers on every machine."""
    rng = np.random.default_rng(20)

    def values(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    def convolution(*shape, labels):
        kernel = values(3, 3, 3, shape[-1], labels) / np.float32(np.sqrt(27 * shape[-1]))
        return {"x": values(*shape), "kernel": kernel, "bias": values(labels)}

    def network(*shape, **more):
        table = layer_table(**more)
        weights = plausible_weights(table, rng)
        return {"table": table, "weights": weights, "x": values(*shape)}

    moments = {"mean": values(5), "variance": values(5) ** 2 + 0.1, "offset": values(5), "scale": values(5)}
    normalisation = {"x": values(1, 6, 8, 10, 5), **moments}
    small = network(32, 24, 16, levels=3, features=4, labels=5)
    return [
        Probe("ELU", "elu", {"x": 3 * values(1, 6, 8, 10, 4)}),
        Probe("softmax", "softmax", {"x": 5 * values(1, 6, 8, 10, 7)}),
        Probe("MaxPool3D", "max_pool3d", {"x": values(1, 6, 8, 10, 4)}),
        Probe("UpSampling3D", "up_sampling3d", {"x": values(1, 3, 4, 5, 4)}),
        Probe("batch normalisation, 5-D", "batch_normalisation", normalisation),
        Probe("batch normalisation, 5-D, fused", "fused_batch_normalisation", normalisation, needed=False),
        Probe("Conv3D", "conv3d", convolution(1, 7, 9, 11, 4, labels=6)),
        Probe(
            "Conv3D per channel", "depthwise_conv3d", {"x": values(1, 7, 9, 11, 6), "kernel": values(3, 3, 3, 1, 6) / 3}
        ),
        Probe("small network", "network", small),
        # Planes as large as those of a 256x256x256 image, and as many channels as SynthSeg has there: some kernels are
        # wrong from a size on.
        Probe("Conv3D, 256x256 plane", "conv3d", convolution(1, 2, 256, 256, 24, labels=24)),
        Probe(
            "network, 256x256 plane",
            "network",
            network(4, 256, 256, levels=2, features=24, labels=7, convolutions_per_level=1),
        ),
        Probe("small network, bf16", "network", {**small, "precision": "bf16"}, needed=False, precision="bf16"),
    ]


def plausible_weights(table: list[Layer], rng: np.random.Generator) -> Weights:
    """Random weights of a table that keep activations of order 1."""

    def values(*shape):
        return rng.standard_normal(shape, dtype=np.float32)

    return {
        layer.name: {name: _plausible(values, name, shape) for name, shape in layer.weights.items()}
        for layer in table
        if layer.weights
    }


def _plausible(values, name, shape):
    if name == "kernel":
        return values(*shape) / np.float32(np.sqrt(np.prod(shape[:-1])))
    return values(*shape) ** 2 + np.float32(0.5) if name in ("moving_variance", "gamma") else values(*shape) / 2


def examine(device: Device, baseline: dict) -> list[dict]:
    """Run every probe on a device and judge it.

    baseline: results of the CPU by probe; where it has none, the formula in NumPy is the measure. For a CPU the caller
    passes an empty dict, which is filled with the results that were right.
    Probes of a precision or an operation that the device does not have are left out. Rows: device, probe, needed,
    precision, ran_on, ok, max_difference, compared_with, error (None where ok).
    """
    rows, lost = [], None
    for probe in probes():
        asked = device.operations is None or probe.operation in device.operations
        if probe.precision not in device.precisions or not asked:
            continue
        row = {"device": device.name, "probe": probe.name, "needed": probe.needed, "precision": probe.precision}
        row |= {"ran_on": None, "ok": False}
        row |= {"max_difference": None, "compared_with": "cpu" if probe.name in baseline else "numpy", "error": lost}
        rows.append(row)
        if lost:
            continue
        try:
            result, row["ran_on"] = device.run(probe.operation, probe.inputs)
            expected = baseline.get(probe.name)
            if expected is None:
                expected = FORMULAS[probe.operation](**probe.inputs)
            row["max_difference"], row["error"] = _judge(np.asarray(result), expected, probe.precision)
        except DeviceLost as error:
            row["error"] = _one_line(error)
            lost = "not tried: the device was lost"
        except Exception as error:
            row["error"] = _one_line(error)
        if row["error"] is None and row["ran_on"] != device.name:
            row["error"] = f"ran on {row['ran_on']} instead"
        row["ok"] = row["error"] is None
        if row["ok"] and device.kind == "cpu":
            baseline[probe.name] = np.asarray(result)
    return rows


def _judge(result, expected, precision):
    """Largest absolute difference, and what is wrong with the result or None."""
    if result.shape != expected.shape:
        return None, f"shape {result.shape} instead of {expected.shape}"
    if not np.isfinite(result).all():
        return None, "not finite"
    difference = float(np.abs(result.astype(np.float64) - expected).max())
    tolerance = TOLERANCE_BF16 if precision == "bf16" else TOLERANCE
    return difference, None if difference <= tolerance else f"wrong numbers: off by {difference:.1e}"


def _one_line(error):
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:200]


def decide(rows: list[dict], devices: list[Device]) -> dict:
    """The device to use ("cpu", "gpu", or None where nothing works) and why, from the rows of `examine`."""
    bad = {}
    for row in rows:
        if row["needed"] and not row["ok"]:
            bad.setdefault(row["device"], []).append(row)
    reasons = []
    for device in sorted(devices, key=lambda device: device.kind == "cpu"):  # GPUs first
        label = f"{device.name} ({device.description})" if device.description else device.name
        if device.name not in bad:
            reasons.insert(0, f"{label} passed every probe")
            return {"device": device.kind, "reason": "; ".join(reasons)}
        first, *others = bad[device.name]
        more = f" and {len(others)} more" if others else ""
        reasons.append(f"{label} recognised but not used: {first['probe']}{more}: {first['error']}")
    return {"device": None, "reason": "; ".join(reasons) or "no device"}


def sound_precisions(rows: list[dict], device: Device) -> list[str]:
    """The precisions that a device says it has and whose probes it passed, from the rows of `examine`."""
    mine = [row for row in rows if row["device"] == device.name and not row["ok"]]
    bad = {row["precision"] for row in mine if row["needed"] or row["precision"] != "float32"}
    return [precision for precision in device.precisions if precision not in bad]


# The formulas. Arrays (batch, x, y, z, channels), float32 in, computed in float64, float32 out.


# So many multiplications at a time, and voxels: their sums stay in the processor's cache, and BLAS starts no threads.
PRODUCTS, ROWS = 2**18, 2**10


def _conv3d(x, kernel, bias):
    """Voxels are rows of a matrix: in a padded volume a neighbour is the same number of rows away from each."""
    reach = kernel.shape[0] // 2
    padded = np.pad(x.astype(np.float64), [(0, 0), *[(reach, reach)] * 3, (0, 0)])
    rows, kernel = padded.reshape(-1, x.shape[-1]), kernel.astype(np.float64)
    _, _, a, b, _ = padded.shape
    away = {(i, j, k): (i * a + j) * b + k for i, j, k in np.ndindex(kernel.shape[:3])}
    out = np.zeros((len(rows), kernel.shape[-1]))
    last, step = len(rows) - max(away.values()), min(PRODUCTS // kernel[0, 0, 0].size, ROWS)
    for start in range(0, last, step):
        end = min(start + step, last)
        for place, n in away.items():
            out[start:end] += rows[start + n : end + n] @ kernel[place]
    out = out.reshape(*padded.shape[:-1], -1)[:, : x.shape[1], : x.shape[2], : x.shape[3]]
    return (out + bias).astype(np.float32)


def _depthwise_conv3d(x, kernel):
    """Each channel with a kernel of its own: (x, y, z, 1, channels)."""
    reach = kernel.shape[0] // 2
    padded = np.pad(x.astype(np.float64), [(0, 0), *[(reach, reach)] * 3, (0, 0)])
    out = np.zeros(x.shape)
    for i, j, k in np.ndindex(kernel.shape[:3]):
        out += padded[:, i : i + x.shape[1], j : j + x.shape[2], k : k + x.shape[3]] * kernel[i, j, k, 0]
    return out.astype(np.float32)


def _max_pool3d(x):
    n, a, b, c, channels = x.shape
    return x.reshape(n, a // 2, 2, b // 2, 2, c // 2, 2, channels).max(axis=(2, 4, 6))


def _up_sampling3d(x):
    return x.repeat(2, axis=1).repeat(2, axis=2).repeat(2, axis=3)


def _elu(x):
    return np.where(x > 0, x, np.expm1(np.minimum(x, 0)))


def _batch_normalisation(x, mean, variance, offset, scale):
    return (x - mean) / np.sqrt(variance + NORMALISATION_EPSILON) * scale + offset


def _softmax(x):
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _relu(x):
    return np.maximum(x, 0)


def _mean(x):
    return x.mean(axis=(1, 2, 3), keepdims=True, dtype=np.float64).astype(np.float32)


ACTIVATIONS = {"elu": _elu, "relu": _relu, "none": lambda x: x}


def _network(table, weights, x, precision="float32", smoothing=SMOOTHING):
    """The layer table, one array per layer, and the smoothing of what it gives; x is (X, Y, Z), or such arrays by
    the names of inputs, the result (X, Y, Z, labels). Precise at any precision."""
    given = x if isinstance(x, dict) else {table[0].name: x}
    done = {}
    for layer in table:
        if layer.kind in GIVEN:
            volume = given[layer.name][None, ..., None]
            done[layer.name] = volume if layer.kind == "input" else np.float32(volume == np.arange(layer.channels))
            continue
        first, *others = (done[name] for name in layer.inputs)
        w = weights.get(layer.name)
        if layer.kind == "conv":
            out = ACTIVATIONS[layer.activation](_conv3d(first, **w))
        elif layer.kind == "norm":
            out = _batch_normalisation(first, w["moving_mean"], w["moving_variance"], w["beta"], w["gamma"])
        elif layer.kind == "concat":
            out = np.concatenate([first, *others], axis=-1)
        elif layer.kind == "add":
            out = ACTIVATIONS[layer.activation](sum(others, first))
        else:
            out = {"pool": _max_pool3d, "up": _up_sampling3d, "softmax": _softmax, "mean": _mean}[layer.kind](first)
        done[layer.name] = out
    if smoothing:
        out = _depthwise_conv3d(out, np.repeat(gaussian_kernel(smoothing)[..., None, None], out.shape[-1], -1))
    return out[0]


FORMULAS = {
    "conv3d": _conv3d,
    "depthwise_conv3d": _depthwise_conv3d,
    "max_pool3d": _max_pool3d,
    "up_sampling3d": _up_sampling3d,
    "elu": _elu,
    "batch_normalisation": _batch_normalisation,
    "fused_batch_normalisation": _batch_normalisation,
    "softmax": _softmax,
    "network": _network,
}
