"""What a segmentation is made by: a list of stages, each with the code, the settings and the inputs that it depends on.

This is data: `current` compares it, `docs/caching.md` tells it. What is in no stage's list changes no result, and
UNCHANGING says why; a test holds every module of the package against both.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from synthseg_native import engines
from synthseg_native.identity import keys
from synthseg_native.identity.code import code_digest
from synthseg_native.networks.cards import Model, Network, with_parcels

PACKAGE = Path(__file__).resolve().parents[1]
FORM = 2  # of an identity: a record without it was made before records noted all that made them


@dataclass(frozen=True)
class Stage:
    """makes : what it adds · reads : earlier stages, or what comes from outside (image, weights, results on disk)

    settings : names in a run's identity that it depends on
    modules : files below the package, with * for all of a folder and {engine} for the one that runs; behind a colon
    functions or constants, where the rest of a file changes no result · scripts : the same below scripts/
    """

    name: str
    makes: str
    reads: tuple[str, ...]
    settings: tuple[str, ...]
    modules: tuple[str, ...]
    scripts: tuple[str, ...] = ()


STAGES = {
    stage.name: stage
    for stage in (
        # One scan, native --------------------------------------------------------------------------------------------
        Stage("read", "voxels, affine, facts of the header", ("image",), ("content", "accept"),
              ("scan/reading.py", "scan/content.py", "scan/values.py", "scan/formats.py")),
        Stage("grid", "the scan on the network's grid", ("read",), ("model", "ct", "crop", "autocrop"),
              ("scan/grid.py",)),
        Stage("network", "posteriors", ("grid", "weights"),
              ("engine", "precision", "device", "threads", "mode", "parcels", "scores", "model", "weights",
               "environment"),
              ("networks/cards.py", "networks/layers.py", "engines/{engine}.py", "engines/capabilities.py")),
        Stage("labels", "labels, margins, volumes", ("network",), ("mode", "model"),
              ("pipeline/modes.py", "pipeline/posteriors.py", "pipeline/smoothing.py", "pipeline/labels.py")),
        Stage("parcels", "parcels of the cortex", ("labels", "weights"), (), ("pipeline/parcels.py",)),
        Stage("scores", "SynthSeg's quality scores", ("network", "weights"), (), ("pipeline/scores.py",)),
        Stage("own grid", "labels on the scan's own grid", ("labels",), ("interpolation", "keepgeom"),
              ("scan/own_grid.py",)),
        Stage("measures", "label maps, tables, sidecars", ("labels", "own grid"), ("model", "addctab", "display"),
              ("results/images.py", "results/tables.py", "results/sidecar.py", "results/hashes.py")),
        Stage("figures", "quality figures, raw", ("labels",), ("model",), ("results/figures.py",)),
        Stage("command", "the stages above, in order, with the options that were asked for", (), (),
              ("options.py", "cli.py:parser", "pipeline/segment.py", "pipeline/core.py")),
        Stage("native step", "the engine's command line, the run record", (), (),
              ("cohort/runs/native.py", "cohort/runs/child.py", "cohort/runs/files.py", "identity/keys.py:flags"),
              ("native.py",)),
        # One scan, reference -----------------------------------------------------------------------------------------
        Stage("reference", "label map and volumes", ("image", "weights"),
              ("kind", "runtime", "model", "weights", "content", "accept", "ct", "mode", "parcels", "scores", "crop",
               "threads", "environment"), ("reference.py",)),
        Stage("container", "the command in the container, and its image", (), ("image", "platform", "flags", "key"),
              ("cohort/containers.py:inner_command,command,image_of,platform_of",)),
        Stage("upstream", "label map and volumes, by upstream's own code", ("image",),
              ("kind", "runtime", "model", "content", "accept", "ct", "mode", "parcels", "scores", "crop", "threads"),
              ()),
        Stage("existing", "the user's label map, taken as it is", ("image", "label map of the user"),
              ("kind", "model", "content", "accept", "existing"),
              ("cohort/runs/existing.py", "results/images.py")),
        Stage("reference step", "the reference's command line, voxel counts, the run record", (), (),
              ("cohort/runs/reference.py", "cohort/runs/child.py", "cohort/runs/files.py", "identity/keys.py:flags",
               "results/tables.py", "results/sidecar.py", "results/hashes.py"), ("reference.py",)),
        # What follows ------------------------------------------------------------------------------------------------
        Stage("picture", "the picture, with what is odd by today's limits", ("image", "labels", "figures"),
              ("display",), ("results/picture.py", "results/quality.py", "results/volumes.py", "scan/reading.py",
               "scan/content.py"),
              ("picture.py",)),
        Stage("comparison", "the verdict", ("labels", "reference"), ("thresholds", "display"),
              ("compare.py", "results/volumes.py", "results/verdicts.py"), ("compare.py",)),
        Stage("benchmark", "time and memory of native and reference", ("image", "weights"),
              ("repeats", "warmups", "threads"),
              ("cohort/benchmark/in_turn.py", "cohort/benchmark/timings.py", "measure.py", "cohort/tables.py"),
              ("benchmark.py",)),
        Stage("summary", "the tables of the cohort", ("labels", "figures", "comparison", "picture", "benchmark"), (),
              ("cohort/summary/*.py", "cohort/summary/__init__.py", "cohort/tables.py", "cohort/manifest.py",
               "cohort/paths.py", "results/quality.py", "results/volumes.py", "results/verdicts.py",
               "identity/current.py"), ("summarise.py",)),
        Stage("verification", "which device works here", (), (), ("verification/*.py",), ("verify_env.py",)),
        Stage("demo", "three phantoms", (), (), ("cohort/demo.py", "cohort/phantoms.py"), ("make_demo.py",)),
    )
}  # fmt: skip
ENGINE_MODULES = {"llvm": ("engines/kernels/*.py",)}  # of an engine beside its own
ONE_SCAN = ("read", "grid", "network", "labels", "own grid", "measures", "figures", "command")

# Modules that are in no stage's list, and those of which only a part is: why the rest changes no result. With * all
# modules of a folder that are in no list.
UNCHANGING = {
    "__init__.py": "the version's number, which no result depends on",
    "__main__.py": "calls cli.main",
    "cli.py": "loops over scans, messages, tables of a call; its options are in the list",
    "cohort/__init__.py": "empty",
    "cohort/benchmark/*.py": "make benchmark, which measures a machine and is no part of a cohort",
    "cohort/bids.py": "writes sample sheets; what a row asks for is among the settings",
    "cohort/config.py": "checks the configuration; what it asks for is among the settings",
    "cohort/config_files.py": "says what is wrong in a configuration's file",
    "cohort/containers.py": "images and leftovers; the command is in the list, the image is told by its key",
    "cohort/demands.py": "memory and time that jobs ask for",
    "cohort/deploy.py": "before and after the jobs",
    "cohort/environments.py": "makes environments; what is in them is told by their lock",
    "cohort/halting.py": "how a call ends when a signal comes",
    "cohort/handover.py": "what is printed where runs end and begin",
    "cohort/installers.py": "makes environments; what is in them is told by their lock",
    "cohort/interpreters.py": "finds a Python; what computes is told by the lock",
    "cohort/job.py": "reads what the plan wrote",
    "cohort/identities.py": "asks this module; what it asks for is among the settings",
    "cohort/plan.py": "which runs there are; what they depend on is among the settings",
    "cohort/ranking.py": "chooses an engine, whose name is among the settings",
    "cohort/report_labels.py": "words of Snakemake's report",
    "cohort/runs/__init__.py": "empty",
    "cohort/runs/failures.py": "what a run that failed says",
    "cohort/runs/steps.py": "the step around a run: its words, its ending, what it prints",
    "cohort/runs/work.py": "work folders and publishing",
    "cohort/samples.py": "reads the sheet; what a row asks for is among the settings",
    "cohort/snakemake_arguments.py": "reads Snakemake's command line",
    "cohort/state.py": "what a call left for the next one",
    "cohort/variables.py": "keeps from the programs what could change a result",
    "engines/__init__.py": "finds an engine by its name, which is among the settings",
    "engines/kernels/__init__.py": "empty",
    "errors.py": "sentences and exit codes",
    "files.py": "files whole or not at all",
    "identity/__init__.py": "empty",
    "identity/code.py": "makes the digests: another form of them is FORM's to say",
    "identity/command.py": "asks this module; what it asks for is among the settings",
    "identity/contents.py": "makes the digests",
    "identity/keys.py": "makes the digests; the flags of a run are in the list",
    "identity/stages.py": "this list",
    "jobs.py": "which scans, and where results go",
    "memory.py": "predicts, and refuses what does not fit",
    "owners.py": "who holds a lock or a folder",
    "networks/__init__.py": "empty",
    "networks/download.py": "fetches weights, which are told by their content",
    "networks/weights.py": "finds and fetches weights, which are told by their content",
    "pipeline/__init__.py": "empty",
    "progress.py": "the bar",
    "results/__init__.py": "empty",
    "results/kept.py": "what becomes of a label map that lay in the place of a new one",
    "results/staged.py": "files whole or not at all",
    "results/record.py": "time, machine, errors",
    "scan/__init__.py": "empty",
    "scan/disguise.py": "says what a file is that cannot be read",
    "shared_disk.py": "locks and owners",
    "stopping.py": "how signals are heard",
    "streams.py": "what is printed where nobody reads on",
    "verification/__init__.py": "empty",
    "yaml_text.py": "reads YAML; what it says is among the settings",
}


def one_scan(parcellation: bool = False, scores: bool = False) -> tuple[str, ...]:
    """The stages of a segmentation."""
    return (*ONE_SCAN, *(["parcels"] * parcellation), *(["scores"] * scores))


def reference_stages(kind: str, runtime: str) -> tuple[str, ...]:
    """The stages of a reference run."""
    if kind == "existing":
        return ("existing", "reference step")
    made_by = "upstream" if kind == "upstream" else "reference"
    return (made_by, "reference step", *(() if runtime == "local" else ("container",)))


def codes(names: Iterable[str], engine: str = "", package: Path = PACKAGE) -> dict[str, str]:
    """{stage: digest of its code} for the stages named. engine: which one runs the network."""
    return {name: _code(STAGES[name], engine, Path(package)) for name in names}


def _code(stage: Stage, engine: str, package: Path) -> str:
    return code_digest(files_of(stage, engine, package))


def files_of(stage: Stage, engine: str = "", package: Path = PACKAGE) -> list[tuple[str, Path]]:
    """(name, file) of what a stage is made by, as `code_digest` takes them.

    Raises FileNotFoundError for an entry that fits no file: a list that names what is gone has a hole.
    """
    found = []
    more = ENGINE_MODULES.get(engine, ()) if "engines/{engine}.py" in stage.modules else ()
    for entry in (*stage.modules, *more):
        pattern, colon, parts = entry.replace("{engine}", engine).partition(":")
        files = [path for path in sorted(package.glob(pattern)) if path.name != "__init__.py" or "*" not in pattern]
        if not files:
            raise FileNotFoundError(f"{package / pattern}: stage {stage.name} names it")
        found += [(f"{path.relative_to(package).as_posix()}{colon}{parts}", path) for path in files]
    # Scripts lie beside the sources; a package that is installed by itself has none, and needs none.
    return found + [(f"scripts/{name}", package.parents[1] / "scripts" / name) for name in stage.scripts]


def counted(names: Iterable[str], engine: str = "") -> tuple[str, ...]:
    """The settings that stages depend on, each once. An engine that gives the same for any number of threads does not
    depend on it."""
    found = dict.fromkeys(setting for name in names for setting in STAGES[name].settings)
    if engine in engines.ANY_THREADS:
        found.pop("threads", None)
    return tuple(found)


def model_digest(model: Model, networks: Iterable[Network] | None = None) -> str:
    """What of a model (`cards.Model`) decides about labels: the networks that run, by themselves the segmentation's,
    and of their tables values, sides, classes and groups. Titles, accuracy, colours and the names that are shown do
    not."""
    networks = list(networks or [model.network])
    computed_from, labels = model.computed_from(networks), model.labels
    table = {name: getattr(labels, name).tolist() for name in ("index", "flip", "topology")}
    names = {network.name for network in networks}
    if "parcellation" in names:
        table["parcels"] = [model.parcels.index.tolist(), model.parcels.hemispheres]
    if "quality" in names:
        table["quality_groups"] = labels.quality_groups.tolist()
    return keys.digest(keys.settings_json(**computed_from, **table))


def display_digest(model: Model, parcels: bool = False) -> str:
    """What of a model is shown: its name and grade, names, sides and colours of its label table, with or without
    parcels."""
    labels = with_parcels(model.labels, model.parcels if parcels else None)
    table = labels.names, labels.freesurfer_names, labels.hemispheres, labels.colors, labels.index.tolist()
    return keys.digest(model.name, model.research_grade, *table)
