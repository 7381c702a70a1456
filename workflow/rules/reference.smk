# The reference runs. Needs: an image, the weights, for a container its image (deployed in onstart).
# Makes: label map, sidecar, volumes and run record.


def existing_map(wildcards):
    """Kind existing: the user's label map, an input, so that another file is compared anew."""
    return runs.find_existing(REFERENCE["pattern"], SCANS[wildcards.scan]) if REFERENCE["kind"] == "existing" else []


rule reference:
    """Segment one image with the reference, or take the label map that the user has."""
    input:
        image=image_of,
        weights=WEIGHTS if REFERENCE["kind"] == "own" else [],
        existing=existing_map,
    output:
        **files("reference"),
    params:
        image=lambda wildcards: SCANS[wildcards.scan].image,
        settings=lambda wildcards: reference_settings(wildcards.scan),
    log:
        f"{RESULTS}/logs/reference/{{scan}}.log",
    threads: CONFIG["threads"]
    resources:
        mem_mb=MEMORY_MB,
        runtime=MINUTES,
    message:
        f"Reference of {{wildcards.scan}} ({REFERENCE['kind']}, {REFERENCE['runtime']})"
    shell:
        "{PYTHON} {CODE}/scripts/reference.py --scan {wildcards.scan} --image {params.image:q}"
        " --settings {params.settings:q} --python \"$PYTHON_tensorflow\""
        " --model {MODEL.folder:q} --weights {WEIGHTS:q} --memory-mb {MEMORY_MB}"
        " --failures {STATE:q}/failed --timeout-min {MINUTES}"
        " --dseg {output.dseg:q} --sidecar {output.sidecar:q} --volumes {output.volumes:q}"
        " --record {output.record:q} 2>&1 | tee {log:q} >&2"
