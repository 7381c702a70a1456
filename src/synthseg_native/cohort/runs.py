"""One run of the workflow: an engine or the reference on one image, measured, recorded, published.

A run happens in a work folder beside its outputs. It always gives a run record (docs/results.md), also where it
failed; only a good one is published, by renaming.
"""

import argparse
import contextlib
import csv
import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
import zlib
from glob import glob
from pathlib import Path

import nibabel as nib
import numpy as np

from synthseg_native import measure, memory
from synthseg_native.cohort import containers, environments
from synthseg_native.cohort.paths import read_json, write_json, write_text
from synthseg_native.errors import EXIT_CODES, SynthSegError
from synthseg_native.identity import keys
from synthseg_native.networks import cards
from synthseg_native.results import images, tables
from synthseg_native.results import record as record_of
from synthseg_native.results.hashes import labels_sha256
from synthseg_native.results.sidecar import save_json, sidecar
from synthseg_native.scan import reading as scans
from synthseg_native.verification import verify

SOURCE = Path(__file__).resolve().parents[2]  # the folder that holds the package: the child runs the same code
MEASURE = Path(measure.__file__)
REFERENCE = SOURCE / "synthseg_native" / "reference.py"
REFERENCE_FILES = {"dseg": "dseg.nii.gz", "sidecar": "dseg.json", "volumes": "volumes.tsv"}
NATIVE_FILES = {
    **REFERENCE_FILES,
    "margin": "margin.nii.gz",
    "dseg_native": "dseg_native.nii.gz",
    "sidecar_native": "dseg_native.json",
}
RECORD = "run.json"
LOG = "log.txt"
# What the engine knows of its run. Time and memory are measure.py's: it also sees the interpreter start and end.
ENGINE_SAYS = ("engine", "model", "mode", "precision", "device", "threads", "input", "output", "machine", "seconds")
ENGINE_SAYS += ("predicted_peak_mib",)
STALE_DAYS = 7  # after which the work folder of a process on another machine counts as left behind

MEMORY_HINT = "not enough memory: close other programs, run fewer at once, or use a larger machine"
_DISK = re.compile(r"No space left on device|Disk quota exceeded|\[Errno 28\]|\[Errno 122\]")
_MEMORY = re.compile(r"MemoryError|ResourceExhausted|OOM when allocating|bad_alloc|Cannot allocate memory")


class Stopped(BaseException):
    """SIGTERM or SIGINT arrived."""

    def __init__(self, number):
        super().__init__(signal.Signals(number).name)
        self.number = number


# --- the run record ------------------------------------------------------------------------------------------------


def _new(kind, scan, settings):
    """An empty record with what the workflow knows before the run."""
    new = record_of.new(kind, [])
    new.update(scan=scan, key=settings, threads=settings.get("threads"), precision=settings.get("precision", "float32"))
    new["mode"] = settings.get("mode", "default")
    new["engine"]["name"] = settings.get("engine", "reference")
    return new


def _merge(record, other):
    """Take what `other` (the engine's own record) knows; the rest stays."""
    for key, value in other.items():
        if isinstance(record[key], dict) and isinstance(value, dict):
            record[key] = {**record[key], **{k: v for k, v in value.items() if v is not None}}
        elif value is not None:
            record[key] = value


def _system_error(error, place):
    """What an OSError of this process means, as a SynthSegError."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    text = (
        f"{error.filename or place}: {error.strerror or error}: {'make room' if full else 'mend this'} and call again"
    )
    return SynthSegError("disk" if full else "internal", text)


def _unexpected(error, scan, work):
    """Any other exception as a SynthSegError; its traceback goes to the log of the run."""
    with contextlib.suppress(OSError), (Path(work) / LOG).open("a", encoding="utf-8") as stream:
        traceback.print_exception(error, file=stream)
    text = " ".join(str(error).split())[:500]
    return SynthSegError("internal", f"{scan}: {type(error).__name__}: {text}: please report this")


def _attempt(record, work, run, scan):
    """Call `run`, which fills the record; turn what it raises into the record's error. Return the record."""
    try:
        for left in work.iterdir():  # of an earlier run in the same folder: a benchmark's
            if left.is_file():
                left.unlink()
        run()
        record.update(status="ok", error=None)
    except SynthSegError as error:
        record_of.fail(record, error)
    except MemoryError:
        record_of.fail(record, SynthSegError("oom", f"{scan}: {MEMORY_HINT}"))
    except OSError as error:
        record_of.fail(record, _system_error(error, scan))
    except Exception as error:
        record_of.fail(record, _unexpected(error, scan, work))
    record["finished"] = record["finished"] or record_of.now()
    return record


