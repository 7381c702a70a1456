"""What a job asks for: memory and time."""

from __future__ import annotations

import functools
import math
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import nibabel as nib

from synthseg_native import memory

if TYPE_CHECKING:
    from synthseg_native.cohort.plan import Plan

EXISTING_MB = 3000  # to take a label map that is already there


def header_of(image: str | PathLike) -> tuple[list[int] | None, list[float] | None]:
    """Shape and voxel sizes (mm), (3,) each, of a scan; (None, None) where its header cannot be read, or claims what no
    run would take: what is asked for by such a claim no machine has, and a cluster refuses the job."""
    from synthseg_native.scan import reading

    logger = nib.imageglobals.logger
    logger.disabled, before = True, logger.disabled  # it names no file
    try:
        if not Path(image).is_file():  # a pipe, a device: reading it may never end
            return None, None
        header = nib.load(image).header
        shape = [n for n in header.get_data_shape() if n != 1]
        voxel_mm = [float(size) for size in header.get_zooms()[:3]]
        least, most = reading.FIELD_OF_VIEW_MM
        fits = len(shape) == 3 and math.prod(shape) <= reading.MAX_VOXELS
        fits = fits and all(least <= n * size <= most for n, size in zip(shape, voxel_mm, strict=True))  # not of NaN
        return (shape, voxel_mm) if fits else (None, None)
    except Exception:  # whatever is wrong with it, the run says
        return None, None
    finally:
        logger.disabled = before


def memory_mb(plan: Plan, engine: str, scan: str) -> int:
    """MB (10^6 bytes) that a run ("reference" is one) asks for, from the scan's header.

    Of a scan that cannot be read, or is not there yet, the model card's figure. memory_mb in the configuration
    overrides.
    """
    if plan.config["memory_mb"]:
        return plan.config["memory_mb"]
    if engine == "reference" and plan.reference["kind"] == "existing":
        return EXISTING_MB
    size = _size(plan, scan)
    if size is None:
        return plan.model.memory_mb
    device = "gpu" if engine == "torch" and plan.config["device"] != "cpu" else "cpu"
    precision = "float32" if engine == "reference" else plan.config["precision"]
    return memory.declared_mb(memory.predict(size, engine, precision, device))


@functools.cache
def _size(plan: Plan, scan):
    """What memory depends on, from the image's header alone; None where it cannot be read."""
    shape, voxel_mm = header_of(plan.scans[scan].image)
    return shape and memory.size_of(plan.model.network, shape, voxel_mm, plan.crop)


def benchmark_memory(plan: Plan) -> int:
    """The same for the benchmark, which runs everything in turn."""
    return max((memory_mb(plan, e, s) for e in (*plan.engines, "reference") for s in plan.benchmarked), default=1000)


def benchmark_minutes(plan: Plan) -> float:
    """Minutes that the benchmark may take at most: every run as long as one may."""
    rounds = plan.config["benchmark"]["repeats"] + plan.config["benchmark"]["warmups"]
    contestants = len(plan.engines) + plan.benchmarks_reference
    return plan.minutes * rounds * contestants * max(1, len(plan.benchmarked)) + 10
