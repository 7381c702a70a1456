# Deployment, before the first job, and verification of an engine's environment on this machine.
# Needs: the environment (deployed in onstart). Makes: results/env/<engine>.json.
#
# It is no input of the native runs: an input that is made again makes everything below it again, and a new driver
# is no reason to segment a cohort anew. Each native run looks here for the decision that fits the machine it is on,
# and verifies that machine itself where there is none.


rule verify_env:
    """Probe every operation the network needs on every device; write the findings and the device to use."""
    output:
        f"{RESULTS}/env/{{engine}}.json",
    params:
        machine=lambda wildcards: verify.fingerprint(wildcards.engine),
        lock=lambda wildcards: environments.lock_hash(wildcards.engine),
        code=step_key("verify_env.py"),
    log:
        f"{RESULTS}/logs/verify_env/{{engine}}.log",
    priority: 100
    resources:
        mem_mb=4000,
        runtime=15,
    message:
        "Verify the {wildcards.engine} environment"
    shell:
        "\"$PYTHON_{wildcards.engine}\" {CODE}/scripts/verify_env.py"
        " --environment {wildcards.engine} --out {output:q} 2>&1 | tee {log:q} >&2"


def deploy():
    """Make what the jobs need and Snakemake must not track: a renewed environment or image is no new input."""
    announce_changes()
    needed = [*CONFIG["engines"]]
    needed += ["tensorflow"] if COMPARED and (REFERENCE["kind"], REFERENCE["runtime"]) == ("own", "local") else []
    needed += ["demo"] if not all(map(os.path.exists, DEMO_IMAGES)) else []
    try:
        for name in dict.fromkeys(needed):
            environments.ensure(name)
    except environments.SetupError as error:
        stop(error)
    if COMPARED and REFERENCE["runtime"] in containers.RUNTIMES:
        deploy_container()


def deploy_container():
    """Remove containers that a killed run left, and build the reference image where a reference run will need it.

    A daemon that is absent or refuses is no reason to stop: one line, and the reference runs fail one by one.
    """
    try:
        containers.reap(REFERENCE["runtime"], os.getcwd())
        if REFERENCE["kind"] == "own" and any(stale_reference(scan) for scan in COMPARED):
            containers.ensure_image(REFERENCE, ROOT)
    except SynthSegError as error:
        print(f"reference: {error}", file=sys.stderr)


def stale_reference(scan):
    """Whether a scan's reference run is missing or was made with another key."""
    record = state.records([files("reference", scan)["record"]])
    return not record or any(found["key"].get("key") != REFERENCE_KEY for found in record.values())


def announce_changes():
    """One line per kind of run that changed settings make again: how many, and why."""
    native = {files(e, s)["record"]: native_settings(e, s) for e in CONFIG["engines"] for s in SCANS}
    reference = {files("reference", scan)["record"]: reference_settings(scan) for scan in COMPARED}
    for kind, current in (("native", native), ("reference", reference)):
        for why, count in state.changed_settings(current).items():
            print(f"{count} {kind} {'run' if count == 1 else 'runs'} again: {why}", file=sys.stderr)