# --- a measured child ----------------------------------------------------------------------------------------------


def _child_environment(threads):
    """The caller's environment, with this package alone on the path and one thread count for every library."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    return {
        **environments.clean_environment(),
        **dict.fromkeys(names, str(threads)),
        "PYTHONPATH": str(SOURCE),
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def call(command, log, environment=None, limit=None, on_stop=None, folder=None):
    """Run a command to its end, in `folder`, with all it says in the file `log`; return its exit status.

    If this process is told to stop meanwhile, or `limit` seconds have passed, `on_stop` is called and the command is
    ended before the exception goes on.
    """
    with Path(log).open("ab") as stream:
        words = [str(part) for part in command]
        child = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environment, cwd=folder
        )
        try:
            return child.wait(limit)
        except BaseException:
            if on_stop is not None:
                on_stop()
            child.terminate()
            try:
                child.wait(measure.GRACE_S + 5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
            raise


def _measured(record, command, work, threads, timeout):
    """Run a command of this machine under measure.py; return its exit status and what was measured."""
    record["command"] = [str(part) for part in command]
    wrapper = [sys.executable, MEASURE, "--out", work / "measure.json", "--with-parent"]
    wrapper += [] if timeout is None else ["--timeout", timeout]
    status = call([*wrapper, "--", *command], work / LOG, _child_environment(threads))
    return status, take_measurement(record, work)


def take_measurement(record, work):
    """Move what measure.py wrote into the record; return it ({} where it wrote nothing)."""
    measured = read_json(work / "measure.json") or {}
    for name in ("wall_s", "peak_rss_mib", "cgroup_peak_mib", "started", "finished"):
        if measured.get(name) is not None:
            record[name] = measured[name]
    note_memory(record)
    return measured


def note_memory(record):
    """Say in the record where the peak was far from the prediction."""
    record["memory_remark"] = memory.remark(record["predicted_peak_mib"], record["peak_rss_mib"])


def failure(status, measured, log, image, timeout=None):
    """Say in one line, with a code, why a child failed.

    status: its exit status (of a signal: negative, or 128 and more); measured: the dict of measure.py or {};
    log: what it said; image: the file it was about. Returns a SynthSegError.
    """
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    last = lines[-1] if lines else "it said nothing"
    number = measured.get("signal") or (-status if status < 0 else status - 128 if status > 128 else None)
    peak = measured.get("peak_rss_mib")
    reached = f" (it had reached {peak:.0f} MiB)" if peak else ""
    if measured.get("timed_out"):
        return SynthSegError(
            "timeout", f"{image}: took longer than {timeout:.0f} s: give it more time, or more threads"
        )
    if _DISK.search(log):
        return SynthSegError("disk", f"{image}: the disk is full: make room and call again")
    if _MEMORY.search(log) or (number == signal.SIGKILL and _memory_was_short(measured)):
        return SynthSegError("oom", f"{image}: {MEMORY_HINT}{reached}")
    if number is not None:
        return SynthSegError("killed", f"{image}: ended by {_signal_name(number)}{reached}: call again")
    for line in reversed(lines):
        # The two programs of this package say what is wrong in a line of their own.
        for start, code in (("synthseg-native: ", {2: "usage", 3: "bad_input"}), ("reference.py: ", {1: "bad_input"})):
            if line.startswith(start) and status in code:
                return SynthSegError(code[status], line.removeprefix(start))
    return SynthSegError("internal", f"{image}: the run ended with status {status}: {last}")


def _memory_was_short(measured):
    """Whether a SIGKILL was the kernel's: it counts those on Linux; elsewhere only a process of most of the memory."""
    if measured.get("oom_kills") is not None:
        return measured["oom_kills"] > 0
    total = verify.memory_bytes() / 2**20
    return 0 < 0.6 * total < (measured.get("peak_rss_mib") or 0)


def _signal_name(number):
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


# --- native --------------------------------------------------------------------------------------------------------


