"""The command ``synthseg-native``: one image in, one label map out.

Exit status: 0 done, 1 a fault of the program, 2 wrong use, 3 bad input, 4 the machine (memory, disk). Every failure
ends with one line on stderr: ``synthseg-native: FILE: what is wrong: what to do``.
"""

import argparse
import errno
import sys
import traceback
from pathlib import Path

from . import __version__, record
from .errors import SynthSegError


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(prog="synthseg-native", description="Segment a brain MRI or CT scan with SynthSeg.")
    p.add_argument("--i", required=True, metavar="IMAGE", help="scan, 3-D: .nii .nii.gz .mgz .mgh")
    p.add_argument("--o", required=True, metavar="DSEG", help="label map to write: .nii or .nii.gz")
    p.add_argument("--vol", metavar="CSV", help="volumes in mm3 to write, in SynthSeg's format")
    p.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default 1)")
    p.add_argument("--model", default="synthseg2", metavar="NAME", help="model or its folder (default synthseg2)")
    p.add_argument("--weights", metavar="H5", help="weights file (default: beside the model card, or fetched)")
    p.add_argument("--engine", default="tensorflow", help="what runs the network (default tensorflow)")
    p.add_argument("--device", default="cpu", help="cpu or gpu (default cpu)")
    p.add_argument("--precision", default="float32", help="of the network (default float32)")
    p.add_argument("--ct", action="store_true", help="the scan is CT in Hounsfield units: clip to 0..80")
    p.add_argument("--volumes-tsv", metavar="TSV", help="volumes and voxel counts to write, one row per structure")
    p.add_argument("--margin", metavar="NII", help="map to write: best minus second-best posterior")
    p.add_argument("--record", metavar="JSON", help="what ran and how long it took, written on failure too")
    p.add_argument("--version", action="version", version=f"synthseg-native {__version__}")
    return p


def main(argv=None) -> int:
    """Run the command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    arguments = parser().parse_args(argv)  # argparse itself exits with 2
    notes = record.new("native", ["synthseg-native", *argv])
    clock = record.Clock()
    try:
        run(arguments, notes, clock)
        record.succeed(notes)
    except SynthSegError as error:
        failure = error
    except MemoryError as error:
        failure = SynthSegError("oom", f"{arguments.i}: out of memory ({error}): run on a machine with more memory")
    except OSError as error:
        code = "disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "internal"
        failure = SynthSegError(code, f"{error.filename or arguments.i}: {error.strerror or error}: see the run record")
    except Exception as error:
        traceback.print_exc()
        message = " ".join(str(error).split())[:500]
        failure = SynthSegError("internal", f"{arguments.i}: {type(error).__name__}: {message}: please report this")
    else:
        failure = None
    if failure:
        record.fail(notes, failure)
    notes["seconds"] = clock.report()
    try:
        if arguments.record:
            _write_record(arguments.record, notes)
    except SynthSegError as error:
        failure = failure or error
    if failure:
        print(f"synthseg-native: {failure.message}", file=sys.stderr)
        return failure.exit_code
    grade = "" if notes["model"]["research_grade"] else " (not for research)"
    print(f"{arguments.o}: segmented with {notes['model']['name']}{grade} in {notes['seconds']['total']:.1f} s")
    return 0


def run(arguments, notes, clock):
    """Segment one image; fills the record. The runtime of the network is imported after the image was checked."""
    from . import engines, image, model, network, outputs, posterior, scan, weights

    notes.update(precision=arguments.precision, threads=arguments.threads)
    if arguments.threads < 1:
        raise SynthSegError("usage", f"--threads {arguments.threads}: too few: give 1 or more")
    if not arguments.o.lower().endswith((".nii", ".nii.gz")):
        raise SynthSegError("usage", f"{arguments.o}: not the name of a NIfTI file: end it in .nii or .nii.gz")
    module = engines.load(arguments.engine)
    notes["engine"]["name"] = arguments.engine
    settings = model.load(arguments.model)
    notes["model"].update(name=settings.name, research_grade=settings.research_grade)

    with clock("read"):
        found = scan.read(arguments.i)
        notes["input"] = found.description
        prepared = image.prepare(
            found,
            resolution=settings.resolution,
            pad_multiple=settings.pad_multiple,
            min_size=settings.min_size,
            ct=arguments.ct,
        )
        header = found.header
        del found

    with clock("start"):
        file = weights.resolve(settings.card, settings.folder, weights=arguments.weights)
        notes["model"]["weights_sha256"] = scan.sha256_of(file)
        table = network.table_of(settings)
        engine = module.build(
            table,
            network.read_weights(file, table),
            prepared.volume.shape,
            device=arguments.device,
            threads=arguments.threads,
            precision=arguments.precision,
        )
        notes["engine"]["version"] = engine.version
        notes.update(device=engine.device, device_reason=engine.device_reason)

    with clock("network"):
        posteriors = posterior.flip_average(engine, prepared.volume, settings.labels.flip)
    with clock("postprocess"):
        result = posterior.finish(posteriors, prepared.box, settings.labels, settings.threshold)
        del posteriors
        labels = image.from_ras(result.labels, prepared.axes, prepared.flipped)
        volumes = outputs.soft_volumes(result, prepared.voxel_mm)
        notes["output"] = {
            "labels_sha256": outputs.labels_sha256(labels),
            "shape": list(labels.shape),
            "voxel_mm": [round(float(v), 6) for v in prepared.voxel_mm],
            "mean_confidence": None if result.confidence != result.confidence else round(result.confidence, 6),
        }

    with clock("write"), outputs.Staged() as staged:
        outputs.save_labels(staged.path(arguments.o), labels, prepared.affine, header)
        if arguments.margin:
            margin = image.from_ras(result.margin, prepared.axes, prepared.flipped)
            outputs.save_margin(staged.path(arguments.margin), margin, prepared.affine, header)
        if arguments.vol:
            table_path = arguments.vol if arguments.vol.endswith(".csv") else f"{arguments.vol}.csv"
            outputs.save_volumes_csv(staged.path(table_path), Path(arguments.i).name, settings.labels, volumes)
        if arguments.volumes_tsv:
            outputs.save_volumes_tsv(
                staged.path(arguments.volumes_tsv), settings.labels, volumes, result.counts, prepared.voxel_mm
            )


def _write_record(path, notes):
    from . import outputs

    with outputs.Staged() as staged:
        outputs.save_json(staged.path(path), notes)
