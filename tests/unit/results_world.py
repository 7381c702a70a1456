"""Results as the workflow leaves them, made without it: a folder with a sheet, two images and all files that say what
made them, for tests of what is made again."""

import gzip
import hashlib
import time
from pathlib import Path

import nibabel
import numpy as np

from rule_patterns import with_patterns
from synthseg_native.cohort import deploy, state
from synthseg_native.cohort.plan import Plan
from synthseg_native.files import write_sealed
from synthseg_native.identity import current
from synthseg_native.results import picture

SCAN = "sub-{}/anat/sub-{}_T1w"
TICK_S = 0.05  # times of files are those of the kernel's last tick
CONFIG = {
    "samples": "samples.tsv",
    "model": "compact2mm",
    "allow_small_model": True,
    "engines": ["llvm"],
    "reference": {"kind": "own", "runtime": "local"},
}


def write_label_map(path, value):
    """A tiny label map, the same file for the same value."""
    image = nibabel.Nifti1Image(np.full((2, 2, 2), value, np.uint8), np.eye(4))
    Path(path).write_bytes(gzip.compress(image.to_bytes(), mtime=0))


def by_hand(path):
    """What a person does with a label map."""
    write_label_map(path, 99)


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


class World:
    """A working directory with two images, and results as the workflow leaves them, made without it."""

    def __init__(self, root, folder):
        self.root, self.folder = root, folder
        (folder / "images").mkdir()
        for name in ("01", "02"):
            (folder / f"images/{name}.nii").write_text(f"image {name}")
        self.sheet("01\timages/01.nii", "02\timages/02.nii")

    def sheet(self, *rows, header="participant_id\timage"):
        (self.folder / "samples.tsv").write_text("\n".join([header, *rows]) + "\n")

    def plan(self, **config) -> Plan:
        return with_patterns(Plan(CONFIG | config, self.root))

    def make(self, **config) -> None:
        """All results, current for this configuration."""
        plan = self.plan(**config)
        for engine, scan in plan.identities.states:
            self.run(plan, engine, scan)
        for path in [*plan.wanted_runs(), *plan.wanted_once(), *plan.aggregates().values()]:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            if not Path(path).exists():
                Path(path).write_text(f"{path}\n")
        plan = self.plan(**config)
        for engine, scan in plan.identities.states:
            if engine != "reference":
                made_by = plan.identities.mark("picture.py", engine, scan, engine)
                info = b"tEXtsynthseg-native\0" + made_by.encode()
                Path(plan.path("picture", engine, scan)).write_bytes(
                    (len(info) - 4).to_bytes(4, "big") + info + b"more" + picture.END
                )
                if scan in plan.compared:
                    compared = {"made_by": plan.identities.mark("compare.py", engine, scan, engine, "reference")}
                    write_sealed(plan.path("compare", engine, scan), compared)
        deploy.prepare(plan)
        self.tell(**config)
        time.sleep(TICK_S)

    def tell(self, **config) -> None:
        """Leave what a summary made now would leave."""
        plan = self.plan(**config)
        state.tell(plan.manifest, plan.identities.told, map(Path, plan.aggregates().values()))

    def run(self, plan, engine, scan) -> None:
        files = plan.files(engine, scan)
        for name, path in files.items():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            if "dseg" in name:
                write_label_map(path, int(scan[4:6]) + 10 * (name == "dseg"))
            else:
                Path(path).write_text(f"{name} of {scan}")
        record = {
            "status": "ok",
            "key": plan.identities.of(engine, scan),
            "input": {"sha256": sha256(plan.image_path(scan))},
            "model": {"weights_sha256": sha256(plan.weights) if Path(plan.weights).is_file() else None},
            "files": {name: sha256(path) for name, path in files.items() if name != "record"},
            "finished": "2026-11-27T12:00:00+00:00",
        }
        write_sealed(files["record"], record)

    def states(self, **config) -> dict:
        """{"01": text of the native run's state, "01 reference": ...}, those that are not current."""
        plan = self.plan(**config)
        names = {
            (engine, scan): scan[4:6] + ("" if engine == "llvm" else f" {engine}")
            for engine, scan in plan.identities.states
        }
        return {
            names[pair]: str(found) for pair, found in plan.identities.states.items() if found.word != current.CURRENT
        }
