"""Before the first job: what the jobs need and Snakemake must not track. After the last: the summary and the table."""

import json
import os
import subprocess
import sys
from pathlib import Path

from synthseg_native.cohort import containers, environments, ranking, state
from synthseg_native.cohort.plan import Plan
from synthseg_native.errors import SynthSegError
from synthseg_native.networks import weights


def prepare(plan: Plan) -> None:
    """Write the summary's plan, and renew its token if something is missing. For Snakemake's main process."""
    state.write_if_changed(plan.plan_file, plan.for_summary)
    state.renew_token(plan.token, plan.wanted_runs() + plan.wanted_once())
    for scan in plan.scans:
        plan.image_key(scan)
    for scan in plan.compared:
        plan.existing_key(scan)
    plan.weights_key()
    plan.contents.save()


def export(plan: Plan, code: Path) -> None:
    """Set the variables that the rules' shell commands use.

    They say where things lie and what a run may take, which is no reason to run a job again: so they are no params.
    """
    engines = {*plan.engines, "tensorflow", "demo"}
    pythons = {name: str(environments.python(name)) for name in sorted(engines)}
    os.environ |= {f"PYTHON_{name}": path for name, path in pythons.items()}
    os.environ |= {
        "PYTHONS": json.dumps(pythons),
        "PYTHON": sys.executable,
        "CODE": str(code),
        "PYTHONPATH": f"{code}/src",
        "PYTHONDONTWRITEBYTECODE": "1",
        "MODEL": str(plan.model.folder),
        "WEIGHTS": plan.weights,
        "RESULTS": plan.results,
        "STATE": plan.state,
        "MEMORY_MB": str(plan.config["memory_mb"] or ""),
        "TIMEOUT_MIN": str(plan.minutes),
    }


def deploy(plan: Plan, here: bool = True) -> None:
    """Make what the jobs need and Snakemake must not track: environments, official weights, the reference's image.

    As inputs, renewed ones would make the whole cohort again. A container daemon that is absent or refuses stops
    nothing: one line, and the reference runs fail one by one. here: whether the jobs run on this machine. Raises
    SetupError, and SynthSegError for weights and for torch where no GPU is seen.
    """
    _announce_changes(plan)
    used = plan.compared or plan.benchmarked
    local = used and (plan.reference["kind"], plan.reference["runtime"]) == ("own", "local")
    needed = [*plan.engines, *(["tensorflow"] if local else []), *(["demo"] if plan.demo_images else [])]
    for engine in plan.engines if here else []:
        if why := ranking.without_gpu(engine, plan.config["device"]):
            raise SynthSegError("usage", f"config: engines: {why}: name another engine, or set device: cpu")
    for name in dict.fromkeys(needed):
        environments.ensure(name)
    if plan.fetched:
        weights.resolve(plan.model.card, plan.model.folder, cache=Path(plan.weights).parent)
    if used:
        containers.reap(plan.reference["runtime"])
    if used and plan.reference["kind"] == "own" and plan.reference["runtime"] in containers.RUNTIMES:
        try:
            containers.ensure_image(plan.reference, plan.root)
        except SynthSegError as error:
            environments.say(f"reference: {error}")


def _announce_changes(plan: Plan) -> None:
    """One line per kind of run that changed settings make again: how many, and why."""
    native = {plan.files(e, s)["record"]: plan.native_settings(e, s) for e in plan.engines for s in plan.scans}
    reference = {plan.files("reference", scan)["record"]: plan.reference_settings(scan) for scan in plan.compared}
    for kind, current in (("native", native), ("reference", reference)):
        for why, count in state.changed_settings(current).items():
            environments.say(f"{count} {kind} {'run' if count == 1 else 'runs'} again: {why}")


def finish(plan: Plan, code: Path, success: bool) -> None:
    """The end of a run: after a failure a summary all the same, and always the table for people."""
    for old in Path(plan.state).glob("plan-*.json"):
        if str(old) != plan.plan_file:
            old.unlink(missing_ok=True)
    command = [sys.executable, f"{code}/scripts/summarise.py", "--results", plan.results, "--plan", plan.plan_file]
    if not success:
        state.mark_failed(plan.state)
        subprocess.run(command)
    if Path(plan.aggregates()["summary"]).exists():
        subprocess.run([*command, "--show"])
