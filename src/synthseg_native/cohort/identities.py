"""What every run of a plan depends on, and what state its results are in."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING

from synthseg_native.cohort import containers, environments, paths, state
from synthseg_native.files import is_there, read_json, read_sealed
from synthseg_native.identity import current, keys, stages
from synthseg_native.pipeline import modes
from synthseg_native.results import picture

if TYPE_CHECKING:
    from synthseg_native.cohort.plan import Plan


class Identities:
    """The identities that a plan wants, and the states of the results that are there; `identity.current` compares.

    plan: a `plan.Plan`. engine: its name, or "reference". scan: the composed name.
    """

    def __init__(self, plan: Plan):
        self.plan = plan

    def made_by(self, script: str, engine: str, scan: str) -> str:
        """What a picture or a comparison is told of what makes it: the step's key, of whom it is, so that one that was
        put in another's place does not pass for that one's. It adds of which runs it was made (`mark`)."""
        return keys.digest(self.step_key(script), engine, scan)

    def mark(self, script: str, engine: str, scan: str, *sources: str) -> str:
        """What the file itself keeps. sources: engines, whose runs it was made from."""
        return "-".join([self.made_by(script, engine, scan), *(self.states[name, scan].seal for name in sources)])

    @functools.cache  # noqa: B019 (there is one in a process)
    def step_key(self, script: str) -> str:
        """What a step that runs no network depends on beside its inputs: its code, what is shown, thresholds."""
        stage = next(stage for stage in stages.STAGES.values() if script in stage.scripts)
        known = {"display": stages.display_digest(self.plan.model, self.plan.config["parcellation"])}
        known["thresholds"] = self.plan.config["equivalence"]
        settings = {name: known[name] for name in stage.settings if name in known}
        code = stages.codes([stage.name], package=self.plan.package)[stage.name]
        return keys.digest(code, keys.settings_json(**settings))

    def of(self, engine: str, scan: str) -> dict:
        """What makes the results of a run ("reference" is one), as `identity.current` compares it.

        It is also what the run is told, so it holds more than counts.
        """
        return self._reference_identity(scan) if engine == "reference" else self._native_identity(engine, scan)

    def native_settings(self, engine: str, scan: str) -> str:
        """`of` for a native run, as JSON."""
        return keys.settings_json(**self.of(engine, scan))

    def reference_settings(self, scan: str) -> str:
        """`of` for a reference run, as JSON."""
        return keys.settings_json(**self.of("reference", scan))

    def _native_identity(self, engine: str, scan: str) -> dict:
        return self._shared_identity("native", engine) | self._of_row(scan)

    def _reference_identity(self, scan: str) -> dict:
        return self._shared_identity("reference") | self._of_row(scan) | {"existing": self.existing_key(scan)}

    def _of_row(self, scan: str) -> dict:
        """What a row of the sheet decides: its own; where it is refused, its run is told so."""
        row = self.plan.scans[scan]
        refused = {"refused": row.refused} if row.refused else {}
        return {"ct": row.ct, "accept": list(row.accept), "content": self.image_key(scan), **refused}

    @functools.cache  # noqa: B019 (there is one in a process)
    def _shared_identity(self, kind: str, engine: str = "") -> dict:
        """What all scans have in common."""
        config = self.plan.config
        how = {
            "threads": config["threads"],
            "mode": modes.name_of(config["mode"] == modes.FAST, config["robust"]),
            "parcels": config["parcel_volumes"] if config["parcellation"] else None,
            "scores": config["quality_scores"] or None,
            "crop": self.plan.crop,
        }
        model = stages.model_digest(self.plan.model, self.plan.networks)
        if kind == "native":
            return current.identity(
                (*stages.one_scan(config["parcellation"], config["quality_scores"]), "native step"),
                self.plan.package,
                engine=engine,
                precision=self.plan.config["precision"],
                device=self.plan.config["device"],
                interpolation=self.plan.config["interpolation"],
                model=model,
                weights=self.weights_key(),
                environment=environments.lock_hash(engine),
                **how,
            )
        reference = self.plan.reference
        own, container = reference["kind"] == "own", reference["runtime"] in containers.RUNTIMES
        found = current.identity(
            stages.reference_stages(reference["kind"], reference["runtime"]),
            self.plan.package,
            **{name: reference[name] for name in ("kind", "runtime", "image", "platform", "pattern")},
            **(how if reference["kind"] != "existing" else {}),
            model=model,
            weights=self.weights_key() if own else None,
            environment=environments.lock_hash("tensorflow") if own and not container else None,
            key=containers.image_key(reference["base_image"], reference["platform"]) if own and container else None,
        )
        if container:  # as they are really used, defaults and all
            found["image"], found["platform"] = containers.image_of(found), containers.platform_of(found)
            found["flags"] = containers.UPSTREAM_MODELS[self.plan.model.name] if not own else []
        return found

    def weights_key(self) -> str:
        """Official weights are known by their card, wherever they lie; others by their content."""
        keys_of = (
            each.network.weights.sha256[:12] if each.fetched else self.plan.contents.digest(each.path)
            for each in self.plan.weights_files.values()
        )
        return " ".join(dict.fromkeys(map(str, keys_of)))

    def image_key(self, scan: str) -> str | None:
        """The content of a scan's image; the last one where it vanished, None where it never was there."""
        return self.plan.contents.digest(self.plan.scans[scan].image)

    def existing_key(self, scan: str) -> str | None:
        """Reference kind existing: the content of the user's label map; the last one where it vanished."""
        if self.plan.reference["kind"] != "existing":
            return None
        from synthseg_native.cohort.runs import existing  # here: it brings nibabel, and the other kinds need none

        pattern = self.plan.reference["pattern"]
        found = [self.plan.contents.digest(path) for path in existing.find_existing(pattern, self.plan.scans[scan])]
        return self.plan.contents.kept(f"{pattern} {scan}", keys.digest(*found) if found else None)

    def benchmark_settings(self) -> str:
        """How often the benchmark runs, and what its runs depend on, as JSON."""
        referenced = self.plan.benchmarks_reference
        return keys.settings_json(
            repeats=self.plan.config["benchmark"]["repeats"],
            warmups=self.plan.config["benchmark"]["warmups"],
            threads=self.plan.config["threads"],
            native={s: [self.of(e, s) for e in self.plan.engines] for s in self.plan.benchmarked},
            reference={s: self.of("reference", s) for s in self.plan.benchmarked if referenced},
            code=self.step_key("benchmark.py"),
        )

    @functools.cached_property
    def states(self) -> dict[tuple[str, str], current.State]:
        """The state of every run that the sheet asks for, (engine, scan) -> state, from what its results say."""
        pairs = [(engine, scan) for engine in self.plan.engines for scan in self.plan.scans]
        pairs += [("reference", scan) for scan in self.plan.compared]
        return {pair: self._state(*pair) for pair in pairs}

    def _state(self, engine: str, scan: str) -> current.State:
        files = self.plan.files(engine, scan)
        failure = paths.failure_of(f"{self.plan.state}/failed", engine, scan, files["record"])
        return current.run_state(files, self.of(engine, scan), self.plan.contents, failure)

    @functools.cached_property
    def told(self) -> dict[tuple[str, str], str]:
        """What a summary tells of every run."""
        return {pair: state.told_of(found, self.plan.follows(*pair)) for pair, found in self.states.items()}

    @functools.cached_property
    def redone(self) -> dict[str, tuple[str, str, str]]:
        """Pictures and comparisons of current runs that say of themselves that other code, limits or thresholds made
        them, or of another run or scan: path -> ("picture" or "comparison", engine, scan). Those that are not there
        are among them."""
        found, compared = {}, set(self.plan.compared)
        for (engine, scan), run in self.states.items():
            if engine == "reference" or run.word != current.CURRENT:
                continue
            path = self.plan.path("picture", engine, scan)
            if _drawn_by(path) != self.mark("picture.py", engine, scan, engine) and not self.is_lasting(engine, scan):
                found[path] = "picture", engine, scan
            if scan in compared and self.states["reference", scan].word == current.CURRENT:
                path = self.plan.path("compare", engine, scan)
                made_by = self.mark("compare.py", engine, scan, engine, "reference")
                if (read_sealed(path) or {}).get("made_by") != made_by:
                    found[path] = "comparison", engine, scan
        return found

    def unvouched(self) -> list[Path]:
        """The label maps in the places of runs that are made again, of which no record says what made them."""
        if self.plan.config["edited"] != "keep":
            return []
        found = []
        for pair, run in self.states.items():
            if run.word not in (current.CURRENT, current.EDITED) and not self.is_lasting(*pair):
                files = self.plan.files(*pair)
                record = read_json(files["record"])
                found += current.unvouched(files, record.get("files") if isinstance(record, dict) else None)
        return found

    def is_kept(self, engine: str, scan: str) -> bool:
        """Whether a run's label map was changed by hand and is left alone."""
        return self.states[engine, scan].word == current.EDITED and self.plan.config["edited"] == "keep"

    def is_lasting(self, engine: str, scan: str) -> bool:
        """Whether a run cannot be made again, because its image vanished, and has results to keep."""
        image = self.plan.scans[scan].image
        if image in self.plan.demo_images or is_there(image):
            return False
        return any(is_there(path) for path in self.plan.files(engine, scan).values())

    def is_comparable(self, engine: str, scan: str) -> bool:
        """Whether neither the native label map nor the reference's was changed by hand."""
        return not (self.is_kept(engine, scan) or self.is_kept("reference", scan))


def _drawn_by(path: str) -> str | None:
    """What drew a picture, as the file says; None where it does not, was cut, or there is none."""
    try:
        with Path(path).open("rb") as file:
            made_by = picture.made_by_of(file.read(1024))
            file.seek(-len(picture.END), os.SEEK_END)
            return made_by if file.read() == picture.END else None
    except OSError:
        return None
