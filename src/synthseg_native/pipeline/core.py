"""One scan, as numbers, through the networks to labels, volumes and what is odd about them.

`segment` runs the stages in their order; each is a plain function of this package, `scan` or `results.quality`. Which
networks run, and which of their posteriors count for what, `modes` says. `draw`
makes a picture of what it found, later, when that is written. Nothing here knows a path, a clock or a terminal, writes
anything, or keeps anything between two calls: several threads may segment at once, each with an engine of its own.
Reading before and writing after it: `pipeline.segment`.
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from synthseg_native.engines.capabilities import Engine
from synthseg_native.networks.cards import COMPANIONS, Model, Network, segmenting, with_parcels
from synthseg_native.pipeline import labels as labels_of
from synthseg_native.pipeline import modes
from synthseg_native.pipeline import parcels as parcels_of
from synthseg_native.pipeline import posteriors as posteriors_of
from synthseg_native.pipeline import scores as scores_of
from synthseg_native.results import figures as figures_of
from synthseg_native.results import picture, quality
from synthseg_native.results.hashes import labels_sha256
from synthseg_native.scan import grid, own_grid

STAGES = ("grid", "network", "labels", "own grid", "parcels", "scores", "measures", "quality")


@dataclass(frozen=True)
class Options:
    """How a scan is segmented.

    fast : neither average with the mirror image nor repair by topology · robust : by SynthSeg-robust's networks
    parcellation : parcels of the cortex · scores : SynthSeg's quality scores · ct : Hounsfield units
    crop : (3,) voxels in RAS order, or None · autocrop : leave out dark margins
    own_grid : also make a label map on the scan's own grid · interpolation : of that, "posterior" or "nearest"
    parcel_volumes : of `parcels.VOLUMES` · posteriors : whether `Result.posteriors` is asked for
    threads : of the processor
    """

    fast: bool = False
    robust: bool = False
    parcellation: bool = False
    scores: bool = False
    ct: bool = False
    crop: tuple[int, int, int] | None = None
    autocrop: bool = False
    own_grid: bool = False
    interpolation: str = "posterior"
    parcel_volumes: str = parcels_of.VOLUMES[0]
    posteriors: bool = True
    threads: int = 1

    @property
    def mode(self) -> str:
        """The name of the mode."""
        return modes.name_of(self.fast, self.robust)


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

    labels : (X, Y, Z) int32, with parcels in the place of the cortex where they were asked for
    affine : (4, 4) · voxel_mm : (3,), by which volumes are counted
    own : `own_grid.GridLabels` on the scan's own grid, where asked for
    volumes : (N,) soft volumes in mm3, background first · found : `labels.Segmentation`, of the (cropped) RAS image
    parcels, parcel_volumes : `parcels.Parcels`, and (M,) in mm3 · scores : (8,), between 0 and 1; where asked for
    quality : as `quality.assess` gives it · facts : ``output`` of a run record
    """

    labels: np.ndarray
    affine: np.ndarray
    voxel_mm: np.ndarray
    own: own_grid.GridLabels | None
    volumes: np.ndarray
    found: labels_of.Segmentation
    quality: dict
    facts: dict
    prepared: grid.Prepared
    parcels: parcels_of.Parcels | None = None
    parcel_volumes: np.ndarray | None = None
    scores: np.ndarray | None = None

    def posteriors(self) -> np.ndarray:
        """(X, Y, Z, N) float32, normalised; outside a crop all is background."""
        channels = self.found.posteriors.shape[3]
        return _on_scan(self.found.posteriors.whole(), self.prepared, np.eye(1, channels, dtype=np.float32)[0])

    def margin(self) -> np.ndarray:
        """(X, Y, Z) float32, best minus second-best posterior, at most `labels.MAX_MARGIN`."""
        return _on_scan((self.parcels or self.found).margin, self.prepared)


