"""SynthSeg's own quality scores: a network that sees labels alone says how well eight groups of them were found."""

import numpy as np

from synthseg_native.engines.capabilities import Engine
from synthseg_native.errors import SynthSegError
from synthseg_native.networks.cards import Labels

LEFT_OUT = 24  # upstream means label 24, and leaves out the channel of that number


def box_of(channels: np.ndarray, edge: int) -> np.ndarray:
    """The part of a map of channels (X, Y, Z) that the quality network sees: (edge, edge, edge), zeros where the map
    ends.

    The box around what is neither 0 nor LEFT_OUT, grown or cut on both sides alike to this edge; where there is nothing
    it begins where the map does.

    >>> box_of(np.array([0, 0, 7, 0, 0, 0], np.uint8).reshape(6, 1, 1), 3)[:, 1, 1].tolist()
    [0, 7, 0]
    """
    there = (channels != 0) & (channels != LEFT_OUT)
    box = np.zeros((edge,) * 3, dtype=channels.dtype)
    source, target = [], []
    for axis, n in enumerate(channels.shape):
        seen = np.nonzero(there.any(axis=tuple(other for other in range(3) if other != axis)))[0]
        low, high = (int(seen[0]), int(seen[-1]) + 1) if len(seen) else (0, min(n, edge))
        low -= _ceil_half(edge - (high - low))
        source.append(slice(max(low, 0), min(low + edge, n)))
        target.append(slice(source[-1].start - low, source[-1].stop - low))
    box[tuple(target)] = channels[tuple(source)]
    return box


def _ceil_half(number):
    """Half of a whole number, rounded up: -1 of -3.

    >>> [_ceil_half(number) for number in (-3, -2, 3)]
    [-1, -1, 2]
    """
    return -(-number // 2)


def predict(engine: Engine, channels: np.ndarray, labels: Labels, edge: int) -> np.ndarray:
    """The scores (groups,), between 0 and 1, of a map of channels (X, Y, Z): which of the labels is the likeliest.

    engine : of the quality network · edge : of its box. Raises SynthSegError("internal") for what is no number.
    """
    groups = labels.quality_groups.astype(np.uint8)[box_of(channels, edge)]
    ((_, result),) = engine.run({"quality_groups": groups})
    found = np.array(result, dtype=np.float64).reshape(-1)[1:]
    if not np.isfinite(found).all():
        raise SynthSegError("internal", "scores: some are no numbers: use another engine, device or precision")
    return np.clip(found, 0, 1)
