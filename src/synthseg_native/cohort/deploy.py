"""Before the first job: what the jobs need and Snakemake must not track. After the last: the summary and the table."""

import os
import subprocess
import sys
from pathlib import Path

from synthseg_native.cohort import containers, demo, environments, job, ranking, samples, state
from synthseg_native.cohort.plan import Plan
from synthseg_native.errors import SynthSegError
from synthseg_native.files import write_text
from synthseg_native.networks import weights


def prepare(plan: Plan) -> None:
    """Write the manifest, for the jobs too, and what is known of files' contents. For a call that runs something."""
    os.environ[job.VARIABLE] = str(plan.manifest.write(plan.state))
    if plan.benchmarked:
        write_text(*plan.benchmark_order)
    plan.contents.save()


def make_again(plan: Plan, runs: bool) -> set[str]:
    """Say what this call makes again and why; return the files that have to be made.

    runs: whether the call runs what it says; any other writes nothing. For Snakemake's main process, when it knows its
    rules. Raises SetupError where the copy of the code that the jobs run cannot be made.
    """
    if runs:
        plan.contents.begin_saving()
    found = state.to_make(plan)
    contradiction = samples.contradictions(plan.scans.values())
    for line in [*([contradiction] if contradiction else []), *state.lines(plan)]:
        environments.say(line)
    if runs:
        prepare(plan)
        environments.run_snapshot()
    return found


def needed(plan: Plan) -> list[str]:
    """The environments that the jobs need, beside Snakemake's own."""
    return list(dict.fromkeys([*plan.engines, *plan.beside()]))


def missing(plan: Plan) -> list[str]:
    """Those of them that have not been made yet."""
    return [name for name in needed(plan) if not environments.python(name).exists()]


def deploy(plan: Plan, here: bool = True) -> None:
    """Make what the jobs need and Snakemake must not track: environments, official weights, the reference's image.

    As inputs, renewed ones would make the whole cohort again. A container daemon that is absent or refuses stops
    nothing: one line, and the reference runs fail one by one. here: whether the jobs run on this machine. Raises
    SetupError, and SynthSegError for weights and for torch where no GPU is seen.
    """
    environments.run_snapshot()  # a target that asks for no scan has not made them
    prepare(plan)
    used = plan.compared or plan.benchmarked
    for engine in plan.engines if here else []:
        if why := ranking.without_gpu(engine, plan.config["device"]):
            raise SynthSegError("usage", f"config: engines: {why}: name another engine, or set device: cpu")
    environments.ensure_all(needed(plan))
    if plan.fetched:
        weights.resolve(plan.model.weights, plan.model.name, plan.model.folder, cache=Path(plan.weights).parent)
    if used:
        containers.reap(plan.reference["runtime"])
    if used and plan.reference["kind"] == "own" and plan.reference["runtime"] in containers.RUNTIMES:
        try:
            containers.ensure_image(plan.reference, plan.root)
        except SynthSegError as error:
            environments.say(f"reference: {error}")


def finish(plan: Plan, code: Path, success: bool) -> None:
    """The end of a run: after a failure a summary all the same, and always the table for people."""
    manifest = plan.manifest.path(plan.state)
    for old in [*Path(plan.state).glob("manifest-*.jsonl"), *Path(plan.state).glob("benchmark-*.json")]:
        if old != manifest:
            old.unlink(missing_ok=True)
    command = [sys.executable, "-B", f"{code}/scripts/summarise.py", "--manifest", str(manifest)]
    environment = os.environ | {"PYTHONPATH": f"{code}/src"}
    if not success:
        state.mark_failed(plan.state)
        subprocess.run(command, env=environment)
    if Path(plan.aggregates()["summary"]).exists():
        subprocess.run([*command, "--show"], env=environment)
    if plan.demo_images:
        environments.say(f"this was the demonstration; {demo.WHAT_TO_CHANGE}")
