"""A small real project to run the workflow in: a copy of this one with two images of its own.

Its engine is the quickest one; what is TensorFlow's own has tests in test_engines.py. Its reference is the real one,
run once per input for all projects of a test run (kept_reference.py).
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import kept_reference
import nibabel
import numpy as np
import psutil
import warm_snakemake

from processes import hear_ctrl_c

ROOT = Path(__file__).parents[2]
COPIED = ("Snakefile", "workflow", "scripts", "src", "models", "envs", "profiles")
SUMMARY = "results/summary.tsv"
PLAIN = [sys.executable, "-m", "snakemake"]
ENGINE = "llvm"
AGREE = {"identical", "equivalent"}  # verdicts: another engine than TensorFlow may round differently

CONFIG = {
    "samples": "samples.tsv",
    "model": "models/compact2mm",
    "allow_small_model": True,
    "engines": [ENGINE],
    "threads": 1,
    "reference": {"kind": "own", "runtime": "local"},
}


def write_image(path: Path, seed: int = 0, oriented: bool = True) -> None:
    """A small head, so that a run is quick, in a file above Snakemake's 1 MB checksum limit.

    Every third voxel of the golden template on a grid that calls itself 2 mm, with noise that the seed decides.
    oriented: whether the header says where the axes point.
    """
    template = nibabel.load(ROOT / "tests/golden/t1_image.nii.gz")
    data = np.asanyarray(template.dataobj)[::3, ::3, ::3][1:65, 7:71, :64].astype(np.float64)
    data += np.random.default_rng(seed).normal(0, 4, data.shape)
    image = nibabel.Nifti1Image(data, np.diag([2.0, 2.0, 2.0, 1.0]))
    if not oriented:
        image.set_sform(None, code=0)
        image.set_qform(None, code=0)
    nibabel.save(image, path)
    assert path.stat().st_size > 1_000_000


class Project:
    """A folder with the workflow, a sheet, images and results; knows what a call made anew."""

    def __init__(self, folder: Path, profile: str = "default"):
        self.folder = Path(folder)
        self.profile = profile

    @classmethod
    def create(cls, folder: Path, scans=("01", "02"), **config) -> "Project":
        folder.mkdir(parents=True)
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(source, folder / name)
        (folder / ".envs").mkdir()
        for environment in (ROOT / ".envs").glob("*-*"):
            if environment.name.startswith("tensorflow-"):
                interpreter = folder / ".envs" / environment.name / "bin" / "python"
                kept_reference.write(interpreter, environment / "bin" / "python", folder.parent / "references")
            elif not environment.name.startswith("code-"):
                (folder / ".envs" / environment.name).symlink_to(environment)
        project = cls(folder)
        project.configure(**config)
        (folder / "images").mkdir()
        for seed, scan in enumerate(scans):
            write_image(project.image(scan), seed)
        project.sheet(scans)
        return project

    def copy(self, folder: Path, profile: str = "default") -> "Project":
        shutil.copytree(self.folder, folder, symlinks=True)
        return Project(folder, profile)

    def configure(self, **changes) -> None:
        (self.folder / "config.json").write_text(json.dumps(CONFIG | changes))

    def sheet(self, scans, more=(), **further) -> None:
        """Rows for the project's own images; more: rows as dicts of cells."""
        rows = [{"participant_id": f"sub-{scan}", "image": f"images/sub-{scan}.nii", **further} for scan in scans]
        rows += more
        columns = list(dict.fromkeys(name for row in rows for name in row))
        cells = [columns, *([row.get(name, "") for name in columns] for row in rows)]
        (self.folder / "samples.tsv").write_text("".join("\t".join(map(str, line)) + "\n" for line in cells))

    def image(self, scan: str) -> Path:
        return self.folder / "images" / f"sub-{scan}.nii"

    def environment(self, name: str) -> Path:
        """Where this project's copy of the code looks for an environment."""
        code = "import sys; from synthseg_native.cohort import environments as e; print(e.env_dir(sys.argv[1]))"
        path = os.environ | {"PYTHONPATH": str(self.folder / "src")}
        done = subprocess.run([sys.executable, "-c", code, name], env=path, capture_output=True, text=True, check=True)
        return Path(done.stdout.strip())

    def label_map(self, scan: str, engine: str = ENGINE) -> Path:
        return self._result(scan, engine, "dseg.nii.gz")

    def record(self, scan: str, engine: str = ENGINE) -> Path:
        return self._result(scan, engine, "run.json")

    def native_label_map(self, scan: str) -> Path:
        return self._result(scan, ENGINE, "dseg.nii.gz", "native")

    def picture(self, scan: str) -> Path:
        return self._result(scan, ENGINE, "qc.png")

    def _result(self, scan: str, engine: str, ending: str, grid: str = "2mm") -> Path:
        name = f"sub-{scan}_T1w_seg-compact2mm_res-{grid}_{ending}"
        return self.folder / "results" / engine / f"sub-{scan}" / "anat" / name

    def command(self, *arguments) -> list[str]:
        profile = ["--workflow-profile", f"profiles/{self.profile}"] if self.profile != "default" else []
        call = [*PLAIN, "--configfile", "config.json", *profile, "--cores", "2"]
        return [*call, *arguments]

    def start(self, *arguments, **environment) -> "subprocess.Popen | warm_snakemake.Process":
        command = self.command(*(arguments or [SUMMARY]))
        env = {k: v for k, v in os.environ.items() if not k.startswith("SYNTHSEG_NATIVE")} | environment
        if command[:3] == PLAIN and not environment:
            return warm_snakemake.Process(command[3:], self.folder, env)
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=hear_ctrl_c,
        )

    def run(self, *arguments, timeout=900, **environment) -> "Call":
        before = self.times()
        process = self.start(*arguments, **environment)
        output, _ = process.communicate(timeout=timeout)
        after = self.times()
        made = {self._name(path) for path in after if after[path] != before.get(path)} - {None}
        return Call(process.returncode, output, made)

    def times(self) -> dict[Path, tuple]:
        """Inode and time stamp of every result: a result made anew has another."""
        results = (self.folder / "results").rglob("*")
        return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in results if path.is_file()}

    def _name(self, path: Path) -> str | None:
        """The job that makes a file: "native 01", "reference 01", "picture 01", "compare 01", or an aggregate.

        Of another engine than ENGINE its name follows: "native 01 tensorflow".
        """
        parts = path.relative_to(self.folder / "results").parts
        described = len(parts) == 2 and parts[0] != "env"  # a derivative's dataset_description.json and the like
        if parts[0] in ("logs", ".state") or described:
            return None
        if parts == ("engine.json",):
            return "engine"
        if len(parts) == 1:
            return "summary" if not path.name.startswith("benchmark") else "benchmark"
        if parts[0] == "env":
            return "verify_env"
        scan = parts[1].removeprefix("sub-") + (f" {parts[0]}" if parts[0] not in ("reference", ENGINE) else "")
        for ending, rule in (("_compare.json", "compare"), ("_qc.png", "picture")):
            if path.name.endswith(ending):
                return f"{rule} {scan}"
        return f"{'reference' if parts[0] == 'reference' else 'native'} {scan}"

    def summary(self) -> list[dict]:
        lines = [line.split("\t") for line in (self.folder / SUMMARY).read_text().splitlines()]
        return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


