"""A run of an engine."""

from pathlib import Path

from synthseg_native.cohort.runs import child
from synthseg_native.cohort.runs.failures import attempt, failure
from synthseg_native.cohort.runs.files import LOG, NATIVE_FILES, SCORES, SOURCE, need_image, need_outputs
from synthseg_native.errors import EXIT_CODES, SynthSegError
from synthseg_native.files import read_json
from synthseg_native.identity import keys
from synthseg_native.results.sidecar import save_json, sidecar
from synthseg_native.verification import verify

# What the engine knows of its run. Time and memory are measure.py's: it also sees the interpreter start and end.
ENGINE_SAYS = ("engine", "model", "mode", "precision", "device", "threads", "input", "output", "machine", "seconds")
ENGINE_SAYS += ("predicted_peak_mib",)


def run_native(
    scan: str,
    image: Path,
    settings: dict,
    python: Path | str,
    model_dir: Path,
    weights: Path,
    verification: Path,
    work: Path,
    timeout: float | None = None,
) -> dict:
    """Segment one image with an engine; return the run record.

    settings: dict with engine, precision, threads, device ("auto": as this machine's verification decides), what
    keys.flags takes, interpolation ("posterior" or "nearest", of the label map on the image's own grid), accept (header
    faults to take) and whatever else belongs to the rerun key. python: the interpreter of the engine's environment.
    verification: folder of the verifications. work: folder that is emptied and gets NATIVE_FILES. timeout: seconds.
    Failures are in the record (status "failed"), not raised.
    """
    image, work = Path(image), Path(work)
    record = child.new_record("native", scan, settings)

    def run() -> None:
        need_image(image)
        device, reason = device_of(settings, python, Path(verification), work)
        engine_record = work / "engine.json"
        command = [python, "-m", "synthseg_native", "--i", image]
        made = {"--o": "dseg", "--native-grid": "dseg_native", "--volumes-tsv": "volumes", "--margin": "margin"}
        for flag, name in made.items():
            command += [flag, work / NATIVE_FILES[name]]
        command += ["--record", engine_record, "--interpolation", settings.get("interpolation", "posterior")]
        command += ["--engine", settings["engine"], "--model", model_dir, "--weights", weights]
        command += ["--threads", settings["threads"], "--precision", settings["precision"], "--device", device]
        command += keys.flags(settings)
        command += ["--qc", work / SCORES] if settings.get("scores") else []
        command += ["--accept", ",".join(settings["accept"])] if settings.get("accept") else []
        status, measured = child.measured(record, command, work, settings["threads"], timeout)
        told = read_json(engine_record) or {}
        _merge(record, {name: told[name] for name in ENGINE_SAYS if name in told})
        child.note_memory(record)
        record["device_reason"] = reason or told.get("device_reason")
        if status != 0:
            error = told.get("error") or {}
            if error.get("code") in EXIT_CODES and error["code"] != "internal":
                raise SynthSegError(error["code"], error["message"])
            raise failure(status, measured, child.log_of(work), image, timeout)
        need_outputs(work, [*(NATIVE_FILES[name] for name in made.values()), engine_record.name])
        for name, grid in (("sidecar", "network"), ("sidecar_native", "native")):
            save_json(work / NATIVE_FILES[name], sidecar(record, grid=grid))

    return attempt(record, work, run, scan)


def _merge(record: dict, other: dict) -> None:
    """Take what `other` (the engine's own record) knows; the rest stays."""
    for key, value in other.items():
        if isinstance(record[key], dict) and isinstance(value, dict):
            record[key] = {**record[key], **{k: v for k, v in value.items() if v is not None}}
        elif value is not None:
            record[key] = value


def device_of(settings: dict, python: Path | str, verification: Path, work: Path) -> tuple[str, str]:
    """The device to use and why: what the settings say, or what this machine's verification decided.

    A machine that is not verified yet (a cluster's node) is, by a process of the engine's environment. Raises
    SynthSegError where no device works.
    """
    if settings.get("device", "auto") != "auto":
        return settings["device"], "set in the configuration"
    engine = settings["engine"]
    found = verify.ensure_verified(engine, verification)
    if found is None:  # another machine than the one that ran verify_env
        command = [python, SOURCE.parent / "scripts" / "verify_env.py", "--environment", engine]
        command += ["--out", verification / f"{engine}-{verify.fingerprint(engine)[:8]}.json"]
        child.call(command, work / LOG, child.environment_of(settings["threads"]))
        found = verify.ensure_verified(engine, verification)
    decision = found["decision"] if found else {"device": "cpu", "reason": "this machine could not be verified"}
    if decision["device"] is None:
        raise SynthSegError("internal", f"{engine}: no device works here: {decision['reason']}: see {verification}")
    return decision["device"], decision["reason"]
