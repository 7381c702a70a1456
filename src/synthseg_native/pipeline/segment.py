"""One scan as files: read it, segment it by `core`, write what was asked for."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from synthseg_native import engines, jobs, memory
from synthseg_native.errors import SynthSegError
from synthseg_native.files import sha256_of
from synthseg_native.identity import command
from synthseg_native.networks import cards, layers, weights
from synthseg_native.pipeline import core, modes, parcels
from synthseg_native.results import images, tables
from synthseg_native.results.figures import edge_voxels
from synthseg_native.results.record import Clock
from synthseg_native.results.sidecar import save_json, sidecar
from synthseg_native.results.staged import Staged
from synthseg_native.scan import reading

INTERPOLATIONS = ("posterior", "nearest")
PARCEL_VOLUMES = parcels.VOLUMES
OPTIONAL = ("resample", "post", "margin", "picture")  # what a label map does not wait for


@dataclass(frozen=True)
class Options:
    """How scans are segmented; see the command's help. crop : (3,) voxels in RAS order, or None."""

    engine: str = "tensorflow"
    device: str = "cpu"
    precision: str = "float32"
    threads: int = 1
    fast: bool = False
    robust: bool = False
    parcellation: bool = False
    scores: bool = False
    parcel_volumes: str = PARCEL_VOLUMES[0]
    ct: bool = False
    crop: tuple | None = None
    autocrop: bool = False
    keepgeom: bool = False
    interpolation: str = "posterior"
    addctab: bool = False
    accept: tuple = ()


# How long the stages of `core` and those around them take, beside a network's pass, and the phase of the record that
# they are timed in.
TAKES = {
    "read": 0.08,
    "grid": 0.06,
    "start": 0.08,
    "network": 2.0,
    "labels": 0.22,
    "own grid": 0.08,
    "parcels": 1.2,
    "scores": 2.5,
    "quality": 0.03,
    "write": 0.11,
    "picture": 0.11,
}
PASSES = {modes.DEFAULT: 2.0, modes.FAST: 1.0, modes.ROBUST: 4.0}  # as many as the networks' work is, in all
PHASES = {"grid": "read", "labels": "postprocess", "own grid": "postprocess", "parcels": "network", "scores": "network",
          "measures": "postprocess", "quality": "postprocess", "picture": "write"}  # fmt: skip


def begins(options: Options) -> dict[str, float]:
    """The share of a run at which each stage begins, and 1 for its end.

    >>> found = begins(Options())
    >>> [f"{name} {found[name]:.2f}" for name in ("read", "network", "labels", "parcels", "scores", "write", "end")]
    ['read 0.00', 'network 0.08', 'labels 0.80', 'parcels 0.91', 'scores 0.91', 'write 0.92', 'end 1.00']
    """
    takes = TAKES | {"network": PASSES[modes.name_of(options.fast, options.robust)]}
    takes |= {} if options.parcellation else {"parcels": 0.0}
    takes |= {} if options.scores else {"scores": 0.0}
    whole, done = sum(takes.values()), 0.0
    found = {}
    for stage, share in takes.items():
        found[stage], done = done / whole, done + share
    return found | {"measures": found["quality"], "end": 1.0}


class _Course:
    """How far a run is: each stage on the clock, and told to `progress`. Ended when its block ends."""

    def __init__(self, clock, progress, begins):
        self._clock, self._progress, self._phase, self._stack = clock, progress, None, ExitStack()
        self._begins = begins

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._stack.close()

    def at(self, stage, share=0.0):
        """So much of a stage is done, in [0, 1]."""
        self.time(PHASES.get(stage, stage))
        begin = self._begins[stage]
        end = min((other for other in self._begins.values() if other > begin), default=1.0)
        self._progress(stage, begin + share * (end - begin))

    def time(self, phase):
        """What follows counts for this phase."""
        if phase != self._phase:
            self._stack.close()
            self._stack.enter_context(self._clock(phase))
            self._phase = phase


def _file_of(network):
    return network.folder, network.weights.file


