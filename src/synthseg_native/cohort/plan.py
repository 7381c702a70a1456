"""What the rules ask of a configuration and its sheet: which runs there are, their files, their identity.

What happens before the first job and after the last is `deploy`'s.
"""

import functools
import os
from pathlib import Path

import nibabel as nib

from synthseg_native import memory
from synthseg_native.cohort import config as configuration
from synthseg_native.cohort import containers, demo, environments, paths, ranking, runs, state
from synthseg_native.cohort import manifest as manifests
from synthseg_native.cohort.paths import Patterns
from synthseg_native.cohort.samples import Scan, openable, read_samples
from synthseg_native.errors import SynthSegError
from synthseg_native.identity import current, keys, stages
from synthseg_native.identity.contents import Contents
from synthseg_native.networks import cards as models
from synthseg_native.networks import weights

EXISTING_MB = 3000  # to take a label map that is already there


def header_of(image):
    """Shape and voxel sizes (mm), (3,) each, of a scan; (None, None) where its header cannot be read."""
    try:
        header = nib.load(image).header
        shape = [n for n in header.get_data_shape() if n != 1]
        return (shape, [float(size) for size in header.get_zooms()[:3]]) if len(shape) == 3 else (None, None)
    except Exception:  # whatever is wrong with it, the run says
        return None, None