def segment(
    scan: Image,
    model: Model,
    engine: Engine | Callable[[Network], Engine],
    options: Options = Options(),
    *,
    on_stage: Callable[[str, float], None] = lambda stage, share: None,
    on_grid: Callable[[grid.Regridded], None] = lambda gridded: None,
    release: bool = False,
) -> Result:
    """Segment a scan.

    scan : an `Image`, also a `reading.Scan` · engine : built for `model.network.table()`, or a function that gives that
    of a network, which is called when the network's input is there
    on_stage : told a stage of STAGES and the share of it that is done, in [0, 1], when it begins and now and then
    on_grid : told the scan on the network's grid, which is let go afterwards
    release : let go of the scan's voxels, ``scan.data``, as soon as they are not needed any more

    Raises SynthSegError("internal") for posteriors that are no numbers, MemoryError, and what the functions raise.
    """
    networks = model.needed(options.robust, options.parcellation, options.scores)
    network, labels = segmenting(networks), model.labels
    threads = options.threads
    mode = modes.MODES[options.mode, options.parcellation, options.scores]

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

    run = _Networks(networks, engine, on_stage, threads)
    inputs = {"image": prepared.volume}
    for name in ("groups", "denoised") if options.robust else ():
        inputs[name] = run.likeliest(name, inputs)
    sigma = network.outputs.smoothing_sigma if options.mode != modes.ROBUST else 0.0
    with run.engine(network.name) as (built, progress):
        # What comes next reads these as well: taken before anything is dropped from the posteriors.
        smoothings = {kind: 0.0 if kind == mode.labels else sigma for kind in {mode.cortex, mode.scores} - {None}}
        posteriors, likeliest = posteriors_of.predict(
            built,
            {name: inputs[name] for name in network.inputs},
            labels.flip if mode.labels == modes.AVERAGED else None,
            network.outputs.threshold,
            0.0 if mode.labels == modes.RAW else sigma,
            sorted(set(smoothings.values())),
            progress,
            threads,
        )
    channels = {kind: likeliest[smoothing] for kind, smoothing in smoothings.items()}
    del likeliest
    inputs, prepared.volume = {"image": prepared.volume} if options.parcellation else {}, None

    on_stage("labels", 0.0)
    found = labels_of.finish(posteriors, prepared.box, labels, options.mode != modes.DEFAULT, threads)
    del posteriors

    own = None
    if options.own_grid and options.interpolation != "nearest":
        on_stage("own grid", 0.0)
        own = own_grid.labels_on_grid(
            _channels(found, prepared),
            labels.index,
            gridded.factor,
            shape,
            grid.crop_origin(prepared),
            threads,
        )
    if not options.posteriors:
        found.posteriors = None

    parcelled = None
    if options.parcellation:
        on_stage("parcels", 0.0)
        cortex = np.isin(labels.index, parcels_of.CORTEX)[channels[mode.cortex]]
        network = model.networks["parcellation"]
        near = _around(parcels_of.is_cortex(found.labels)) if own is not None else None
        with run.engine("parcellation") as (built, progress):
            slabs = posteriors_of.slabs_of(
                built,
                inputs | {"cortex": cortex.view(np.uint8)},
                network.outputs.smoothing_sigma if mode.parcels == modes.SMOOTHED else 0.0,
            )
            slabs = _told(slabs, progress, len(cortex))
            parcelled = parcels_of.parcellate(
                slabs, found.labels, found.margin, prepared.box, model.parcels.index, near, threads
            )
        del inputs, cortex, slabs
        if own is not None:
            _own_parcels(own, parcelled, model.parcels, gridded.factor, prepared, threads)
    judged = None
    if options.scores:
        on_stage("scores", 0.0)
        with run.engine("quality") as (built, _):
            judged = scores_of.predict(built, channels[mode.scores], labels, model.networks["quality"].grid.box)
    del channels
    label_map = _on_scan((parcelled or found).labels, prepared)
    if options.own_grid and own is None:
        on_stage("own grid", 0.0)
        own = own_grid.nearest_labels(label_map, gridded.factor, shape)

    on_stage("measures", 0.0)
    volumes = labels_of.volumes_mm3(found, gridded.voxel_mm)
    of_parcels = None
    if parcelled:
        of_parcels = parcels_of.volumes_mm3(parcelled, model.parcels, volumes, labels, options.parcel_volumes)

    on_stage("quality", 0.0)
    named = None if judged is None else dict(zip(model.scores[1:], judged.round(4).tolist(), strict=True))
    figures = figures_of.measure(labels, found.labels, found, gridded.voxel_mm, named)
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
        parcels=parcelled,
        parcel_volumes=of_parcels,
        scores=judged,
    )


