# The reference runs. Needs: an image, the weights, for a container its image (deployed in onstart); of kind existing
# the user's label map. Makes: label map, sidecar, volumes and run record.


rule reference:
    """Segment one image with the reference, or take the label map that the user has."""
    input:
        image=lambda wildcards: image_of(wildcards.scan),
    output:
        dseg="<results>/reference/{scan}_seg-<model>_res-<grid>_dseg.nii.gz",
        sidecar="<results>/reference/{scan}_seg-<model>_res-<grid>_dseg.json",
        volumes="<results>/reference/{scan}_seg-<model>_res-<grid>_volumes.tsv",
        record="<results>/reference/{scan}_seg-<model>_res-<grid>_run.json",
    log:
        "<results>/logs/reference/{scan}.log",
    priority: 10
    threads: PLAN.config["threads"]
    resources:
        mem_mb=lambda wildcards: demands.memory_mb(PLAN, "reference", wildcards.scan),
        runtime=PLAN.minutes + 10,  # the step ends by itself first, and says why
    params:
        python=PYTHON,
        code=CODE,
        image=IMAGE,
        settings=lambda wildcards, input: PLAN.identities.reference_settings(wildcards.scan),
        reference_python=REFERENCE_PYTHON,
        model=MODEL,
        weights=WEIGHTS,
        memory_mb=MEMORY_MB,
        failed=FAILED,
        timeout_min=TIMEOUT_MIN,
    message:
        "Reference of {wildcards.scan}"
    shell:
        r"""
        trap '' INT HUP QUIT USR1 USR2
        PYTHONPATH={params.code:q}/src \
        {params.python:q} -B {params.code:q}/scripts/reference.py \
            --scan {wildcards.scan:q} \
            --image {params.image:q} \
            --settings {params.settings:q} \
            --python {params.reference_python:q} \
            --model {params.model:q} \
            --weights {params.weights:q} \
            --memory-mb "{params.memory_mb}" \
            --failures {params.failed:q} \
            --timeout-min {params.timeout_min:q} \
            --dseg {output.dseg:q} \
            --sidecar {output.sidecar:q} \
            --volumes {output.volumes:q} \
            --record {output.record:q} \
            2>&1 | sh {params.code:q}/scripts/log.sh {log:q} >&2
        """
