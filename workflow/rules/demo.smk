# The demo cohort. Needs: the demo environment (nilearn, which carries the ICBM 152 template).
# Makes: demo/, a small BIDS dataset of three template-derived phantoms.

DEMO_IMAGES = [scan.image for scan in SCANS.values()] if CONFIG["demo"] else []

if CONFIG["demo"]:

    rule demo:
        """Make the three phantoms."""
        output:
            DEMO_IMAGES,
        params:
            code=step_key("make_demo.py"),
            lock=environments.lock_hash("demo"),
        log:
            f"{RESULTS}/logs/demo.log",
        resources:
            mem_mb=3000,
            runtime=15,
        message:
            "Make the demo cohort"
        shell:
            "\"$PYTHON_demo\" {CODE}/scripts/make_demo.py --out demo 2>&1 | tee {log:q} >&2"
