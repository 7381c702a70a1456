"""The identity of what the command makes of one scan."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from synthseg_native.identity import current, stages
from synthseg_native.pipeline import modes
from synthseg_native.scan.formats import image_extension

if TYPE_CHECKING:
    from synthseg_native.jobs import Job
    from synthseg_native.pipeline.segment import Segmenter

# What computes, beside this package: any of them may change the last bit of a result.
PACKAGES = ("numpy", "scipy", "nibabel", "h5py")
ENGINE_PACKAGES = {"tensorflow": ("tensorflow",), "llvm": ("llvmlite",), "torch": ("torch",)}


def wanted(segmenter: Segmenter, job: Job, content: str | None) -> dict:
    """What `segment.Segmenter` would make of a `jobs.Job` now; see `current`.

    content: SHA-256 of the scan's file. Options that do not touch the results asked for are left out.
    """
    options, model = asdict(segmenter.options), segmenter.model
    own_grid = options["keepgeom"] or "native_grid" in job.outputs
    maps = [path for option, path in job.outputs.items() if option in job.sidecars]
    coloured = options["addctab"] and any(image_extension(path).startswith(".mg") for path in maps)
    same = ("engine", "device", "precision", "threads", "ct", "autocrop", "keepgeom")
    return current.identity(
        stages.one_scan(options["parcellation"], options["scores"]),
        **{name: options[name] for name in same},
        mode=modes.name_of(options["fast"], options["robust"]),
        parcels=options["parcel_volumes"] if options["parcellation"] else None,
        scores=options["scores"] or None,
        crop=list(options["crop"]) if options["crop"] else None,
        interpolation=options["interpolation"] if own_grid else None,
        addctab=coloured,
        display=stages.display_digest(model, options["parcellation"]) if coloured else None,
        accept=list(options["accept"]),
        model=stages.model_digest(model, segmenter.networks),
        weights=" ".join(dict.fromkeys(sha256[:12] for sha256 in segmenter.weights_sha256.values())),
        content=content and content[:12],
        environment=environment(options["engine"]),
    )


@cache
def environment(engine: str) -> str:
    """The packages that compute and their versions, as they are installed here."""
    return ", ".join(f"{name} {_version(name)}" for name in (*PACKAGES, *ENGINE_PACKAGES.get(engine, ())))


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
