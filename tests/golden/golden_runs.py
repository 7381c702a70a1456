"""How the golden tests run the engine and the reference, and read what they write."""

import csv
import json
import os
import platform
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np

import outside

GOLDEN = Path(__file__).parent
MODEL = GOLDEN / "model"  # whose weights upstream ran with
THREADS = json.loads((GOLDEN / "recorded.json").read_text())["threads"]


def read_labels(path):
    image = nib.load(path)
    return np.asarray(image.dataobj), image.affine


def read_volumes(path):
    """Names and values of upstream's CSV of one image."""
    with Path(path).open(newline="") as file:
        header, row = csv.reader(file)
    return header, row[0], np.array(row[1:], dtype=float)


def this_cpu():
    """The class of this CPU, as far as it can be read: equal classes should round alike."""
    cpu = {"system": platform.system(), "arch": platform.machine(), "vendor": None, "family": None, "avx512": None}
    if Path("/proc/cpuinfo").exists():
        pairs = (line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
        info = {key.strip(): value.strip() for key, value in pairs}
        family = info.get("cpu family", "")
        cpu["vendor"], cpu["family"] = info.get("vendor_id"), int(family) if family.isdigit() else None
        cpu["avx512"] = "avx512f" in info.get("flags", "")
    return cpu


# Runs many command lines of a module one after the other, each given as JSON: what a library takes to start is paid
# once. Answers with the exit status and what was said.
MANY = """
import contextlib, importlib, io, json, os, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what else is printed
main = importlib.import_module(sys.argv[1]).main
for line in sys.stdin:
    sys.argv[1:], said = json.loads(line), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            status = main()
        except SystemExit as error:
            status = error.code
    print(json.dumps([status, said.getvalue()]), file=answers, flush=True)
"""


MORE = {"resample": "resampled.nii.gz", "post": "posteriors.nii"}  # flag -> file


class RunFailed(AssertionError):
    """A run ended with another status than 0; the message is what it said."""


class Runs:
    """Engine and reference as commands, run by the interpreter that has the engine (of the reference: TensorFlow)."""

    def __init__(self, root, python, folder, engine="tensorflow"):
        self.root, self.python, self.folder, self.name = root, python, folder, engine
        self.done, self.processes, self.home = {}, {}, folder / "home"
        self.enclosed = outside.available()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes.values():
            process.communicate(timeout=60)

    def command(self, start, image, out, model=None, flags=()):
        """Run once for each (start, image, out); returns the folder with dseg.nii.gz, volumes.csv and more.

        start : the module to run, all runs of which share a process, or words for a process of its own ("-c", program)
        """
        key = (*start, image, out)
        if key in self.done:
            return self.done[key]
        folder = self.folder / out
        folder.mkdir()
        image_path = GOLDEN / f"{image}_image.nii.gz"
        words = ["--i", image_path, "--o", folder / "dseg.nii.gz", "--vol", folder / "volumes.csv"]
        words += ["--model", model or MODEL, "--threads", THREADS, *flags]
        status, said = self._run(start, [str(word) for word in words])
        if status:
            raise RunFailed(said)
        self.done[key] = folder
        return folder

    def _run(self, start, words):
        """Exit status and what was said."""
        environment = {**os.environ, "PYTHONPATH": f"{self.root / 'src'}{os.pathsep}{GOLDEN}"}
        if start[0] == "-c":
            command = [self.python, *start, *words]
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            return done.returncode, done.stderr
        (module,) = start
        if module not in self.processes:
            with (self.folder / f"{module}.log").open("w") as log:
                command = [*(outside.ENTER if self.enclosed else []), self.python, "-c", MANY, module]
                self.processes[module] = subprocess.Popen(
                    command, env=environment | outside.hostile(self.home), text=True,
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                )  # fmt: skip
        process = self.processes[module]
        print(json.dumps(words), file=process.stdin, flush=True)
        answer = process.stdout.readline()
        assert answer, (self.folder / f"{module}.log").read_text()
        return json.loads(answer)

    def assert_nothing_left(self):
        """No process that is still there looked for a way out, and nothing lies in its home but what docs/privacy.md
        lists."""
        outside.need()
        assert self.processes, "nothing has run"
        assert {module: outside.tries(process.pid) for module, process in self.processes.items()} == dict.fromkeys(
            self.processes, 0
        )
        assert outside.undocumented(self.home) == []

    def engine(self, image, model=None, name="default", start=("synthseg_native.cli",), flags=()):
        out = f"engine_{image}_{name}"
        more = {"margin": "margin.nii.gz", "volumes-tsv": "volumes.tsv", "record": "run.json"}
        return self.command(start, image, out, model, ["--engine", self.name, *flags, *self._further(out, more)])

    def reference(self, image, mode="default", flags=(), model=None):
        return self.command(("synthseg_native.reference",), image, f"reference_{image}_{mode}", model, flags)

    def pair(self, image, mode="default", flags=()):
        """Folders of engine and reference, each with resampled.nii.gz and posteriors.nii besides."""
        reference = self.reference(image, mode, [*flags, *self._further(f"reference_{image}_{mode}", MORE)])
        return self.engine_of_pair(image, mode, flags), reference

    def engine_of_pair(self, image, mode="default", flags=()):
        """The engine's folder of `pair`, without the reference's run."""
        return self.engine(image, name=mode, flags=[*flags, *self._further(f"engine_{image}_{mode}", MORE)])

    def _further(self, out, files):
        return [part for flag, file in files.items() for part in (f"--{flag}", self.folder / out / file)]
