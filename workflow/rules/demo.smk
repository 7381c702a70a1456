# The demo cohort. Needs: the demo environment (nilearn, which carries the ICBM 152 template).
# Makes: demo/, a small BIDS dataset of three template-derived phantoms.

if PLAN.demo_images:

    rule demo:
        """Make the three phantoms."""
        output:
            PLAN.demo_images,
        log:
            f"{RESULTS}/logs/demo.log",
        resources:
            mem_mb=3000,
            runtime=15,
        params:
            code=PLAN.step_key("make_demo.py"),
            lock=environments.lock_hash("demo"),
        message:
            "Make the demo cohort"
        shell:
            '"$PYTHON_demo" "$CODE/scripts/make_demo.py" --out demo 2>&1 | tee {log:q} >&2'
