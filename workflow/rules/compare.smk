# The comparisons. Needs: a native and a reference run of one image. Makes: the verdict, a file, never a failed job.


rule compare:
    """Compare a native label map with the reference, voxel by voxel."""
    input:
        native=files("{engine}")["dseg"],
        native_record=files("{engine}")["record"],
        native_volumes=files("{engine}")["volumes"],
        margin=files("{engine}")["margin"],
        reference=files("reference")["dseg"],
        reference_record=files("reference")["record"],
        reference_volumes=files("reference")["volumes"],
    output:
        files("{engine}")["compare"],
    params:
        thresholds=keys.settings_json(**CONFIG["equivalence"]),
        code=step_key("compare.py"),
    log:
        f"{RESULTS}/logs/compare/{{engine}}/{{scan}}.log",
    resources:
        mem_mb=2000,
        runtime=10,
    message:
        "Compare {wildcards.scan} ({wildcards.engine}) with the reference"
    shell:
        "{PYTHON} {CODE}/scripts/compare.py --labels {LABELS:q} --thresholds {params.thresholds:q}"
        " --native {input.native:q} --native-record {input.native_record:q}"
        " --native-volumes {input.native_volumes:q} --margin {input.margin:q}"
        " --reference {input.reference:q} --reference-record {input.reference_record:q}"
        " --reference-volumes {input.reference_volumes:q} --out {output:q} 2>&1 | tee {log:q} >&2"
