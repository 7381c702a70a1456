"""The command ``synthseg-native``: scans in, label maps out, with the flags of SynthSeg_predict.py and mri_synthseg.

Every failure is one line on stderr: ``synthseg-native: FILE: what is wrong: what to do``.
"""

import argparse
import csv
import os
import sys
import traceback
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from synthseg_native import __version__, options, stopping, streams
from synthseg_native.errors import SynthSegError, of_system
from synthseg_native.results import record

if TYPE_CHECKING:
    from synthseg_native.jobs import Job
    from synthseg_native.results.staged import Staged

EXAMPLES = """\
examples:
  synthseg-native --i T1.nii.gz --o labels.nii.gz --vol volumes.csv --v1
  synthseg-native --i scans/ --o maps/ --vol volumes.csv --picture maps/ --threads 4
  synthseg-native --i T1.mgz --o labels.mgz --keepgeom --addctab

A folder, or a list (.txt, one path per line; then results are lists too, but for --volumes-tsv), is done scan by scan:
each result is there, whole, as soon as its scan is done, and a second call leaves out what is current. Where a file
can be named, a folder can: names are then made from the scan's, x.nii.gz gives x_synthseg.nii.gz.

exit status:
  0  all scans are segmented, or were
  1  a fault of the program: please report it
  2  wrong use: nothing was run
  3  bad input: those scans failed, the others are segmented; or label maps changed by hand were left alone
  4  the machine: memory, disk, time
  130  stopped by Ctrl-C, 128 and more by another signal; call again to go on
"""
STOPPING = ("disk", "usage", "timeout")  # no place, no weights: the next scan would fail alike
GRAVEST_FIRST = (1, 4, 2, 3)


