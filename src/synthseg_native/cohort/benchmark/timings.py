"""Statistics of timings: how long, how spread, and the time ratio of two contestants within pairs.

One direction everywhere: a time ratio is native seconds divided by the seconds of the reference (or of upstream) in the
same pair or round. Below 1 the native run is faster, 0.25 is four times as fast.

Several images are strata: their sizes differ, and with them their times. Means are over all runs, but spreads are taken
within images, and a ratio over images is the mean of the images' own, each counting alike.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from math import exp, log, sqrt
from statistics import fmean, median, stdev, variance

PAIRS_FOR_INTERVAL = 5
CONFIDENCE = 0.95


def wall_times(images: Sequence[Sequence[float]]) -> dict[str, float | None]:
    """median, mean, sd, min and max (`median_wall_s` ...) and the coefficient of variation of some runs.

    images: seconds of the runs, a sequence for each image. sd is that of the runs of one image; over several images it
    is pooled, and there is no coefficient of variation. None where no image has two runs.

    >>> wall_times([[8.0, 10.0, 12.0]])["sd_wall_s"], wall_times([[8.0, 10.0, 12.0]])["cv_wall"]
    (2.0, 0.2)
    >>> both = wall_times([[8.0, 10.0, 12.0], [80.0, 82.0, 84.0]])
    >>> both["mean_wall_s"], both["sd_wall_s"], both["cv_wall"]
    (46.0, 2.0, None)
    """
    seconds = [value for image in images for value in image]
    mean, sd = fmean(seconds), pooled_sd(images)
    return {
        "median_wall_s": median(seconds),
        "mean_wall_s": mean,
        "sd_wall_s": sd,
        "cv_wall": None if sd is None or len(images) > 1 else sd / mean,
        "min_wall_s": min(seconds),
        "max_wall_s": max(seconds),
    }


def pooled_sd(strata: Sequence[Sequence[float]]) -> float | None:
    """Standard deviation within strata: the root of the mean variance, weighted by degrees of freedom."""
    several = [values for values in strata if len(values) > 1]
    if len(several) == 1:
        return stdev(several[0])
    freedom = sum(len(values) - 1 for values in several)
    return sqrt(sum((len(values) - 1) * variance(values) for values in several) / freedom) if freedom else None


def middle(values: Iterable[float | None]) -> float | None:
    """The median of what is there; None where nothing is."""
    there = [value for value in values if value is not None]
    return median(there) if there else None


def peaks(mebibytes: Iterable[float | None]) -> dict[str, float | None]:
    """Median and maximum of peak memory, `median_peak_rss_mib` and `max_peak_rss_mib`."""
    there = [value for value in mebibytes if value is not None]
    return {"median_peak_rss_mib": middle(there), "max_peak_rss_mib": max(there, default=None)}


def time_ratios(ours: Mapping[Hashable, float], theirs: Mapping[Hashable, float]) -> list[float]:
    """Our seconds divided by theirs, for each pair that both came through.

    ours, theirs: {pair: seconds}

    >>> time_ratios({1: 2.0, 2: 3.0, 3: 2.0}, {1: 8.0, 2: 6.0})
    [0.25, 0.5]
    """
    return [seconds / theirs[pair] for pair, seconds in ours.items() if pair in theirs]


def ratio_statistics(images: Sequence[Sequence[float]]) -> dict[str, float | int | None]:
    """n_pairs, and of the time ratios geometric mean, median, smallest, largest and the interval of the mean.

    images: time ratios of the pairs, a sequence for each image.

    The geometric mean is exp(mean of log ratios); over several images the mean of the images' own means. Its 95 %
    interval is exp(mean +- t sd sqrt(sum 1/n) / k) with the pooled sd within images, n pairs of each of the k images,
    and as many degrees of freedom as there are pairs less images; from 5 pairs on (with more images, as many more). It
    speaks of these images on this machine.

    >>> found = ratio_statistics([[0.2, 0.25, 0.25, 0.25, 0.3125]])
    >>> round(found["time_ratio_geomean"], 6), round(found["time_ratio_ci95_low"], 4)
    (0.25, 0.2055)
    """
    from scipy.special import stdtrit  # here: what plans a cohort asks this package, and should start quickly

    images = [ratios for ratios in images if ratios]
    every = [ratio for ratios in images for ratio in ratios]
    if not every:
        return {"n_pairs": 0}
    logs = [[log(ratio) for ratio in ratios] for ratios in images]
    mean, freedom, half = fmean(map(fmean, logs)), len(every) - len(images), None
    if freedom >= PAIRS_FOR_INTERVAL - 1:
        quantile = float(stdtrit(freedom, (1 + CONFIDENCE) / 2))
        half = quantile * pooled_sd(logs) * sqrt(sum(1 / len(values) for values in logs)) / len(logs)
    return {
        "n_pairs": len(every),
        "time_ratio_geomean": exp(mean),
        "time_ratio_median": median(every),
        "time_ratio_min": min(every),
        "time_ratio_max": max(every),
        "time_ratio_ci95_low": None if half is None else exp(mean - half),
        "time_ratio_ci95_high": None if half is None else exp(mean + half),
    }
