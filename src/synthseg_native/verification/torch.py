"""PyTorch for the probes; see `process`."""

import os
from itertools import product
from typing import Any

import numpy as np

from synthseg_native.engines import torch as engine
from synthseg_native.networks.layers import NORMALISATION_EPSILON
from synthseg_native.verification.process import versions_of

TITLE, ENGINE = "PyTorch", "torch"


def start(kind: str) -> tuple[Any, dict[str, str], list[dict]]:
    """PyTorch itself, versions (CUDA or ROCm too), and the devices that it sees, each with its precisions."""
    # An operation that Apple's GPUs do not have must fail, not run on the CPU unseen.
    os.environ["PYTORCH_ENABLE_MPS_FALLBACK"] = "0"
    torch = engine.start(threads=1)
    engine.SLAB_BYTES = 2**24  # so that the probe with the large planes goes through slabs
    seen = [{"name": "CPU:0", "kind": "cpu", "description": "", "precisions": engine.precisions(torch, "cpu")}]
    versions = {"torch": torch.__version__}
    place = engine.place_of(torch, "gpu")
    if place == "cuda":
        versions |= {"cuda": torch.version.cuda or torch.version.hip, "cudnn": str(torch.backends.cudnn.version())}
        names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    else:
        names = ["Apple GPU"] if place else []
    for number, name in enumerate(names):
        more = {"description": name, "precisions": engine.precisions(torch, place)}
        seen.append({"name": f"GPU:{number}", "kind": "gpu", **more})
    return torch, {**versions, **versions_of("triton")}, seen


def run(torch: Any, kind: str, operation: str, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, str]:
    """One operation on the first device of a kind; arrays are (batch, x, y, z, channels)."""
    place = engine.place_of(torch, kind)
    if place is None:
        raise RuntimeError("PyTorch sees no GPU")
    # PyTorch has the channels second; weights (x, y, z, in, out) become (out, in, x, y, z).
    tensors = {name: torch.tensor(value) for name, value in inputs.items()}
    tensors["x"] = tensors["x"].movedim(-1, 1)
    if "kernel" in tensors:
        tensors["kernel"] = tensors["kernel"].permute(4, 3, 0, 1, 2)
    with torch.inference_mode():
        result = _operation(torch, operation, **{name: value.contiguous().to(place) for name, value in tensors.items()})
        where = "CPU:0" if result.device.type == "cpu" else "GPU:0"
        return result.cpu().movedim(1, -1).contiguous().numpy(), where


def _operation(torch, operation, x, kernel=None, bias=None, **moments):
    functional = torch.nn.functional
    if operation == "conv3d":
        return functional.conv3d(x, kernel, bias, padding=kernel.shape[-1] // 2)
    if operation == "depthwise_conv3d":
        return functional.conv3d(x, kernel, padding=kernel.shape[-1] // 2, groups=x.shape[1])
    if operation == "max_pool3d":
        return functional.max_pool3d(x, 2)
    if operation == "up_sampling3d":
        # As the engine puts its eighths together.
        y = x.new_empty((*x.shape[:2], *(2 * n for n in x.shape[2:])))
        for a, b, c in product((0, 1), repeat=3):
            y[:, :, a::2, b::2, c::2] = x
        return y
    if operation == "elu":
        return functional.elu(x)
    if operation == "softmax":
        return x.softmax(dim=1)
    mean, variance, offset, scale = (moments.get(name) for name in ("mean", "variance", "offset", "scale"))
    if operation == "batch_normalisation":
        scale = scale / torch.sqrt(variance + NORMALISATION_EPSILON)
        return x * scale.view(-1, 1, 1, 1) + (offset - mean * scale).view(-1, 1, 1, 1)
    if operation == "fused_batch_normalisation":
        return functional.batch_norm(x, mean, variance, scale, offset, eps=NORMALISATION_EPSILON)
    raise ValueError(f"{operation}: no such operation")


def clean(error: Exception) -> str:
    """The first line of the message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
