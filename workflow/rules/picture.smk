# The pictures. Needs: an image and its native run. Makes: one PNG to look at. A step of its own, so that another
# drawing makes pictures again and no network.


rule picture:
    """Draw the label map's outlines on the image, with what is odd about the run below."""
    input:
        image=lambda wildcards: image_of(wildcards.scan),
        dseg="<results>/{engine}/{scan}_seg-<model>_res-<grid>_dseg.nii.gz",
        volumes="<results>/{engine}/{scan}_seg-<model>_res-<grid>_volumes.tsv",
        record="<results>/{engine}/{scan}_seg-<model>_res-<grid>_run.json",
    output:
        picture=report(
            "<results>/{engine}/{scan}_seg-<model>_res-<grid>_qc.png",
            category="Pictures",
            subcategory="{engine}",
            caption="../report/picture.rst",
            labels=labels_of_picture,
        ),
    log:
        "<results>/logs/picture/{engine}/{scan}.log",
    priority: 30  # the first thing to look at, before the next scan
    resources:
        mem_mb=lambda wildcards: demands.picture_mb(PLAN, wildcards.scan),
        runtime=10,
    params:
        python=PYTHON,
        code=CODE,
        image=IMAGE,
        labels=LABELS,
        parcels=PARCELS,
        title=lambda wildcards, input: PLAN.title(wildcards.engine, wildcards.scan),
        step=lambda wildcards, input: step_code("picture.py", wildcards),
    message:
        "Draw {wildcards.scan} ({wildcards.engine})"
    shell:
        r"""
        trap '' INT HUP QUIT USR1 USR2
        PYTHONPATH={params.code:q}/src \
        {params.python:q} -B {params.code:q}/scripts/picture.py \
            --image {params.image:q} \
            --dseg {input.dseg:q} \
            --volumes {input.volumes:q} \
            --record {input.record:q} \
            --labels {params.labels:q} \
            --parcels "{params.parcels}" \
            --title {params.title:q} \
            --made-by {params.step:q} \
            --out {output.picture:q} \
            2>&1 | sh {params.code:q}/scripts/log.sh {log:q} >&2
        """
