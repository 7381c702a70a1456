"""What the runs say: a row for each contestant of each group, and the files of the report."""

import hashlib
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from synthseg_native.cohort.benchmark import pages, plots, timings
from synthseg_native.cohort.benchmark.contestants import REFERENCE, UPSTREAM
from synthseg_native.cohort.tables import MISSING, write_tsv
from synthseg_native.files import write_text
from synthseg_native.results import record
from synthseg_native.verification import verify

MACHINE = ("cpu", "cores", "memory_gib", "system", "arch")
FACTS = (*MACHINE, "code", "weights", "image", "versions")  # what must be equal for runs to be of one benchmark
RUN_COLUMNS = (
    *("key", *FACTS, "started"),
    *("model", "size", "padded_voxels", "threads", "round", "contestant", "engine", "precision", "device"),
    *("status", "error", "wall_s", "cpu_s", "other_cpu_s", "peak_rss_mib", "first_read_s"),
    *("start_s", "read_s", "network_s", "postprocess_s", "write_s", "labels_sha256"),
    *("compared_with", "equal", "n_foreground", "n_different", "margin_max", "n_margin_above", "n_lost"),
    *("n_contralateral", "n_volumes_exceeded", "min_dice", "min_dice_label", "labels"),
)
TEXTS = {
    *("key", "cpu", "system", "arch", "code", "weights", "image", "versions", "started", "model", "size"),
    *("contestant", "engine", "precision", "device", "status", "error", "labels_sha256", "compared_with", "labels"),
    *("min_dice_label",),
}
WHOLE = {"cores", "padded_voxels", "threads", "round", "n_foreground", "n_different", "n_margin_above", "n_lost"} | {
    "n_contralateral",
    "n_volumes_exceeded",
}
TIME_RATIOS = ("time_ratio_median", "time_ratio_min", "time_ratio_max")
COLUMNS = (
    *("model", "size", "threads", "contestant", "n", "median_wall_s", "mean_wall_s", "sd_wall_s", "min_wall_s"),
    *("max_wall_s", "median_cpu_s", "median_peak_rss_mib", "max_peak_rss_mib", "n_pairs", *TIME_RATIOS),
    *(*(f"upstream_{name}" for name in TIME_RATIOS), "median_first_read_s"),
    *("median_around_network_s", "n_disturbed", "n_label_maps", "compared_with", "equal", "n_foreground"),
    *("n_different", "margin_max", "n_lost", "n_contralateral", "n_volumes_exceeded", "min_dice", "min_dice_label"),
    *("left_out", *FACTS, "date"),
)
DISTURBED = 0.1  # processor seconds of others per second of a run, from which it counts as disturbed


def machine() -> dict:
    """This machine, for every row."""
    return {
        "cpu": record.cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(verify.memory_bytes() / 2**30, 1),
        "system": platform.system(),
        "arch": platform.machine(),
    }


def machine_name(machine: Mapping) -> str:
    """For file names: "intel-xeon-processor-2-cores-linux"."""
    cpu = re.sub(r"\((r|tm)\)|cpu|@.*", " ", machine["cpu"].lower())
    return re.sub(r"[^a-z0-9]+", "-", f"{cpu} {machine['cores']} cores {machine['system'].lower()}").strip("-")


def key_of(facts: Mapping) -> str:
    """12 digits for what is equal in the runs of one benchmark."""
    return hashlib.sha256("\n".join(f"{facts[name]}" for name in FACTS).encode()).hexdigest()[:12]


def parse(row: Mapping[str, str]) -> dict:
    """A row of text as values; None for what is missing."""
    return {name: _value(name, text) for name, text in row.items()}


def _value(name: str, text: str) -> str | int | float | bool | None:
    if text == MISSING:
        return None
    if name in TEXTS:
        return text
    if name == "equal":
        return text == "true"
    return int(text) if name in WHOLE else float(text)


