"""Which of a network's posteriors SynthSeg takes for what: it depends on everything else that is asked for.

Raw are those that the softmax gives, smoothed their Gaussian, averaged the mean of the smoothed ones of the image and
of its mirror image. What surprises here is upstream's, and kept (docs/synthseg2.md lists it).
"""

from dataclasses import dataclass

RAW, SMOOTHED, AVERAGED = "raw", "smoothed", "averaged"
DEFAULT, FAST, ROBUST = "default", "fast", "robust"


@dataclass(frozen=True)
class Mode:
    """labels : the posteriors that give labels and volumes · cortex : those that tell the parcellation where there is
    cortex · scores : those that the quality network judges · parcels : those of the parcellation that give parcels;
    the latter three None where they are not asked for"""

    labels: str
    cortex: str | None = None
    parcels: str | None = None
    scores: str | None = None


# (mode, parcellation, scores): upstream's table, row by row.
MODES = {
    (DEFAULT, False, False): Mode(AVERAGED),
    (DEFAULT, True, False): Mode(AVERAGED, cortex=AVERAGED, parcels=SMOOTHED),
    (DEFAULT, False, True): Mode(AVERAGED, scores=AVERAGED),
    (DEFAULT, True, True): Mode(AVERAGED, cortex=AVERAGED, parcels=RAW, scores=AVERAGED),
    (FAST, False, False): Mode(SMOOTHED),
    (FAST, True, False): Mode(RAW, cortex=SMOOTHED, parcels=SMOOTHED),
    (FAST, False, True): Mode(RAW, scores=SMOOTHED),
    (FAST, True, True): Mode(RAW, cortex=SMOOTHED, parcels=RAW, scores=RAW),
    (ROBUST, False, False): Mode(RAW),
    (ROBUST, True, False): Mode(RAW, cortex=RAW, parcels=SMOOTHED),
    (ROBUST, False, True): Mode(RAW, scores=RAW),
    (ROBUST, True, True): Mode(RAW, cortex=RAW, parcels=RAW, scores=RAW),
}


def name_of(fast: bool, robust: bool) -> str:
    """The mode by its name; robust mode is fast in any case.

    >>> name_of(fast=True, robust=True)
    'robust'
    """
    return ROBUST if robust else FAST if fast else DEFAULT
