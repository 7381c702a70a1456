"""Intensities per class: what T1, T2, FLAIR and proton density images look like, and images that look like nothing.

An image has one Gaussian per class, the same on the left and the right; intensities are on a scale of 0 to 255.
"""

import numpy as np

from .maps import LABELS, MIRROR

# label: mean in T1 (MPRAGE-like), T2, FLAIR, proton density. Rough values of ours, by how such images look at 1.5-3 T.
TYPICAL = {
    0: (4, 4, 4, 4),
    2: (185, 80, 105, 115),
    3: (120, 125, 140, 150),
    4: (35, 235, 20, 160),
    5: (38, 230, 25, 160),
    7: (178, 85, 110, 115),
    8: (118, 122, 138, 148),
    10: (142, 105, 122, 135),
    11: (125, 110, 132, 142),
    12: (135, 100, 125, 138),
    13: (162, 70, 95, 115),
    14: (35, 232, 20, 160),
    15: (38, 230, 25, 160),
    16: (165, 92, 112, 125),
    17: (118, 128, 148, 150),
    18: (115, 128, 148, 150),
    24: (35, 235, 22, 160),
    25: (140, 170, 200, 160),
    26: (125, 112, 135, 145),
    28: (158, 88, 108, 122),
    30: (80, 120, 60, 110),
    72: (35, 232, 20, 160),
    85: (155, 95, 110, 125),
    136: (80, 180, 90, 150),
    137: (80, 180, 90, 150),
    502: (90, 50, 40, 90),
    506: (30, 240, 25, 165),
    507: (110, 75, 85, 115),
    508: (100, 100, 90, 120),
    509: (100, 160, 130, 140),
    511: (150, 110, 110, 130),
    512: (165, 92, 112, 125),
    514: (85, 70, 60, 100),
    515: (30, 25, 25, 30),
    516: (140, 90, 90, 110),
    530: (140, 100, 105, 125),
}
KINDS = ("t1", "t2", "flair", "pd")

# How far a class may lie from its typical mean: tissues around the brain vary with coil, fat suppression and age.
SPREAD = {
    507: 35,
    511: 45,
    516: 45,
    515: 15,
    502: 45,
    514: 40,
    30: 35,
    509: 35,
    508: 30,
    25: 30,
    136: 20,
    137: 20,
    0: 3,
}

# How much of each class is white matter, grey matter, fluid; for images whose tissues have any intensity.
MIXTURE = {
    **dict.fromkeys([2, 7], (1, 0, 0)),
    **dict.fromkeys([3, 8, 17, 18, 26], (0, 1, 0)),
    **dict.fromkeys([4, 5, 14, 15, 24, 72, 506], (0, 0, 1)),
    **dict.fromkeys([16, 512, 28, 85, 530], (0.75, 0.25, 0)),
    10: (0.35, 0.65, 0),
    11: (0.1, 0.9, 0),
    12: (0.2, 0.8, 0),
    13: (0.65, 0.35, 0),
    25: (0.5, 0.2, 0.3),
    136: (0, 0.6, 0.4),
    137: (0, 0.6, 0.4),
}
FIRST = np.minimum(np.arange(len(LABELS)), MIRROR)  # (K,) the class whose Gaussian a class shares


def _per_class(table, default):
    """(K, ...) values of a table by label; a right label finds its left one's."""
    return np.array([table.get(int(LABELS[first]), default) for first in FIRST], dtype=np.float64)


_TYPICAL = _per_class(TYPICAL, None)
_SPREAD = _per_class(SPREAD, 8)
_MIXTURE = _per_class(MIXTURE, (np.nan,) * 3)


def means(kind, rng, jitter=1.0) -> np.ndarray:
    """Draw the means (K,) of one image.

    kind : one of `KINDS`, "tissue" (white matter, grey matter and fluid of any intensity, structures are mixtures of
    them), or "random" (every class for itself, uniform) · jitter : 0 gives the typical means of a kind
    """
    shared = rng.standard_normal(len(LABELS))[FIRST]
    if kind == "random":
        return rng.uniform(0, 255, len(LABELS))[FIRST]
    if kind == "tissue":
        tissues = rng.uniform(10, 245, 3)
        anything = rng.uniform(0, 255, len(LABELS))[FIRST]
        mean = np.where(np.isnan(_MIXTURE[:, 0]), anything, np.nan_to_num(_MIXTURE) @ tissues) + 8 * shared
        mean[0] = abs(shared[0]) * 5 if rng.random() < 0.8 else anything[0]
        return mean.clip(0, 255)
    mean = _TYPICAL[:, KINDS.index(kind)]
    if jitter:
        # As a whole steeper or flatter around the middle of the brain's values, then every class for itself.
        middle = mean[np.isin(LABELS, [2, 3])].mean()
        flatter = middle + (mean - middle) * rng.uniform(1 - 0.4 * jitter, 1 + 0.25 * jitter)
        mean = np.where(LABELS == 0, mean, flatter) + jitter * _SPREAD * shared
    return mean.clip(0, 255)