def run_native(scan, image, settings, python, model_dir, weights, verification, work, timeout=None):
    """Segment one image with an engine; return the run record.

    settings: dict with engine, precision, threads, device ("auto": as this machine's verification decides), what
    keys.flags takes, interpolation ("posterior" or "nearest", of the label map on the image's own grid), accept (header
    faults to take) and whatever else belongs to the rerun key. python: the interpreter of the engine's environment.
    verification: folder of the verifications. work: folder that is emptied and gets NATIVE_FILES. timeout: seconds.
    Failures are in the record (status "failed"), not raised.
    """
    image, work = Path(image), Path(work)
    record = _new("native", scan, settings)

    def run():
        _need_file(image)
        device, reason = _device(settings, python, verification, work)
        engine_record = work / "engine.json"
        command = [python, "-m", "synthseg_native", "--i", image]
        made = {"--o": "dseg", "--native-grid": "dseg_native", "--volumes-tsv": "volumes", "--margin": "margin"}
        for flag, name in made.items():
            command += [flag, work / NATIVE_FILES[name]]
        command += ["--record", engine_record, "--interpolation", settings.get("interpolation", "posterior")]
        command += ["--engine", settings["engine"], "--model", model_dir, "--weights", weights]
        command += ["--threads", settings["threads"], "--precision", settings["precision"], "--device", device]
        command += keys.flags(settings)
        command += ["--accept", ",".join(settings["accept"])] if settings.get("accept") else []
        status, measured = _measured(record, command, work, settings["threads"], timeout)
        told = read_json(engine_record) or {}
        _merge(record, {name: told[name] for name in ENGINE_SAYS if name in told})
        note_memory(record)
        record["device_reason"] = reason or told.get("device_reason")
        if status != 0:
            error = told.get("error") or {}
            if error.get("code") in EXIT_CODES and error["code"] != "internal":
                raise SynthSegError(error["code"], error["message"])
            raise failure(status, measured, _log(work), image, timeout)
        _need_outputs(work, [*(NATIVE_FILES[name] for name in made.values()), engine_record.name])
        for name, grid in (("sidecar", "network"), ("sidecar_native", "native")):
            save_json(work / NATIVE_FILES[name], sidecar(record, grid=grid))

    return _attempt(record, work, run, scan)


def _need_file(image):
    if not image.is_file():
        raise SynthSegError("bad_input", f"{image}: no such file")


def _need_outputs(work, files):
    for file in files:
        if not (work / file).is_file():
            raise SynthSegError("internal", f"{file}: the run said it went well, but did not write it: report this")


def _log(work):
    with contextlib.suppress(OSError):
        return (work / LOG).read_text(encoding="utf-8", errors="replace")
    return ""


def _device(settings, python, verification, work):
    """The device to use and why: what the settings say, or what this machine's verification decided."""
    if settings.get("device", "auto") != "auto":
        return settings["device"], "set in the configuration"
    engine, folder = settings["engine"], Path(verification)
    found = verify.ensure_verified(engine, folder)
    if found is None:  # another machine than the one that ran verify_env: a cluster's node
        command = [python, SOURCE.parent / "scripts" / "verify_env.py", "--environment", engine]
        command += ["--out", folder / f"{engine}-{verify.fingerprint(engine)[:8]}.json"]
        call(command, work / LOG, _child_environment(settings["threads"]))
        found = verify.ensure_verified(engine, folder)
    decision = found["decision"] if found else {"device": "cpu", "reason": "this machine could not be verified"}
    if decision["device"] is None:
        raise SynthSegError("internal", f"{engine}: no device works here: {decision['reason']}: see {folder}")
    return decision["device"], decision["reason"]


# --- reference -----------------------------------------------------------------------------------------------------


