# What every rule file uses. Needs: config. Makes: no files but results/.state (the summary's plan and token).

import sys
from pathlib import Path

sys.path.insert(0, str(Path(workflow.basedir) / "src"))

from synthseg_native.cohort import handover

handover.take_over(workflow.main_snakefile)

from synthseg_native import memory
from synthseg_native.cohort import environments, state
from synthseg_native.cohort.plan import Plan
from synthseg_native.errors import SynthSegError
from synthseg_native.identity import keys
from synthseg_native.verification import verify

try:
    PLAN = Plan(config, workflow.basedir, looking=workflow.output_settings.dryrun)
    # Jobs run a copy of the code made when the run began, so that an edit in mid-cohort cannot mix versions.
    CODE = environments.run_snapshot()
except (SynthSegError, environments.SetupError) as error:
    raise SystemExit(
        "\n".join(f"synthseg-native: {line}" for line in str(error).splitlines())
    )

RESULTS = PLAN.results
PLAN.export(CODE)
shell.executable("bash")

if workflow.is_main_process:
    PLAN.prepare()
    # So many jobs at once as the machine's memory holds, unless the user gave a limit or a cluster packs them.
    if workflow.resource_settings.nodes is None and not any(
        name.startswith("mem") for name in workflow.global_resources
    ):
        if limit := memory.packing_mb():
            workflow.global_resources["mem_mb"] = limit


wildcard_constraints:
    engine="|".join(PLAN.engines),
    scan=r"sub-[A-Za-z0-9]+(/ses-[A-Za-z0-9]+)?/anat/sub-[A-Za-z0-9_-]+_[A-Za-z0-9]+",
