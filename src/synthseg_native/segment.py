"""One scan through the whole pipeline: read, regrid, network, labels, results."""

from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np

from . import __version__, engines, image, jobs, model, native_grid, network, outputs, posterior, quality, scan, weights

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


class Segmenter:
    """A model and the way to run it, for many scans.

    The network is built at the first scan, and again only for a scan of another padded shape.
    """

    def __init__(self, name, options, weights_file=None):
        """name : of a model or its folder. Raises SynthSegError for a model or engine that is not there."""
        self.options = options
        self.module = engines.load(options.engine)
        self.model = model.load(name)
        self._named = weights_file
        if weights_file:
            self.weights_file  # noqa: B018 (a wrong name is wrong use, before anything is run)
        self.table = network.table_of(self.model)
        self.engine, self.shape = None, None

    @cached_property
    def weights_file(self):
        """Looked for, and maybe fetched, when a scan is found to be worth it."""
        return weights.resolve(self.model.card, self.model.folder, weights=self._named)

    @cached_property
    def weights_sha256(self):
        return scan.sha256_of(self.weights_file)

    def settings(self, job) -> dict:
        """All that decides about a job's results beside the scan, as JSON can hold it. Threads are left out: more of
        them may change the last bit of a posterior, which is no reason to do a finished scan again."""
        options = asdict(self.options)
        del options["threads"]
        maps = [path for option, path in job.outputs.items() if option in job.sidecars]
        options["addctab"] = options["addctab"] and any(outputs.image_extension(p).startswith(".mg") for p in maps)
        if not (self.options.keepgeom or "native_grid" in job.outputs):
            options["interpolation"] = None
        return {
            **{name: list(value) if isinstance(value, tuple) else value for name, value in options.items()},
            "model": {name: self.model.card[name] for name in ("name", "network", "input", "posterior")},
            "labels": scan.sha256_of(self.model.folder / "labels.tsv"),
            "weights": self.weights_sha256,
            "version": __version__,
        }

    def describe(self, notes):
        """What the run record says before a scan is looked at."""
        notes.update(
            mode="fast" if self.options.fast else "default",
            precision=self.options.precision,
            threads=self.options.threads,
        )
        notes["engine"]["name"] = self.options.engine
        notes["model"].update(name=self.model.name, research_grade=self.model.research_grade)

    def run(self, job, staged, notes, clock, progress, wait_for=lambda call, *arguments: call(*arguments)):
        """Segment the scan of a `jobs.Job`; write its results through `outputs.Staged`, fill the run record.

        progress(phase, share done) is told now and then; wait_for(call, *arguments) makes the one long call. Returns
        {"csv": row, "tsv": rows} for the tables. Raises SynthSegError, MemoryError, OSError.
        """
        options, labels = self.options, self.model.labels
        with clock("read"):
            progress("read", 0.0)
            found = scan.read(job.image, options.accept)
            notes["input"] = found.description
            gridded = image.regrid(found, self.model.resolution, options.threads)
            prepared = image.prepare(
                gridded.data,
                gridded.affine,
                pad_multiple=self.model.pad_multiple,
                min_size=self.model.min_size,
                ct=options.ct,
                crop=options.crop,
                autocrop=options.autocrop,
            )
        places = {option: staged.path(path) for option, path in job.outputs.items() if option != "record"}
        with clock("write"):
            if "resample" in places:
                outputs.save_image(places["resample"], gridded.data, gridded.affine, found.header)
        affine, voxel_mm, factor = gridded.affine, gridded.voxel_mm, gridded.factor
        data = found.data if "picture" in places else None
        header, input_affine, input_shape = found.header, found.affine, found.data.shape
        del found, gridded

        with clock("start"):
            progress("start", 0.05)
            notes["model"]["weights_sha256"] = self.weights_sha256
            engine = self._engine_for(prepared.volume.shape)
            notes["engine"]["version"] = engine.version
            notes.update(device=engine.device, device_reason=engine.device_reason)
        with clock("network"):
            progress("network", 0.08)
            flip = None if options.fast else labels.flip
            passed = lambda share: progress("network", 0.08 + 0.72 * share)  # noqa: E731
            posteriors = wait_for(posterior.predict, engine, prepared.volume, flip, passed, options.threads)
            prepared.volume = None
        with clock("postprocess"):
            progress("labels", 0.8)
            result = posterior.finish(
                posteriors, prepared.box, labels, self.model.threshold, options.fast, options.threads
            )
            del posteriors
            qc = quality.assess(labels, result.labels, result, voxel_mm)

            def to_input(array, background=0):
                whole = image.uncrop(array, prepared, background)
                return image.from_ras(whole, prepared.axes, prepared.flipped)

            label_map = to_input(result.labels)
            notes["output"] = {
                "labels_sha256": outputs.labels_sha256(label_map),
                "shape": list(label_map.shape),
                "voxel_mm": [round(float(v), 6) for v in voxel_mm],
                "mean_confidence": None if result.confidence != result.confidence else round(result.confidence, 6),
                "qc": qc,
                "native_grid": None,
            }
            own_map = None
            if options.keepgeom or "native_grid" in places:
                progress("input grid", 0.88)
                if options.interpolation == "nearest":
                    own = native_grid.nearest_labels(label_map, factor, input_shape)
                else:
                    own = native_grid.labels_on_grid(
                        image.from_ras(result.posteriors, prepared.axes, prepared.flipped),
                        labels.index,
                        factor,
                        input_shape,
                        image.crop_origin(prepared),
                        options.threads,
                    )
                own_map = own.labels
                notes["output"]["native_grid"] = {
                    "labels_sha256": outputs.labels_sha256(own_map),
                    "shape": list(own_map.shape),
                    "voxel_mm": notes["input"]["voxel_mm"],
                    "interpolation": options.interpolation,
                    "labels_missing": own.missing,
                    "labels_rescued": own.rescued,
                }

        with clock("write"):
            progress("write", 0.92)
            color_table = labels if options.addctab else None
            if options.keepgeom:
                outputs.save_labels(places["o"], own_map, input_affine, header, color_table)
            else:
                outputs.save_labels(places["o"], label_map, affine, header, color_table)
            if "native_grid" in places:
                outputs.save_labels(places["native_grid"], own_map, input_affine, header, color_table)
            if "post" in places:
                background = np.eye(1, len(labels), dtype=np.float32)[0]  # outside a crop all is background
                outputs.save_image(places["post"], to_input(result.posteriors, background), affine, header, np.float32)
            if "margin" in places:
                outputs.save_margin(places["margin"], to_input(result.margin), affine, header)
            volumes = outputs.soft_volumes(result, voxel_mm)
            found_volumes = {
                "csv": outputs.csv_row(job.image.name, labels, volumes),
                "tsv": outputs.volume_rows(
                    labels, volumes, result.counts, voxel_mm, result.confidences, qc["labels_at_fov_edge"]
                ),
            }
            if "vol" in places:
                outputs.save_volumes_csv(places["vol"], labels, [found_volumes["csv"]], first_cell="")
            if "picture" in places:
                progress("picture", 0.96)
                from . import picture

                lines = picture.lines(qc, labels, volumes)
                grade = "" if self.model.research_grade else " (not for research)"
                title = f"{job.image.name} · {self.model.name}{grade}"
                picture.draw(places["picture"], data, input_affine, label_map, affine, labels, title=title, lines=lines)
            note = jobs.note(job, self.settings(job), notes["input"]["sha256"], places, found_volumes)
            for option, path in job.sidecars.items():
                grid = "native" if option == "native_grid" or options.keepgeom else "network"
                extra = {jobs.NOTE: note} if option == "o" else {}
                outputs.save_json(staged.path(path), outputs.sidecar(notes, grid) | extra)
        return found_volumes

    def _engine_for(self, shape):
        if shape != self.shape:
            self.engine, self.shape = None, None  # its memory goes before the next one takes its own
            self.engine = self.module.build(
                self.table,
                network.read_weights(self.weights_file, self.table),
                shape,
                device=self.options.device,
                threads=self.options.threads,
                precision=self.options.precision,
            )
            self.shape = shape
        return self.engine
