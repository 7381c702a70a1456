"""What the rules ask of a configuration and its sheet: which runs there are, and their files.

What runs depend on, and the state of their results: `identities`. What jobs ask for: `demands`. What happens before the
first job and after the last: `deploy`.
"""

import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path

from synthseg_native.cohort import config as configuration
from synthseg_native.cohort import demo, environments, paths, ranking, state
from synthseg_native.cohort import manifest as manifests
from synthseg_native.cohort.identities import Identities
from synthseg_native.cohort.paths import Patterns
from synthseg_native.cohort.samples import Scan, openable, read_samples
from synthseg_native.errors import SynthSegError
from synthseg_native.files import is_there, user_path
from synthseg_native.identity import keys
from synthseg_native.identity.contents import Contents
from synthseg_native.networks import cards as models
from synthseg_native.networks import weights


@dataclass(frozen=True)
class Weights:
    """A file of weights: where it is, or will be · the network that takes it · whether it comes from a download"""

    path: Path
    network: models.Network
    fetched: bool


FOR_TESTS = "golden2"  # no model for anybody's scans, so that none is asked to take it


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
        self.networks = self.model.needed(*(self.config[name] for name in ("robust", "parcellation", "quality_scores")))
        self.name = self.model.name + "robust" * self.config["robust"]  # in the names of results
        self.weights_files = self._find_weights()
        self.weights = self._one_place()
        crop = self.config["crop"]
        self.crop = [crop] * 3 if isinstance(crop, int) else crop
        self.minutes = self.config["timeout_min"]
        self.compared = self._compared()
        self.benchmarked = list(self.scans)[: self.config["benchmark"]["scans"]]
        if self.demo_images and not dry_run and not os.environ.get("SYNTHSEG_NATIVE_CODE"):  # said once, not by jobs
            environments.say(f"this is the demonstration: phantoms and a small model; {demo.WHAT_TO_CHANGE}")
        self.engines = self._chosen_engines(dry_run)
        self.identities = Identities(self)

    def _chosen_model(self) -> models.Model:
        """The model that the configuration names: there is no default, and a small one never passes for SynthSeg."""
        name = self.config["model"]
        if not name:
            known = {card.parent.name for card in self.root.glob("models/*/card.yaml")} - {FOR_TESTS}
            known = ", ".join(sorted(known))
            raise SynthSegError("usage", f"config: model: not set: choose one of {known} (models/README.md)")
        name = user_path(name) if name.startswith("~") else name
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

    def _find_weights(self) -> dict[str, Weights]:
        """By their names the files that the run takes: the user's, those beside the card, or where downloads go."""
        named, found = self.config["weights"], {}
        cache = Path(self.config["weights_cache"] or weights.default_cache())
        for network in self.networks:
            expected, folder = network.weights, network.folder
            if expected.file in found:
                continue
            path = folder / expected.file
            if named:
                path = Path(named, expected.file) if Path(named).is_dir() else Path(named)
            fetched = not path.is_file() and not named and bool(expected.urls)
            path = cache / expected.file if fetched else path
            if not path.is_file() and not fetched:
                wrong = "config: weights" if named else str(folder / "card.yaml")
                text = f"{wrong}: {path}: no such weights file: correct the path, or leave it out"
                raise SynthSegError("usage", text)
            found[expected.file] = Weights(path, network, fetched)
        if named and len(found) > 1 and not Path(named).is_dir():
            text = f"config: weights: {named}: a file, and this takes {', '.join(found)}: name the folder of them all"
            raise SynthSegError("usage", text)
        return found

    @property
    def parcels(self) -> models.Labels | None:
        """The table of the parcels that label maps have; None where they have none."""
        return self.model.parcels if self.config["parcellation"] else None

    def _one_place(self) -> str:
        """The file of weights, or where there are several the folder that has links to all, made in `deploy`."""
        first, *more = self.weights_files.values()
        return f"{self.state}/weights" if more else str(first.path)

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

    marked_ns: int | None = None  # when the tables were written as a run began, which made results stale
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
        robust = ", robust" if self.config["robust"] else ""
        return f"{self.scans[scan].name} · {self.model.name}{robust}{grade} · {engine}"

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

    def follows(self, engine: str, scan: str) -> dict[str, str]:
        """What is made from a run, by its names: comparison and picture, which a reference run has not."""
        return {name: self.path(name, engine, scan) for name in ("compare", "picture") if engine != "reference"}

    def to_ask_for(self, found: set[str]) -> list[str]:
        """Of all files that the sheet asks for those that a summary has to name as its inputs, so that Snakemake makes
        what has to be made: of a run that is made again the last one in its row, which needs all others.

        A graph of ten thousand scans of which all or most are current would take Snakemake minutes and tell it nothing:
        what is current the results say. found: what has to be made (`state.to_make`).
        """
        files, again = [], {pair for pair in self.identities.states if self.path("record", *pair) in found}
        for pair in self.identities.states:
            wanted = self.wanted_of(*pair)
            files += wanted[-1:] if pair in again else [path for path in wanted if path in found]
        for scan in self.compared:
            for pair in ((engine, scan) for engine in self.engines if self.identities.is_comparable(engine, scan)):
                path = self.path("compare", *pair)
                files += [path] if path in found or not again.isdisjoint([pair, ("reference", scan)]) else []
        return files

    def wanted_runs(self) -> list[str]:
        """Every file that runs, pictures and comparisons make for the sheet; see `wanted_of`."""
        files = [path for engine, scan in self.identities.states for path in self.wanted_of(engine, scan)]
        pairs = [(engine, scan) for engine in self.engines for scan in self.compared]
        return files + [self.path("compare", *pair) for pair in pairs if self.identities.is_comparable(*pair)]

    def wanted_of(self, engine: str, scan: str) -> list[str]:
        """A run's results and its picture that can be asked for: none of a label map that the user changed, those that
        are there where the image vanished."""
        if self.identities.is_kept(engine, scan):
            return []
        files = list(self.files(engine, scan).values())
        files += [] if engine == "reference" else [self.path("picture", engine, scan)]
        return [path for path in files if is_there(path)] if self.identities.is_lasting(engine, scan) else files

    def wanted_once(self) -> list[str]:
        """The verifications and the benchmark's tables."""
        verified = [self.patterns.verify_env["finding"].format(engine=engine) for engine in self.engines]
        return verified + (list(self.patterns.benchmark.values()) if self.benchmarked else [])

    @functools.cached_property
    def pythons(self) -> dict[str, str]:
        """The interpreter of every environment that a step may need, whether it has been made yet or not."""
        names = sorted({*self.engines, "tensorflow", "demo"})
        return {name: str(environments.python(name)) for name in names}

    @property
    def benchmarks_reference(self) -> bool:
        """Whether the reference takes part in the benchmark."""
        return self.reference["runtime"] != "none" and self.reference["kind"] != "existing"

    @functools.cached_property
    def benchmark_order(self) -> tuple[Path, str]:
        """What the benchmark is to do, as scripts/benchmark.py reads it: a file, named by its content, and its text.

        A file, because no word of a command may be longer than 128 KiB.
        """
        scans = json.dumps({scan: self.image_path(scan) for scan in self.benchmarked})
        text = f'{{"settings": {self.identities.benchmark_settings()}, "scans": {scans}}}'
        return Path(self.state, f"benchmark-{keys.digest(text)}.json"), text

    def benchmark_key(self) -> str:
        """What the benchmark's results depend on, as a digest."""
        return keys.digest(self.identities.benchmark_settings())

    # --- the manifest -------------------------------------------------------------------------------------------------

    @functools.cached_property
    def manifest(self) -> manifests.Manifest:
        """What this call is to do, for its jobs and its summary."""
        model = self.model
        return manifests.Manifest(
            results=self.results,
            engines=self.engines,
            model={
                "name": self.name,
                "dir": str(model.folder),
                "research_grade": model.research_grade,
                "parcels": self.config["parcellation"],
            },
            reference={name: self.reference[name] for name in ("kind", "runtime")} if self.compared else None,
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
        files |= self.follows(engine, scan)
        return manifests.Run(files, str(failure), self.identities.of(engine, scan))
