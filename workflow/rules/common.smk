# What every rule file uses: the configuration, the sheet, paths, rerun keys, deployment.
# Needs: config. Makes: no files but results/.state (the plan of the summary, and its token).

import json
import os
import random
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(workflow.basedir)
sys.path.insert(0, str(ROOT / "src"))

from synthseg_native import model as models
from synthseg_native import verify
from synthseg_native.cohort import containers, environments, keys, runs, state
from synthseg_native.cohort import config as configuration
from synthseg_native.cohort.paths import paths as result_paths
from synthseg_native.cohort.samples import openable, read_samples
from synthseg_native.errors import SynthSegError


def stop(error):
    """One clear line per mistake and exit 1, before anything runs."""
    raise SystemExit("\n".join(f"synthseg-native: {line}" for line in str(error).splitlines()))


def chosen_model(config):
    """The model that the configuration names; there is no default, and a small one never passes for SynthSeg."""
    if not config["model"]:
        known = ", ".join(sorted(card.parent.name for card in ROOT.glob("models/*/card.yaml")))
        raise SynthSegError("usage", f"config: model: not set: choose one of {known} (models/README.md)")
    shipped = ROOT / "models" / config["model"]
    model = models.load(openable(shipped) if shipped.is_dir() else config["model"])
    if not model.research_grade and not config["allow_small_model"]:
        why = f"{model.name} is not research grade"
        raise SynthSegError("usage", f"config: model: {why}: to try it all the same set allow_small_model: true")
    return model


try:
    CONFIG = configuration.complete(config, configuration.read_schema(ROOT / "workflow/schemas/config.schema.yaml"))
    MODEL = chosen_model(CONFIG)
    configuration.check_reference(CONFIG["reference"], MODEL.name)
    SCANS = {scan.scan: scan for scan in read_samples(CONFIG["samples"])}
except SynthSegError as error:
    stop(error)

RESULTS = CONFIG["results"]
STATE = f"{RESULTS}/.state"
REFERENCE = CONFIG["reference"]
REFERENCE["base_image"] = (
    REFERENCE["base_image"] or os.environ.get("SYNTHSEG_BASE_IMAGE") or containers.BASE_IMAGE
)
if REFERENCE["kind"] == "existing":
    REFERENCE["runtime"] = "local"  # the step only reads a file
RESOLUTION = f"{MODEL.resolution:g}mm"
MEMORY_MB = CONFIG["memory_mb"] or MODEL.card["memory_mb"]
MINUTES = CONFIG["timeout_min"]

# Jobs run a copy of the code made when the run began, so that an edit in mid-cohort cannot mix versions. Jobs that
# a cluster starts read this file again: the variable tells them which copy.
CODE = os.environ.get("SYNTHSEG_NATIVE_CODE") or str(environments.snapshot())
os.environ["SYNTHSEG_NATIVE_CODE"] = CODE
PYTHON = sys.executable

# Interpreters of the environments as shell variables, $PYTHON_tensorflow and so on: where a project lies is no
# reason to run a job again, so their paths are kept out of params.
SHELL_VARIABLES = {"PYTHONPATH": f"{CODE}/src", "PYTHONDONTWRITEBYTECODE": "1"}
SHELL_VARIABLES |= {f"PYTHON_{name}": str(environments.python(name)) for name in {*CONFIG["engines"], "tensorflow", "demo"}}

shell.executable("bash")
shell.prefix("set -euo pipefail; " + "".join(f"export {k}={shlex.quote(v)}; " for k, v in SHELL_VARIABLES.items()))


wildcard_constraints:
    engine="|".join(CONFIG["engines"]),
    scan=r"sub-[A-Za-z0-9]+(/ses-[A-Za-z0-9]+)?/anat/sub-[A-Za-z0-9_-]+_[A-Za-z0-9]+",


# --- paths -----------------------------------------------------------------------------------------------------


def files(engine, scan="{scan}"):
    """Paths of one run's results: dseg, sidecar, volumes, record, and for an engine margin and compare."""
    return result_paths(RESULTS, engine, scan, MODEL.name, RESOLUTION)


def run_files(engine, scan):
    """Those that the run itself makes (the comparison is a step of its own)."""
    return [path for name, path in files(engine, scan).items() if name != "compare"]


