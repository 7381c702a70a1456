"""The command ``synthseg-native``: scans in, label maps out, with the flags of SynthSeg_predict.py and mri_synthseg.

Every failure is one line on stderr: ``synthseg-native: FILE: what is wrong: what to do``.
"""

import argparse
import errno
import os
import sys
import traceback
from contextlib import contextmanager

from . import __version__, record
from .errors import SynthSegError

EXAMPLES = """\
examples:
  synthseg-native --i T1.nii.gz --o labels.nii.gz --vol volumes.csv --v1
  synthseg-native --i scans/ --o maps/ --vol volumes.csv --picture maps/ --threads 4
  synthseg-native --i T1.mgz --o labels.mgz --keepgeom --addctab

A folder, or a list (.txt, one path per line; then every result is a list too), is done scan by scan: each result is
there, whole, as soon as its scan is done, and a second call leaves out what is current.

exit status:
  0  all scans are segmented, or were
  1  a fault of the program: please report it
  2  wrong use: nothing was run
  3  bad input: those scans failed, the others are segmented
  4  the machine: memory, disk, time
  130  stopped by Ctrl-C; call again to go on
"""
# What SynthSeg_predict.py and mri_synthseg also have.
NOT_YET = {
    "robust": "SynthSeg-robust",
    "parc": "the cortical parcellation",
    "qc": "SynthSeg's quality scores (--picture and the qc figures in --record are this program's own)",
    "photo": "Photo-SynthSeg",
}
GRAVEST_FIRST = (1, 4, 2, 3)


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="synthseg-native",
        usage="synthseg-native --i SCAN --o LABELS [options]",
        description="Segment brain MRI or CT scans of any contrast and resolution with SynthSeg.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = p.add_argument_group("scans and label maps").add_argument
    add("--i", metavar="SCAN", help="a scan (.nii .nii.gz .mgz .mgh), a folder of scans, or a list (.txt)")
    add("--o", metavar="LABELS", help="label map to write; a folder, or a list, where --i is one")
    add("--keepgeom", action="store_true", help="write it on the scan's own grid (default: the network's, 1 mm)")
    add("--native-grid", metavar="LABELS", help="write a second label map, on the scan's own grid")
    add("--interpolation", default="posterior", metavar="HOW", help="for the scan's own grid: posterior, the likeliest "
        "label there (default), or nearest, the nearest voxel's label, as FreeSurfer does")  # fmt: skip
    add("--addctab", action="store_true", help="put FreeSurfer's colours and names in .mgz label maps")

    add = p.add_argument_group("further results").add_argument
    add("--vol", metavar="CSV", help="volumes in mm3, one row per scan, as SynthSeg writes them; .csv is added")
    add("--volumes-tsv", metavar="TSV", help="volumes, voxel counts and confidence, one row per structure")
    add("--picture", metavar="PNG", help="outlines on 15 slices, and what looks odd, to check by eye")
    add("--post", metavar="IMAGE", help="posteriors, one volume per label (large)")
    add("--resample", metavar="IMAGE", help="the scan on the network's grid")
    add("--margin", metavar="IMAGE", help="best minus second-best posterior per voxel, up to 0.0655")
    add("--record", metavar="JSON", help="what ran, on what, how long, and quality figures; written on failure too")

    add = p.add_argument_group("how to segment").add_argument
    add("--v1", action="store_true", help="SynthSeg 1.0 (default: SynthSeg 2.0), the same as --model synthseg1")
    add("--model", metavar="NAME", help="synthseg1, synthseg2, or a model's folder")
    add("--weights", metavar="H5", help="the model's weights (default: beside its card, or fetched once)")
    add("--fast", action="store_true", help="half the time: no left-right averaging, no repair of stray parts")
    add("--ct", action="store_true", help="the scan is CT in Hounsfield units: clip to 0..80")
    add("--crop", nargs="+", type=int, metavar="N", help="segment the central N (or N N N) voxels only, in RAS order")
    add("--autocrop", action="store_true", help="leave out the dark margins of the scan")
    add("--accept", default="", metavar="FLAG,...", help="take a scan in spite of these faults of its header")

    add = p.add_argument_group("what runs it").add_argument
    add("--threads", type=int, default=1, metavar="N", help="CPU threads (default 1)")
    add("--cpu", action="store_true", help="the same as --device cpu")
    add("--device", metavar="NAME", help="cpu or gpu (default cpu)")
    add("--engine", default="tensorflow", metavar="NAME", help="what runs the network (default tensorflow)")
    add("--precision", default="float32", metavar="NAME", help="numbers of the network (default float32)")
    add("--recompute", action="store_true", help="do all scans again, also those whose results are current")
    add("--version", action="version", version=f"synthseg-native {__version__}")
    for name in NOT_YET:
        add(f"--{name}", nargs="?", const=True, help=argparse.SUPPRESS)
    return p


