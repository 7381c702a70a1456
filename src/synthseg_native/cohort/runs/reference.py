"""A run of the reference: with an interpreter of this machine, or in a container."""

import csv
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from synthseg_native import memory
from synthseg_native.cohort import containers
from synthseg_native.cohort.runs import child
from synthseg_native.cohort.runs.existing import take_existing
from synthseg_native.cohort.runs.failures import attempt, failure
from synthseg_native.cohort.runs.files import LOG, REFERENCE, REFERENCE_FILES, SCORES, need_image, need_outputs
from synthseg_native.errors import SynthSegError
from synthseg_native.files import sha256_of
from synthseg_native.identity import keys
from synthseg_native.networks import cards
from synthseg_native.pipeline import modes
from synthseg_native.results import tables
from synthseg_native.results.hashes import labels_sha256
from synthseg_native.results.sidecar import save_json, sidecar
from synthseg_native.scan import reading

CONTAINER_GRACE_S = 300  # the wrapper inside keeps the time; this is for a runtime that no longer answers
# Exit statuses of the runtimes themselves: docker's and podman's, Apptainer's.
RUNTIME_FAILED = (125, 126, 127, 255)


def run_reference(
    scan: str,
    image: Path,
    settings: dict,
    python: Path | str,
    model_dir: Path,
    weights: Path,
    work: Path,
    timeout: float | None = None,
    memory_mb: int | None = None,
) -> dict:
    """Run the reference on one image, or take the label map that the user has; return the run record.

    settings: dict with kind (own, upstream, existing), runtime (local, docker, podman, apptainer), image and platform
    (upstream), key (own: of its image), pattern (existing), threads, what keys.flags takes, accept (header faults to
    take). python: interpreter for runtime local. work: folder that is emptied and gets REFERENCE_FILES. timeout:
    seconds; memory_mb: limit of a container, None for what the prediction or the card says, whichever is more.
    Failures are in the record (status "failed"), not raised.
    """
    image, work = Path(image), Path(work)
    record = child.new_record("reference", scan, settings)
    kind, runtime = settings["kind"], settings["runtime"]
    record.update(device="cpu", device_reason="the reference runs on the CPU")
    record["reference"] = {"kind": kind, "runtime": runtime, "id": None, "emulated": False}

    def run() -> None:
        need_image(image)
        card = cards.load(model_dir)
        parcels = bool(settings.get("parcels"))
        networks = card.needed(settings.get("mode") == modes.ROBUST, parcels, bool(settings.get("scores")))
        # The engine's own check: the same line for the same fault.

        def fits(extent: reading.Extent) -> None:
            if kind == "existing":
                return
            shape, voxel_mm, crop = extent.shape, extent.voxel_mm, settings.get("crop")
            network = cards.segmenting(networks)
            size = memory.size_of(network, shape, voxel_mm, crop, False, networks, bytes=extent.bytes)
            record["predicted_peak_mib"] = memory.predict(size, memory.REFERENCE)
            memory.check(image, size, memory.REFERENCE, network=network)

        accept, ct = settings.get("accept", ()), settings.get("ct", False)
        record["input"] = reading.read(image, accept, ct, fits).description
        if kind == "existing":
            take_existing(record, settings, scan, work)
        else:
            record["model"].update(name=card.name, research_grade=card.research_grade)
            limit_mb = memory_mb or max(card.memory_mb, memory.declared_mb(record["predicted_peak_mib"]))
            if kind == "own":
                _note_weights(record, card, networks, Path(weights))
            job = containers.Job(
                settings, image, Path(model_dir), Path(weights), work, card.name, timeout, limit_mb,
                companions=card.companions(networks),
            )  # fmt: skip
            if runtime == "local":
                _run_local(record, job, python)
            else:
                _run_container(record, job)
        _finish(record, cards.with_parcels(card.labels, card.parcels if parcels else None), card.scores, work)

    def run_unchanged() -> None:
        with reading.unchanged(image):  # what runs reads the image by itself
            run()

    return attempt(record, work, run_unchanged, scan)


def _run_local(record: dict, job: containers.Job, python: Path | str) -> None:
    """Run reference.py with an interpreter that has TensorFlow."""
    if job.settings["kind"] != "own":
        raise SynthSegError(
            "usage", f"reference.kind {job.settings['kind']}: runs in a container: set reference.runtime"
        )
    command = [python, REFERENCE, "--i", job.scan, "--o", job.work / "dseg.nii.gz", "--vol", job.work / "volumes.csv"]
    command += ["--model", job.model_dir, "--weights", job.weights, "--threads", job.settings["threads"]]
    command += keys.flags(job.settings)
    command += ["--qc", job.work / SCORES] if job.settings.get("scores") else []
    command += ["--companions", job.companions] if job.companions else []
    status, measured = child.measured(record, command, job.work, job.settings["threads"], job.timeout)
    if status != 0:
        raise failure(status, measured, child.log_of(job.work), job.scan, job.timeout)
    code = "from importlib.metadata import version; print('tensorflow ' + version('tensorflow'))"
    told = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=False)
    record["engine"]["version"] = told.stdout.strip() or None
    record["engine"]["onednn"] = sys.platform == "linux" or None  # as reference.py asks; a Mac's TensorFlow has none


