"""Networks and volumes on which every engine of this project's own kernels is compared with the formulas.

Half of the first axis is a volume too that they are tried on.
"""

import json
import os
import subprocess

# Of the settings, smoothing is none of the table's: it is asked of the engine, 0.5 where it is not said.
CASES = {
    "like SynthSeg": ({"levels": 3, "features": 6, "labels": 5}, (48, 24, 20)),
    "one level": ({"levels": 1, "features": 4, "labels": 3}, (7, 6, 5)),
    "two levels": ({"levels": 2, "features": 4, "labels": 3}, (36, 6, 10)),
    "deep, flat": ({"levels": 4, "features": 3, "labels": 4}, (16, 40, 24)),
    "three convolutions": ({"levels": 3, "features": 3, "labels": 4, "convolutions_per_level": 3}, (40, 8, 12)),
    "one convolution": ({"levels": 2, "features": 3, "labels": 4, "convolutions_per_level": 1}, (20, 8, 12)),
    "not smoothed": ({"levels": 2, "features": 5, "labels": 4, "smoothing": 0}, (32, 8, 8)),
    "smoothed widely": ({"levels": 2, "features": 5, "labels": 4, "smoothing": 1.6}, (28, 8, 14)),
}

# What is not SynthSeg's, for the engines that can.
MORE = {
    "relu": ({"levels": 3, "features": 4, "labels": 4, "activation": "relu"}, (32, 8, 12)),
    "no activation": ({"levels": 2, "features": 4, "labels": 3, "activation": "none"}, (20, 8, 12)),
    "no softmax": ({"levels": 2, "features": 4, "labels": 3, "end": "linear", "smoothing": 0}, (20, 8, 12)),
    "no softmax, smoothed": ({"levels": 2, "features": 4, "labels": 3, "end": "linear"}, (20, 8, 12)),
    "two inputs": ({"levels": 2, "features": 4, "labels": 3, "inputs": {"image": 1, "other": 1}}, (20, 8, 12)),
}

# What the networks of SynthSeg 2.0 have besides.
WIDER = {
    "kernel 5": ({"levels": 3, "features": 6, "labels": 5, "kernel": 5}, (40, 24, 20)),
    "image and groups": ({"levels": 3, "features": 4, "labels": 5, "inputs": {"image": 1, "groups": 5}}, (40, 8, 12)),
    "denoiser": (
        {"levels": 4, "features": 4, "labels": 5, "kernel": 5, "levels_without_skip": 2, "inputs": {"groups": 5}},
        (48, 16, 24),
    ),
    "encoder": (
        {"levels": 3, "features": 4, "labels": 9, "kernel": 5, "activation": "relu", "form": "encoder",
         "inputs": {"groups": 9}, "smoothing": 0},
        (48, 16, 24),
    ),
    "encoder of as many features": (
        {"levels": 2, "features": 6, "labels": 3, "activation": "relu", "form": "encoder", "inputs": {"groups": 6},
         "smoothing": 0},
        (24, 8, 12),
    ),
    "kernel 1": ({"levels": 2, "features": 4, "labels": 3, "kernel": 1}, (20, 8, 12)),
}  # fmt: skip


def run(program, cases, python, root):
    """What a program prints as JSON, given the cases (name, settings, shape), and what it says on stderr."""
    given = json.dumps([(name, settings, shape) for name, (settings, shape) in cases.items()])
    environment = {**os.environ, "PYTHONPATH": str(root / "src")}
    done = subprocess.run([python, "-c", program, given], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr
