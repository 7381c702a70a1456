# The official weights. Needs: the network, once. Makes: a file in weights_cache, refused on a wrong hash.

WEIGHTS = weights_path()

if MODEL.card["weights"].get("urls") and Path(WEIGHTS).parent == Path(CONFIG["weights_cache"]).expanduser():

    rule fetch_weights:
        """Download a weights file: resumed where it broke off, kept only with the right SHA-256."""
        output:
            WEIGHTS,
        log:
            f"{RESULTS}/logs/fetch_weights.log",
        localrule: True
        message:
            f"Fetch {MODEL.card['weights']['file']}"
        shell:
            "{PYTHON} {CODE}/scripts/fetch_weights.py --model {MODEL.folder:q} --out {output:q} 2>&1 | tee {log:q} >&2"
