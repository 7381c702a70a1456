"""How long native and reference take: run in turn on the same images, every run kept, statistics from pairs."""

import statistics
import tempfile
from math import exp, log, sqrt
from pathlib import Path

from scipy.stats import t

from synthseg_native.errors import SynthSegError

REFERENCE = "reference"
ALL = "all"
PAIRS_FOR_INTERVAL = 5

RUN_COLUMNS = (
    "scan",
    "pair",
    "engine",
    "warmup",
    "status",
    "error_code",
    "error",
    "wall_s",
    "peak_rss_mib",
    "cgroup_peak_mib",
    "started",
    "finished",
    "threads",
    "device",
    "cpu",
    "system",
    "arch",
    "emulated",
    "reference_kind",
    "reference_runtime",
    "reference_id",
    "labels_sha256",
)
COLUMNS = (
    "scan",
    "engine",
    "n",
    "n_failed",
    "median_wall_s",
    "mean_wall_s",
    "sd_wall_s",
    "cv_wall",
    "min_wall_s",
    "max_wall_s",
    "median_peak_rss_mib",
    "max_peak_rss_mib",
    "n_pairs",
    "ratio_geomean",
    "ratio_median",
    "ratio_ci95_low",
    "ratio_ci95_high",
    "n_label_maps",
    "threads",
    "device",
    "cpu",
    "system",
    "arch",
    "native_emulated",
    "reference_emulated",
    "reference_kind",
    "reference_runtime",
    "reference_id",
)


def run_benchmark(scans, settings, run_native, run_reference, work, say=print) -> list[dict]:
    """Run every engine and the reference in turn on each image; return a row (RUN_COLUMNS) for every run.

    scans: {name: image}. settings: repeats, warmups, threads, native {scan: [settings of an engine, ...]}, reference
    {scan: settings} (no entry, or kind existing: native runs only). run_native and run_reference take (scan, image,
    settings, work folder) and return a run record. work: folder for the work folders, which are removed. say: gets a
    line per run.

    Each pair starts with the other contestant than the one before, so that a drift of the machine cancels. Raises
    the failed run's SynthSegError where a contestant fails in all warm-ups, or in all counted runs, of an image.
    """
    rows = []
    Path(work).mkdir(parents=True, exist_ok=True)
    for scan, image in scans.items():
        contestants = [(options["engine"], options, run_native) for options in settings["native"][scan]]
        reference = (settings["reference"] or {}).get(scan)
        if reference and reference["kind"] != "existing":
            contestants.append((REFERENCE, reference, run_reference))
        for warmup, count in ((True, settings["warmups"]), (False, settings["repeats"])):
            here = []
            for pair in range(1, count + 1):
                for engine, options, run in contestants if pair % 2 else contestants[::-1]:
                    with tempfile.TemporaryDirectory(prefix="run-", dir=work, ignore_cleanup_errors=True) as folder:
                        record = run(scan, image, options, Path(folder))
                    row = _run_row(record, scan, engine, warmup, None if warmup else pair, settings["threads"])
                    here.append(row)
                    kind = "warm-up" if warmup else "run"
                    outcome = f"{row['wall_s']:.1f} s" if row["status"] == "ok" else f"failed: {row['error']}"
                    say(f"benchmark: {scan} {engine}, {kind} {pair} of {count}: {outcome}")
            _need_one_of_each(here, scan)
            rows += here
    return rows


def _run_row(record, scan, engine, warmup, pair, threads):
    error, machine, reference, output = (record.get(key) or {} for key in ("error", "machine", "reference", "output"))
    return {
        "scan": scan,
        "pair": pair,
        "engine": engine,
        "warmup": warmup,
        "status": record["status"],
        "error_code": error.get("code"),
        "error": error.get("message"),
        **{key: record.get(key) for key in ("wall_s", "peak_rss_mib", "cgroup_peak_mib", "started", "finished")},
        "threads": threads,
        "device": record.get("device"),
        **{key: machine.get(key) for key in ("cpu", "system", "arch")},
        "emulated": reference.get("emulated") if engine == REFERENCE else machine.get("emulated"),
        **{f"reference_{key}": reference.get(key) for key in ("kind", "runtime", "id")},
        "labels_sha256": output.get("labels_sha256"),
    }


