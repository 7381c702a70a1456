# The benchmark. Needs: images, the weights. Makes: every run's time and memory, and their statistics.


def benchmark_settings():
    """Native and reference settings of the benchmarked images, and how often they run."""
    return keys.settings_json(
        repeats=CONFIG["benchmark"]["repeats"],
        warmups=CONFIG["benchmark"]["warmups"],
        threads=CONFIG["threads"],
        native={
            scan: [json.loads(native_settings(engine, scan)) for engine in CONFIG["engines"]] for scan in BENCHMARKED
        },
        reference={scan: json.loads(reference_settings(scan)) for scan in BENCHMARKED if REFERENCE["runtime"] != "none"},
        code=step_key("benchmark.py"),
    )


def benchmarked_images():
    """As image_of: an image that is missing must not stop the others, nor cost a benchmark that was made."""
    made = os.path.exists(f"{RESULTS}/benchmark.tsv")
    images = [SCANS[scan].image for scan in BENCHMARKED]
    return [image for image in images if made or image in DEMO_IMAGES or os.path.exists(image)]


rule benchmark:
    """Run native and reference in turn on the same images, alone on the machine."""
    input:
        images=benchmarked_images(),
        weights=WEIGHTS,
    output:
        runs=f"{RESULTS}/benchmark_runs.tsv",
        table=f"{RESULTS}/benchmark.tsv",
    params:
        settings=benchmark_settings(),
        scans=[f"{scan}={SCANS[scan].image}" for scan in BENCHMARKED],
    log:
        f"{RESULTS}/logs/benchmark.log",
    threads: workflow.cores or 1
    resources:
        mem_mb=MEMORY_MB,
        runtime=MINUTES * 2 * (CONFIG["benchmark"]["repeats"] + CONFIG["benchmark"]["warmups"]),
    message:
        "Benchmark: native and reference in turn"
    shell:
        "{PYTHON} {CODE}/scripts/benchmark.py --settings {params.settings:q} --scan {params.scans:q}"
        " --python \"$PYTHON_tensorflow\" --model {MODEL.folder:q} --weights {input.weights:q} --memory-mb {MEMORY_MB}"
        " --timeout-min {MINUTES} --verification {RESULTS:q}/env --work {STATE:q}/benchmark"
        " --runs {output.runs:q} --out {output.table:q} 2>&1 | tee {log:q} >&2"
