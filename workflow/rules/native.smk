# The native runs. Needs: an image, the weights. Makes: label maps on the network's and on the image's own grid, their
# sidecars, volumes, margin map and run record.


rule native:
    """Segment one image with one engine."""
    input:
        image=lambda wildcards: PLAN.image(wildcards.scan, wildcards.engine),
        weights=PLAN.weights_input(),
    output:
        **PLAN.files("{engine}"),
    log:
        f"{RESULTS}/logs/{{engine}}/{{scan}}.log",
    threads: PLAN.config["threads"]
    resources:
        mem_mb=lambda wildcards: PLAN.memory(wildcards.engine, wildcards.scan),
        runtime=PLAN.minutes + 10,  # the step ends by itself first, and says why
    params:
        image=lambda wildcards: PLAN.scans[wildcards.scan].image,
        settings=lambda wildcards: PLAN.native_settings(
            wildcards.engine, wildcards.scan
        ),
    message:
        "Segment {wildcards.scan} ({wildcards.engine})"
    shell:
        '"$PYTHON" "$CODE/scripts/native.py" --scan {wildcards.scan} --image {params.image:q}'
        ' --settings {params.settings:q} --python "$PYTHON_{wildcards.engine}"'
        ' --model "$MODEL" --weights "$WEIGHTS"'
        ' --verification "$RESULTS/env" --failures "$STATE/failed" --timeout-min "$TIMEOUT_MIN"'
        " --dseg {output.dseg:q} --sidecar {output.sidecar:q} --volumes {output.volumes:q}"
        " --margin {output.margin:q} --dseg-native {output.dseg_native:q}"
        " --sidecar-native {output.sidecar_native:q} --record {output.record:q} 2>&1 | tee {log:q} >&2"
