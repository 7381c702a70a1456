# The demo cohort. Needs: the demo environment (nilearn, which carries the ICBM 152 template).
# Makes: demo/, a small BIDS dataset of three template-derived phantoms.

if PLAN.demo_images:

    rule demo:
        """Make the three phantoms."""
        output:
            "demo/sub-01/anat/sub-01_T1w.nii.gz",
            "demo/sub-02/anat/sub-02_T1w.nii.gz",
            "demo/sub-03/anat/sub-03_FLAIR.nii.gz",
        log:
            "<results>/logs/demo.log",
        priority: 100
        resources:
            mem_mb=3000,
            runtime=15,
        params:
            python=DEMO_PYTHON,
            code=CODE,
            step=lambda wildcards: step_code("make_demo.py"),
            lock=environments.lock_hash("demo"),
        message:
            "Make the demo cohort"
        shell:
            r"""
            trap '' INT HUP QUIT USR1 USR2
            PYTHONPATH={params.code:q}/src \
            {params.python:q} -B {params.code:q}/scripts/make_demo.py \
                --out demo \
                2>&1 | sh {params.code:q}/scripts/log.sh {log:q} >&2
            """