class _Parser(argparse.ArgumentParser):
    """Wrong use in one line, as all that fails."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {message}: see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    p = _Parser(
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
    add("--vol", metavar="CSV", help="volumes in mm3, one row per scan, as SynthSeg writes them; .csv is added; "
        "rows of earlier calls stay")  # fmt: skip
    add("--qc", metavar="CSV", help="SynthSeg's quality scores of eight groups of structures, one row per scan: "
        "look at what is below 0.65")  # fmt: skip
    add("--volumes-tsv", metavar="TSV", help="volumes, voxel counts and confidence, one row per scan and structure")
    add("--picture", metavar="PNG", help="outlines on 15 slices, and what looks odd, to check by eye")
    add("--post", metavar="IMAGE", help="posteriors, one volume per label (large)")
    add("--resample", metavar="IMAGE", help="the scan on the network's grid")
    add("--margin", metavar="IMAGE", help="best minus second-best posterior per voxel, up to 0.0655")
    add("--record", metavar="JSON", help="what ran, on what, how long, and quality figures; written on failure too")

    add = p.add_argument_group("how to segment").add_argument
    add("--v1", action="store_true", help="SynthSeg 1.0 (default: SynthSeg 2.0), the same as --model synthseg1")
    add("--model", metavar="NAME", help="synthseg1, synthseg2, or a model's folder")
    add("--weights", metavar="H5", help="the model's weights, or a folder that holds them by the names of the card "
        "(default: beside the card, or fetched once)")  # fmt: skip
    add("--robust", action="store_true", help="SynthSeg-robust, three networks in a row: for clinical scans, of low "
        "resolution or contrast; --fast changes nothing then; no --v1")  # fmt: skip
    add("--fast", action="store_true", help="half the time: no left-right averaging, no repair of stray parts")
    add("--parc", action="store_true", help="parcels of the cortex (Desikan-Killiany) in its place, and their volumes")
    add("--parcel-volumes", default="cortex", metavar="HOW", help="what they add up to: cortex, each hemisphere's to "
        "its own (default), or upstream-66342c1, for an old series of SynthSeg's")  # fmt: skip
    add("--ct", action="store_true", help="the scan is CT in Hounsfield units: clip to 0..80")
    add(
        "--crop",
        nargs="+",
        type=int,
        metavar="N",
        help="segment the central N (or N N N) voxels only, in RAS order, rounded up to the network's multiple",
    )
    add("--autocrop", action="store_true", help="leave out the dark margins of the scan")
    add("--accept", default="", metavar="FLAG,...", help="take a scan in spite of these faults of its header")

    add = p.add_argument_group("what runs it").add_argument
    add("--threads", type=int, default=1, metavar="N", help="CPU threads (default 1)")
    add("--cpu", action="store_true", help="the same as --device cpu")
    add("--device", metavar="NAME", help="cpu or gpu (default: what works here; without the launcher cpu)")
    add("--engine", default="auto", metavar="NAME", help="what runs the network: auto (default: the quickest one that "
        "works on this machine), tensorflow, llvm, or torch (GPUs)")  # fmt: skip
    add("--precision", default="float32", metavar="NAME", help="numbers of the network: float32 (default), or bf16, "
        "which torch has: labels nearly the same")  # fmt: skip
    add("--recompute", action="store_true", help="do all scans again, also those whose results are current")
    add("--overwrite-edited", action="store_true", help="also those whose label maps were changed by hand")
    add("--version", action="version", version=f"synthseg-native {__version__}")
    for name in options.NOT_YET:
        add(f"--{name}", nargs="?", const=True, help=argparse.SUPPRESS)
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else list(argv)
    p = parser()
    if not argv:
        p.print_help(sys.stderr)
        return 2
    arguments = p.parse_args(argv)  # argparse itself exits with 2
    os.environ.pop("MPLBACKEND", None)  # a notebook's way of drawing, which need not be there: no scan ends by it
    with stopping.hearing(), streams.outlived():
        return _run(arguments, argv)


def _run(arguments, argv):
    try:
        try:
            with _as_synthseg_error(arguments.i or "--i"):
                call, segmenter = options.read(arguments)
                tables = Tables(call, segmenter.model, arguments.parc)
        except SynthSegError as failure:
            notes = record.new("native", ["synthseg-native", *argv])
            # Only of a single scan it is known where its record would go; wrong use must not replace a good one, nor
            # put one where the failure says that none may be: it would stand in the way of the corrected call.
            path = arguments.record or ""
            fits = path.lower().endswith(".json") and not failure.message.startswith(f"{path}:")
            _fail(notes, failure, path if fits and not os.path.lexists(path) else None)
            print(f"synthseg-native: {failure.message}", file=sys.stderr)
            return failure.exit_code
        return _segment_all(call, segmenter, tables, arguments, argv)
    except stopping.Stopped as reason:
        stopping.tell(reason, "what is finished is kept, call again to go on")
        os._exit(reason.exit_code)  # the network's thread is still busy, and must not be waited for


def _segment_all(call, segmenter, tables, arguments, argv):
    """Segment every scan that is not current; the exit status of the whole call.

    A label map that was changed by hand is left alone, unless the call says otherwise.
    """
    from synthseg_native.identity.current import CURRENT, EDITED, counts
    from synthseg_native.progress import Progress

    jobs = call.jobs
    states = {id(job): state for job, state in zip(jobs, _states(jobs, segmenter), strict=True)}
    if not arguments.recompute:
        tables.add(job for job in jobs if states[id(job)].word == CURRENT)
    kept = [job for job in jobs if states[id(job)].word == EDITED and not arguments.overwrite_edited]
    todo = [job for job in jobs if id(job) not in tables.volumes and job not in kept]
    failures, started = [], 0
    with Progress(len(todo)) as bar:
        for remark in [*call.remarks, *tables.said]:
            bar.say(remark, sys.stdout)
        if call.results:
            what = f"{len(call.results)} images, {call.results[0].name} for one, are results of earlier calls"
            bar.say(f"{what} and left out", sys.stdout)
        if n_current := len(tables.volumes):
            what = f"{n_current} of {len(jobs)} scans are" if len(jobs) > 1 else f"{jobs[0].outputs['o']} is"
            said = [(job, tables.remarks[id(job)]) for job in jobs if tables.remarks.get(id(job))]
            alone = said[0][1] if said and len(jobs) == 1 else ""
            bar.say(f"{what} current and left out (--recompute does all){alone}", sys.stdout)
            for job, remarks in said if len(jobs) > 1 else []:
                bar.say(f"{job.outputs['o']}: current{remarks}", sys.stdout)
        for why, number in counts(states[id(job)] for job in todo).items():
            what = f"{number} of {len(jobs)} scans" if len(jobs) > 1 else f"{jobs[0].outputs['o']}"
            bar.say(f"{what} again: {why}", sys.stdout)
        edited = [_edited(job, states[id(job)]) for job in kept]
        for failure in edited:
            bar.say(f"synthseg-native: {failure.message}", sys.stderr)
        for job in todo:
            started += 1
            failure = job.refused or _segment_one(job, segmenter, tables, bar, argv, arguments.overwrite_edited)
            bar.finished()
            if failure:
                failures.append(failure)
                bar.say(f"synthseg-native: {failure.message}", sys.stderr)
                if failure.code in STOPPING:
                    break
        failed = len(failures)
        # A row of an earlier call must not stay where its scan changed since, or its label map by hand.
        old = tables.exist() and not any(failure.code in STOPPING for failure in failures)
        if started == failed and (tables.volumes or old) and (failure := tables.write_alone(arguments.o)):
            failures.append(failure)
            bar.say(f"synthseg-native: {failure.message}", sys.stderr)
        if len(jobs) > 1:
            ends = [(started - failed, "segmented"), (n_current, "current"), (len(kept), "edited and left alone")]
            ends += [(failed, "failed"), (len(todo) - started, "not started")]
            bar.say(", ".join(f"{n} {what}" for n, what in ends if n), sys.stdout)
    codes = {failure.exit_code for failure in [*failures, *edited]}
    return next((code for code in GRAVEST_FIRST if code in codes), 0)


def _states(jobs, segmenter):
    """What the results of each job are now, as `identity.current.State`."""
    from synthseg_native import jobs as planning
    from synthseg_native.identity import command

    weights_known = True
    for job in jobs:
        wanted = None
        try:
            if weights_known and job.sidecars["o"].is_file() and job.image.is_file():
                wanted = command.wanted(segmenter, job, job.content.sha256())
        except SynthSegError:
            weights_known = False  # none, say: the run of the scan tells
        except OSError:  # of the scan, which its run tells
            pass
        yield planning.state(job, wanted)


def _edited(job, state):
    remedy = "kept, and left out of the tables: --overwrite-edited makes it again"
    return SynthSegError("bad_input", f"{job.outputs['o']}: {', '.join(state.why)}: {remedy}")


@contextmanager
def _keeping_others(job, bar, overwrite):
    """Keep what lies in the places of results and is not of this command's making, and say so."""
    from synthseg_native import jobs as planning
    from synthseg_native.results import kept

    places = [] if overwrite else planning.unvouched(job)
    try:
        for path in places:
            kept.keep(path)
        yield
    finally:
        for path in places:
            for line in kept.settle(path):
                bar.say(line, sys.stdout)


