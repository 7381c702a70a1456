"""One scan, as numbers, through the network to labels, volumes and what is odd about them.

`segment` runs the stages in their order; each is a plain function of this package, `scan` or `results.quality`. `draw`
makes a picture of what it found, later, when that is written. Nothing here knows a path, a clock or a terminal, writes
anything, or keeps anything between two calls: several threads may segment at once, each with an engine of its own.
Reading before and writing after it: `pipeline.segment`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from synthseg_native.engines.capabilities import Engine
from synthseg_native.networks.cards import Model
from synthseg_native.pipeline import posteriors as posteriors_of
from synthseg_native.results import figures as figures_of
from synthseg_native.results import picture, quality
from synthseg_native.results.hashes import labels_sha256
from synthseg_native.scan import grid, own_grid

STAGES = ("grid", "network", "labels", "own grid", "measures", "quality")


@dataclass(frozen=True)
class Options:
    """How a scan is segmented.

    fast : neither average with the mirror image nor repair by topology · ct : Hounsfield units
    crop : (3,) voxels in RAS order, or None · autocrop : leave out dark margins
    own_grid : also make a label map on the scan's own grid · interpolation : of that, "posterior" or "nearest"
    threads : of the processor
    """

    fast: bool = False
    ct: bool = False
    crop: tuple[int, int, int] | None = None
    autocrop: bool = False
    own_grid: bool = False
    interpolation: str = "posterior"
    threads: int = 1


@dataclass
class Image:
    """What is read of a scan: a `reading.Scan` is one too.

    data : (X, Y, Z), float64 or a type of which that has every value · affine : (4, 4), voxel indices to mm, RAS+
    voxel_mm : (3,)
    """

    data: np.ndarray
    affine: np.ndarray
    voxel_mm: np.ndarray


def image_of(array: ArrayLike, affine: ArrayLike) -> Image:
    """An image from its voxels (X, Y, Z) and its affine (4, 4).

    >>> image_of(np.zeros((11, 12, 13), np.int16), np.diag([1, 1, 3, 1])).voxel_mm.tolist()
    [1.0, 1.0, 3.0]
    """
    affine = np.asarray(affine, dtype=np.float64)
    return Image(np.asarray(array, dtype=np.float64), affine, grid.voxel_sizes(affine))


@dataclass
class Result:
    """What is known of a scan afterwards. Arrays are in its axis order, on the network's voxel size, uncropped.

    labels : (X, Y, Z) int32 · affine : (4, 4) · voxel_mm : (3,), by which volumes are counted
    own : `own_grid.GridLabels` on the scan's own grid, where asked for
    volumes : (N,) soft volumes in mm3, background first · found : `posteriors.Segmentation`, of the (cropped) RAS image
    quality : as `quality.assess` gives it · facts : ``output`` of a run record
    """

    labels: np.ndarray
    affine: np.ndarray
    voxel_mm: np.ndarray
    own: own_grid.GridLabels | None
    volumes: np.ndarray
    found: posteriors_of.Segmentation
    quality: dict
    facts: dict
    prepared: grid.Prepared

    def posteriors(self) -> np.ndarray:
        """(X, Y, Z, N) float32, normalised; outside a crop all is background."""
        channels = self.found.posteriors.shape[3]
        return _on_scan(self.found.posteriors, self.prepared, np.eye(1, channels, dtype=np.float32)[0])

    def margin(self) -> np.ndarray:
        """(X, Y, Z) float32, best minus second-best posterior, at most `posteriors.MAX_MARGIN`."""
        return _on_scan(self.found.margin, self.prepared)


def segment(
    scan: Image,
    model: Model,
    engine: Engine | Callable[[], Engine],
    options: Options = Options(),
    *,
    on_stage: Callable[[str, float], None] = lambda stage, share: None,
    on_grid: Callable[[grid.Regridded], None] = lambda gridded: None,
    release: bool = False,
) -> Result:
    """Segment a scan.

    scan : an `Image`, also a `reading.Scan` · engine : built for `model.network.table()`, or a function that gives it,
    which is called when the network's input is there
    on_stage : told a stage of STAGES and the share of it that is done, in [0, 1], when it begins and now and then
    on_grid : told the scan on the network's grid, which is let go afterwards
    release : let go of the scan's voxels, ``scan.data``, as soon as they are not needed any more

    Raises SynthSegError("internal") for posteriors that are no numbers, MemoryError, and what the functions raise.
    """
    network, labels, threads = model.network, model.labels, options.threads

    on_stage("grid", 0.0)
    gridded = grid.regrid(scan, network.grid.resolution_mm, threads)
    prepared = grid.prepare(
        gridded.data,
        gridded.affine,
        pad_multiple=network.grid.pad_multiple,
        min_size=network.grid.min_size,
        ct=options.ct,
        crop=options.crop,
        autocrop=options.autocrop,
    )
    shape = scan.data.shape
    on_grid(gridded)
    gridded.data = None  # nothing large is kept that is not needed again
    if release:
        scan.data = None

    engine = engine() if callable(engine) else engine
    on_stage("network", 0.0)
    posteriors = posteriors_of.predict(
        engine,
        prepared.volume,
        None if options.fast else labels.flip,
        network.outputs.smoothing_sigma,
        lambda share: on_stage("network", share),
        threads,
    )
    prepared.volume = None

    on_stage("labels", 0.0)
    found = posteriors_of.finish(posteriors, prepared.box, labels, network.outputs.threshold, options.fast, threads)
    del posteriors
    label_map = _on_scan(found.labels, prepared)

    own = None
    if options.own_grid:
        on_stage("own grid", 0.0)
        own = _own_grid(found, label_map, labels, gridded.factor, shape, prepared, options)

    on_stage("measures", 0.0)
    volumes = posteriors_of.volumes_mm3(found, gridded.voxel_mm)

    on_stage("quality", 0.0)
    figures = figures_of.measure(labels, found.labels, found, gridded.voxel_mm)
    assessed = quality.assess(figures, labels)

    return Result(
        labels=label_map,
        affine=gridded.affine,
        voxel_mm=gridded.voxel_mm,
        own=own,
        volumes=volumes,
        found=found,
        quality=assessed,
        facts=_facts(label_map, gridded.voxel_mm, found, figures, own, scan.voxel_mm, options),
        prepared=prepared,
    )


def draw(scan: Image, result: Result, model: Model, title: str, remarks: Sequence[str] = ()) -> bytes:
    """A picture of what `segment` found of a scan, a PNG. remarks : what is odd about the scan, in sentences"""
    lines = picture.lines(result.quality, model.labels, result.volumes, remarks)
    return picture.draw(scan.data, scan.affine, result.labels, result.affine, model.labels, title=title, lines=lines)


def _on_scan(array, prepared, background=0):
    """An array on the image that the network saw (x, y, z, ...) as a view in the scan's axis order, uncropped."""
    return grid.from_ras(grid.uncrop(array, prepared, background), prepared.axes, prepared.flipped)


def _own_grid(found, label_map, labels, factor, shape, prepared, options):
    """The label map on the scan's own grid of a shape (3,)."""
    if options.interpolation == "nearest":
        return own_grid.nearest_labels(label_map, factor, shape)
    return own_grid.labels_on_grid(
        grid.from_ras(found.posteriors, prepared.axes, prepared.flipped),
        labels.index,
        factor,
        shape,
        grid.crop_origin(prepared),
        options.threads,
    )


def _facts(label_map, voxel_mm, found, figures, own, own_voxel_mm, options) -> dict:
    """What the run record says of the results, as JSON can hold it."""

    def about(labels, sizes):
        sizes = [round(float(size), 6) for size in sizes]
        return {"labels_sha256": labels_sha256(labels), "shape": list(labels.shape), "voxel_mm": sizes}

    of_own = own and {
        **about(own.labels, own_voxel_mm),
        "interpolation": options.interpolation,
        "labels_missing": own.missing,
        "labels_rescued": own.rescued,
    }
    return {
        **about(label_map, voxel_mm),
        "mean_confidence": None if np.isnan(found.confidence) else round(found.confidence, 6),
        "qc": figures,
        "native_grid": of_own,
    }
