"""Which engine is best on this machine: the quickest one, timed here, that the environment verification finds sound.

Those whose environment is there are timed, and one is made: torch's where there is a GPU, else llvm's. So none is made
for nothing, and where there is no choice nothing is timed. Standard library only: the launcher asks before any
environment is there.
"""

import subprocess
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path

from synthseg_native.cohort import environments, installers
from synthseg_native.engines import BF16, FORMER, NAMES, unknown
from synthseg_native.errors import SynthSegError
from synthseg_native.files import read_json, write_json
from synthseg_native.results import record
from synthseg_native.verification import speed, verify

AUTO = "auto"
CPU_ONLY = ("llvm",)
# (engine, device), in the order in which their environments are made where none is there.
CANDIDATES = (("torch", "gpu"), ("llvm", "cpu"), ("tensorflow", "cpu"))


def problem(engine: str, precision: str, device: str) -> str | None:
    """Why an engine cannot do what a configuration or a call asks for; None where it can.

    >>> problem("llvm", "float32", "gpu")
    'device: gpu: llvm runs on the CPU only: use torch, or device auto'
    """
    if precision == "bf16" and engine not in BF16:
        return f"precision: bf16: {engine} has float32 only: use {' or '.join(BF16)}, or precision float32"
    if device == "gpu" and engine in CPU_ONLY:
        return f"device: gpu: {engine} runs on the CPU only: use torch, or device auto"
    return None


def without_gpu(engine: str, device: str) -> str | None:
    """Why torch is not for this machine, unless its CPU is asked for: it would be a large download for nothing."""
    if engine == "torch" and device != "cpu" and not environments.gpu():
        return "torch: no NVIDIA or Apple GPU is seen on this machine"
    return None


def candidates(precision: str = "float32", device: str = "auto") -> list[dict]:
    """CANDIDATES as dicts: engine, device, seconds (None: not timed), and outcome: why it is out before it was tried,
    or None."""
    rows = []
    for engine, place in CANDIDATES:
        why = problem(engine, precision, place) or without_gpu(engine, place)
        if not why and (lack := installers.too_old(engine)):
            why = f"{engine}: {lack}"
        if device not in ("auto", place):
            why = f"device {device} is asked for"
        rows.append({"engine": engine, "device": place, "seconds": None, "outcome": why})
    return rows


def choose(
    folder: str | PathLike,
    precision: str = "float32",
    device: str = "auto",
    log: Callable[[str], None] = environments.say,
    beside: Sequence[str] = (),
) -> dict:
    """Time the candidates that are there, and verify them from the quickest on until one is sound; all of it as JSON
    can hold it.

    folder: where verifications are kept, one file per engine and kind of machine; what is known is not asked again.
    precision, device: as configured. beside: other environments that will be needed, made along with the candidate's.
    Raises SynthSegError("usage") where nothing is left, and SetupError where an environment cannot be made: a network
    that is down says nothing about the machine.
    """
    rows, chosen = candidates(precision, device), None
    while chosen is None and (left := [row for row in rows if not row["outcome"]]):
        environments.ensure_all([left[0]["engine"], *beside], log)
        there = [row for row in left if row is left[0] or environments.python(row["engine"]).exists()]
        if len(there) > 1:
            _time(there, precision, log)
        for row in sorted(there, key=lambda row: row["seconds"] or 0):
            if not row["outcome"] and _sound(row, precision, folder, log):
                chosen = row
                break
    if not chosen:
        raise nothing_left(precision, device)
    for row in rows:
        there = row["seconds"] is not None
        row["outcome"] = row["outcome"] or ("slower" if there else "not needed: another one works")
    about = {"engine": chosen["engine"], "device": chosen["device"], "precision": precision}
    return {"schema": 2, **about, "machine": record.machine(), "ranking": rows}


def nothing_left(precision: str, device: str) -> SynthSegError:
    """The error where no engine is left for what is asked for."""
    lack = f"engine auto: none works here with {precision} on device {device}"
    if precision != "float32":
        return SynthSegError("usage", f"{lack}: {' and '.join(BF16)} alone has it: name that, or use float32")
    return SynthSegError("usage", f"{lack}: name one")


def _time(rows, precision, log):
    """Fill in the seconds of rows, kept or measured now; the outcome of those that cannot run."""
    for row in rows:
        if row["seconds"] is None:
            row["seconds"] = speed.kept(row["engine"], row["device"], precision)
    new = [row for row in rows if row["seconds"] is None]
    if new:
        log(f"timing {' and '.join(row['engine'] for row in new)} on this machine ...")
    for row in new:
        try:
            row["seconds"] = timed(row["engine"], row["device"], precision)
            speed.keep(row["engine"], row["device"], precision, row["seconds"])
        except SynthSegError as error:
            row["outcome"] = error.message
            log(f"engine auto: {row['engine']}: {error.message}")


def timed(engine: str, device: str, precision: str) -> float:
    """Seconds that an engine takes for a slab, measured now in its environment (`speed`).

    Raises SynthSegError("internal") for one that does not run.
    """
    command = [environments.python(engine), environments.ROOT / "scripts/time_engine.py"]
    command += ["--engine", engine, "--device", device, "--precision", precision]
    try:
        done = _run_in(command, timeout=speed.MOST_S)
        return float(done.stdout)
    except subprocess.TimeoutExpired:
        raise SynthSegError("internal", f"does not finish a slab within {speed.MOST_S} s") from None
    except ValueError:
        said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        raise SynthSegError("internal", f"does not run here: {said[-1]}") from None


