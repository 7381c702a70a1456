# The pictures. Needs: an image and its native run. Makes: one PNG to look at. A rule of its own, so that another
# drawing makes pictures again and no network.


rule picture:
    """Draw the label map's outlines on the image, with what is odd about the run below."""
    input:
        image=lambda wildcards: PLAN.image(wildcards.scan, wildcards.engine),
        dseg=PLAN.files("{engine}")["dseg"],
        volumes=PLAN.files("{engine}")["volumes"],
        record=PLAN.files("{engine}")["record"],
    output:
        PLAN.picture("{engine}"),
    log:
        f"{RESULTS}/logs/picture/{{engine}}/{{scan}}.log",
    resources:
        mem_mb=3000,
        runtime=10,
    params:
        image=lambda wildcards: PLAN.scans[wildcards.scan].image,
        title=lambda wildcards: PLAN.title(wildcards.scan, wildcards.engine),
        labels=PLAN.labels,
        code=PLAN.step_key("picture.py"),
    message:
        "Draw {wildcards.scan} ({wildcards.engine})"
    shell:
        '"$PYTHON" "$CODE/scripts/picture.py" --image {params.image:q} --dseg {input.dseg:q}'
        " --volumes {input.volumes:q} --record {input.record:q} --labels {params.labels:q}"
        " --title {params.title:q} --out {output:q} 2>&1 | tee {log:q} >&2"