def main(argv=None) -> int:
    """Run the command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    p = parser()
    if not argv:
        p.print_help(sys.stderr)
        return 2
    arguments = p.parse_args(argv)  # argparse itself exits with 2
    try:
        with _as_synthseg_error(arguments.i or "--i"):
            jobs, segmenter = _begin(arguments)
    except SynthSegError as failure:
        notes = record.new("native", ["synthseg-native", *argv])
        # Only of a single scan it is known where its record would go.
        single = (arguments.record or "").lower().endswith(".json")
        failure = _fail(notes, failure, arguments.record if single else None)
        print(f"synthseg-native: {failure.message}", file=sys.stderr)
        return failure.exit_code
    try:
        return _segment_all(jobs, segmenter, arguments, argv)
    except KeyboardInterrupt:
        print("synthseg-native: stopped: what is finished is kept, call again to go on", file=sys.stderr, flush=True)
        os._exit(130)  # the network's thread is still busy, and must not be waited for


def _begin(arguments):
    """The jobs of the call and what runs them; all wrong use is found here, before anything is run."""
    from . import jobs as planning
    from . import scan, segment

    def usage(text):
        return SynthSegError("usage", text)

    for name, what in NOT_YET.items():
        if getattr(arguments, name):
            raise usage(f"--{name}: {what}: synthseg-native does not have it yet: leave it out")
    for name in ("i", "o"):
        if not getattr(arguments, name):
            raise usage(f"--{name}: missing: see synthseg-native --help")
    if arguments.threads < 1:
        raise usage(f"--threads {arguments.threads}: too few: give 1 or more")
    if arguments.v1 and arguments.model not in (None, "synthseg1"):
        raise usage(f"--v1 and --model {arguments.model}: they contradict each other: give one of them")
    if arguments.cpu and arguments.device not in (None, "cpu"):
        raise usage(f"--cpu and --device {arguments.device}: they contradict each other: give one of them")
    if arguments.interpolation not in segment.INTERPOLATIONS:
        known = " or ".join(segment.INTERPOLATIONS)
        raise usage(f"--interpolation {arguments.interpolation}: not known: give {known}")
    crop = arguments.crop
    if crop and (len(crop) not in (1, 3) or min(crop) < 1):
        raise usage(f"--crop {' '.join(map(str, crop))}: not one or three sizes in voxels: correct it")
    if crop and arguments.autocrop:
        raise usage("--crop and --autocrop: they exclude each other: give one of them")
    accept = tuple(sorted({name.strip() for name in arguments.accept.split(",")} - {""}))
    scan.check_accept(accept)
    jobs = planning.plan(vars(arguments))
    options = segment.Options(
        engine=arguments.engine,
        device=arguments.device or "cpu",
        precision=arguments.precision,
        threads=arguments.threads,
        fast=arguments.fast,
        ct=arguments.ct,
        crop=crop and tuple(crop * (3 // len(crop))),
        autocrop=arguments.autocrop,
        keepgeom=arguments.keepgeom,
        interpolation=arguments.interpolation,
        addctab=arguments.addctab,
        accept=accept,
    )
    name = arguments.model or ("synthseg1" if arguments.v1 else "synthseg2")
    return jobs, segment.Segmenter(name, options, arguments.weights)


def _segment_all(jobs, segmenter, arguments, argv):
    """Segment every scan that is not current; the exit status of the whole call."""
    from .progress import Progress

    tables = Tables(jobs, segmenter.model.labels, arguments)
    if not arguments.recompute:
        tables.add_current(segmenter)
    todo = [job for job in jobs if id(job) not in tables.volumes]
    failures, started = [], 0
    with Progress(len(todo)) as bar:
        if len(todo) < len(jobs):
            what = (
                f"{len(jobs) - len(todo)} of {len(jobs)} scans are" if len(jobs) > 1 else f"{jobs[0].outputs['o']} is"
            )
            bar.say(f"{what} current and left out (--recompute does all)", sys.stdout)
        for job in todo:
            started += 1
            failure = _segment_one(job, segmenter, tables, bar, argv)
            bar.finished()
            if failure:
                failures.append(failure)
                bar.say(f"synthseg-native: {failure.message}", sys.stderr)
                if failure.code in ("disk", "usage"):  # the next scan would fail alike
                    break
        if not todo:
            failures += tables.write_alone(arguments.o)
        if len(jobs) > 1:
            counts = [
                (started - len(failures), "segmented"),
                (len(jobs) - len(todo), "current"),
                (len(failures), "failed"),
            ]
            counts.append((len(todo) - started, "not started"))
            bar.say(", ".join(f"{n} {what}" for n, what in counts if n), sys.stdout)
    codes = {failure.exit_code for failure in failures}
    return next((code for code in GRAVEST_FIRST if code in codes), 0)


def _segment_one(job, segmenter, tables, bar, argv):
    """Segment a scan and publish all its results together; what went wrong as a SynthSegError, or None."""
    from . import outputs

    notes = record.new("native", ["synthseg-native", *argv])
    segmenter.describe(notes)
    clock = record.Clock()

    def progress(phase, share):
        bar.show(job.image.name, phase, share)

    try:
        with _as_synthseg_error(job.image), outputs.Staged() as staged:
            volumes = segmenter.run(job, staged, notes, clock, progress, bar.wait_for)
            tables.write(staged, {id(job): volumes})
            record.succeed(notes)
            notes["seconds"] = clock.report()
            if "record" in job.outputs:
                outputs.save_json(staged.path(job.outputs["record"]), notes)
    except SynthSegError as failure:
        notes["seconds"] = clock.report()
        return _fail(notes, failure, job.outputs.get("record"))
    tables.volumes[id(job)] = volumes
    grade = "" if notes["model"]["research_grade"] else " (not for research)"
    took = f"segmented with {notes['model']['name']}{grade} in {notes['seconds']['total']:.1f} s"
    flags = notes["output"]["qc"]["flags"]
    bar.say(f"{job.outputs['o']}: {took}{'; look at it: ' if flags else ''}{', '.join(flags)}", sys.stdout)
    return None


def _fail(notes, failure, path):
    """Note a failure in the run record, written to `path` where there is one; returns the failure."""
    from . import outputs

    record.fail(notes, failure)
    if path:
        try:
            with outputs.Staged() as staged:
                outputs.save_json(staged.path(path), notes)
        except SynthSegError:
            pass  # the first failure is what the user must hear of
    return failure


@contextmanager
def _as_synthseg_error(path):
    """Turn what goes wrong in the block into a SynthSegError about `path`; a fault of ours comes with its place."""
    try:
        yield
    except SynthSegError:
        raise
    except MemoryError as error:
        text = f"{path}: out of memory ({error}): run on a machine with more memory"
        raise SynthSegError("oom", text) from error
    except OSError as error:
        code = "disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "internal"
        text = f"{error.filename or path}: {error.strerror or error}: mend this and call again"
        raise SynthSegError(code, text) from error
    except Exception as error:
        traceback.print_exc()
        message = " ".join(str(error).split())[:500]
        raise SynthSegError("internal", f"{path}: {type(error).__name__}: {message}: please report this") from error


class Tables:
    """The tables over all scans of a call, written anew, whole, whenever a scan is done.

    volumes : id of a job -> {"csv": row, "tsv": rows}. Of a list, --vol is a table per scan and no matter of this.
    """

    def __init__(self, jobs, labels, arguments):
        self.jobs, self.labels, self.volumes = jobs, labels, {}
        self.csv = arguments.vol if arguments.vol and "vol" not in jobs[0].outputs else None
        if self.csv and not self.csv.endswith(".csv"):
            self.csv += ".csv"
        self.tsv = arguments.volumes_tsv
        self.single = arguments.i == str(jobs[0].image)

    def add_current(self, segmenter):
        """Take the volumes of the scans whose results are current."""
        from . import jobs as planning

        for job in self.jobs:
            if job.sidecars["o"].is_file() and (volumes := planning.current(job, segmenter.settings())):
                self.volumes[id(job)] = volumes

    def write(self, staged, more):
        from . import outputs

        known = self.volumes | more
        done = [(job, known[id(job)]) for job in self.jobs if id(job) in known]
        if self.csv:
            outputs.save_volumes_csv(staged.path(self.csv), self.labels, [volumes["csv"] for _, volumes in done])
        if self.tsv:
            rows = {str(job.image): volumes["tsv"] for job, volumes in done}
            outputs.save_volumes_tsv(staged.path(self.tsv), done[0][1]["tsv"] if self.single else rows)

    def write_alone(self, path):
        """Where no scan was run: a table may be new all the same. Returns what went wrong, as a list."""
        from . import outputs

        try:
            with _as_synthseg_error(path), outputs.Staged() as staged:
                self.write(staged, {})
        except SynthSegError as failure:
            print(f"synthseg-native: {failure.message}", file=sys.stderr)
            return [failure]
        return []
