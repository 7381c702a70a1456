# The benchmark. Needs: images, the weights. Makes: every run's time and memory, and their statistics. The only step
# without a priority: it wants the machine for itself, so it comes last.


rule benchmark:
    """Run native and reference in turn on the same images, alone on the machine."""
    input:
        images=lambda wildcards: PLAN.benchmarked_images(),
    output:
        runs=report(
            "<results>/benchmark_runs.tsv",
            category="Benchmark",
            caption="../report/benchmark_runs.rst",
            labels={"table": "every run"},
        ),
        table=report(
            "<results>/benchmark.tsv",
            category="Benchmark",
            caption="../report/benchmark.rst",
            labels={"table": "statistics"},
        ),
    log:
        "<results>/logs/benchmark.log",
    threads: lambda wildcards: workflow.resource_settings.cores or 1  # without --cores, for a report, one is as good
    resources:
        mem_mb=lambda wildcards: demands.benchmark_memory(PLAN),
        runtime=demands.benchmark_minutes(PLAN),
        slurm_extra="--exclusive",
    params:
        python=PYTHON,
        code=CODE,
        settings=lambda wildcards: PLAN.benchmark_key(),
        order=lambda wildcards, input: str(PLAN.benchmark_order[0]),
        pythons=PYTHONS,
        model=MODEL,
        weights=WEIGHTS,
        memory_mb=MEMORY_MB,
        timeout_min=TIMEOUT_MIN,
        verified=VERIFIED,
        work=BENCHMARK_WORK,
    message:
        "Benchmark: native and reference in turn"
    shell:
        r"""
        trap '' INT HUP QUIT USR1 USR2
        PYTHONPATH={params.code:q}/src \
        {params.python:q} -B {params.code:q}/scripts/benchmark.py \
            --order {params.order:q} \
            --pythons {params.pythons:q} \
            --model {params.model:q} \
            --weights {params.weights:q} \
            --memory-mb "{params.memory_mb}" \
            --timeout-min {params.timeout_min:q} \
            --verification {params.verified:q} \
            --work {params.work:q} \
            --runs {output.runs:q} \
            --out {output.table:q} \
            2>&1 | sh {params.code:q}/scripts/log.sh {log:q} >&2
        """
