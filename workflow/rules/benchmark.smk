# The benchmark. Needs: images, the weights. Makes: every run's time and memory, and their statistics.


rule benchmark:
    """Run native and reference in turn on the same images, alone on the machine."""
    input:
        images=PLAN.benchmarked_images(),
        weights=PLAN.weights_input(),
    output:
        runs=f"{RESULTS}/benchmark_runs.tsv",
        table=f"{RESULTS}/benchmark.tsv",
    log:
        f"{RESULTS}/logs/benchmark.log",
    threads: workflow.cores or 1
    resources:
        mem_mb=PLAN.benchmark_memory(),
        runtime=PLAN.minutes
        * 2
        * (PLAN.config["benchmark"]["repeats"] + PLAN.config["benchmark"]["warmups"])
        + 10,
        slurm_extra="--exclusive",
    params:
        settings=PLAN.benchmark_settings(),
        scans=lambda wildcards: [
            f"{scan}={PLAN.scans[scan].image}" for scan in PLAN.benchmarked
        ],
    message:
        "Benchmark: native and reference in turn"
    shell:
        '"$PYTHON" "$CODE/scripts/benchmark.py" --settings {params.settings:q} --scan {params.scans:q}'
        ' --pythons "$PYTHONS" --model "$MODEL" --weights "$WEIGHTS"'
        ' --memory-mb "$MEMORY_MB" --timeout-min "$TIMEOUT_MIN"'
        ' --verification "$RESULTS/env" --work "$STATE/benchmark"'
        " --runs {output.runs:q} --out {output.table:q} 2>&1 | tee {log:q} >&2"
