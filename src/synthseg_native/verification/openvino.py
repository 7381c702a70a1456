"""OpenVINO for the probes; see `process`."""

from typing import Any

import numpy as np

from synthseg_native.engines.openvino import import_openvino
from synthseg_native.networks.layers import NORMALISATION_EPSILON
from synthseg_native.verification.process import versions_of

TITLE, ENGINE = "OpenVINO", "openvino"


def start(kind: str) -> tuple[Any, dict[str, str], list[dict]]:
    """OpenVINO's core, versions, and the CPU with the precisions that it has instructions for."""
    ov = import_openvino()
    core = ov.Core()
    bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    seen = [{"name": "CPU:0", "kind": "cpu", "description": "", "precisions": ["float32", "bf16"][: 1 + bf16]}]
    return core, versions_of("openvino", "llvmlite"), seen


def run(core: Any, kind: str, operation: str, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, str]:
    """One operation as a model of its own, compiled in float32; arrays are (batch, x, y, z, channels)."""
    ov = import_openvino()
    ops = ov.opset13
    # OpenVINO has the channels second.
    values = np.ascontiguousarray(np.moveaxis(inputs["x"], -1, 1))
    x = ops.parameter(values.shape, np.float32)
    result = _operation(ops, operation, x, **{name: value for name, value in inputs.items() if name != "x"})
    # It would choose a lower precision by itself.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(ov.Model([result.output(0)], [x]), kind.upper(), settings)
    (device,) = compiled.get_property("EXECUTION_DEVICES")
    return np.moveaxis(compiled([values])[0], 1, -1), f"{device}:0"


def _operation(ops, operation, x, **more):
    if operation in ("conv3d", "depthwise_conv3d"):
        pads = [more["kernel"].shape[0] // 2] * 3
        kernel = np.moveaxis(more["kernel"], (4, 3), (0, 1)).copy()
        if operation == "depthwise_conv3d":
            return ops.group_convolution(x, ops.constant(kernel[:, None]), [1] * 3, pads, pads, [1] * 3)
        y = ops.convolution(x, ops.constant(kernel), [1] * 3, pads, pads, [1] * 3)
        return ops.add(y, ops.constant(more["bias"].reshape(-1, 1, 1, 1)))
    if operation == "max_pool3d":
        return ops.max_pool(x, [2] * 3, [1] * 3, [0] * 3, [0] * 3, [2] * 3)
    if operation == "up_sampling3d":
        scales = ops.constant(np.full(3, 2, np.float32))
        how = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        return ops.interpolate(x, scales, "nearest", "scales", axes=ops.constant(np.array([2, 3, 4])), **how)
    if operation == "elu":
        return ops.elu(x, 1.0)
    if operation == "softmax":
        return ops.softmax(x, 1)
    if operation == "batch_normalisation":
        scale = more["scale"] / np.sqrt(more["variance"] + np.float32(NORMALISATION_EPSILON))
        shift = more["offset"] - more["mean"] * scale
        scale, shift = (ops.constant(value.astype(np.float32).reshape(-1, 1, 1, 1)) for value in (scale, shift))
        return ops.add(ops.multiply(x, scale), shift)
    if operation == "fused_batch_normalisation":
        moments = (ops.constant(more[name]) for name in ("scale", "offset", "mean", "variance"))
        return ops.batch_norm_inference(x, *moments, NORMALISATION_EPSILON)
    raise ValueError(f"{operation}: no such operation")


def clean(error: Exception) -> str:
    """The last line of the message: those before it say where in OpenVINO's source it was raised."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
