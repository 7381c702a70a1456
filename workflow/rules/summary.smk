# The aggregates. Needs: every result that the sheet asks for. Makes: summary, volumes and the BIDS descriptions.

PLAN = f"{STATE}/plan.json"
TOKEN = f"{STATE}/token"
FAILED_MARK = state.failed_mark(STATE)


def summary_files():
    names = {
        "summary": "summary.tsv",
        "columns": "summary.json",
        "failed": "failed.tsv",
        "volumes": "volumes.tsv",
        "volumes_wide": "volumes_wide.tsv",
        "volumes_synthseg": "volumes_synthseg.csv",
    }
    return {name: f"{RESULTS}/{file}" for name, file in names.items()}


def wanted_runs():
    """Every file that runs and comparisons make for the sheet."""
    native = [path for engine in CONFIG["engines"] for scan in SCANS for path in lasting(scan, run_files(engine, scan))]
    reference = [path for scan in sorted(COMPARED) for path in lasting(scan, run_files("reference", scan))]
    compared = [files(engine, scan)["compare"] for engine in CONFIG["engines"] for scan in sorted(COMPARED)]
    return native + reference + compared


def wanted_once():
    verified = [f"{RESULTS}/env/{engine}.json" for engine in CONFIG["engines"]]
    return verified + ([f"{RESULTS}/benchmark.tsv", f"{RESULTS}/benchmark_runs.tsv"] if BENCHMARKED else [])


def plan():
    """What the summary is about, for scripts/summarise.py."""
    return {
        "results": RESULTS,
        "engines": CONFIG["engines"],
        "model": {"name": MODEL.name, "dir": str(MODEL.folder), "research_grade": MODEL.research_grade},
        "reference": {"kind": REFERENCE["kind"], "runtime": REFERENCE["runtime"]} if COMPARED else None,
        "resolution": RESOLUTION,
        "scans": [
            {
                "scan": name,
                "image": scan.image,
                "entities": scan.entities,
                "sheet": scan.sheet,
                "row": scan.row,
                "reference": name in COMPARED,
            }
            for name, scan in SCANS.items()
        ],
        "benchmark": bool(BENCHMARKED),
    }


PLAN_TEXT = json.dumps(plan(), indent=1)

if workflow.is_main_process:
    state.write_if_changed(PLAN, PLAN_TEXT)
    state.renew_token(TOKEN, wanted_runs() + wanted_once())


rule summary:
    """One row per image and engine; volumes of all; what each column means."""
    input:
        runs=wanted_runs(),
        once=wanted_once(),
        token=TOKEN,
    output:
        **summary_files(),
    params:
        plan=keys.digest(PLAN_TEXT),
        code=step_key("summarise.py"),
    log:
        f"{RESULTS}/logs/summary.log",
    localrule: True
    message:
        "Summarise"
    shell:
        "{PYTHON} {CODE}/scripts/summarise.py --plan {PLAN:q} --results {RESULTS:q} 2>&1 | tee {log:q} >&2;"
        " rm -f {FAILED_MARK:q}"


def finish(success):
    """The end of a run: after a failure a summary all the same, and always the table for people."""
    command = [PYTHON, f"{CODE}/scripts/summarise.py", "--results", RESULTS]
    environment = os.environ | {"PYTHONPATH": f"{CODE}/src"}
    if not success:
        state.write_text(FAILED_MARK, "The last run did not finish well; the next one makes the summary again.\n")
        subprocess.run([*command, "--plan", PLAN], env=environment)
    subprocess.run([*command, "--show"], env=environment)
