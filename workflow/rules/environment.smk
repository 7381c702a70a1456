# Verification of an engine's environment on this machine.
# Needs: the environment (deployed in onstart). Makes: results/env/<engine>.json.
#
# It is no input of the native runs: an input that is made again makes everything below it again, and a new driver
# is no reason to segment a cohort anew. Each native run looks here for the decision that fits the machine it is on,
# and verifies that machine itself where there is none.


rule verify_env:
    """Probe every operation the network needs on every device; write the findings and the device to use."""
    output:
        finding="<results>/env/{engine}.json",
    log:
        "<results>/logs/verify_env/{engine}.log",
    priority: 100
    resources:
        mem_mb=4000,
        runtime=15,
    params:
        python=ENGINE_PYTHON,
        code=CODE,
        machine=lambda wildcards: verify.fingerprint(wildcards.engine),
        step=lambda wildcards: step_code("verify_env.py"),
    message:
        "Verify the {wildcards.engine} environment"
    shell:
        r"""
        trap '' INT HUP QUIT USR1 USR2
        PYTHONPATH={params.code:q}/src \
        {params.python:q} -B {params.code:q}/scripts/verify_env.py \
            --environment {wildcards.engine:q} \
            --out {output.finding:q} \
            2>&1 | sh {params.code:q}/scripts/log.sh {log:q} >&2
        """