def weights_path():
    """The user's weights, those beside the card, or where the download goes."""
    if CONFIG["weights"]:
        return str(Path(CONFIG["weights"]).expanduser())
    file = MODEL.card["weights"]["file"]
    beside = MODEL.folder / file
    return str(beside if beside.exists() else Path(CONFIG["weights_cache"]).expanduser() / file)


def image_of(wildcards):
    """The image as a rule's input.

    A path that is not there stops Snakemake before any job starts. So: the path where the image exists or can be
    made, and where its label map exists (an image that vanished must not cost a good result); else nothing, and the
    script says what is missing. Engine and reference each go by their own label map.
    """
    image = SCANS[wildcards.scan].image
    made = files(getattr(wildcards, "engine", "reference"), wildcards.scan)["dseg"]
    return [image] if image in DEMO_IMAGES or os.path.exists(image) or os.path.exists(made) else []


def lasting(scan, results):
    """Results of a scan that can be asked for: where its image vanished, those that are there."""
    image = SCANS[scan].image
    if image in DEMO_IMAGES or os.path.exists(image) or not any(map(os.path.exists, results)):
        return results
    return [path for path in results if os.path.exists(path)]


# --- what is compared, and the rerun keys ------------------------------------------------------------------------


def compared_scans():
    """The images that get a reference run, as reference.subjects says."""
    names = sorted(SCANS)
    if REFERENCE["runtime"] == "none" or REFERENCE["subjects"] == "none":
        return set()
    if REFERENCE["subjects"] == "all":
        return set(names)
    return set(random.Random(REFERENCE["seed"]).sample(names, min(REFERENCE["subjects"], len(names))))


COMPARED = compared_scans()
BENCHMARKED = list(SCANS)[: CONFIG["benchmark"]["scans"]]
LABELS = MODEL.folder / "labels.tsv"
# What of the card changes a result; its title and accuracy do not.
computed_from = {name: MODEL.card[name] for name in ("network", "input", "posterior")}
MODEL_KEY = keys.digest(keys.settings_json(**computed_from), keys.file_digest(LABELS))
ENGINES = sorted(path.stem for path in (ROOT / "src/synthseg_native/engines").glob("[!_]*.py"))
ENGINE_CODE = {
    engine: keys.code_digest(
        ROOT / "src",
        ROOT / "src/synthseg_native/cli.py",
        ROOT / f"src/synthseg_native/engines/{engine}.py",
        without=[f"synthseg_native.engines.{other}" for other in ENGINES if other != engine],
    )
    for engine in CONFIG["engines"]
}


def reference_key():
    """The rerun key of the reference's own code: of its image, or of reference.py and its environment."""
    if REFERENCE["kind"] != "own":
        return None  # a foreign image is told by its name, best with a digest; an existing label map is an input
    if REFERENCE["runtime"] in containers.RUNTIMES:
        return containers.image_key(REFERENCE["base_image"], REFERENCE["platform"])
    code = keys.code_digest(ROOT / "src", ROOT / "src/synthseg_native/reference.py")
    return keys.digest(code, environments.lock_hash("tensorflow"))


REFERENCE_KEY = reference_key()


def step_key(script):
    """The code of a step that runs no network."""
    return keys.code_digest(ROOT / "src", ROOT / "scripts" / script)


def native_settings(engine, scan):
    """What a native label map depends on beside its image and weights. Changing any of it runs it again."""
    return keys.settings_json(
        engine=engine,
        model=MODEL_KEY,
        precision=CONFIG["precision"],
        threads=CONFIG["threads"],
        device=CONFIG["device"],
        ct=SCANS[scan].ct,
        code=ENGINE_CODE[engine],
        lock=environments.lock_hash(engine),
    )


def reference_settings(scan):
    """What a reference label map depends on beside its image and weights."""
    return keys.settings_json(
        kind=REFERENCE["kind"],
        runtime=REFERENCE["runtime"],
        image=REFERENCE["image"],
        platform=REFERENCE["platform"],
        pattern=REFERENCE["pattern"],
        model=MODEL_KEY,
        threads=CONFIG["threads"],
        ct=SCANS[scan].ct,
        key=REFERENCE_KEY,
    )