def run_reference(scan, image, settings, python, model_dir, weights, work, timeout=None, memory_mb=None):
    """Run the reference on one image, or take the label map that the user has; return the run record.

    settings: dict with kind (own, upstream, existing), runtime (local, docker, podman, apptainer), image and platform
    (upstream), key (own: of its image), pattern (existing), threads, what keys.flags takes, accept (header faults to
    take). python: interpreter for runtime local. work: folder that is emptied and gets REFERENCE_FILES. timeout:
    seconds; memory_mb: limit of a container, None for what the prediction or the card says, whichever is more.
    Failures are in the record (status "failed"), not raised.
    """
    image, work = Path(image), Path(work)
    record = _new("reference", scan, settings)
    kind, runtime = settings["kind"], settings["runtime"]
    record.update(device="cpu", device_reason="the reference runs on the CPU")
    record["reference"] = {"kind": kind, "runtime": runtime, "id": None, "emulated": False}

    def run():
        _need_file(image)
        card = cards.load(model_dir)
        # The engine's own check: the same line for the same fault.
        record["input"] = scans.read(image, accept=settings.get("accept", ())).description
        if kind == "existing":
            _take_existing(record, settings, scan, work)
        else:
            record["model"].update(name=card.name, research_grade=card.research_grade)
            shape, voxel_mm = record["input"]["shape"], record["input"]["voxel_mm"]
            size = memory.size_of(card.network, shape, voxel_mm, settings.get("crop"), own_grid=False)
            predicted = record["predicted_peak_mib"] = memory.predict(size, memory.REFERENCE)
            memory.check(image, size, memory.REFERENCE, network=card.network)
            limit_mb = memory_mb or max(card.memory_mb, memory.declared_mb(predicted))
            if kind == "own":
                record["model"]["weights_sha256"] = scans.sha256_of(weights)
            run_it = _run_local if runtime == "local" else _run_container
            job = containers.Job(settings, image, Path(model_dir), Path(weights), work, card.name, timeout, limit_mb)
            run_it(record, job, python)
        _finish_reference(record, card.labels, work)

    return _attempt(record, work, run, scan)


def _load(path, remedy):
    try:
        return nib.load(path)
    except (OSError, ValueError, EOFError, nib.filebasedimages.ImageFileError) as error:
        raise SynthSegError("bad_input", f"{path}: cannot be read ({' '.join(str(error).split())}): {remedy}") from None


def _run_local(record, job, python):
    if job.settings["kind"] != "own":
        raise SynthSegError(
            "usage", f"reference.kind {job.settings['kind']}: runs in a container: set reference.runtime"
        )
    command = [python, REFERENCE, "--i", job.scan, "--o", job.work / "dseg.nii.gz", "--vol", job.work / "volumes.csv"]
    command += ["--model", job.model_dir, "--weights", job.weights, "--threads", job.settings["threads"]]
    command += keys.flags(job.settings)
    status, measured = _measured(record, command, job.work, job.settings["threads"], job.timeout)
    if status != 0:
        raise failure(status, measured, _log(job.work), job.scan, job.timeout)
    code = "from importlib.metadata import version; print('tensorflow ' + version('tensorflow'))"
    told = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    record["engine"]["version"] = told.stdout.strip() or None


def _run_container(record, job, python):
    name = job.settings["runtime"]
    engine = containers.runtime(name)
    image, platform = containers.image_of(job.settings), containers.platform_of(job.settings)
    command = containers.command(job, engine)
    identity, architecture = containers.inspect(name, image, job.settings["kind"], platform)
    emulated = architecture not in (None, engine.architecture)
    record["reference"].update(id=identity, emulated=emulated)
    inside = {"amd64": "x86_64", "arm64": "aarch64"}.get(architecture, architecture)
    record["machine"].update(system="Linux", arch=inside or record["machine"]["arch"], emulated=emulated)
    record["command"] = command
    record["engine"]["version"] = containers.version_of(job.settings)
    # The wrapper inside keeps the time; this limit is for a runtime that no longer answers.
    limit = None if job.timeout is None else job.timeout + 300
    try:
        # In the work folder, because podman leaves a file "oom" where it was called.
        status = call(command, job.work / LOG, limit=limit, on_stop=lambda: containers.stop(job), folder=job.work)
    except subprocess.TimeoutExpired:
        raise SynthSegError("daemon", f"{name}: does not answer any more: restart it and call again") from None
    measured, log = take_measurement(record, job.work), _log(job.work)
    if status == 0:
        return
    containers.stop(job)
    if not measured and (status in (125, 126, 127) or containers.DIED.search(log)):  # the runtime's own failure
        raise containers.problem(name, log)
    log = log.replace(f"/in/image{''.join(job.scan.suffixes[-2:])}", str(job.scan))
    raise failure(status, measured, log, job.scan, job.timeout)


