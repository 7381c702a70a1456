# The native runs. Needs: an image, the weights. Makes: label map, sidecar, volumes, margin map and run record.


rule native:
    """Segment one image with one engine."""
    input:
        image=image_of,
        weights=WEIGHTS,
    output:
        **{name: path for name, path in files("{engine}").items() if name != "compare"},
    params:
        image=lambda wildcards: SCANS[wildcards.scan].image,
        settings=lambda wildcards: native_settings(wildcards.engine, wildcards.scan),
    log:
        f"{RESULTS}/logs/{{engine}}/{{scan}}.log",
    threads: CONFIG["threads"]
    resources:
        mem_mb=MEMORY_MB,
        runtime=MINUTES,
    message:
        "Segment {wildcards.scan} ({wildcards.engine})"
    shell:
        "{PYTHON} {CODE}/scripts/native.py --scan {wildcards.scan} --image {params.image:q}"
        " --settings {params.settings:q} --python \"$PYTHON_{wildcards.engine}\""
        " --model {MODEL.folder:q} --weights {input.weights:q}"
        " --verification {RESULTS:q}/env --failures {STATE:q}/failed --timeout-min {MINUTES}"
        " --dseg {output.dseg:q} --sidecar {output.sidecar:q} --volumes {output.volumes:q}"
        " --margin {output.margin:q} --record {output.record:q} 2>&1 | tee {log:q} >&2"
