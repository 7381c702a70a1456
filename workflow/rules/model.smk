# The official weights. Needs: the network, once. Makes: a file in weights_cache, refused on a wrong hash.

if PLAN.fetches_weights():

    rule fetch_weights:
        """Download a weights file: resumed where it broke off, kept only with the right SHA-256."""
        output:
            PLAN.weights(),
        log:
            f"{RESULTS}/logs/fetch_weights.log",
        localrule: True
        resources:
            mem_mb=500,
            runtime=120,
        message:
            "Fetch {output}"
        shell:
            '"$PYTHON" "$CODE/scripts/fetch_weights.py" --model "$MODEL" --out {output:q} 2>&1 | tee {log:q} >&2'