def _finish_reference(record, labels, work):
    """volumes.tsv as the engine writes it, from the CSV (soft volumes) and the label map (voxels); sidecar; record."""
    path = work / "dseg.nii.gz"
    _need_outputs(work, [path.name])
    image = nib.load(path)
    values = np.asarray(image.dataobj).astype(np.int32)
    voxel_mm = image.header.get_zooms()[:3]
    record["output"] = {
        "labels_sha256": labels_sha256(values),
        "shape": list(values.shape),
        "voxel_mm": [round(float(size), 6) for size in voxel_mm],
    }
    soft = None
    if (work / "volumes.csv").is_file():
        with (work / "volumes.csv").open(encoding="utf-8", newline="") as stream:
            header, row = list(csv.reader(stream))[:2]
        volumes = dict(zip(header[1:], row[1:], strict=True))
        soft = [float(volumes.get(name, "nan")) for name in labels.names]
    counts = [int(np.count_nonzero(values == index)) for index in labels.index]
    tables.save_volumes_tsv(work / "volumes.tsv", tables.volume_rows(labels, soft, counts, voxel_mm))
    save_json(work / "dseg.json", sidecar(record))


def find_existing(pattern, scan):
    """The user's label maps for a scan: every file that fits the pattern, sorted.

    pattern: a path with {participant_id} {session_id} {acq} {run} (with their prefixes, "sub-01"), {suffix} and {scan}
    ("sub-01_ses-a_T1w"), and with * ? [] ** as in the shell. scan: a sample sheet's Scan, or its name.
    """
    name = Path(getattr(scan, "scan", scan)).name
    *parts, suffix = name.split("_")
    found = {part.split("-")[0]: part for part in parts}
    places = {"participant_id": "sub", "session_id": "ses", "acq": "acq", "run": "run"}
    values = {place: found.get(key, "") for place, key in places.items()} | {"suffix": suffix, "scan": name}
    try:
        path = pattern.format(**values)
    except (KeyError, IndexError, ValueError):
        known = " ".join(f"{{{key}}}" for key in values)
        raise SynthSegError("usage", f"reference.pattern: {pattern!r} is not understood: it may hold {known}") from None
    found = glob(str(Path(path).expanduser()), recursive=True)  # noqa: PTH207 (the pattern may be absolute)
    return sorted(match for match in found if Path(match).is_file())


def _take_existing(record, settings, scan, work):
    """Write the user's label map (one, integers) as int32 on its own grid."""
    pattern = settings.get("pattern")
    if not pattern:
        raise SynthSegError("usage", "reference.pattern: missing: say where your label maps are")
    matches = find_existing(pattern, scan)
    if len(matches) != 1:
        what = "no file fits" if not matches else f"{len(matches)} files fit ({matches[0]}, {matches[1]} ...)"
        raise SynthSegError("bad_input", f"{pattern}: {what} {scan}: correct reference.pattern or the files")
    path = matches[0]
    remedy = "correct reference.pattern"
    image = _load(path, remedy)
    try:
        data = np.squeeze(np.asanyarray(image.dataobj))
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise SynthSegError("bad_input", f"{path}: damaged ({error}): copy it again") from None
    if data.ndim != 3 or not np.isfinite(data).all() or (data != np.rint(data)).any() or (data < 0).any():
        raise SynthSegError("bad_input", f"{path}: not a label map (3-D, integers from 0): {remedy}")
    images.save_labels(work / "dseg.nii.gz", data, image.affine, None)
    record["engine"].update(name="existing label map", version=None, package_version=None)
    record.update(threads=None, device=None, device_reason=None, mode=None, precision=None)
    record["reference"].update(runtime="none", id=f"sha256:{scans.sha256_of(path)}")
    record["machine"] = dict.fromkeys(record["machine"])


# --- the step: a work folder, and results whole or not at all --------------------------------------------------------


def megabytes(text):
    """A number of MB from the command line; None where the configuration says none."""
    return int(text) if text else None