def summarise(rows: Sequence[dict], left_out: Mapping[tuple, str] | None = None) -> list[dict]:
    """A row (COLUMNS) for each contestant of each group (model, size, threads), from the last good run per round.

    rows : parsed rows of one key. left_out : {(model, size, threads, contestant): why}, beside those whose rows say
    it. Time ratios are to the reference, and to upstream, in the same round: what they are, `timings` says.
    """
    good: dict[tuple, dict[str, dict[int, dict]]] = {}
    failed: dict[tuple, str] = {}
    for row in rows:
        group = row["model"], row["size"], row["threads"]
        if row["status"] == "ok":
            good.setdefault(group, {}).setdefault(row["contestant"], {})[row["round"]] = row
        else:
            failed[(*group, row["contestant"])] = row["error"]
    left_out = failed | dict(left_out or {})
    found = []
    groups = list(dict.fromkeys([*good, *((m, s, t) for m, s, t, _ in left_out)]))
    panels = list(dict.fromkeys((model, threads) for model, _, threads in groups))
    groups.sort(key=lambda group: (panels.index(group[::2]), math.prod(map(int, group[1].split("x")))))
    for group in groups:
        contestants = good.get(group, {})
        for name, rounds in contestants.items():
            found.append(_statistics(group, name, rounds, contestants))
        for missing in (c for *g, c in left_out if tuple(g) == group and c not in contestants):
            about = {name: rows[-1][name] for name in FACTS}
            why = left_out[(*group, missing)]
            found.append(dict(zip(COLUMNS, (*group, missing, 0), strict=False)) | about | {"left_out": why})
    return found


def _statistics(group: tuple, name: str, rounds: dict[int, dict], contestants: dict[str, dict[int, dict]]) -> dict:
    """The row of a contestant. rounds : {round: its good run} · contestants : the same of all, by their names"""
    runs = list(rounds.values())
    compared = [run for run in runs if run["compared_with"]]
    last = runs[-1]
    walls = timings.wall_times([[run["wall_s"] for run in runs]])
    row = dict(zip(("model", "size", "threads"), group, strict=True)) | {
        "contestant": name,
        "n": len(runs),
        **{key: value for key, value in walls.items() if key in COLUMNS},
        "median_cpu_s": timings.middle(run["cpu_s"] for run in runs),
        **timings.peaks(run["peak_rss_mib"] for run in runs),
        "median_first_read_s": timings.middle(run["first_read_s"] for run in runs),
        "median_around_network_s": timings.middle(
            None if run["read_s"] is None else run["read_s"] + run["postprocess_s"] + run["write_s"] for run in runs
        ),
        "n_disturbed": sum((run["other_cpu_s"] or 0) > DISTURBED * run["wall_s"] for run in runs),
        "n_label_maps": len({run["labels_sha256"] for run in runs}),
        **{key: last[key] for key in ("compared_with", *FACTS)},
        "date": (last["started"] or "")[:10],
        **_time_ratios(name, REFERENCE, contestants),
        **{f"upstream_{key}": value for key, value in _time_ratios(name, UPSTREAM, contestants).items()},
    }
    if compared:
        worst = min(compared, key=lambda run: (run["equal"], -run["n_different"]))
        names = ("n_foreground", "n_different", "n_lost", "n_contralateral", "n_volumes_exceeded")
        row |= {key: worst[key] for key in (*names, "min_dice", "min_dice_label")}
        row["margin_max"] = max((run["margin_max"] for run in compared if run["margin_max"] is not None), default=None)
        row["equal"] = all(run["equal"] for run in compared)
    return row


def _time_ratios(name: str, other: str, contestants: dict[str, dict[int, dict]]) -> dict:
    """n_pairs and TIME_RATIOS of one contestant to another, over the rounds that both came through."""
    ours, theirs = (
        {number: run["wall_s"] for number, run in contestants.get(contestant, {}).items()}
        for contestant in (name, other)
    )
    found = timings.ratio_statistics([timings.time_ratios(ours, theirs if name != other else {})])
    return {key: value for key, value in found.items() if key in ("n_pairs", *TIME_RATIOS)}


def write(rows: Sequence[dict], left_out: Mapping[tuple[str, str], str], results: Path | str, name: str) -> list[Path]:
    """Write <name>.tsv, .md, .png and the table of platforms to `results`; return their paths.

    rows : parsed rows of one key. left_out : {(title of a group, contestant): why}, as `run.Benchmark` keeps it.
    """
    results = Path(results)
    why = {}
    for (title, contestant), reason in left_out.items():
        model, size, threads = title.split(", ")
        why[model, size, int(threads.split()[0]), contestant] = reason
    table = summarise(rows, why)
    made = [results / f"{name}{ending}" for ending in (".tsv", ".md", ".png")] + [results / "README.md"]
    write_tsv(made[0], COLUMNS, table)
    plots.plot(table, made[2])
    write_text(made[1], pages.markdown(table, rows, made[2].name))
    write_text(made[3], pages.platforms(results))
    return made
