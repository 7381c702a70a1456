"""A workflow of many rows that is ended by a signal at a random moment, again and again; run by hand.

    .envs/dev-*/bin/python tests/drill_signals.py --calls 20 --rows 1000 --seed 1

Each call: a random signal of those that end programs, to Snakemake alone, to all of its processes, or as the terminal
sends it (to the group), at a random moment from the start on, sometimes twice. It must end within 30 s by the signal's
status, in one line and no stack, with no process, no half-written file and no lock left. Its engine is a stand-in, so
that what is tried is the workflow.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent / "workflow"))

from project import ENGINE, ROOT, Project

from processes import hear_ctrl_c

LAST_S = 30
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1")
# Plays the network: `-m synthseg_native --i IMAGE --o LABELS ...`.
STAND_IN = """
import json, os, sys, time
import nibabel as nib, numpy as np
args = dict(zip(sys.argv[1:], sys.argv[2:]))
time.sleep(float.fromhex("0x0." + os.urandom(4).hex()))
labels = np.zeros((12, 13, 14), np.int32); labels[2:6, 2:6, 2:6] = 17
for flag, values in (("--o", labels), ("--native-grid", labels), ("--margin", labels.astype(np.uint16))):
    nib.save(nib.Nifti1Image(values, np.eye(4)), args[flag])
open(args["--volumes-tsv"], "w").write("index\\n17\\n")
grid = {"shape": [12, 13, 14], "voxel_mm": [1, 1, 1], "interpolation": "posterior"}
record = {"engine": {"name": "llvm", "version": "0"}, "model": {"name": "compact2mm"}, "device": "cpu",
          "input": {"name": "sub-0000.nii"},
          "output": {"labels_sha256": "0", "voxel_mm": [1, 1, 1], "native_grid": grid}}
json.dump(record, open(args["--record"], "w"))
"""


def make(folder: Path, rows: int) -> Project:
    """A project of so many rows, all of one image, whose engine is the stand-in; half of its sheet is done."""
    project = Project.create(folder, scans=("0000",), reference={"runtime": "none"}, device="cpu")
    shutil.copy(ROOT / "snakemake", folder)
    (folder / "stand_in.py").write_text(STAND_IN)
    for environment in (folder / ".envs").glob(f"{ENGINE}-*"):
        real = environment.resolve() / "bin/python"
        environment.unlink()
        (environment / "bin").mkdir(parents=True)
        fake = f'*"-m synthseg_native "*) shift 2; exec {real} -P {folder}/stand_in.py "$@" ;;'
        (environment / "bin/python").write_text(f'#!/bin/sh\ncase "$*" in\n{fake}\nesac\nexec {real} "$@"\n')
        (environment / "bin/python").chmod(0o755)
    image = {"image": str(project.image("0000"))}
    project.sheet([], more=[{"participant_id": f"sub-{row:04}", **image} for row in range(rows)])
    return project


def command(project: Project, launcher: bool) -> list[str]:
    """Through the launcher, or as somebody's own Snakemake."""
    words = project.command("results/summary.tsv")
    return [str(project.folder / "snakemake"), *words[3:]] if launcher else words


def left_behind(project: Project) -> list[str]:
    """What nobody will collect, and what still runs."""
    folder = os.path.realpath(project.folder)
    found = [f"process {p.pid}: {' '.join(p.info['cmdline'])[:200]}" for p in psutil.process_iter(["cwd", "cmdline"])
             if p.info["cwd"] == folder]  # fmt: skip
    names = (path for path in (project.folder / "results").rglob("*") if path.is_file())
    found += [
        str(path) for path in names if re.search(r"^\.part-|@.*-[0-9a-f]{8}$", path.name) or ".work-" in str(path)
    ]
    return found + [str(path) for path in (project.folder / ".snakemake/locks").glob("*")]


def faults(project: Project, rng: random.Random, call: int, latest: float) -> list[str]:
    """One call and what was wrong about its end."""
    name, launcher, twice = rng.choice(SIGNALS), rng.random() < 0.7, rng.random() < 0.3
    to, delay = rng.choice(("snakemake", "group")), rng.choice((rng.uniform(0, 3), rng.uniform(3, latest)))
    process = subprocess.Popen(
        command(project, launcher), cwd=project.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True, preexec_fn=hear_ctrl_c, errors="replace",
    )  # fmt: skip
    number = getattr(signal, name)
    send = os.killpg if to == "group" else os.kill
    try:
        output, _ = process.communicate(timeout=delay)
        print(f"{call}: ended by itself with {process.returncode}", flush=True)
        return [] if process.returncode == 0 else [output[-2000:]]
    except subprocess.TimeoutExpired:
        pass
    began = time.monotonic()
    send(process.pid, number)
    if twice:
        time.sleep(rng.uniform(0, 1))
        if process.poll() is None:
            send(process.pid, number)
    try:
        output, _ = process.communicate(timeout=LAST_S + 10)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
    took = time.monotonic() - began
    found = [f"took {took:.0f} s"] if took > LAST_S else []
    said = f"stopped by {name}: what is finished is kept"
    early = process.returncode == -number  # before anything of ours ran
    if not early and process.returncode != 128 + number:
        found.append(f"status {process.returncode}")
    if not early and output.count(f"synthseg-native: {said}") != 1:
        found.append(f"{output.count(said)} lines say so")
    found += [word for word in ("Traceback", "RuleException", "Error in rule", "KeyboardInterrupt") if word in output]
    time.sleep(0.5)
    found += left_behind(project)
    about = f"{name}{' twice' if twice else ''} to {to} after {delay:.1f} s, {'launcher' if launcher else 'own'}"
    print(f"{call}: {about}: {took:.1f} s {found or ''}", flush=True)
    return found and [about, *found, output[-3000:]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--latest", type=float, default=40, help="seconds after which the signal comes at the latest")
    options = parser.parse_args()
    rng, found = random.Random(options.seed), []
    with tempfile.TemporaryDirectory() as place:
        project = make(Path(place) / "project", options.rows)
        for call in range(options.calls):
            if wrong := faults(project, rng, call, options.latest):
                found.append("\n".join(wrong))
    print("\n\n".join(found))
    print(f"{len(found)} of {options.calls} calls ended otherwise than they must (seed {options.seed})")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