def _need_one_of_each(rows, scan):
    """A contestant that never came through leaves nothing to compare: better to stop than to run the others on."""
    for engine in dict.fromkeys(row["engine"] for row in rows):
        mine = [row for row in rows if row["engine"] == engine]
        if all(row["status"] != "ok" for row in mine):
            code, text = mine[-1]["error_code"] or "internal", mine[-1]["error"]
            raise SynthSegError(code, f"benchmark of {scan}: {engine} failed in all {len(mine)} runs: {text}")


def statistics_of(runs) -> list[dict]:
    """Rows (COLUMNS) per image and over all images, one for each engine and for the reference.

    Warm-ups and failed runs do not count. A ratio is reference time / native time of one pair. ratio_geomean is
    exp(mean(log ratio)); its 95 % interval exp(mean +- t(0.975, n-1) sd / sqrt(n)) over the log ratios, from 5 pairs
    on. Over all images the pairs of every image are taken together.
    """
    counted = [row for row in runs if not row["warmup"]]
    rows = []
    for scan in [*dict.fromkeys(row["scan"] for row in counted), ALL]:
        here = [row for row in counted if scan in (row["scan"], ALL)]
        about_reference = next((row for row in here if row["engine"] == REFERENCE and row["status"] == "ok"), {})
        natives = [row for row in here if row["engine"] != REFERENCE and row["status"] == "ok"]
        for engine in dict.fromkeys(row["engine"] for row in here):
            mine = [row for row in here if row["engine"] == engine]
            good = [row for row in mine if row["status"] == "ok"]
            native = next(row for row in natives if engine in (row["engine"], REFERENCE))
            rows.append(
                {
                    "scan": scan,
                    "engine": engine,
                    "n": len(good),
                    "n_failed": len(mine) - len(good),
                    **_times([row["wall_s"] for row in good]),
                    **_memory([row["peak_rss_mib"] for row in good if row["peak_rss_mib"] is not None]),
                    **({} if engine == REFERENCE else _ratio(_pairs(here, engine))),
                    "n_label_maps": len({(row["scan"], row["labels_sha256"]) for row in good}),
                    **{key: good[0][key] for key in ("threads", "device", "cpu", "system", "arch")},
                    "native_emulated": native["emulated"],
                    "reference_emulated": about_reference.get("emulated"),
                    **{key: about_reference.get(key) for key in COLUMNS[-3:]},
                }
            )
    return rows


def _times(seconds):
    mean = statistics.fmean(seconds)
    sd = statistics.stdev(seconds) if len(seconds) > 1 else None
    return {
        "median_wall_s": statistics.median(seconds),
        "mean_wall_s": mean,
        "sd_wall_s": sd,
        "cv_wall": None if sd is None else sd / mean,
        "min_wall_s": min(seconds),
        "max_wall_s": max(seconds),
    }


def _memory(mebibytes):
    if not mebibytes:
        return {}
    return {"median_peak_rss_mib": statistics.median(mebibytes), "max_peak_rss_mib": max(mebibytes)}


def _pairs(rows, engine):
    """(native seconds, reference seconds) of the pairs in which both came through."""
    found = {(row["scan"], row["pair"], row["engine"]): row["wall_s"] for row in rows if row["status"] == "ok"}
    return [
        (seconds, found[scan, pair, REFERENCE])
        for (scan, pair, name), seconds in found.items()
        if name == engine and (scan, pair, REFERENCE) in found
    ]


def _ratio(pairs):
    n = len(pairs)
    if not n:
        return {"n_pairs": 0}
    logs = [log(reference / native) for native, reference in pairs]
    mean = statistics.fmean(logs)
    half = None
    if n >= PAIRS_FOR_INTERVAL:
        half = float(t.ppf(0.975, n - 1)) * statistics.stdev(logs) / sqrt(n)
    return {
        "n_pairs": n,
        "ratio_geomean": exp(mean),
        "ratio_median": statistics.median(map(exp, logs)),
        "ratio_ci95_low": None if half is None else exp(mean - half),
        "ratio_ci95_high": None if half is None else exp(mean + half),
    }
