"""One scan through the whole pipeline: read, regrid, network, labels, results."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from synthseg_native import engines, jobs, memory
from synthseg_native.identity import command
from synthseg_native.networks import cards, layers, weights
from synthseg_native.pipeline import posteriors as posteriors_of
from synthseg_native.results import figures, outputs, quality
from synthseg_native.scan import grid, own_grid, reading

INTERPOLATIONS = ("posterior", "nearest")


@dataclass(frozen=True)
class Options:
    """How scans are segmented; see the command's help. crop : (3,) voxels in RAS order, or None."""

    engine: str = "tensorflow"
    device: str = "cpu"
    precision: str = "float32"
    threads: int = 1
    fast: bool = False
    ct: bool = False
    crop: tuple | None = None
    autocrop: bool = False
    keepgeom: bool = False
    interpolation: str = "posterior"
    addctab: bool = False
    accept: tuple = ()


@dataclass
class _Run:
    """One scan on its way. shape : (3,) of the scan · own : the label map on the scan's own grid, where asked for"""

    found: reading.Scan
    shape: tuple
    gridded: grid.Regridded
    prepared: grid.Prepared
    result: posteriors_of.Segmentation | None = None
    label_map: np.ndarray | None = None
    figures: dict | None = None
    own: own_grid.GridLabels | None = None

    def to_input(self, array, background=0):
        """An array on the image that the network saw (x, y, z, ...) as a view in the scan's axis order, uncropped."""
        whole = grid.uncrop(array, self.prepared, background)
        return grid.from_ras(whole, self.prepared.axes, self.prepared.flipped)