class Call:
    """One call of the workflow: exit code, what it printed, and what it made anew."""

    def __init__(self, code: int, output: str, made: set[str]):
        self.code, self.output, self.made = code, output, made

    def expect(self, *made: str, code: int = 0) -> "Call":
        """Made anew was this and no more; with a native run always its picture."""
        assert self.code == code, self.output
        wanted = {*made, *(job.replace("native", "picture") for job in made if job.startswith("native"))}
        assert self.made == wanted, f"made {sorted(self.made)}, expected {sorted(wanted)}\n{self.output}"
        return self


def add_statement(path: Path) -> None:
    path.write_text(path.read_text() + "\n_CHANGED = True\n")


def processes_in(project: Project) -> list[psutil.Process]:
    """What works in the project's folder: the workflow and its jobs, also those that SLURM started."""
    folder = os.path.realpath(project.folder)
    return [process for process in psutil.process_iter(["cwd", "cmdline"]) if process.info["cwd"] == folder]


def engine_of(project: Project, timeout: float = 120) -> psutil.Process:
    """The engine's process, once it runs."""
    end = time.time() + timeout
    while time.time() < end:
        for process in processes_in(project):
            command = " ".join(process.info["cmdline"] or [])
            if "-m synthseg_native " in command and "measure.py" not in command:
                return process
        time.sleep(0.1)
    raise AssertionError("the engine did not start")
