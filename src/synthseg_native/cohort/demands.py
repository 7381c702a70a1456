"""What a job asks for: memory and time."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from synthseg_native import memory
from synthseg_native.errors import SynthSegError
from synthseg_native.networks import cards
from synthseg_native.scan import reading

if TYPE_CHECKING:
    from synthseg_native.cohort.plan import Plan

UNKNOWN_MB = 3000  # of a step about a scan that cannot be read, or is not there yet


def memory_mb(plan: Plan, engine: str, scan: str) -> int:
    """MB (10^6 bytes) that a run ("reference" is one) asks for, from the scan's header.

    Of a scan that cannot be read, or is not there yet, the model card's figure. memory_mb in the configuration
    overrides.
    """
    if plan.config["memory_mb"]:
        return plan.config["memory_mb"]
    if engine == "reference" and plan.reference["kind"] == "existing":
        return existing_mb(plan, scan)
    size = _size(plan, scan)
    if size is None:
        return plan.model.memory_mb
    device = "gpu" if engine == "torch" and plan.config["device"] != "cpu" else "cpu"
    precision = "float32" if engine == "reference" else plan.config["precision"]
    return memory.declared_mb(memory.predict(size, engine, precision, device))


@functools.cache
def _size(plan: Plan, scan):
    """What memory depends on, from the image's header alone; None where it cannot be read: why, the run says."""
    try:
        extent = reading.extent(plan.scans[scan].image)
    except (SynthSegError, MemoryError):
        return None
    network = cards.segmenting(plan.networks)
    networks = plan.networks
    return memory.size_of(network, extent.shape, extent.voxel_mm, plan.crop, networks=networks, bytes=extent.bytes)


def picture_mb(plan: Plan, scan: str) -> int:
    """MB that drawing a scan's picture asks for."""
    size = _size(plan, scan)
    return memory.declared_mb(memory.picture_mib(size)) if size else UNKNOWN_MB


def comparison_mb(plan: Plan, scan: str) -> int:
    """MB that comparing a scan's label maps asks for; one that is already there may be on the scan's own grid."""
    size = _size(plan, scan)
    if size is None:
        return UNKNOWN_MB
    existing = plan.reference["kind"] == "existing"
    return memory.declared_mb(memory.comparison_mib(max(size.grid, size.voxels * existing)))


def existing_mb(plan: Plan, scan: str) -> int:
    """MB that it takes to check a scan and to take the label map that is already there, on either grid."""
    return max(comparison_mb(plan, scan), picture_mb(plan, scan))


def benchmark_memory(plan: Plan) -> int:
    """The same for the benchmark, which runs everything in turn."""
    return max((memory_mb(plan, e, s) for e in (*plan.engines, "reference") for s in plan.benchmarked), default=1000)


def benchmark_minutes(plan: Plan) -> float:
    """Minutes that the benchmark may take at most: every run as long as one may."""
    rounds = plan.config["benchmark"]["repeats"] + plan.config["benchmark"]["warmups"]
    contestants = len(plan.engines) + plan.benchmarks_reference
    return plan.minutes * rounds * contestants * max(1, len(plan.benchmarked)) + 10
