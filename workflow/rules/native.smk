# The native runs. Needs: an image, the weights, which are told by their
# content and are inputs only where the workflow makes them. Makes: label maps on the network's and on the image's own grid, their
# sidecars, volumes, margin map and run record.


rule native:
    """Segment one image with one engine."""
    input:
        image=lambda wildcards: image_of(wildcards.scan),
    output:
        dseg="<results>/{engine}/{scan}_seg-<model>_res-<grid>_dseg.nii.gz",
        sidecar="<results>/{engine}/{scan}_seg-<model>_res-<grid>_dseg.json",
        volumes="<results>/{engine}/{scan}_seg-<model>_res-<grid>_volumes.tsv",
        margin="<results>/{engine}/{scan}_seg-<model>_res-<grid>_margin.nii.gz",
        dseg_native="<results>/{engine}/{scan}_seg-<model>_res-native_dseg.nii.gz",
        sidecar_native="<results>/{engine}/{scan}_seg-<model>_res-native_dseg.json",
        record="<results>/{engine}/{scan}_seg-<model>_res-<grid>_run.json",
    log:
        "<results>/logs/{engine}/{scan}.log",
    priority: 20
    threads: PLAN.config["threads"]
    resources:
        mem_mb=lambda wildcards: demands.memory_mb(PLAN, wildcards.engine, wildcards.scan),
        runtime=PLAN.minutes + 10,  # the step ends by itself first, and says why
    params:
        python=PYTHON,
        code=CODE,
        image=IMAGE,
        settings=lambda wildcards, input: PLAN.identities.native_settings(wildcards.engine, wildcards.scan),
        engine_python=ENGINE_PYTHON,
        model=MODEL,
        weights=WEIGHTS,
        verified=VERIFIED,
        failed=FAILED,
        timeout_min=TIMEOUT_MIN,
    message:
        "Segment {wildcards.scan} ({wildcards.engine})"
    shell:
        r"""
        trap '' INT HUP QUIT USR1 USR2
        PYTHONPATH={params.code:q}/src \
        {params.python:q} -B {params.code:q}/scripts/native.py \
            --scan {wildcards.scan:q} \
            --image {params.image:q} \
            --settings {params.settings:q} \
            --python {params.engine_python:q} \
            --model {params.model:q} \
            --weights {params.weights:q} \
            --verification {params.verified:q} \
            --failures {params.failed:q} \
            --timeout-min {params.timeout_min:q} \
            --dseg {output.dseg:q} \
            --sidecar {output.sidecar:q} \
            --volumes {output.volumes:q} \
            --margin {output.margin:q} \
            --dseg-native {output.dseg_native:q} \
            --sidecar-native {output.sidecar_native:q} \
            --record {output.record:q} \
            2>&1 | sh {params.code:q}/scripts/log.sh {log:q} >&2
        """
