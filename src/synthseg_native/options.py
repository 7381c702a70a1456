"""What the words of the command ask for: a call that fits together, and the options of its segmentations."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from synthseg_native.errors import SynthSegError
from synthseg_native.files import at_home

if TYPE_CHECKING:
    from synthseg_native import jobs
    from synthseg_native.pipeline import segment

# What SynthSeg_predict.py and mri_synthseg also have.
NOT_YET = {
    "photo": "Photo-SynthSeg",
}
MAX_CROP = 512  # larger than any head, and as small as the network then works on


def read(arguments: argparse.Namespace) -> tuple[jobs.Call, segment.Segmenter]:
    """What the call is to do and what does it. arguments: what the command's parser made of its words.

    All wrong use is found here, before anything is run: SynthSegError("usage"), and "bad_input" where there is no scan.
    """
    from synthseg_native.scan.content import Content  # here, so that help and wrong words are answered at once

    content = Content(at_home(arguments.i or ""))
    content.read_ahead()  # while all that follows is imported
    from synthseg_native import jobs
    from synthseg_native.pipeline import segment
    from synthseg_native.scan import reading

    _check(arguments, segment.INTERPOLATIONS, segment.PARCEL_VOLUMES)
    if arguments.engine == "auto":
        arguments.engine = _engine_here()
    accept = tuple(sorted({name.strip() for name in arguments.accept.split(",")} - {""}))
    reading.check_accept(accept)
    call = jobs.plan(vars(arguments))
    if call.single:
        call.jobs[0].content = content
    call.remarks += _idle(arguments, call, segment)
    crop = arguments.crop
    options = segment.Options(
        engine=arguments.engine,
        device=arguments.device or "cpu",
        precision=arguments.precision,
        threads=arguments.threads,
        fast=arguments.fast,
        robust=arguments.robust,
        parcellation=arguments.parc,
        scores=bool(arguments.qc),
        parcel_volumes=arguments.parcel_volumes,
        ct=arguments.ct,
        crop=crop and tuple(crop * (3 // len(crop))),
        autocrop=arguments.autocrop,
        keepgeom=arguments.keepgeom,
        interpolation=arguments.interpolation,
        addctab=arguments.addctab,
        accept=accept,
    )
    name = arguments.model or ("synthseg1" if arguments.v1 else "synthseg2")
    weights = arguments.weights and at_home(arguments.weights)
    return call, segment.Segmenter(at_home(name), options, weights)


def _check(arguments, interpolations, parcel_volumes):
    for name, what in NOT_YET.items():
        if getattr(arguments, name):
            raise _usage(f"--{name}: {what}: synthseg-native does not have it yet: leave it out")
    for name in ("i", "o"):
        if not getattr(arguments, name):
            raise _usage(f"--{name}: missing: see synthseg-native --help")
    if arguments.threads < 1:
        raise _usage(f"--threads {arguments.threads}: too few: give 1 or more")
    if arguments.v1 and arguments.model not in (None, "synthseg1"):
        raise _usage(f"--v1 and --model {arguments.model}: they contradict each other: give one of them")
    if arguments.cpu and arguments.device not in (None, "cpu"):
        raise _usage(f"--cpu and --device {arguments.device}: they contradict each other: give one of them")
    if arguments.robust and arguments.v1:
        raise _usage("--robust and --v1: SynthSeg 1.0 has no robust networks: give one of them")
    for name, known in (("interpolation", interpolations), ("parcel_volumes", parcel_volumes)):
        if (value := getattr(arguments, name)) not in known:
            raise _usage(f"--{name.replace('_', '-')} {value}: not known: give {' or '.join(known)}")
    if arguments.parcel_volumes != parcel_volumes[0] and not arguments.parc:
        raise _usage("--parcel-volumes: of parcels, which only --parc makes: add it, or leave this out")
    crop = arguments.crop
    if crop and (len(crop) not in (1, 3) or min(crop) < 1 or max(crop) > MAX_CROP):
        sizes = " ".join(map(str, crop))
        raise _usage(f"--crop {sizes}: not one or three sizes in voxels, 1 to {MAX_CROP}: correct it")
    if crop and arguments.autocrop:
        raise _usage("--crop and --autocrop: they exclude each other: give one of them")


def _idle(arguments, call, segment):
    """Lines about options that change nothing, as the call is."""
    from synthseg_native.scan.formats import image_extension

    maps = [path for job in call.jobs for option, path in job.outputs.items() if option in job.sidecars]
    tables = {*call.tables, *call.jobs[0].outputs} & {"vol", "volumes_tsv"}
    why = {
        "--fast": arguments.fast and arguments.robust and "robust mode is that by itself",
        "--addctab": arguments.addctab
        and not any(image_extension(path).startswith(".mg") for path in maps)
        and "only .mgz and .mgh label maps have a colour table",
        f"--interpolation {arguments.interpolation}": arguments.interpolation != segment.INTERPOLATIONS[0]
        and not (arguments.keepgeom or arguments.native_grid)
        and "it is for the scan's own grid: --keepgeom or --native-grid",
        f"--parcel-volumes {arguments.parcel_volumes}": arguments.parcel_volumes != segment.PARCEL_VOLUMES[0]
        and not tables
        and "no table of volumes is asked for: --vol or --volumes-tsv",
    }
    return [f"{option} changes nothing here: {text}" for option, text in why.items() if text]


def _usage(text: str) -> SynthSegError:
    return SynthSegError("usage", text)


def _engine_here() -> str:
    """The engine whose runtime this environment has: the launcher chooses the environment, and names the engine."""
    from importlib.util import find_spec

    for name, runtime in (("llvm", "llvmlite"), ("tensorflow", "tensorflow"), ("torch", "torch")):
        if find_spec(runtime):
            print(f"engine auto: {name}, whose runtime is in this environment", file=sys.stderr)
            return name
    return "tensorflow"  # which then says what to install
