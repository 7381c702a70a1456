# What all the others use: the plan, which knows configuration and sheet; the words in <...> of file names; the
# params in capitals. Needs: config. Makes: no file.

import inspect
import json
import os
import sys
from functools import cache
from pathlib import Path

# The project's folder, from where this file lies: workflow.basedir is the importer's where this is a module.
ROOT = Path(workflow.current_basedir.get_path_or_uri(secret_free=True)).parents[1]
if not (ROOT / "src").is_dir():
    raise SystemExit(
        f"synthseg-native: {ROOT}: its code is not there: clone the project, and name workflow/Snakefile of the clone"
    )
sys.path.insert(0, str(ROOT / "src"))

from synthseg_native.cohort import handover

handover.take_over(workflow.main_snakefile)

from synthseg_native import memory
from synthseg_native.cohort import (
    config_files,
    demands,
    deploy,
    environments,
    halting,
    job,
    report_labels,
    snakemake_arguments,
    state,
    variables,
)
from synthseg_native.cohort.paths import Patterns
from synthseg_native.cohort.plan import Plan
from synthseg_native.errors import SynthSegError
from synthseg_native.identity import keys
from synthseg_native.verification import verify


def one_line(error):
    """What ends a call, for the user; of what the system refused the file, what it says and what to do."""
    if isinstance(error, OSError):
        error = f"{error.filename or 'a file'}: {error.strerror or error}: mend this, or remove what is there"
    return "\n".join(f"synthseg-native: {line}" for line in str(error).splitlines())


if workflow.is_main_process:
    for name in variables.OF_A_RUN:  # of another run, from which this one is called
        os.environ.pop(name, None)

# Steps ignore the terminal's signals: this process hears them, and tells the steps (scripts/log.sh hears none at all).
if workflow.is_main_process and workflow.modifier.is_main_snakefile():
    halting.prepare(lambda: workflow.persistence.unlock())
    halting.outlive_the_terminal()
    config_files.check(workflow.configfiles)
    if workflow.output_settings.dryrun:
        deploy.leave_nothing(Path(".snakemake"))

try:
    # A cluster's job reads its scan's line of the manifest that the call has written, and looks at no other scan.
    PLAN = None
    if workflow.modifier.is_main_snakefile() and not workflow.is_main_process:
        PLAN = job.plan_of(config, ROOT, sys.argv)
    PLAN = PLAN or Plan(config, ROOT, dry_run=workflow.output_settings.dryrun or "--lint" in sys.argv)
    if workflow.is_main_process and workflow.modifier.is_main_snakefile():
        if said := snakemake_arguments.misdirected(sys.argv, PLAN.results):
            raise SynthSegError("usage", said)
    # Jobs run a copy of the code, made when the run begins, so that an edit in mid-cohort cannot mix versions.
    SNAPSHOT = environments.snapshot_place()
except (SynthSegError, environments.SetupError, OSError) as error:
    raise SystemExit(one_line(error))


# What the file names of all the others say in <...>.
pathvars:
    results=PLAN.results,  # the folder of the results, as `results:` in the configuration
    model=PLAN.name,  # the network that made the labels: synthseg2
    grid=PLAN.resolution,  # voxel size of the network's grid: 1mm


wildcard_constraints:
    engine="|".join(PLAN.engines),
    scan=r"sub-[A-Za-z0-9+]+(/ses-[A-Za-z0-9+]+)?/anat/sub-[A-Za-z0-9+_-]+_[A-Za-z0-9]+",


def constant(value):
    """A param that is no reason to run a job again when it changes.

    Snakemake compares params with those of the last run, but not one whose function asks for `input`. Where things
    lie, and what a run may take, changes no result. A variable of the environment would do that too, but there is one
    of each for all modules of a workflow, so that two of this would share a model.
    """
    return of_input(lambda wildcards, input: value)


def of_input(function):
    """The same function with its signature at hand: Snakemake asks for it ten times a job, which takes as long again as
    all else that it does about the function."""
    function.__signature__ = inspect.signature(function)
    return function