def _segment_one(job, segmenter, tables, bar, argv, overwrite):
    """Segment a scan and publish all its results together; what went wrong as a SynthSegError, or None."""
    from synthseg_native.results.sidecar import method_of, save_json
    from synthseg_native.results.staged import Staged

    notes = record.new("native", ["synthseg-native", *argv])
    segmenter.describe(notes)
    clock = record.Clock()

    def progress(phase, share):
        bar.show(job.image.name, phase, share)

    try:
        with _as_synthseg_error(job.image), _keeping_others(job, bar, overwrite), Staged() as staged:
            places = tables.places(staged)
            volumes = segmenter.run(job, staged, notes, clock, progress, bar.in_thread)
            tables.write(places, {id(job): volumes})
            record.succeed(notes)
            notes["seconds"] = clock.report()
            tables.note_memory(notes)
            if "record" in job.outputs:
                save_json(staged.path(job.outputs["record"]), notes)
    except SynthSegError as failure:
        notes["seconds"] = clock.report()
        return _fail(notes, failure, job.outputs.get("record"))
    tables.volumes[id(job)] = volumes
    grade = "" if notes["model"]["research_grade"] else " (not for research)"
    took = f"segmented with {method_of(notes)}{grade} in {notes['seconds']['total']:.1f} s"
    bar.say(f"{job.outputs['o']}: {took}{_remarks(notes, segmenter.model.labels)}", sys.stdout)
    if notes["memory_remark"]:
        bar.say(f"synthseg-native: {job.image}: {notes['memory_remark']}", sys.stderr)
    return None


def _remarks(notes, labels):
    """What is odd about a scan and its segmentation, by what its record says, behind a line about it."""
    from synthseg_native.results import quality

    odd = [("look at it", quality.of_record(notes, labels)["flags"]),
           ("odd in its header or values", notes["input"]["header_flags"])]  # fmt: skip
    return "".join(f"; {what}: {', '.join(names)}" for what, names in odd if names)


def _fail(notes, failure, path):
    """Note a failure in the run record, written to `path` where there is one; returns the failure."""
    from synthseg_native.results.sidecar import save_json
    from synthseg_native.results.staged import Staged

    record.fail(notes, failure)
    if path:
        with suppress(SynthSegError), Staged() as staged:  # the first failure is what the user must hear of
            save_json(staged.path(path), notes)
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
        raise of_system(error, path) from error
    except Exception as error:
        traceback.print_exc()
        message = " ".join(str(error).split())[:500]
        raise SynthSegError("internal", f"{path}: {type(error).__name__}: {message}: please report this") from error


