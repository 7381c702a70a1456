# The comparisons. Needs: a native and a reference run of one image. Makes: the verdict, a file, never a failed job.


rule compare:
    """Compare a native label map with the reference, voxel by voxel."""
    input:
        native="<results>/{engine}/{scan}_seg-<model>_res-<grid>_dseg.nii.gz",
        native_record="<results>/{engine}/{scan}_seg-<model>_res-<grid>_run.json",
        native_volumes="<results>/{engine}/{scan}_seg-<model>_res-<grid>_volumes.tsv",
        margin="<results>/{engine}/{scan}_seg-<model>_res-<grid>_margin.nii.gz",
        reference="<results>/reference/{scan}_seg-<model>_res-<grid>_dseg.nii.gz",
        reference_record="<results>/reference/{scan}_seg-<model>_res-<grid>_run.json",
        reference_volumes="<results>/reference/{scan}_seg-<model>_res-<grid>_volumes.tsv",
    output:
        compare=report(
            "<results>/{engine}/{scan}_seg-<model>_res-<grid>_compare.json",
            category="Verdicts",
            subcategory="{engine}",
            caption="../report/compare.rst",
            labels=report_labels.of_comparison,
        ),
    log:
        "<results>/logs/compare/{engine}/{scan}.log",
    priority: 15
    resources:
        mem_mb=lambda wildcards: demands.comparison_mb(PLAN, wildcards.scan),
        runtime=10,
    params:
        python=PYTHON,
        code=CODE,
        labels=LABELS,
        parcels=PARCELS,
        thresholds=constant(keys.settings_json(**PLAN.config["equivalence"])),
        step=lambda wildcards, input: step_code("compare.py", wildcards),
    message:
        "Compare {wildcards.scan} ({wildcards.engine}) with the reference"
    shell:
        r"""
        trap '' INT HUP QUIT USR1 USR2
        PYTHONPATH={params.code:q}/src \
        {params.python:q} -B {params.code:q}/scripts/compare.py \
            --labels {params.labels:q} \
            --parcels "{params.parcels}" \
            --thresholds {params.thresholds:q} \
            --made-by {params.step:q} \
            --native {input.native:q} \
            --native-record {input.native_record:q} \
            --native-volumes {input.native_volumes:q} \
            --margin {input.margin:q} \
            --reference {input.reference:q} \
            --reference-record {input.reference_record:q} \
            --reference-volumes {input.reference_volumes:q} \
            --out {output.compare:q} \
            2>&1 | sh {params.code:q}/scripts/log.sh {log:q} >&2
        """
