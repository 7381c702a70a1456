# The reference runs. Needs: an image, the weights, for a container its image (deployed in onstart); of kind existing
# the user's label map. Makes: label map, sidecar, volumes and run record.


rule reference:
    """Segment one image with the reference, or take the label map that the user has."""
    input:
        image=lambda wildcards: PLAN.image(wildcards.scan),
        weights=PLAN.weights_input(),
    output:
        **PLAN.files("reference"),
    log:
        f"{RESULTS}/logs/reference/{{scan}}.log",
    threads: PLAN.config["threads"]
    resources:
        mem_mb=lambda wildcards: PLAN.memory("reference", wildcards.scan),
        runtime=PLAN.minutes + 10,  # the step ends by itself first, and says why
    params:
        image=lambda wildcards: PLAN.scans[wildcards.scan].image,
        settings=lambda wildcards: PLAN.reference_settings(wildcards.scan),
    message:
        "Reference of {wildcards.scan}"
    shell:
        '"$PYTHON" "$CODE/scripts/reference.py" --scan {wildcards.scan} --image {params.image:q}'
        ' --settings {params.settings:q} --python "$PYTHON_tensorflow"'
        ' --model "$MODEL" --weights "$WEIGHTS" --memory-mb "$MEMORY_MB"'
        ' --failures "$STATE/failed" --timeout-min "$TIMEOUT_MIN"'
        " --dseg {output.dseg:q} --sidecar {output.sidecar:q} --volumes {output.volumes:q}"
        " --record {output.record:q} 2>&1 | tee {log:q} >&2"
