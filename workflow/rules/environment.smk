# Verification of an engine's environment on this machine.
# Needs: the environment (deployed in onstart). Makes: results/env/<engine>.json.
#
# It is no input of the native runs: an input that is made again makes everything below it again, and a new driver
# is no reason to segment a cohort anew. Each native run looks here for the decision that fits the machine it is on,
# and verifies that machine itself where there is none.


rule verify_env:
    """Probe every operation the network needs on every device; write the findings and the device to use."""
    output:
        f"{RESULTS}/env/{{engine}}.json",
    log:
        f"{RESULTS}/logs/verify_env/{{engine}}.log",
    priority: 100
    resources:
        mem_mb=4000,
        runtime=15,
    params:
        machine=lambda wildcards: verify.fingerprint(wildcards.engine),
        code=PLAN.step_key("verify_env.py"),
    message:
        "Verify the {wildcards.engine} environment"
    shell:
        '"$PYTHON_{wildcards.engine}" "$CODE/scripts/verify_env.py"'
        " --environment {wildcards.engine} --out {output:q} 2>&1 | tee {log:q} >&2"