class Segmenter:
    """A model and the way to run it, for many scans.

    A network that is the only one is built at the first scan, and kept. Of several each is built when its turn comes,
    and let go of after it: together they take more memory than a scan.
    """

    def __init__(self, name, options, weights_file=None):
        """name : of a model or its folder. Raises SynthSegError for a model, engine or precision that is not
        there, and for a network that the engine cannot compute."""
        self.options = options
        self.module = engines.load(options.engine, options.precision)
        self.model = cards.load(name)
        self.networks = self.model.needed(options.robust, options.parcellation, options.scores)
        self.tables = {network.name: network.table() for network in self.networks}
        for table in self.tables.values():
            self.module.check(table)
        self._named, self._not_there = weights_file, None
        self._check_weights()
        self.engine = None

    def _check_weights(self):
        """A wrong name, and a file that is nowhere, are wrong use, before anything is run."""
        named, files = self._named, list(dict.fromkeys(network.weights.file for network in self.networks))
        folder = Path(named) if named and Path(named).is_dir() else None
        if folder and (lacking := [file for file in files if not (folder / file).is_file()]):
            text = f"{folder}: the folder lacks {', '.join(lacking)}: put them there, or leave --weights out"
            raise SynthSegError("usage", text)
        if len(files) > 1 and named and Path(named).is_file():
            what = f"{named}: a file, and this takes {', '.join(files)}"
            raise SynthSegError("usage", f"{what}: name the folder that holds them")
        for network in self.networks:
            weights.check_there(network.weights, network.folder, self._named_for(network))
        if named:
            first = self.networks[0]
            weights.resolve(first.weights, self.model.name, first.folder, weights=self._named_for(first))

    @cached_property
    def weights_files(self) -> dict[str, Path]:
        """By the networks' names; looked for, and maybe fetched, when a scan is found to be worth it, once."""
        if self._not_there:
            raise self._not_there
        files = {_file_of(network): network for network in self.networks}
        wanted = [(each.weights, each.folder, self._named_for(each)) for each in files.values()]
        try:
            found = dict(zip(files, weights.resolve_all(wanted, self.model.name), strict=True))
        except SynthSegError as error:
            self._not_there = error
            raise
        return {network.name: found[_file_of(network)] for network in self.networks}

    def _named_for(self, network):
        """A file that the user names is the segmentation's, or robust mode's; a folder has those of all."""
        if self._named and Path(self._named).is_dir():
            return Path(self._named, network.weights.file)
        return self._named if network.name not in cards.COMPANIONS else None

    @cached_property
    def weights_sha256(self) -> dict[str, str]:
        """Of the files that are used, by the networks' names."""
        digests = {path: sha256_of(path) for path in set(self.weights_files.values())}
        return {name: digests[path] for name, path in self.weights_files.items()}

    def describe(self, notes: dict) -> None:
        """What the run record says before a scan is looked at."""
        notes.update(
            mode=modes.name_of(self.options.fast, self.options.robust),
            precision=self.options.precision,
            threads=self.options.threads,
        )
        notes["engine"]["name"] = self.options.engine
        notes["model"].update(name=self.model.name, research_grade=self.model.research_grade)

    def run(
        self,
        job: jobs.Job,
        staged: Staged,
        notes: dict,
        clock: Clock,
        progress: Callable[[str, float], None],
        in_thread: Callable[..., core.Result] = lambda call, *arguments: call(*arguments),
    ) -> dict:
        """Segment the scan of a `jobs.Job`; write its results through `staged.Staged`, fill the run record.

        progress(stage, share of the run that is done) is told now and then; in_thread(call, *arguments) makes the one
        long call. Returns {"csv": row, "qc": row or None, "tsv": rows} for the tables. Raises SynthSegError,
        MemoryError, OSError.
        """
        with _Course(clock, progress, begins(self.options)) as course:
            course.at("read")
            if self.engine is not None:  # a scan was before this one
                memory.give_back(rings="picture" in job.outputs)
            scan = self._read(job, notes)
            places = {option: staged.path(path) for option, path in job.outputs.items() if option != "record"}

            def engine(network):
                course.time("start")
                return self._engine_for(network, notes)

            def resampled(gridded):
                if "resample" in places:
                    course.time("write")
                    images.save_image(places["resample"], gridded.data, gridded.affine, scan.header)

            def stage(name, share):
                if name == "labels":
                    memory.give_back()
                course.at(name, share)

            def segment():
                options = self._core_options(job)
                hooks = {"on_stage": stage, "on_grid": resampled}
                return core.segment(scan, self.model, engine, options, release="picture" not in places, **hooks)

            result = in_thread(segment)
            notes["output"] = result.facts
            course.at("write")
            made = self._write_maps(scan, result, job, staged, places, notes)
            if more := [option for option in OPTIONAL if option in places]:
                # What the network has found is kept, whatever happens to the rest.
                first = [path for option, path in job.outputs.items() if option not in more]
                staged.publish([*first, *job.sidecars.values()], [job.outputs[option] for option in more])
                course.at("picture")
                in_thread(self._write_more, scan, result, job, places)
                there = {option: job.outputs[option] for option in places if option not in more}
                self._write_sidecars(job, staged, there | {option: places[option] for option in more}, notes, made)
            return made

    def _core_options(self, job) -> core.Options:
        o = self.options
        return core.Options(
            fast=o.fast,
            robust=o.robust,
            parcellation=o.parcellation,
            scores=o.scores,
            parcel_volumes=o.parcel_volumes,
            posteriors="post" in job.outputs,
            ct=o.ct,
            crop=o.crop,
            autocrop=o.autocrop,
            own_grid=self._on_own_grid(job),
            interpolation=o.interpolation,
            threads=o.threads,
        )

    def _on_own_grid(self, job):
        return self.options.keepgeom or "native_grid" in job.outputs

    def _read(self, job, notes):
        """The scan, noted in the record, if this machine has the memory that the run takes: that is known before a
        voxel is read. Autocrop's size is not known yet, and never larger."""
        options = self.options
        how = options.engine, options.precision, options.device
        network = cards.segmenting(self.networks)

        def fits(extent):
            own_grid, post = self._on_own_grid(job), "post" in job.outputs
            size = memory.size_of(
                network, extent.shape, extent.voxel_mm, options.crop, own_grid, self.networks,
                bytes=extent.bytes, picture="picture" in job.outputs, post=post, loaded=self.engine is not None,
            )  # fmt: skip
            notes["predicted_peak_mib"] = memory.predict(size, *how)
            memory.check(job.image, size, *how, network)

        found = reading.read(job.image, options.accept, options.ct, fits, job.content)
        job.content.let_go()
        notes["input"] = found.description
        return found

    def _engine_for(self, network, notes):
        """The engine of a network, noted in the record."""
        first, *more = self.weights_sha256.values()
        notes["model"]["weights_sha256"] = first
        if more:
            notes["model"]["networks"] = self.weights_sha256
            taken = self.model.companions(self.networks)
            notes["model"]["companions"] = taken and taken.name
        built = self.engine
        if built is None:
            options, table = self.options, self.tables[network.name]
            built = self.module.build(
                table,
                layers.read_weights(self.weights_files[network.name], table),
                device=options.device,
                threads=options.threads,
                precision=options.precision,
            )
            self.engine = built if len(self.networks) == 1 else None
        notes["engine"].update(version=built.version, onednn=getattr(built, "onednn", None))
        notes.update(device=built.device, device_reason=built.device_reason)
        return built

    def _write_maps(self, scan, result, job, staged, places, notes):
        """Write label maps and volumes, and beside them what they are; returns what `run` returns."""
        model, labels, header = self.model, self.model.labels, scan.header
        table = model.parcels if result.parcels else None
        color_table = cards.with_parcels(labels, table) if self.options.addctab else None
        for option in self._own_grid_maps(places):
            images.save_labels(places[option], result.own.labels, scan.affine, header, color_table)
        if "o" not in self._own_grid_maps(places):
            images.save_labels(places["o"], result.labels, result.affine, header, color_table)
        found, at_edge = result.found, result.quality["labels_at_fov_edge"]
        rows = tables.volume_rows(labels, result.volumes, found.counts, result.voxel_mm, found.confidences, at_edge)
        if parcelled := result.parcels:
            at_edge = [int(value) for value in edge_voxels(parcelled.labels)]
            of = parcelled.counts, result.voxel_mm, parcelled.confidences, at_edge
            rows += tables.volume_rows(table, result.parcel_volumes, *of)
        made = {
            "csv": tables.csv_row(job.image.name, labels, result.volumes, result.parcel_volumes),
            "qc": None if result.scores is None else tables.scores_row(job.image.name, result.scores),
            "tsv": rows,
        }
        if "vol" in places:
            tables.save_csv(places["vol"], tables.csv_columns(labels, table), [made["csv"]], first_cell="")
        if "qc" in places:
            tables.save_csv(places["qc"], model.scores[1:], [made["qc"]], first_cell="")
        written = {option: path for option, path in places.items() if option not in OPTIONAL}
        self._write_sidecars(job, staged, written, notes, made)
        return made

    def _write_sidecars(self, job, staged, written, notes, made):
        """What the label maps are, and of "o" what made it. written : option -> where the result lies now"""
        note = jobs.note(job, command.wanted(self, job, notes["input"]["sha256"]), written, made, notes)
        for option, path in job.sidecars.items():
            extra = {jobs.NOTE: note} if option == "o" else {}
            which = "native" if option in self._own_grid_maps(written) else "network"
            save_json(staged.path(path), sidecar(notes, which) | extra)

    def _own_grid_maps(self, places):
        return [option for option in ("native_grid", "o" if self.options.keepgeom else None) if option in places]

    def _write_more(self, scan, result, job, places):
        """Write what else was asked for; the scan on the network's grid is written already. A picture comes last, when
        nothing large is needed any more."""
        result.own = None
        if "post" in places:
            images.save_image(places["post"], result.posteriors(), result.affine, scan.header, np.float32)
        if "margin" in places:
            images.save_margin(places["margin"], result.margin(), result.affine, scan.header)
        result.found = None
        if "picture" in places:
            grade = "" if self.model.research_grade else " (not for research)"
            robust = ", robust" if self.options.robust else ""
            title = f"{job.image.name} · {self.model.name}{robust}{grade}"
            drawn = core.draw(scan, result, self.model, title, reading.remarks(scan.description))
            places["picture"].write_bytes(drawn)
