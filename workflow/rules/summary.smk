# The aggregates. Needs: every result that the sheet asks for. Makes: summary, volumes and the BIDS descriptions.


rule summary:
    """One row per image and engine; volumes of all; what each column means."""
    input:
        runs=wanted_runs,
        once=lambda wildcards: there(PLAN.wanted_once()),
    output:
        summary=report(
            "<results>/summary.tsv",
            category="Summary",
            caption="../report/summary.rst",
            labels={"table": "one row per image and engine"},
        ),
        columns="<results>/summary.json",
        homogeneity="<results>/homogeneity.json",
        failed="<results>/failed.tsv",
        volumes="<results>/volumes.tsv",
        volumes_wide=report(
            "<results>/volumes_wide.tsv",
            category="Summary",
            caption="../report/volumes.rst",
            labels={"table": "volumes"},
        ),
        volumes_synthseg="<results>/volumes_synthseg.csv",
    log:
        "<results>/logs/summary.log",
    localrule: True
    resources:
        mem_mb=1000,
        runtime=30,
    params:
        python=PYTHON,
        code=CODE,
        manifest=lambda wildcards, input: str(PLAN.manifest.path(PLAN.state)),  # a path; what it says is `state.told`'s
        failed_mark=FAILED_MARK,
        step=lambda wildcards: step_code("summarise.py"),
    message:
        "Summarise"
    shell:
        r"""
        trap '' INT HUP QUIT USR1 USR2
        PYTHONPATH={params.code:q}/src \
        {params.python:q} -B {params.code:q}/scripts/summarise.py \
            --manifest {params.manifest:q} \
            2>&1 | sh {params.code:q}/scripts/log.sh {log:q} >&2
        rm -f {params.failed_mark:q}
        """