def _sound(row, precision, folder, log):
    """Whether the verification has nothing against a candidate; its outcome."""
    finding = verified(row["engine"], folder, log)
    decision, outcome = finding["decision"], finding["decision"]["reason"]
    works = decision["device"] == row["device"] or (row["device"] == "cpu" and decision["device"])
    if works and precision not in finding["precisions"]:
        works, outcome = False, f"{decision['reason']}, but not in {precision}"
    if works and row["seconds"] is not None:
        outcome = f"{outcome}, {row['seconds']:.2g} s for a slab"
    row["outcome"] = f"chosen: {outcome}" if works else outcome
    log(f"engine auto: {row['engine']} on the {row['device'].upper()}: {row['outcome']}")
    return works


def _run_in(command, timeout=None):
    """Run one of the project's scripts in an environment."""
    env = environments.clean_environment() | {"PYTHONPATH": str(environments.ROOT / "src")}
    return subprocess.run([str(word) for word in command], env=env, capture_output=True, text=True, timeout=timeout)


def verified(engine: str, folder: str | PathLike, log: Callable[[str], None] = environments.say) -> dict:
    """This machine's verification of an engine's environment; both are made where they are missing.

    Raises SetupError.
    """
    finding = verify.ensure_verified(engine, folder)
    if finding is None:
        python = environments.ensure(engine, log)
        log(f"verifying the {engine} environment on this machine ...")
        path = Path(folder, f"{engine}-{verify.fingerprint(engine)[:8]}.json")
        command = [python, environments.ROOT / "scripts/verify_env.py", "--environment", engine, "--out", path]
        done = _run_in(command)
        finding = verify.ensure_verified(engine, folder)
        if finding is None:
            said = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
            raise environments.SetupError(f"the {engine} environment could not be verified: {said[-1]}")
    return finding


def of_results(
    path: str | PathLike,
    folder: str | PathLike,
    precision: str,
    device: str,
    dry_run: bool = False,
    log: Callable[[str], None] = environments.say,
    beside: Sequence[str] = (),
) -> str:
    """The engine of a results folder: the one that `path` (engine.json) names, else chosen now and written there.

    Nothing changes it but the user, who deletes the file or names an engine; on another machine a line says so.
    dry_run: makes and writes nothing, and goes by the engine that may well be it.
    beside: see `choose`. Raises SynthSegError("usage"), SetupError.
    """
    path, found = Path(path), read_json(path)
    if isinstance(found, dict) and (now := FORMER.get(str(found.get("engine")))):
        old, place = found["engine"], path.parent / now
        log(f"{path}: {old} is no more, {now} took its place: its runs are made anew, in {place}; the others stay")
        found = found | {"engine": now}
        if not dry_run:
            write_json(path, found)
    if not isinstance(found, dict) or found.get("engine") not in NAMES:
        if path.exists():
            log(f"{path}: names no engine, so one is chosen anew")
        found = None
    if found:
        if found.get("machine") != record.machine():
            machine = found.get("machine")
            where = (machine.get("cpu") if isinstance(machine, dict) else None) or "another machine"
            log(f"engine auto: {found['engine']} was chosen on {where}, and stays: {path} (delete it to choose anew)")
    elif dry_run:
        left = [row["engine"] for row in candidates(precision, device) if not row["outcome"]]
        if not left:
            raise nothing_left(precision, device)
        engine = left[0]
        log(f"engine auto: chosen when the workflow runs, and kept in {path}; this dry run goes by {engine}")
        return engine
    else:
        found = choose(folder, precision, device, log, beside)
        write_json(path, found)
    return found["engine"]


def for_command(arguments: list[str], folder: str | PathLike) -> tuple[str, list[str]]:
    """The engine's environment and the arguments for a call of the command line, whose engine may be auto.

    folder: keeps verifications between calls. An engine of the GPU that is asked for by name alone gets the device
    that its verification decides. Raises SynthSegError("usage"), SetupError.
    """
    engine = _value(arguments, "--engine") or AUTO
    precision = _value(arguments, "--precision") or "float32"
    device = "cpu" if "--cpu" in arguments else _value(arguments, "--device") or "auto"
    if engine not in (AUTO, *NAMES):
        raise SynthSegError("usage", f"--engine {unknown(engine, (AUTO, *NAMES))}")
    if engine == AUTO:
        found = choose(folder, precision, device)
        # argparse goes by the last one.
        return found["engine"], [*arguments, "--engine", found["engine"], "--device", found["device"]]
    if why := without_gpu(engine, device):
        raise SynthSegError("usage", f"--engine {why}: use another engine, or --device cpu")
    if engine == "torch" and device == "auto":
        decision = verified(engine, folder)["decision"]
        environments.say(f"device {decision['device'] or 'cpu'}: {decision['reason']}")
        return engine, [*arguments, "--device", decision["device"] or "cpu"]
    return engine, arguments


def _value(arguments, option):
    """The last value of an option, as argparse takes it; None without one."""
    value = None
    for number, word in enumerate(arguments):
        if word == option and number + 1 < len(arguments):
            value = arguments[number + 1]
        elif word.startswith(f"{option}="):
            value = word.partition("=")[2]
    return value