class Segmenter:
    """A model and the way to run it, for many scans.

    The network is built at the first scan, and again only for a scan of another padded shape.
    """

    def __init__(self, name, options, weights_file=None):
        """name : of a model or its folder. Raises SynthSegError for a model, engine or precision that is not there."""
        self.options = options
        self.module = engines.load(options.engine, options.precision)
        self.model = cards.load(name)
        self._named = weights_file
        if weights_file:
            self.weights_file  # noqa: B018 (a wrong name is wrong use, before anything is run)
        self.table = layers.table_of(self.model)
        self.engine, self.shape = None, None

    @cached_property
    def weights_file(self):
        """Looked for, and maybe fetched, when a scan is found to be worth it."""
        return weights.resolve(self.model.card, self.model.folder, weights=self._named)

    @cached_property
    def weights_sha256(self):
        return reading.sha256_of(self.weights_file)

    def describe(self, notes):
        """What the run record says before a scan is looked at."""
        notes.update(
            mode="fast" if self.options.fast else "default",
            precision=self.options.precision,
            threads=self.options.threads,
        )
        notes["engine"]["name"] = self.options.engine
        notes["model"].update(name=self.model.name, research_grade=self.model.research_grade)

    def run(self, job, staged, notes, clock, progress, in_thread=lambda call, *arguments: call(*arguments)):
        """Segment the scan of a `jobs.Job`; write its results through `outputs.Staged`, fill the run record.

        progress(phase, share done) is told now and then; in_thread(call, *arguments) makes the one long call. Returns
        {"csv": row, "tsv": rows} for the tables. Raises SynthSegError, MemoryError, OSError.
        """
        options, labels = self.options, self.model.labels
        with clock("read"):
            progress("read", 0.0)
            run = self._read(job, notes)
        places = {option: staged.path(path) for option, path in job.outputs.items() if option != "record"}
        with clock("write"):
            if "resample" in places:
                outputs.save_image(places["resample"], run.gridded.data, run.gridded.affine, run.found.header)
        run.gridded.data = None  # nothing large is kept that is not needed again
        if "picture" not in places:
            run.found.data = None

        with clock("start"):
            progress("start", 0.05)
            notes["model"]["weights_sha256"] = self.weights_sha256
            engine = self._engine_for(run.prepared.volume.shape)
            notes["engine"]["version"] = engine.version
            notes.update(device=engine.device, device_reason=engine.device_reason)
        with clock("network"):
            progress("network", 0.08)
            flip = None if options.fast else labels.flip
            passed = lambda share: progress("network", 0.08 + 0.72 * share)  # noqa: E731
            posteriors = in_thread(posteriors_of.predict, engine, run.prepared.volume, flip, passed, options.threads)
            run.prepared.volume = None
        with clock("postprocess"):
            progress("labels", 0.8)
            run.result = posteriors_of.finish(
                posteriors, run.prepared.box, labels, self.model.threshold, options.fast, options.threads
            )
            del posteriors
            run.label_map = run.to_input(run.result.labels)
            run.figures = figures.measure(labels, run.result.labels, run.result, run.gridded.voxel_mm)
            if options.keepgeom or "native_grid" in places:
                progress("input grid", 0.88)
                run.own = self._own_grid(run)
            notes["output"] = self._output(run)
        with clock("write"):
            progress("write", 0.92)
            return self._write(run, job, staged, places, notes, progress)

    def _read(self, job, notes):
        options = self.options
        found = reading.read(job.image, options.accept)
        notes["input"] = found.description
        size = memory.size_of(
            self.model.card,
            found.data.shape,
            found.voxel_mm,
            options.crop,
            options.keepgeom or "native_grid" in job.outputs,
        )
        # Before anything large is made; autocrop's size is not known yet, and never larger.
        how = options.engine, options.precision, options.device
        notes["predicted_peak_mib"] = memory.predict(size, *how)
        memory.check(job.image, size, *how, self.model.card)
        gridded = grid.regrid(found, self.model.resolution, options.threads)
        prepared = grid.prepare(
            gridded.data,
            gridded.affine,
            pad_multiple=self.model.pad_multiple,
            min_size=self.model.min_size,
            ct=options.ct,
            crop=options.crop,
            autocrop=options.autocrop,
        )
        return _Run(found, found.data.shape, gridded, prepared)

    def _own_grid(self, run):
        """The label map on the scan's own grid, a `own_grid.GridLabels`."""
        if self.options.interpolation == "nearest":
            return own_grid.nearest_labels(run.label_map, run.gridded.factor, run.shape)
        return own_grid.labels_on_grid(
            grid.from_ras(run.result.posteriors, run.prepared.axes, run.prepared.flipped),
            self.model.labels.index,
            run.gridded.factor,
            run.shape,
            grid.crop_origin(run.prepared),
            self.options.threads,
        )

    def _output(self, run) -> dict:
        """What the run record says of the results."""
        confidence, own = run.result.confidence, None
        if run.own:
            own = {
                "labels_sha256": outputs.labels_sha256(run.own.labels),
                "shape": list(run.own.labels.shape),
                "voxel_mm": run.found.description["voxel_mm"],
                "interpolation": self.options.interpolation,
                "labels_missing": run.own.missing,
                "labels_rescued": run.own.rescued,
            }
        return {
            "labels_sha256": outputs.labels_sha256(run.label_map),
            "shape": list(run.label_map.shape),
            "voxel_mm": [round(float(v), 6) for v in run.gridded.voxel_mm],
            "mean_confidence": None if confidence != confidence else round(confidence, 6),
            "qc": run.figures,
            "native_grid": own,
        }

    def _write(self, run, job, staged, places, notes, progress):
        """Write what was asked for, and beside it what it is; returns what `run` returns."""
        labels, result, header, affine = self.model.labels, run.result, run.found.header, run.gridded.affine
        color_table = labels if self.options.addctab else None
        on_own_grid = [option for option in ("native_grid", "o" if self.options.keepgeom else None) if option in places]
        for option in on_own_grid:
            outputs.save_labels(places[option], run.own.labels, run.found.affine, header, color_table)
        if "o" not in on_own_grid:
            outputs.save_labels(places["o"], run.label_map, affine, header, color_table)
        if "post" in places:
            background = np.eye(1, len(labels), dtype=np.float32)[0]  # outside a crop all is background
            posteriors = run.to_input(result.posteriors, background)
            outputs.save_image(places["post"], posteriors, affine, header, np.float32)
        if "margin" in places:
            outputs.save_margin(places["margin"], run.to_input(result.margin), affine, header)
        volumes = outputs.soft_volumes(result, run.gridded.voxel_mm)
        at_edge = [int(value) for value in run.figures["edge_voxels"]]
        rows = outputs.volume_rows(labels, volumes, result.counts, run.gridded.voxel_mm, result.confidences, at_edge)
        tables = {"csv": outputs.csv_row(job.image.name, labels, volumes), "tsv": rows}
        if "vol" in places:
            outputs.save_volumes_csv(places["vol"], labels, [tables["csv"]], first_cell="")
        if "picture" in places:
            progress("picture", 0.96)
            self._draw(run, job, places["picture"], volumes)
        note = jobs.note(job, command.wanted(self, job, notes["input"]["sha256"]), places, tables)
        for option, path in job.sidecars.items():
            extra = {jobs.NOTE: note} if option == "o" else {}
            which = "native" if option in on_own_grid else "network"
            outputs.save_json(staged.path(path), outputs.sidecar(notes, which) | extra)
        return tables

    def _draw(self, run, job, place, volumes):
        from synthseg_native.results import picture

        labels, grade = self.model.labels, "" if self.model.research_grade else " (not for research)"
        picture.draw(
            place,
            run.found.data,
            run.found.affine,
            run.label_map,
            run.gridded.affine,
            labels,
            title=f"{job.image.name} · {self.model.name}{grade}",
            lines=picture.lines(quality.assess(run.figures, labels), labels, volumes),
        )

    def _engine_for(self, shape):
        """The engine, ready for padded volumes of this shape."""
        last, self.shape = self.shape, None  # none, where this fails
        if self.engine is None:
            self.engine = self.module.build(
                self.table,
                layers.read_weights(self.weights_file, self.table),
                shape,
                device=self.options.device,
                threads=self.options.threads,
                precision=self.options.precision,
            )
        elif shape != last:
            self.engine.reshape(shape)
        self.shape = shape
        return self.engine
