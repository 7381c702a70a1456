"""How quick an engine is on this machine: one slab of the network of SynthSeg's size, timed, and kept.

Standard library only at import, as the launcher asks.
"""

import contextlib
import json
import math
import sys
import time
from pathlib import Path

from synthseg_native import shared_disk
from synthseg_native.files import read_json, write_json
from synthseg_native.networks.weights import default_cache
from synthseg_native.verification import verify

SLAB = (32, 96, 96)  # voxels; so small that a processor is done with it in a second or two
NETWORK = "synthseg1"
ENOUGH_S = 1.5  # a first run that takes longer is told as it is: what a runtime prepares is a small part of it then
MOST_S = 120  # so long may a runtime take to start, and to compute


def kept(engine: str, device: str, precision: str) -> float | None:
    """The seconds that were measured on this machine, of the same versions; None where they were not."""
    found = read_json(_place(engine, device, precision))
    seconds = found.get("seconds") if isinstance(found, dict) else None
    return seconds if isinstance(seconds, float) and 0 < seconds < math.inf else None


def keep(engine: str, device: str, precision: str, seconds: float) -> None:
    """Keep what was measured, where that can be written."""
    path = _place(engine, device, precision)
    with contextlib.suppress(OSError):
        shared_disk.make_private(path.parent)
        write_json(path, {"engine": engine, "device": device, "precision": precision, "seconds": seconds})


def _place(engine: str, device: str, precision: str) -> Path:
    """Where a time is kept: a name of the machine and of the versions."""
    return default_cache() / "speed" / f"{engine}-{device}-{precision}-{verify.fingerprint(engine)}.json"


def measure(engine: str, device: str, precision: str) -> float:
    """Seconds that an engine takes for SLAB with one thread, without its start. Runs in the engine's environment.

    The first run is left out where it is quick. Raises what the engine raises.
    """
    import numpy as np

    from synthseg_native import engines
    from synthseg_native.networks import cards
    from synthseg_native.verification.probes import plausible_weights

    table = cards.load(NETWORK).network.table()
    rng = np.random.default_rng(20)
    module = engines.load(engine, precision)
    built = module.build(table, plausible_weights(table, rng), device=device, threads=1, precision=precision)
    volume = rng.random(SLAB, dtype=np.float32)
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        for _, slab in built.run({"image": volume}):
            float(slab[0, 0, 0, 0])  # a device that computes meanwhile has to be done with it
        seconds = time.perf_counter() - start
        if seconds > ENOUGH_S:
            break
    return seconds


def main(engine: str, device: str, precision: str) -> int:
    """Measure, print the seconds as JSON, return the exit status: 1 with one line on stderr where it cannot run."""
    try:
        print(json.dumps(measure(engine, device, precision)))
    except Exception as error:
        print(" ".join(str(error).split()) or type(error).__name__, file=sys.stderr)
        return 1
    return 0