def _run_container(record: dict, job: containers.Job) -> None:
    """Run the reference in a container; the container is gone when this ends, however it ends."""
    name = job.settings["runtime"]
    engine = containers.runtime(name)
    containers.need_own(job.settings)
    image, platform = containers.image_of(job.settings), containers.platform_of(job.settings)
    command = containers.command(job, engine)
    identity, architecture = containers.inspect(name, image, job.settings["kind"], platform)
    emulated = architecture not in (None, engine.architecture)
    record["reference"].update(id=identity, emulated=emulated)
    inside = {"amd64": "x86_64", "arm64": "aarch64"}.get(architecture, architecture)
    record["machine"].update(system="Linux", arch=inside or record["machine"]["arch"], emulated=emulated)
    record["command"] = command
    record["engine"]["version"] = containers.version_of(job.settings)
    record["engine"]["onednn"] = job.settings["kind"] == "own" or None  # upstream's is as its users run it
    limit = None if job.timeout is None else job.timeout + CONTAINER_GRACE_S
    try:
        # In the work folder, because podman leaves a file "oom" where it was called.
        status = child.call(command, job.work / LOG, limit=limit, on_stop=lambda: containers.stop(job), folder=job.work)
    except subprocess.TimeoutExpired:
        raise SynthSegError("daemon", f"{name}: does not answer any more: restart it and call again") from None
    measured, log = child.take_measurement(record, job.work), child.log_of(job.work)
    if status == 0:
        return
    containers.stop(job)
    if not measured and (status in RUNTIME_FAILED or containers.DIED.search(log)):
        raise containers.problem(name, log)
    log = log.replace(f"/in/image{''.join(job.scan.suffixes[-2:])}", str(job.scan))
    raise failure(status, measured, log, job.scan, job.timeout)


def _note_weights(record: dict, card: cards.Model, networks: Sequence[cards.Network], weights: Path) -> None:
    """The hashes of the files that are read, as the engine notes them. weights : a file, or a folder of several"""
    places = {network.name: weights / network.weights.file if weights.is_dir() else weights for network in networks}
    digests = {place: sha256_of(place) for place in set(places.values())}
    record["model"]["weights_sha256"] = digests[places[networks[0].name]]
    if len(networks) > 1:
        record["model"]["networks"] = {name: digests[place] for name, place in places.items()}
        taken = card.companions(networks)
        record["model"]["companions"] = taken and taken.name


def _finish(record: dict, labels: cards.Labels, scores: Sequence[str], work: Path) -> None:
    """volumes.tsv as the engine writes it, from the CSV (soft volumes) and the label map (voxels); sidecar; record.

    scores : names of the quality network's channels, whose numbers the record gets where there are any
    """
    path = work / REFERENCE_FILES["dseg"]
    need_outputs(work, [path.name])
    image = nib.load(path)
    values = np.asarray(image.dataobj).astype(np.int32)
    voxel_mm = image.header.get_zooms()[:3]
    record["output"] = {
        "labels_sha256": labels_sha256(values),
        "shape": list(values.shape),
        "voxel_mm": [round(float(size), 6) for size in voxel_mm],
    }
    if (work / SCORES).is_file():
        found = read_volumes_csv(work / SCORES)
        record["output"]["scores"] = {name: float(found[name]) for name in scores[1:]}
    soft = None
    if (work / "volumes.csv").is_file():
        volumes = read_volumes_csv(work / "volumes.csv")
        soft = [float(volumes.get(name, "nan")) for name in labels.names]
    counts = [int(np.count_nonzero(values == index)) for index in labels.index]
    tables.save_volumes_tsv(work / REFERENCE_FILES["volumes"], tables.volume_rows(labels, soft, counts, voxel_mm))
    save_json(work / REFERENCE_FILES["sidecar"], sidecar(record))


def read_volumes_csv(path: Path) -> dict[str, str]:
    """{name of a structure: its soft volume in mm3, as text} of the CSV that the reference and upstream write.

    Raises ValueError where its two lines are not of one length.
    """
    with path.open(encoding="utf-8", newline="") as stream:
        header, row = list(csv.reader(stream))[:2]
    return dict(zip(header[1:], row[1:], strict=True))
