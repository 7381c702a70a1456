"""Before the first job: what the jobs need and Snakemake must not track. After the last: the summary and the table."""

import atexit
import contextlib
import functools
import os
import subprocess
import sys
import time
from pathlib import Path

from synthseg_native import owners, shared_disk
from synthseg_native.cohort import containers, demo, environments, halting, job, ranking, samples, state
from synthseg_native.cohort.plan import Plan
from synthseg_native.errors import FULL, SynthSegError, few
from synthseg_native.files import is_there, write_text
from synthseg_native.networks import weights
from synthseg_native.results import kept


@functools.cache
def hold_results(state_folder: str) -> None:
    """Keep other runs out of a results folder until this process ends, wherever they work: two working folders may
    share one through a link, which Snakemake's lock does not see.

    state_folder: the one of `state.FOLDER` in it. Raises SynthSegError: another run has it, or it cannot be written to.
    """
    path, held = Path(state_folder, "run.lock"), contextlib.ExitStack()
    for folder in (path.parent.parent, path.parent):
        if _is_no_folder(folder):
            what = "a link that leads nowhere" if folder.is_symlink() else "a file"
            text = f"{folder}: {what}, where the results belong: remove it, or set results in the configuration"
            raise SynthSegError("disk", text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            held.enter_context(shared_disk.hold(path, wait_s=0))
        except shared_disk.Held as other:
            if other.owner is None or owners.is_alive(other.owner) is not None:
                raise
            # Of another machine's only signs of life can be seen.
            environments.say(f"{path.parent}: {other.owner} may work there: waiting whether it gives a sign of life")
            held.enter_context(shared_disk.hold(path, wait_s=shared_disk.PATIENCE_S + 20))
    except shared_disk.Held as other:
        who = other.owner or "another process"
        text = f"{path.parent.parent}: another run ({who}) writes its results there: wait for it or stop it"
        raise SynthSegError("usage", text) from None
    except OSError as error:
        raise unwritable(error, path.parent.parent) from error
    atexit.register(held.close)


def unwritable(error: OSError, results: Path | str) -> SynthSegError:
    """What it means that nothing can be written among the results."""
    remedy = (
        "make room and call again" if error.errno in FULL else "make it writable, or set results in the configuration"
    )
    return SynthSegError("disk", f"{error.filename or results}: {error.strerror or error}: {remedy}")


def leave_nothing(folder: Path) -> None:
    """For a call that only looks: take away at its end the empty folders that Snakemake makes for itself.

    folder: Snakemake's. Where it is there already, or a run has begun in it meanwhile, it stays as it is.
    """
    if folder.exists():
        return
    folder = folder.absolute()

    def remove() -> None:
        if not (folder / "launcher.lock").exists():
            (folder / "iocache/latest.pkl").unlink(missing_ok=True)
            for below in [*folder.glob("*"), folder]:
                with contextlib.suppress(OSError):  # something is in it
                    below.rmdir()

    atexit.register(remove)


def prepare(plan: Plan) -> None:
    """Write the manifest, for the jobs too, and what is known of files' contents. For a call that runs something."""
    try:
        os.environ[job.VARIABLE] = str(plan.manifest.write(plan.state))
        if plan.benchmarked:
            write_text(*plan.benchmark_order)
        plan.contents.save()
    except OSError as error:
        raise unwritable(error, plan.results) from error


def make_again(plan: Plan, runs: bool) -> set[str]:
    """Say what this call makes again and why; return the files that have to be made.

    runs: whether the call runs what it says; any other writes nothing. For Snakemake's main process, when it knows its
    rules. Raises SetupError where the copy of the code that the jobs run cannot be made, SynthSegError where nothing
    can be written to the results, or another run does.
    """
    if runs:
        hold_results(plan.state)
        plan.contents.begin_saving()
        _date_back([*plan.wanted_runs(), *plan.wanted_once(), *plan.aggregates().values()])
    found = state.to_make(plan)
    _need_places(plan, found)
    remarks = [samples.contradictions(plan.scans.values()), samples.shared_images(plan.scans.values())]
    for line in [*filter(None, remarks), *state.lines(plan)]:
        environments.say(line)
    if runs:
        _need_writable(plan, found)
        prepare(plan)
        _keep_others(plan)
        environments.run_snapshot()
        _mark_stale(plan)
    return found


def _need_places(plan: Plan, found: set[str]) -> None:
    """Raise SynthSegError for what lies where results belong, and what Snakemake ends with a stack for: a file in the
    place of a folder, a folder in that of a table, a link whose end is gone. Of current results nothing can.

    found: the files that have to be made.
    """
    folders = {f"{plan.results}/logs"}
    for path in found:
        folder = os.path.dirname(path)  # noqa: PTH120 (of each of a cohort's files: as text)
        while folder not in folders and f"{folder}/".startswith(f"{plan.results}/"):
            folders.add(folder)
            folder = os.path.dirname(folder)  # noqa: PTH120
    faults = [f"{path}: a file, where a folder of the results belongs" for path in folders if _is_no_folder(path)]
    faults += [f"{path}: a folder, where a table belongs" for path in plan.aggregates().values() if Path(path).is_dir()]
    faults += [f"{path}: a link that leads nowhere" for path in found if os.path.islink(path) and not is_there(path)]  # noqa: PTH114
    if faults:
        raise SynthSegError("disk", f"{few(sorted(faults), 1)}: remove it and call again")


def _is_no_folder(path: str | Path) -> bool:
    return os.path.lexists(path) and not os.path.isdir(path)  # noqa: PTH112


def _need_writable(plan: Plan, found: set[str]) -> None:
    """Raise SynthSegError where a file that is made again may not be written to, which Snakemake says in many lines."""
    again = set(found)
    for pair in plan.identities.states:
        if plan.path("record", *pair) in found:
            again |= set(plan.files(*pair).values())
    locked = [path for path in sorted(again) if is_there(path) and not os.access(path, os.W_OK)]
    if locked:
        what = "may not be written to, and has to be made again"
        remedy = "make it writable, or set results in the configuration"
        raise SynthSegError("disk", f"{few(locked, 1)}: {what}: {remedy}")


def _keep_others(plan: Plan) -> None:
    """Keep the label maps of which nothing says what made them, before Snakemake removes what it makes again; the step
    of the run says what becomes of them. Raises SynthSegError where the disk is full or cannot be written to."""
    try:
        for path in plan.identities.unvouched():
            kept.keep(path)
    except OSError as error:
        raise unwritable(error, plan.results) from error


def _date_back(paths: list[str]) -> None:
    """Give results that are dated in the future, by another machine's clock or one that was turned back, today's date:
    Snakemake throws away what is older than what it was made from, at every call."""
    now = time.time()
    for path in paths:
        with contextlib.suppress(OSError):
            if os.stat(path).st_mtime > now:  # noqa: PTH116
                os.utime(path, (now, now))


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
    hold_results(plan.state)
    environments.run_snapshot()  # a target that asks for no scan has not made them
    prepare(plan)
    used = plan.compared or plan.benchmarked
    for engine in plan.engines if here else []:
        if why := ranking.without_gpu(engine, plan.config["device"]):
            raise SynthSegError("usage", f"config: engines: {why}: name another engine, or set device: cpu")
    environments.ensure_all(needed(plan))
    if here and plan.config["device"] == "auto":
        verify_here(plan)
    if fetched := [each for each in plan.weights_files.values() if each.fetched]:
        wanted = [(each.network.weights, each.network.folder, None) for each in fetched]
        weights.resolve_all(wanted, plan.model.name, fetched[0].path.parent)
    if len(plan.weights_files) > 1:
        link_weights(plan)
    if used:
        containers.reap(plan.reference["runtime"])
    if used and plan.reference["kind"] == "own" and plan.reference["runtime"] in containers.RUNTIMES:
        try:
            containers.ensure_image(plan.reference, plan.root)
        except SynthSegError as error:
            environments.say(f"reference: {error}")
    _mark_stale(plan)  # where the target asks for no scan; else `make_again` has


def link_weights(plan: Plan) -> None:
    """Put links to all files of weights into the folder that the jobs are told."""
    folder = Path(plan.weights)
    folder.mkdir(parents=True, exist_ok=True)
    for name, each in plan.weights_files.items():
        target = each.path.absolute()
        beside = folder / f".{name}.{os.getpid()}"
        if not (folder / name).is_symlink() or (folder / name).readlink() != target:
            beside.symlink_to(target)
            beside.replace(folder / name)


def _mark_stale(plan: Plan) -> None:
    """Whatever ends the run that begins, even at once, no table calls results good that are stale."""
    if Path(plan.aggregates()["summary"]).exists() and not state.says_what_is(plan):
        _summarise(plan)
        plan.marked_ns = _told_ns(plan)


def _told_ns(plan: Plan) -> int | None:
    with contextlib.suppress(OSError):
        return state.told_file(plan.results).stat().st_mtime_ns


def _summarise(plan: Plan, *arguments: str, limit_s: float | None = None) -> None:
    """Write the tables of what is there now, or show them, by the code that the jobs run."""
    code = environments.run_snapshot()
    command = [sys.executable, "-B", f"{code}/scripts/summarise.py"]
    command += ["--manifest", str(plan.manifest.path(plan.state)), *arguments]
    environment = environments.clean_environment() | {"PYTHONPATH": f"{code}/src"}
    # Of a session of its own: a Ctrl-C while it still imports is for this process to hear, which then ends it.
    subprocess.run(command, env=environment, timeout=limit_s, start_new_session=True)


def verify_here(plan: Plan) -> None:
    """Have every engine's environment verified on this machine, so that no run of the first wave does it by itself,
    beyond its memory, its time limit and its measurement. One that cannot be is said by the runs that need it."""
    for engine in plan.engines:
        try:
            ranking.verified(engine, f"{plan.results}/env")
        except environments.SetupError as error:
            environments.say(f"synthseg-native: {error}")


def finish(plan: Plan, success: bool) -> None:
    """The end of a run: after a failure a summary all the same, and the table for people, unless a signal ended it."""
    limit = None
    if halting.stopped():
        halting.wait_for_steps()
        limit = halting.seconds_left() - 2
    manifest = plan.manifest.path(plan.state)
    for old in [*Path(plan.state).glob("manifest-*.jsonl"), *Path(plan.state).glob("benchmark-*.json")]:
        if old != manifest:
            old.unlink(missing_ok=True)
    if not success:
        state.mark_failed(plan.state)
        with contextlib.suppress(subprocess.TimeoutExpired):  # the mark has the next call make it
            _summarise(plan, limit_s=limit)
    if limit is not None:
        return
    if success and plan.marked_ns and plan.marked_ns == _told_ns(plan):  # some runs were asked for, and no summary
        _summarise(plan)
    if Path(plan.aggregates()["summary"]).exists():
        _summarise(plan, "--show")
    if plan.demo_images:
        environments.say(f"this was the demonstration; {demo.WHAT_TO_CHANGE}")
