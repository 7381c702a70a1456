# synthseg-native: environment verification -> native SynthSeg per image -> reference run -> equality -> benchmark
# -> results/summary.tsv. Settings: config/config.yaml, or the file that --configfile names (then only that one).

from snakemake.utils import min_version

min_version("9.27")

if not workflow.config_settings.configfiles:

    configfile: "config/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/environment.smk"
include: "workflow/rules/demo.smk"
include: "workflow/rules/native.smk"
include: "workflow/rules/reference.smk"
include: "workflow/rules/picture.smk"
include: "workflow/rules/compare.smk"
include: "workflow/rules/benchmark.smk"
include: "workflow/rules/summary.smk"


rule all:
    default_target: True
    input:
        PLAN.aggregates()["summary"],


onstart:
    try:
        deploy.deploy(PLAN, here=not workflow.non_local_exec)
    except (SynthSegError, environments.SetupError) as error:
        raise SystemExit(f"synthseg-native: {error}")


onsuccess:
    deploy.finish(PLAN, CODE, success=True)


onerror:
    deploy.finish(PLAN, CODE, success=False)