class Tables:
    """The tables over all scans of a call, written anew, whole, whenever a scan is done.

    The rows that earlier calls with other scans have left in the tables of --vol and --qc stay there; --volumes-tsv is
    of one call. volumes : id of a job -> {"csv": row, "qc": row, "tsv": rows} · said : lines about what they hold
    remarks : id of a job that was current -> what is said of it. Raises SynthSegError("usage") where rows that are not
    of this call have other columns.
    """

    def __init__(self, call, model, parcellation=False):
        """parcellation : whether volumes are also of parcels"""
        from synthseg_native import jobs as planning
        from synthseg_native.results import tables

        self.call, self.labels, self.volumes, self.remarks = call, model.labels, {}, {}
        columns = tables.csv_columns(model.labels, model.parcels if parcellation else None)
        self.columns = {"vol": columns, "qc": list(model.scores[1:])}
        self.predicted = 0  # MiB, of the largest scan so far
        # What this call writes in their place.
        self.ours = {option: {planning.row_before(job, option) for job in call.jobs} for option in planning.CSV}
        names = {planning.row_name(job) for job in call.jobs}
        said, self.said = {}, []
        for option in planning.CSV:
            rows = {row for part in self._others(option) for row in part if row[0] in names}
            if not rows:
                continue
            table = call.tables[option]
            made = planning.rows_of_other_calls(call.jobs, option, table, rows)
            self.ours[option] |= made.keys()
            self.said += [f"{table}: the row {row[0]} that {path} tells of gives way" for row, path in made.items()]
            for name in sorted({row[0] for row in rows - made.keys()}):
                said.setdefault(name, table)
        tsv = call.tables.get("volumes_tsv")
        if tsv and tsv.is_file() and not tables.is_volumes_tsv(tsv):
            text = f"{tsv}: is something else than a table of volumes: choose another name, or remove it"
            raise SynthSegError("usage", text)
        about = "has a row {} already, and nothing says that it is of this scan: it stays"
        self.said += [f"{path}: {about.format(name)}" for name, path in said.items()]

    def _others(self, option: str) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
        """The rows of a table that are of no scan of this call: those before its first, and those after."""
        from synthseg_native.results.tables import TABLE

        path, ours = self.call.tables.get(option), self.ours[option]
        if not path or not path.is_file():
            return [], []
        with path.open(**TABLE) as file:
            try:
                header, *rows = [tuple(row) for row in csv.reader(file, strict=True) if row] or [()]
            except csv.Error:
                header, rows = (), [("no table",)]
        number = next((n for n, row in enumerate(rows) if row in ours), len(rows))
        before, after = ([row for row in part if row not in ours] for part in (rows[:number], rows[number:]))
        whole = all(len(row) == len(header) for row in [*before, *after])
        foreign = bool(header) and header[1:] != tuple(self.columns[option])  # maybe a line alone, of any text
        if ((before or after) and not whole) or (foreign and (before or after or not rows)):
            of = {"vol": "volumes", "qc": "quality scores"}[option]
            what = f"has rows of something else than this call's {of}, or cut ones"
            raise SynthSegError("usage", f"{path}: {what}: choose another name, or remove it")
        return before, after

    def add(self, jobs: "list[Job]") -> None:
        """Take the volumes of the scans whose results are current."""
        from synthseg_native import jobs as planning

        for job in jobs:
            self.volumes[id(job)], notes = planning.remembered(job)
            self.remarks[id(job)] = _remarks(notes, self.labels)

    def note_memory(self, notes: dict) -> None:
        """The peak of this process, which earlier scans of the call share, beside what was predicted."""
        from synthseg_native import memory

        notes["peak_rss_mib"] = memory.own_peak_mib()
        self.predicted = max(self.predicted, notes["predicted_peak_mib"] or 0)
        if not notes["machine"]["emulated"]:  # an emulator takes memory of its own
            notes["memory_remark"] = memory.remark(self.predicted, notes["peak_rss_mib"])

    def places(self, staged: "Staged") -> dict[str, Path]:
        """Where the tables are written for now: option -> path."""
        return {option: staged.path(path) for option, path in self.call.tables.items()}

    def write(self, places: dict[str, Path], more: dict[int, dict]) -> None:
        """Write the tables of all scans that are done, `more` among them."""
        from synthseg_native.jobs import ROWS
        from synthseg_native.results import tables

        known = self.volumes | more
        done = [(job, known[id(job)]) for job in self.call.jobs if id(job) in known]
        for option in set(places) & set(ROWS):
            rows = [volumes[ROWS[option]] for _, volumes in done]
            self.ours[option].update(map(tuple, rows))
            before, after = self._others(option)
            tables.save_csv(places[option], self.columns[option], [*before, *rows, *after])
        if "volumes_tsv" in places:
            rows = {str(job.image): volumes["tsv"] for job, volumes in done}
            tables.save_volumes_tsv(places["volumes_tsv"], next(iter(rows.values()), []) if self.call.single else rows)

    def exist(self) -> bool:
        """Whether an earlier call has left a table."""
        return any(path.is_file() for path in self.call.tables.values())

    def write_alone(self, path: str) -> SynthSegError | None:
        """Where no scan was segmented: a table may be new all the same. Returns what went wrong, or None."""
        from synthseg_native.results.staged import Staged

        try:
            with _as_synthseg_error(path), Staged() as staged:
                self.write(self.places(staged), {})
        except SynthSegError as failure:
            return failure
        return None