def draw(scan: Image, result: Result, model: Model, title: str, remarks: Sequence[str] = ()) -> bytes:
    """A picture of what `segment` found of a scan, a PNG. remarks : what is odd about the scan, in sentences"""
    lines = picture.lines(result.quality, model.labels, result.volumes, remarks)
    table = with_parcels(model.labels, model.parcels if result.parcels else None)
    return picture.draw(scan.data, scan.affine, result.labels, result.affine, table, title=title, lines=lines)


def _on_scan(array, prepared, background=0):
    """An array on the image that the network saw (x, y, z, ...) as a view in the scan's axis order, uncropped."""
    return grid.from_ras(grid.uncrop(array, prepared, background), prepared.axes, prepared.flipped)


class _Networks:
    """The networks of a run, one after the other, and what share of the whole they are.

    engine : as `segment` takes it · on_stage : told the share of each that is done
    """

    def __init__(self, networks, engine, on_stage, threads):
        self._networks = {network.name: network for network in networks}
        self._engine, self._on_stage, self._threads = engine, on_stage, threads
        self._first = [network.name for network in networks if network.name not in COMPANIONS]

    @contextmanager
    def engine(self, name):
        """The engine of a network, and a function that is told the share of it that is done; its memory is given back
        afterwards."""
        built = self._engine(self._networks[name]) if callable(self._engine) else self._engine
        stage, before, parts = {"parcellation": "parcels", "quality": "scores"}.get(name, "network"), 0, 1
        if stage == "network":
            before, parts = self._first.index(name), len(self._first)
        self._on_stage(stage, before / parts)
        try:
            yield built, lambda share: self._on_stage(stage, (before + share) / parts)
        finally:
            built.release()

    def likeliest(self, name, inputs):
        """The likeliest channel of what a network gives; see `posteriors.likeliest_of`."""
        with self.engine(name) as (built, progress):
            given = {read: inputs[read] for read in self._networks[name].inputs}
            return posteriors_of.likeliest_of(built, given, progress, self._threads)


def _channels(found, prepared):
    """The posteriors of a segmentation in the scan's axis order, for its own grid."""
    there = [None] * 3
    for axis, flip, along in zip(prepared.axes, prepared.flipped, found.posteriors.there(), strict=True):
        there[axis] = along[:, ::-1] if flip else along

    def channel(k):
        return grid.from_ras(found.posteriors.channel(k), prepared.axes, prepared.flipped)

    return own_grid.Channels(channel, there, found.counts)


def _told(slabs, progress, planes):
    for start, slab in slabs:
        yield start, slab
        progress((start + len(slab)) / planes)


def _around(mask):
    """The box around a mask (x, y, z), two voxels larger where the image goes on; of no mask one voxel."""
    box = labels_of.extent(mask)
    return tuple(
        slice(max(part.start - 2, 0), min(max(part.stop, 1) + 2, n)) for part, n in zip(box, mask.shape, strict=True)
    )


def _own_parcels(own, parcelled, table, factor, prepared, threads):
    """Put parcels in the place of the cortex on the scan's own grid, from their posteriors there."""
    (near, box), parcelled.near = parcelled.near, None
    crop = [slice(*part.indices(n)) for part, n in zip(prepared.crop, prepared.shape, strict=True)]
    crop = tuple(slice(c.start + b.start, c.start + b.stop) for c, b in zip(crop, box, strict=True))
    own_grid.parcels_on_grid(
        own,
        parcels_of.is_cortex(own.labels),
        grid.from_ras(near, prepared.axes, prepared.flipped),
        table.index,
        np.nonzero(parcelled.counts)[0],
        factor,
        grid.crop_origin(replace(prepared, crop=crop)),
        threads,
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
