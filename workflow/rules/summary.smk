# The aggregates. Needs: every result that the sheet asks for. Makes: summary, volumes and the BIDS descriptions.


rule summary:
    """One row per image and engine; volumes of all; what each column means."""
    input:
        runs=PLAN.wanted_runs(),
        once=PLAN.wanted_once(),
        token=PLAN.token,
    output:
        **PLAN.aggregates(),
    log:
        f"{RESULTS}/logs/summary.log",
    localrule: True
    resources:
        mem_mb=1000,
        runtime=30,
    params:
        manifest=lambda wildcards: str(PLAN.manifest.path(PLAN.state)),
        failed_mark=str(state.failed_mark(PLAN.state)),
        code=PLAN.step_key("summarise.py"),
    message:
        "Summarise"
    shell:
        '"$PYTHON" "$CODE/scripts/summarise.py" --manifest {params.manifest:q} 2>&1'
        " | tee {log:q} >&2; rm -f {params.failed_mark:q}"