def step_parser(description, files):
    """The command line that the steps of native and reference runs share.

    files: names of the outputs beside the record. `--timeout-min` becomes `timeout`, in seconds.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--scan", required=True, help="composed name, sub-01/anat/sub-01_T1w")
    parser.add_argument("--image", required=True, type=Path)
    parser.add_argument("--settings", required=True, type=json.loads, metavar="JSON", help="rerun key of the run")
    parser.add_argument("--python", required=True, help="interpreter that runs the network")
    parser.add_argument("--model", required=True, type=Path, metavar="DIR")
    parser.add_argument("--weights", required=True, type=Path, metavar="H5")
    parser.add_argument("--failures", required=True, type=Path, metavar="DIR", help="for the record of a failure")
    minutes = {"dest": "timeout", "type": lambda text: 60 * float(text), "metavar": "MINUTES"}
    parser.add_argument("--timeout-min", **minutes, help="limit of the run")
    for name in (*files, "record"):
        parser.add_argument(f"--{name.replace('_', '-')}", required=True, type=Path, metavar="OUT")
    return parser


def step(scan, settings, places, failure_path, run):
    """Do one run and publish it; return the exit status of the step.

    scan, settings: for the record of a run that never began. places: {name: path} with dseg, sidecar, volumes,
    record, and of a native run the others of NATIVE_FILES. failure_path: where the record of a failed run goes;
    removed after a success. run(work) makes the run record.

    If another process has started on the same outputs since, this one leaves them to it. SIGTERM and SIGINT end
    the run, its processes and its work folder.
    """
    places = {name: Path(path) for name, path in places.items()}
    failure_path = Path(failure_path)
    stopped = None

    def stop(number, frame):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise Stopped(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    record, work = _new("native" if "margin" in places else "reference", scan, settings), None
    root = places["record"].parent / f".work-{places['record'].name}"
    who = f"{Path(scan).name}: {record['engine']['name']}"
    try:
        try:
            work = _open_work(root)
            print(f"{who} runs", flush=True)
            record = run(work)
            if record["status"] == "ok" and _owner(root) == work.name:
                write_json(work / RECORD, record)
                publish(work, places)
                failure_path.unlink(missing_ok=True)
        except Stopped as reason:
            stopped = reason
            record_of.fail(record, SynthSegError("killed", f"{scan}: stopped by {reason}: call again"))
        except OSError as error:
            record_of.fail(record, _system_error(error, root))
        except Exception as error:
            record_of.fail(record, _unexpected(error, scan, work or root))
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what is left to do is short
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if work is not None and _owner(root) != work.name:
            print(f"{who}: another process has taken this over", file=sys.stderr)
            return 1
        if record["status"] == "ok":
            peak = f", {record['peak_rss_mib']:.0f} MiB" if record["peak_rss_mib"] else ""
            took = f" in {record['wall_s']:.1f} s{peak}" if record["wall_s"] else ""
            print(f"{who} done{took}", flush=True)
            if record["memory_remark"]:
                print(f"{who}: {record['memory_remark']}", file=sys.stderr, flush=True)
            return 0
        error = record["error"]
        with contextlib.suppress(OSError):
            try:
                write_json(failure_path, record)
            except (TypeError, ValueError):  # something in it is no JSON: the error must not be lost with it
                bare = _new(record["kind"], scan, settings)
                write_json(failure_path, {**bare, "error": error, "finished": record["finished"]})
        if error["code"] == "internal" and work is not None:
            print(_log(work), end="", flush=True)
        print(error["message"], file=sys.stderr, flush=True)
        return 128 + stopped.number if stopped else EXIT_CODES[error["code"]]
    finally:
        if work is not None:
            _close_work(root, work)


def publish(work, places):
    """Move a run's files from the work folder to their places: all of them, the record last, or none."""
    files = [(Path(work) / {**NATIVE_FILES, "record": RECORD}[name], path) for name, path in places.items()]
    files.sort(key=lambda pair: pair[0].name == RECORD)
    done = []
    try:
        for source, path in files:
            source.replace(path)
            done.append(path)
    except BaseException:
        for path in done:
            path.unlink(missing_ok=True)
        raise


def _open_work(root):
    """Make a work folder of this process in `root`, take the ownership, remove what dead processes left."""
    host = socket.gethostname()
    for folder in root.glob("*@*"):
        if folder.is_dir() and _left_behind(folder, host):
            shutil.rmtree(folder, ignore_errors=True)
    work = root / f"{os.getpid()}@{host}"
    work.mkdir(parents=True)
    write_text(root / "owner", work.name)
    return work


def _left_behind(folder, host):
    number, _, where = folder.name.partition("@")
    if where != host:
        age = time.time() - folder.stat().st_mtime
        return age > STALE_DAYS * 86400
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (ValueError, PermissionError):
        return False
    return int(number) == os.getpid()


def _owner(root):
    """The name of the work folder that may publish: that of the process which started last."""
    try:
        return (root / "owner").read_text(encoding="utf-8")
    except OSError:
        return None


def _close_work(root, work):
    if _owner(root) == work.name:
        (root / "owner").unlink(missing_ok=True)
    shutil.rmtree(work, ignore_errors=True)
    with contextlib.suppress(OSError):  # another process still works there
        root.rmdir()
