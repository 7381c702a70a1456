"""How long native and reference take: run in turn on the same images, every run kept, statistics from pairs."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from synthseg_native import shared_disk
from synthseg_native.cohort.benchmark import timings
from synthseg_native.errors import SynthSegError

REFERENCE = "reference"
ALL = "all"
WORK = "run-"  # how the names of the runs' work folders begin
Run = Callable[[str, Path, dict, Path], dict]  # (scan, image, settings, work folder) -> run record

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
    "time_ratio_geomean",
    "time_ratio_median",
    "time_ratio_ci95_low",
    "time_ratio_ci95_high",
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


def run_benchmark(
    scans: Mapping[str, Path],
    settings: dict,
    run_native: Run,
    run_reference: Run,
    work: Path,
    say: Callable[[str], None] = print,
    known: Iterable[dict] = (),
    keep: Callable[[dict], None] = lambda row: None,
) -> list[dict]:
    """Run every engine and the reference in turn on each image; return a row (RUN_COLUMNS) for every run.

    scans: {name: image}. settings: repeats, warmups, threads, native {scan: [settings of an engine, ...]}, reference
    {scan: settings} (no entry, or kind existing: native runs only). work: folder for the work folders, which are
    removed. say: gets a line per run. known: rows of an earlier call that was stopped: a pair in which all came through
    is not run again. keep: gets every row as soon as it is there.

    Each pair starts with the other contestant than the one before, so that a drift of the machine cancels. A contestant
    that fails in all warm-ups of an image is left out there, and costs the others nothing. Raises the last failed run's
    SynthSegError where no run at all came through.
    """
    rows, finished = [], _finished_pairs(known)
    for scan, image in scans.items():
        contestants = [(options["engine"], options, run_native) for options in settings["native"][scan]]
        reference = (settings["reference"] or {}).get(scan)
        if reference and reference["kind"] != "existing":
            contestants.append((REFERENCE, reference, run_reference))
        for warmup, count in ((True, settings["warmups"]), (False, settings["repeats"])):
            here = []
            for pair in range(1, count + 1):
                earlier = finished.get((scan, warmup, pair), [])
                if {row["engine"] for row in earlier} == {engine for engine, *_ in contestants}:
                    here += earlier
                    continue
                for engine, options, run in contestants if pair % 2 else contestants[::-1]:
                    with shared_disk.temporary_folder(Path(work), WORK) as folder:
                        record = run(scan, image, options, folder)
                    row = _run_row(record, scan, engine, warmup, pair, settings["threads"])
                    here.append(row)
                    keep(row)
                    kind = "warm-up" if warmup else "run"
                    outcome = f"{row['wall_s']:.1f} s" if row["status"] == "ok" else f"failed: {row['error']}"
                    say(f"benchmark: {scan} {engine}, {kind} {pair} of {count}: {outcome}")
            rows += here
            for engine in never_came_through(here):
                contestants = [contestant for contestant in contestants if contestant[0] != engine]
                say(f"benchmark: {scan} {engine} failed in all {count} {'warm-ups' if warmup else 'runs'}"
                    f"{', and is left out there' if warmup else ''}")  # fmt: skip
    if all(row["status"] != "ok" for row in rows):
        code, text = (rows[-1]["error_code"] or "internal", rows[-1]["error"]) if rows else ("usage", "no runs")
        raise SynthSegError(code, f"benchmark: none of {len(rows)} runs came through, the last: {text}")
    return rows


def _finished_pairs(rows: Iterable[dict]) -> dict[tuple[str, bool, int], list[dict]]:
    """{(image, warm-up or not, pair): rows} of the pairs in which nobody failed when they were last run."""
    found: dict[tuple[str, bool, int], dict[str, dict]] = {}
    for row in rows:
        found.setdefault((row["scan"], row["warmup"], row["pair"]), {})[row["engine"]] = row
    return {
        pair: list(last.values()) for pair, last in found.items() if all(row["status"] == "ok" for row in last.values())
    }


def never_came_through(rows: Iterable[Mapping]) -> dict[str, str]:
    """The contestants that failed in all of some runs (RUN_COLUMNS), with the code of the last failure."""
    failed, came = {}, set()
    for row in rows:
        if row["status"] == "ok":
            came.add(row["engine"])
        else:
            failed[row["engine"]] = row["error_code"]
    return {engine: code for engine, code in failed.items() if engine not in came}


def _run_row(record: dict, scan: str, engine: str, warmup: bool, pair: int, threads: int) -> dict:
    """A run record as a row (RUN_COLUMNS)."""
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


def statistics_of(runs: Sequence[dict]) -> list[dict]:
    """Rows (COLUMNS) per image and over all images, one for each engine and for the reference.

    runs: rows of `run_benchmark`. Warm-ups and failed runs do not count; whoever never came through has a row without
    times. What the numbers are: `timings`.
    """
    left_out = {(row["scan"], row["engine"]) for row in runs} - {
        (row["scan"], row["engine"]) for row in runs if not row["warmup"]
    }
    # Of a contestant that was left out after its warm-ups these are all there is.
    counted = [row for row in runs if not row["warmup"] or (row["scan"], row["engine"]) in left_out]
    rows = []
    for scan in [*dict.fromkeys(row["scan"] for row in counted), ALL]:
        here = [row for row in counted if scan in (row["scan"], ALL)]
        about_reference = next((row for row in here if row["engine"] == REFERENCE and row["status"] == "ok"), {})
        natives = [row for row in here if row["engine"] != REFERENCE and row["status"] == "ok"]
        for engine in dict.fromkeys(row["engine"] for row in here):
            mine = [row for row in here if row["engine"] == engine]
            good = [row for row in mine if row["status"] == "ok"]
            native = next((row for row in natives if engine in (row["engine"], REFERENCE)), {})
            seconds = [list(seconds.values()) for seconds in _seconds(here, engine).values()]
            rows.append(
                {
                    "scan": scan,
                    "engine": engine,
                    "n": len(good),
                    "n_failed": len(mine) - len(good),
                    **(timings.wall_times(seconds) if seconds else {}),
                    **timings.peaks(row["peak_rss_mib"] for row in good),
                    **({} if engine == REFERENCE else timings.ratio_statistics(_time_ratios(here, engine))),
                    "n_label_maps": len({(row["scan"], row["labels_sha256"]) for row in good}),
                    **{key: (good or mine)[0][key] for key in ("threads", "device", "cpu", "system", "arch")},
                    "native_emulated": native.get("emulated"),
                    "reference_emulated": about_reference.get("emulated"),
                    **{key: about_reference.get(key) for key in COLUMNS[-3:]},
                }
            )
    return rows


def _seconds(rows: Sequence[dict], engine: str) -> dict[str, dict[int, float]]:
    """{image: {pair: seconds}} of an engine's good runs."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["engine"] == engine and row["status"] == "ok":
            found.setdefault(row["scan"], {})[row["pair"]] = row["wall_s"]
    return found


def _time_ratios(rows: Sequence[dict], engine: str) -> list[list[float]]:
    """For each image the time ratios of an engine's pairs with the reference."""
    theirs = _seconds(rows, REFERENCE)
    return [timings.time_ratios(ours, theirs.get(scan, {})) for scan, ours in _seconds(rows, engine).items()]
