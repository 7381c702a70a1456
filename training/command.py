"""What a model is measured with: `synthseg-native` itself, as users run it, and Dice between label maps."""

import subprocess
import sys

import numpy as np

from synthseg_native.cohort import environments
from synthseg_native.errors import SynthSegError

from . import ROOT


def segment(folder, scans, results, *more, python=sys.executable, engine="torch", threads=2):
    """Segment a folder of scans into `results`, as <name>_synthseg.nii.gz. folder : of the model · more : flags

    Raises SynthSegError("internal") where the command fails.
    """
    command = [python, "-m", "synthseg_native", "--i", scans, "--o", results, "--model", folder, "--engine", engine]
    done = subprocess.run(
        [*map(str, command), "--threads", str(threads), *map(str, more)],
        env=environments.clean_environment() | {"PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SynthSegError("internal", f"{scans}: not segmented: {done.stderr.strip().splitlines()[-1]}")


def dice(one, other, values, other_values=None):
    """Dice (len(values),) of each of `values` in one array with its partner in the other; nan where neither has it.

    other_values : what stands for them in the other array (default: the same)
    """
    if one.shape != other.shape:
        raise SynthSegError("internal", f"label maps of shapes {one.shape} and {other.shape}: report this")
    scores = []
    for value, partner in zip(values, values if other_values is None else other_values, strict=True):
        a, b = one == value, other == partner
        total = a.sum() + b.sum()
        scores.append(2 * (a & b).sum() / total if total else np.nan)
    return np.array(scores)