# Params in capitals: where things lie, and what a run may take.
PYTHON = constant(sys.executable)  # the interpreter of the steps: Snakemake's own
CODE = constant(str(SNAPSHOT))  # the copy of scripts/ and src/ that this run uses
ENGINE_PYTHON = of_input(lambda wildcards, input: PLAN.pythons[wildcards.engine])  # the interpreter of the engine
REFERENCE_PYTHON = constant(PLAN.pythons["tensorflow"])  # of reference.py, where its runtime is local
DEMO_PYTHON = constant(PLAN.pythons["demo"])  # of what makes the phantoms
PYTHONS = constant(json.dumps(PLAN.pythons))  # all of these by environment, as JSON
MODEL = constant(str(PLAN.model.folder))  # the folder with card.yaml and labels.tsv
LABELS = constant(PLAN.labels)  # its labels.tsv
PARCELS = constant(str(PLAN.model.parcels_file) if PLAN.parcels else "")  # its parcels.tsv; nothing: no parcels
WEIGHTS = constant(PLAN.weights)  # the weights file, or a folder of several
IMAGE = of_input(lambda wildcards, input: PLAN.image_path(wildcards.scan))  # the scan, also where it is no input
VERIFIED = constant(f"{PLAN.results}/env")  # the folder of the environments' verifications
FAILED = constant(f"{PLAN.state}/failed")  # the folder of the records of failed runs
FAILED_MARK = constant(str(state.failed_mark(PLAN.state)))  # the file that a failed call leaves
BENCHMARK_WORK = constant(f"{PLAN.state}/benchmark")  # the folder of the benchmark's runs, while they run
MEMORY_MB = constant(PLAN.config["memory_mb"] or "")  # the limit of a reference's container; nothing: as predicted
TIMEOUT_MIN = constant(PLAN.minutes)  # the minutes after which a run is stopped


REPORTS = any(word.split("=")[0] == "--report" for word in sys.argv)  # a report is of all results


@cache
def make_again():
    """Have Snakemake make again what is not current by what the results say, whatever it remembers itself.

    Rules' input functions call it, because only then, when the jobs are being looked for, Snakemake can be told: what
    is forced is a set of files of its graph (tests/workflow/test_caching.py would notice another Snakemake's other
    ways). A call that only looks, -n and the like, says the same and writes nothing. A cluster's jobs do what they are
    told. Returns the files.
    """
    found = set()
    if workflow.is_main_process:
        runs = workflow.execution_settings is not None and not workflow.output_settings.dryrun
        try:
            found = deploy.make_again(PLAN, runs)
        except (SynthSegError, environments.SetupError, OSError) as error:
            raise SystemExit(one_line(error))
        workflow.dag.forcefiles.update(found)
    return found


def image_of(scan):
    """The image of a scan as an input, where the workflow makes it."""
    make_again()
    return PLAN.image(scan)


def wanted_runs(wildcards):
    """What the summary waits for: what has to be made; all that it is about where somebody asks about the whole graph
    (a report, --forcerun, --touch, --summary and the like), or for a process that only does what it is told."""
    found, settings = make_again(), workflow.dag_settings
    if (
        workflow.is_main_process
        and workflow.execution_settings
        and not (REPORTS or workflow.touch or settings.forceall or settings.forcerun)
    ):
        return PLAN.to_ask_for(found)
    return there(PLAN.wanted_runs())


def step_code(script, of=None):
    """The digest of a step's code. A param, so that other code runs the step again.

    Pictures and comparisons keep it, with whose they are, and are asked themselves (`make_again`): theirs is not for
    Snakemake to compare. of: their wildcards.
    """
    return PLAN.identities.made_by(script, of.engine, of.scan) if of else PLAN.identities.step_key(script)


def there(paths):
    """The files that the summary needs; for a report those that are there, since one failed run would stop it."""
    reporting = REPORTS and "--report-after-run" not in sys.argv
    return [path for path in paths if Path(path).exists()] if reporting else paths


def labels_of_picture(wildcards, input):
    """What Snakemake's report says of a picture."""
    return report_labels.of_picture(wildcards, input, PLAN.model.labels)


def check_module(plan):
    """Where another workflow imports this one: say what cannot work, and what has to be made before the first run."""
    if workflow.modifier.is_main_snakefile():
        return
    if not plan.patterns.summary["summary"].startswith(f"{plan.results}/"):
        raise SystemExit(
            "synthseg-native: module: prefix, replace_prefix or pathvars move the results: set results in its config"
        )
    if missing := deploy.missing(plan):
        launcher = ROOT / "scripts" / "launch.sh"
        environments.say(f"synthseg-native: before the first run: sh {launcher} ensure {' '.join(missing)}")


shell.executable("bash")

# So many jobs at once as the machine's memory holds, unless the user gave a limit, a cluster packs them, or the
# workflow is somebody else's.
if (
    workflow.is_main_process
    and workflow.modifier.is_main_snakefile()
    and workflow.resource_settings.nodes is None
    and not any(name.startswith("mem") for name in workflow.global_resources)
):
    if limit := memory.packing_mb():
        workflow.global_resources["mem_mb"] = limit