class Plan:
    """A checked configuration with its sheet; `SynthSegError("usage")` names every mistake in them.

    config: the dict as it was read; root: the folder of the project; dry_run: chooses no engine. Scans are named by
    their composed name ("sub-01/anat/sub-01_T1w"), results by paths relative to the working directory.
    """

    def __init__(self, config: dict, root: Path, dry_run: bool = False):
        self.root = Path(root)
        self.package = self.root / "src" / "synthseg_native"
        self.config = configuration.complete(
            demo.settings(config), configuration.read_schema(self.root / "workflow/schemas/config.schema.yaml")
        )
        self.demo_images = demo.image_paths() if demo.is_sheet(self.config["samples"]) else []
        self.model = self._chosen_model()
        self.reference = configuration.complete_reference(self.config["reference"], self.model.name)
        self.scans = self._read_scans()
        self.results = self.config["results"]
        self.state = f"{self.results}/{state.FOLDER}"
        self.resolution = f"{self.model.resolution:g}mm"
        self.labels = str(self.model.labels_file)
        self.contents = Contents(Path(self.state, "contents.json"), environments.say)
        self.fetched = False  # whether the weights come from a download
        self.weights = self._find_weights()
        crop = self.config["crop"]
        self.crop = [crop] * 3 if isinstance(crop, int) else crop
        self.minutes = self.config["timeout_min"]
        self.compared = self._compared()
        self.benchmarked = list(self.scans)[: self.config["benchmark"]["scans"]]
        if self.demo_images and not dry_run and not os.environ.get("SYNTHSEG_NATIVE_CODE"):  # said once, not by jobs
            environments.say(f"this is the demonstration: phantoms and a small model; {demo.WHAT_TO_CHANGE}")
        self.engines = self._chosen_engines(dry_run)

    def _chosen_model(self) -> models.Model:
        """The model that the configuration names: there is no default, and a small one never passes for SynthSeg."""
        name = self.config["model"]
        if not name:
            known = ", ".join(sorted(card.parent.name for card in self.root.glob("models/*/card.yaml")))
            raise SynthSegError("usage", f"config: model: not set: choose one of {known} (models/README.md)")
        shipped = self.root / "models" / name
        model = models.load(openable(shipped) if shipped.is_dir() else name)
        if not model.research_grade and not self.config["allow_small_model"]:
            why = f"{model.name} is not research grade"
            fix = "set model: synthseg1 or synthseg2, or, to try it all the same, allow_small_model: true"
            raise SynthSegError("usage", f"config: model: {why}: {fix}")
        return model

    def _read_scans(self) -> dict[str, Scan]:
        """The rows of the sheet by their composed name."""
        return {scan.scan: scan for scan in read_samples(self.config["samples"])}

    def _chosen_engines(self, dry_run: bool) -> list[str]:
        """The engines that the configuration names, or the one that stands for auto in this results folder."""
        engines, asked = self.config["engines"], (self.config["precision"], self.config["device"])
        where = "config"
        if engines == ranking.AUTO:
            where = f"{self.results}/engine.json"
            engines = [ranking.of_results(where, f"{self.results}/env", *asked, dry_run, beside=self.beside())]
        wrong = [why for engine in engines if (why := ranking.problem(engine, *asked))]
        if wrong:
            raise SynthSegError("usage", *(f"{where}: {why}" for why in wrong))
        return engines

    def beside(self) -> list[str]:
        """The environments that are needed beside the engines'."""
        used = self.compared or self.benchmarked
        local = used and (self.reference["kind"], self.reference["runtime"]) == ("own", "local")
        return [*(["tensorflow"] if local else []), *(["demo"] if self.demo_images else [])]

    def _find_weights(self) -> str:
        """The user's weights, those beside the card, or where the download goes."""
        named, file = self.config["weights"], self.model.weights.file
        path = Path(named).expanduser() if named else self.model.folder / file
        if not path.is_file() and not named and self.model.weights.urls:
            self.fetched = True
            folder = self.config["weights_cache"]
            path = (Path(folder).expanduser() if folder else weights.default_cache()) / file
        if not path.is_file() and not self.fetched:
            wrong = "config: weights" if named else str(self.model.folder / "card.yaml")
            raise SynthSegError("usage", f"{wrong}: {path}: no such weights file: correct the path, or leave it out")
        return str(path)

    def weights_key(self) -> str:
        """Official weights are known by their card, wherever they lie; others by their content."""
        return self.model.weights.sha256[:12] if self.fetched else self.contents.digest(self.weights)

    def _compared(self) -> list[str]:
        """The scans that get a reference run, as reference.subjects says."""
        names, wanted = sorted(self.scans), self.reference["subjects"]
        if self.reference["runtime"] == "none" or wanted == "none":
            return []
        if wanted == "all":
            return names
        # Each name draws its own number, so that a row more or less does not draw anew.
        return sorted(sorted(names, key=lambda name: keys.digest(self.reference["seed"], name))[:wanted])

    # --- files -----------------------------------------------------------------------------------------------------

    patterns: Patterns  # where results lie, as the rules say: set by workflow/Snakefile when it has read them

    def files(self, engine: str, scan: str) -> dict[str, str]:
        """A run's own results: dseg, sidecar, volumes, record, and of an engine margin, dseg_native, sidecar_native."""
        names = self.patterns.reference if engine == "reference" else self.patterns.native
        return {name: self.path(name, engine, scan) for name in names}

    def path(self, name: str, engine: str, scan: str) -> str:
        """One file of a run, by the name that it has in the rules; also its picture and its comparison ("compare")."""
        return self.patterns.path(name, engine, scan)

    def aggregates(self) -> dict[str, str]:
        """The tables of the cohort."""
        return self.patterns.summary

    def title(self, engine: str, scan: str) -> str:
        """What stands above a picture: a small model must not pass for SynthSeg there either."""
        grade = "" if self.model.research_grade else " (not for research)"
        return f"{self.scans[scan].name} · {self.model.name}{grade} · {engine}"

    def image_path(self, scan: str) -> str:
        """The scan's image, whether it is there or not."""
        return self.scans[scan].image

    def image(self, scan: str) -> list[str]:
        """The image as a rule's input: only where the workflow makes it.

        Any other is told by its content, which is part of the run's identity: its time stamp and its place are no
        reason to run anything, and where it is missing its run says so, and stops no other.
        """
        image = self.scans[scan].image
        return [image] if image in self.demo_images else []

    def benchmarked_images(self) -> list[str]:
        """The same for the benchmark."""
        return [image for scan in self.benchmarked for image in self.image(scan)]

    def image_key(self, scan: str) -> str | None:
        """The content of a scan's image; the last one where it vanished, None where it never was there."""
        return self.contents.digest(self.scans[scan].image)

    def existing_key(self, scan: str) -> str | None:
        """Reference kind existing: the content of the user's label map; the last one where it vanished."""
        if self.reference["kind"] != "existing":
            return None
        pattern = self.reference["pattern"]
        found = [self.contents.digest(path) for path in runs.find_existing(pattern, self.scans[scan])]
        return self.contents.kept(f"{pattern} {scan}", keys.digest(*found) if found else None)

    def wanted_runs(self) -> list[str]:
        """Every file that runs, pictures and comparisons make for the sheet; see `wanted_of`."""
        files = [path for engine, scan in self.states for path in self.wanted_of(engine, scan)]
        pairs = [(engine, scan) for engine in self.engines for scan in self.compared]
        return files + [self.path("compare", *pair) for pair in pairs if self.is_comparable(*pair)]

    def wanted_of(self, engine: str, scan: str) -> list[str]:
        """A run's results and its picture that can be asked for: none of a label map that the user changed, those that
        are there where the image vanished."""
        if self.is_kept(engine, scan):
            return []
        files = list(self.files(engine, scan).values())
        files += [] if engine == "reference" else [self.path("picture", engine, scan)]
        return [path for path in files if Path(path).exists()] if self.is_lasting(engine, scan) else files

    def is_comparable(self, engine: str, scan: str) -> bool:
        """Whether neither the native label map nor the reference's was changed by hand."""
        return not (self.is_kept(engine, scan) or self.is_kept("reference", scan))

    def wanted_once(self) -> list[str]:
        """The verifications and the benchmark's tables."""
        verified = [self.patterns.verify_env["finding"].format(engine=engine) for engine in self.engines]
        return verified + (list(self.patterns.benchmark.values()) if self.benchmarked else [])

    @functools.cached_property
    def pythons(self) -> dict[str, str]:
        """The interpreter of every environment that a step may need, whether it has been made yet or not."""
        names = sorted({*self.engines, "tensorflow", "demo"})
        return {name: str(environments.python(name)) for name in names}

    # --- identity ----------------------------------------------------------------------------------------------------

    def step_key(self, script: str) -> str:
        """What a step that runs no network depends on beside its inputs: its code, what is shown, thresholds."""
        stage = next(stage for stage in stages.STAGES.values() if script in stage.scripts)
        known = {"display": stages.display_digest(self.model), "thresholds": self.config["equivalence"]}
        settings = {name: known[name] for name in stage.settings if name in known}
        code = stages.codes([stage.name], package=self.package)[stage.name]
        return keys.digest(code, keys.settings_json(**settings))

    def identity(self, engine: str, scan: str) -> dict:
        """What makes the results of a run ("reference" is one), as `identity.current` compares it.

        It is also what the run is told, so it holds more than counts.
        """
        return self._reference_identity(scan) if engine == "reference" else self._native_identity(engine, scan)

    def native_settings(self, engine: str, scan: str) -> str:
        """`identity` of a native run, as JSON."""
        return keys.settings_json(**self.identity(engine, scan))

    def reference_settings(self, scan: str) -> str:
        """`identity` of a reference run, as JSON."""
        return keys.settings_json(**self.identity("reference", scan))

    def _native_identity(self, engine: str, scan: str) -> dict:
        return self._shared_identity("native", engine) | {
            "ct": self.scans[scan].ct,
            "accept": list(self.scans[scan].accept),
            "content": self.image_key(scan),
        }

    def _reference_identity(self, scan: str) -> dict:
        return self._shared_identity("reference") | {
            "ct": self.scans[scan].ct,
            "accept": list(self.scans[scan].accept),
            "content": self.image_key(scan),
            "existing": self.existing_key(scan),
        }

    @functools.cache  # noqa: B019 (there is one plan in a process)
    def _shared_identity(self, kind: str, engine: str = "") -> dict:
        """What all scans have in common."""
        how = {name: self.config[name] for name in ("threads", "mode")} | {"crop": self.crop}
        if kind == "native":
            return current.identity(
                stages.NATIVE,
                self.package,
                engine=engine,
                precision=self.config["precision"],
                device=self.config["device"],
                interpolation=self.config["interpolation"],
                model=stages.model_digest(self.model),
                weights=self.weights_key(),
                environment=environments.lock_hash(engine),
                **how,
            )
        reference = self.reference
        own, container = reference["kind"] == "own", reference["runtime"] in containers.RUNTIMES
        found = current.identity(
            stages.reference_stages(reference["kind"], reference["runtime"]),
            self.package,
            **{name: reference[name] for name in ("kind", "runtime", "image", "platform", "pattern")},
            **(how if reference["kind"] != "existing" else {}),
            model=stages.model_digest(self.model),
            weights=self.weights_key() if own else None,
            environment=environments.lock_hash("tensorflow") if own and not container else None,
            key=containers.image_key(reference["base_image"], reference["platform"]) if own and container else None,
        )
        if container:  # as they are really used, defaults and all
            found["image"], found["platform"] = containers.image_of(found), containers.platform_of(found)
            found["flags"] = containers.UPSTREAM_MODELS[self.model.name] if not own else []
        return found

    @functools.cached_property
    def states(self) -> dict[tuple[str, str], current.State]:
        """The state of every run that the sheet asks for, (engine, scan) -> state, from what its results say."""
        pairs = [(engine, scan) for engine in self.engines for scan in self.scans]
        pairs += [("reference", scan) for scan in self.compared]
        return {pair: self._state(*pair) for pair in pairs}

    def _state(self, engine: str, scan: str) -> current.State:
        files = self.files(engine, scan)
        failure = paths.failure_of(f"{self.state}/failed", engine, scan, files["record"])
        return current.run_state(files, self.identity(engine, scan), self.contents, failure)

    def is_kept(self, engine: str, scan: str) -> bool:
        """Whether a run's label map was changed by hand and is left alone."""
        return self.states[engine, scan].word == current.EDITED and self.config["edited"] == "keep"

    def is_lasting(self, engine: str, scan: str) -> bool:
        """Whether a run cannot be made again, because its image vanished, and has results to keep."""
        image = self.scans[scan].image
        if image in self.demo_images or Path(image).exists():
            return False
        return any(Path(path).exists() for path in self.files(engine, scan).values())

    def benchmark_settings(self) -> str:
        """How often the benchmark runs, and what its runs depend on, as JSON."""
        referenced = self.reference["runtime"] != "none" and self.reference["kind"] != "existing"
        return keys.settings_json(
            repeats=self.config["benchmark"]["repeats"],
            warmups=self.config["benchmark"]["warmups"],
            threads=self.config["threads"],
            native={s: [self.identity(e, s) for e in self.engines] for s in self.benchmarked},
            reference={s: self.identity("reference", s) for s in self.benchmarked if referenced},
            code=self.step_key("benchmark.py"),
        )

    # --- memory ------------------------------------------------------------------------------------------------------

    def memory(self, engine: str, scan: str) -> int:
        """MB (10^6 bytes) that a run ("reference" is one) asks for, from the scan's header.

        Of a scan that cannot be read, or is not there yet, the model card's figure. memory_mb in the configuration
        overrides.
        """
        if self.config["memory_mb"]:
            return self.config["memory_mb"]
        if engine == "reference" and self.reference["kind"] == "existing":
            return EXISTING_MB
        size = self._size(scan)
        if size is None:
            return self.model.memory_mb
        device = "gpu" if engine == "torch" and self.config["device"] != "cpu" else "cpu"
        precision = "float32" if engine == "reference" else self.config["precision"]
        return memory.declared_mb(memory.predict(size, engine, precision, device))

    @functools.cache  # noqa: B019 (there is one plan in a process)
    def _size(self, scan):
        """What memory depends on, from the image's header alone; None where it cannot be read."""
        shape, voxel_mm = header_of(self.scans[scan].image)
        return shape and memory.size_of(self.model.network, shape, voxel_mm, self.crop)

    def benchmark_memory(self) -> int:
        """The same for the benchmark, which runs everything in turn."""
        return max((self.memory(e, s) for e in (*self.engines, "reference") for s in self.benchmarked), default=1000)

    def benchmark_minutes(self) -> float:
        """Minutes that the benchmark of one image and engine may take at most."""
        pairs = self.config["benchmark"]["repeats"] + self.config["benchmark"]["warmups"]
        return 2 * self.minutes * pairs + 10

    def benchmark_scans(self) -> list[str]:
        """The benchmark's scans with their images, as scripts/benchmark.py takes them."""
        return [f"{scan}={self.image_path(scan)}" for scan in self.benchmarked]

    # --- the manifest -------------------------------------------------------------------------------------------------

    @functools.cached_property
    def manifest(self) -> manifests.Manifest:
        """What this call is to do, for its jobs and its summary."""
        model = self.model
        return manifests.Manifest(
            results=self.results,
            engines=self.engines,
            model={"name": model.name, "dir": str(model.folder), "research_grade": model.research_grade},
            reference={name: self.reference[name] for name in ("kind", "runtime")} if self.compared else None,
            resolution=self.resolution,
            benchmark=bool(self.benchmarked),
            scans=[self._manifest_row(name, scan) for name, scan in self.scans.items()],
        )

    def _manifest_row(self, name: str, scan: Scan) -> manifests.Scan:
        runs = {engine: self._manifest_run(engine, name) for engine in self.engines}
        if name in self.compared:
            runs[manifests.REFERENCE] = self._manifest_run(manifests.REFERENCE, name)
        return manifests.Scan(name, scan.image, scan.entities, scan.sheet, scan.row, runs)

    def _manifest_run(self, engine: str, scan: str) -> manifests.Run:
        files = self.files(engine, scan)
        failure = paths.failure_of(f"{self.state}/failed", engine, scan, files["record"])
        if engine != manifests.REFERENCE:
            files |= {name: self.path(name, engine, scan) for name in ("compare", "picture")}
        return manifests.Run(files, str(failure), self.identity(engine, scan))
