# The comparisons. Needs: a native and a reference run of one image. Makes: the verdict, a file, never a failed job.


rule compare:
    """Compare a native label map with the reference, voxel by voxel."""
    input:
        native=PLAN.files("{engine}")["dseg"],
        native_record=PLAN.files("{engine}")["record"],
        native_volumes=PLAN.files("{engine}")["volumes"],
        margin=PLAN.files("{engine}")["margin"],
        reference=PLAN.files("reference")["dseg"],
        reference_record=PLAN.files("reference")["record"],
        reference_volumes=PLAN.files("reference")["volumes"],
    output:
        PLAN.comparison("{engine}"),
    log:
        f"{RESULTS}/logs/compare/{{engine}}/{{scan}}.log",
    resources:
        mem_mb=2000,
        runtime=10,
    params:
        thresholds=keys.settings_json(**PLAN.config["equivalence"]),
        labels=PLAN.labels,
        code=PLAN.step_key("compare.py"),
    message:
        "Compare {wildcards.scan} ({wildcards.engine}) with the reference"
    shell:
        '"$PYTHON" "$CODE/scripts/compare.py" --labels {params.labels:q} --thresholds {params.thresholds:q}'
        " --native {input.native:q} --native-record {input.native_record:q}"
        " --native-volumes {input.native_volumes:q} --margin {input.margin:q}"
        " --reference {input.reference:q} --reference-record {input.reference_record:q}"
        " --reference-volumes {input.reference_volumes:q} --out {output:q} 2>&1 | tee {log:q} >&2"
