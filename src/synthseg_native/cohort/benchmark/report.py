"""What the runs say: statistics from rounds, a table, a plot, and which platforms were measured."""

import hashlib
import math
import os
import platform
import re
import statistics
from datetime import UTC, datetime
from pathlib import Path

from synthseg_native.cohort.paths import write_text
from synthseg_native.cohort.tables import MISSING, read_tsv, write_tsv
from synthseg_native.results import record
from synthseg_native.verification import verify

MACHINE = ("cpu", "cores", "memory_gib", "system", "arch")
RUN_COLUMNS = (
    *("key", *MACHINE, "code", "weights", "image", "versions", "started"),
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
COLUMNS = (
    *("model", "size", "threads", "contestant", "n", "median_wall_s", "min_wall_s", "max_wall_s", "median_cpu_s"),
    *("median_peak_rss_mib", "max_peak_rss_mib", "n_pairs", "ratio_median", "ratio_min", "ratio_max"),
    *("upstream_ratio_median", "upstream_ratio_min", "upstream_ratio_max", "median_first_read_s"),
    *("median_around_network_s", "n_disturbed", "n_label_maps", "compared_with", "equal", "n_foreground"),
    *("n_different", "margin_max", "n_lost", "n_contralateral", "n_volumes_exceeded", "min_dice", "min_dice_label"),
    *("left_out", *MACHINE, "code", "weights", "image", "versions", "date"),
)
DISTURBED = 0.1  # processor seconds of others per second of a run, from which it counts as disturbed
HEADLINE = ("synthseg1size", "192x256x192", 2)
# What the project promised itself: measure, the floor, the goal, and how to read it from the statistics.
FLOORS = (
    ("wall, float32, 192x256x192, upstream = 1", 1 / 3, 1 / 4, (*HEADLINE, "openvino float32"),
     "upstream_ratio_median"),
    ("wall, bf16, 192x256x192, upstream = 1", 1 / 5, 1 / 8, (*HEADLINE, "openvino bf16"), "upstream_ratio_median"),
    ("peak memory in GB, float32, 192x256x192", 5, 3.5, (*HEADLINE, "openvino float32"), "max_peak_rss_mib"),
    ("peak memory in GB, float32, 256x256x256", 10, 7, ("synthseg1size", "256x256x256", 2, "openvino float32"),
     "max_peak_rss_mib"),
    ("seconds from start to the first byte read", 2, 1, (*HEADLINE, "openvino float32"), "median_first_read_s"),
    ("seconds, compact2mm, one 1 mm head", 8, 4, ("compact2mm", "192x256x192", 2, "openvino float32"),
     "median_wall_s"),
)  # fmt: skip
PLATFORMS = (
    ("Linux x86-64, CPU", "Linux", "x86_64", False),
    ("Linux x86-64, NVIDIA GPU", "Linux", "x86_64", True),
    ("Linux arm64, CPU", "Linux", "aarch64", False),
    ("macOS arm64, CPU", "Darwin", "arm64", False),
    ("macOS arm64, Apple GPU", "Darwin", "arm64", True),
)
COLOURS = {
    "reference": "#8c8c8c",
    "upstream": "#4d4d4d",
    "tensorflow float32": "#e69f00",
    "openvino float32": "#0072b2",
    "openvino bf16": "#56b4e9",
    "torch float32": "#009e73",
}


def machine() -> dict:
    """This machine, for every row."""
    return {
        "cpu": record.cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(verify.memory_bytes() / 2**30, 1),
        "system": platform.system(),
        "arch": platform.machine(),
    }


def machine_name(machine) -> str:
    """For file names: "intel-xeon-processor-2-cores-linux"."""
    cpu = re.sub(r"\((r|tm)\)|cpu|@.*", " ", machine["cpu"].lower())
    return re.sub(r"[^a-z0-9]+", "-", f"{cpu} {machine['cores']} cores {machine['system'].lower()}").strip("-")


def key_of(facts) -> str:
    """What must be equal for runs to be of one benchmark: machine, code, weights, image, versions."""
    names = (*MACHINE, "code", "weights", "image", "versions")
    return hashlib.sha256("\n".join(f"{facts[name]}" for name in names).encode()).hexdigest()[:12]


def parse(row) -> dict:
    """A row of text as values; None for what is missing."""
    return {name: _value(name, text) for name, text in row.items()}


def _value(name, text):
    if text == MISSING:
        return None
    if name in TEXTS:
        return text
    if name == "equal":
        return text == "true"
    return int(text) if name in WHOLE else float(text)


def summarise(rows, left_out=()) -> list[dict]:
    """A row (COLUMNS) for each contestant of each group (model, size, threads), from the last good run per round.

    rows : parsed rows of one key. left_out : {(model, size, threads, contestant): why}, beside those whose rows say
    it. Ratios are wall times divided by that of the reference, or of upstream, in the same round: below 1 is faster.
    """
    good, failed = {}, {}
    for row in rows:
        group = row["model"], row["size"], row["threads"]
        if row["status"] == "ok":
            good.setdefault(group, {}).setdefault(row["contestant"], {})[row["round"]] = row
        else:
            failed[(*group, row["contestant"])] = row["error"]
    left_out = failed | dict(left_out)
    found = []
    groups = list(dict.fromkeys([*good, *((m, s, t) for m, s, t, _ in left_out)]))
    panels = list(dict.fromkeys((model, threads) for model, _, threads in groups))
    groups.sort(key=lambda group: (panels.index(group[::2]), math.prod(map(int, group[1].split("x")))))
    for group in groups:
        contestants = good.get(group, {})
        for name, rounds in contestants.items():
            found.append(_statistics(group, name, rounds, contestants))
        for missing in (c for *g, c in left_out if tuple(g) == group and c not in contestants):
            about = {key: value for key, value in rows[-1].items() if key in COLUMNS[-9:]}
            why = left_out[(*group, missing)]
            found.append(dict(zip(COLUMNS, (*group, missing, 0), strict=False)) | about | {"left_out": why})
    return found


def _statistics(group, name, rounds, contestants):
    runs = list(rounds.values())
    compared = [run for run in runs if run["compared_with"]]
    last = runs[-1]
    walls = [run["wall_s"] for run in runs]
    row = dict(zip(("model", "size", "threads"), group, strict=True)) | {
        "contestant": name,
        "n": len(runs),
        "median_wall_s": statistics.median(walls),
        "min_wall_s": min(walls),
        "max_wall_s": max(walls),
        "median_cpu_s": _median(run["cpu_s"] for run in runs),
        "median_peak_rss_mib": _median(run["peak_rss_mib"] for run in runs),
        "max_peak_rss_mib": max(run["peak_rss_mib"] for run in runs),
        "median_first_read_s": _median(run["first_read_s"] for run in runs),
        "median_around_network_s": _median(
            None if run["read_s"] is None else run["read_s"] + run["postprocess_s"] + run["write_s"] for run in runs
        ),
        "n_disturbed": sum((run["other_cpu_s"] or 0) > DISTURBED * run["wall_s"] for run in runs),
        "n_label_maps": len({run["labels_sha256"] for run in runs}),
        **{key: last[key] for key in ("compared_with", *MACHINE, "code", "weights", "image", "versions")},
        "date": (last["started"] or "")[:10],
    }
    for other, start in (("reference", ""), ("upstream", "upstream_")):
        ratios = [
            run["wall_s"] / contestants[other][number]["wall_s"]
            for number, run in rounds.items()
            if other != name and number in contestants.get(other, {})
        ]
        if not start:
            row["n_pairs"] = len(ratios)
        if ratios:
            row |= {f"{start}ratio_median": statistics.median(ratios)}
            row |= {f"{start}ratio_min": min(ratios), f"{start}ratio_max": max(ratios)}
    if compared:
        worst = min(compared, key=lambda run: (run["equal"], -run["n_different"]))
        names = ("n_foreground", "n_different", "n_lost", "n_contralateral", "n_volumes_exceeded")
        row |= {key: worst[key] for key in (*names, "min_dice", "min_dice_label")}
        row["margin_max"] = max((run["margin_max"] for run in compared if run["margin_max"] is not None), default=None)
        row["equal"] = all(run["equal"] for run in compared)
    return row


def _median(values):
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None


def write(rows, left_out, results, name) -> list[Path]:
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
    plot(table, made[2])
    write_text(made[1], markdown(table, rows, made[2].name))
    write_text(made[3], platforms(results))
    return made


def sentence(table) -> str:
    """What was measured on what, in one sentence."""
    row = next(row for row in table if row["n"])
    days = sorted({r["date"] for r in table if r.get("date")})
    day = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return (
        f"{row['cpu']}, {row['cores']} cores, {row['memory_gib']:.0f} GiB, {row['system']} {row['arch']}, {day}: whole "
        f"commands, from start to exit, on {_image(row)} with {row['weights'].rsplit(' ', 1)[0]}, "
        "engines in turn with reference.py in every round and with the same threads; ratios are time divided by that "
        "of reference.py (or upstream) in the same round, median (smallest to largest) over the rounds"
    )


def _image(row):
    name = row["image"].rsplit(" ", 1)[0]
    return "a phantom" if name == "phantom" else f"the image {name}"


def markdown(table, rows, picture) -> str:
    """The report as Markdown."""
    some = next(row for row in table if row["n"])
    lines = ["# Benchmark", "", f"{sentence(table)}.", "", f"Versions: {some['versions']}. Code: {some['code']}.", ""]
    lines += [f"![Wall time and peak memory]({picture})", ""]
    upstream = any("upstream_ratio_median" in row for row in table)
    head = ["model, size, threads", "", "rounds", "wall s", "× reference", "× upstream", "peak GB", "CPU s"]
    head += ["first byte s", "around network", "labels"]
    if not upstream:
        head.remove("× upstream")
    lines += [_line(head), _line(["---"] * len(head))]
    for row in table:
        group = f"{row['model']}, {row['size']}, {row['threads']}"
        if not row["n"]:
            lines.append(
                _line([group, row["contestant"], "0", f"not measured: {row['left_out']}", *[""] * (len(head) - 4)])
            )
            continue
        cells = [group, row["contestant"], row["n"], _spread(row, "{}_wall_s", "median min max", 1)]
        cells.append(_spread(row, "ratio_{}", "median min max", 3))
        if upstream:
            cells.append(_spread(row, "upstream_ratio_{}", "median min max", 3))
        cells += [f"{_gb(row['max_peak_rss_mib']):.2f}", _number(row["median_cpu_s"], 1)]
        cells.append(_number(row["median_first_read_s"], 2))
        around = row["median_around_network_s"]
        cells.append("" if around is None else f"{100 * around / row['median_wall_s']:.0f} %")
        cells.append(_labels(row))
        lines.append(_line(cells))
    lines += ["", "Around network: reading, regridding, labels and writing, as a share of the wall time."]
    if disturbed := sum(row.get("n_disturbed") or 0 for row in table):
        lines.append(f"Other programs used the processors during {disturbed} of the runs.")
    lines += ["", "## Floors and goals", "", *floors(table)]
    lines += ["", "## bf16: every label", "", *_per_label(rows)]
    return "\n".join(lines) + "\n"


def _labels(row):
    """What the label maps were like, in a few words."""
    if not row.get("compared_with"):
        return ""
    n, of = row["n_different"], row["n_foreground"]
    text = f"{n} of {of} differ from the {row['compared_with']}"
    if n and row.get("margin_max") is not None:
        text += f", margins up to {row['margin_max']:.1g}"
    if row["contestant"].split()[1:2] == ["bf16"]:
        text += f", Dice from {row['min_dice']:.4f} ({row['min_dice_label']})"
    for key, what in (("n_lost", "labels lost"), ("n_contralateral", "voxels on the other side")):
        text += f", {row[key]} {what}" if row[key] else ""
    if row["n_label_maps"] > 1:
        text += f", {row['n_label_maps']} different label maps in {row['n']} rounds"
    return text + ("" if row["equal"] else ": **not equal**")


def floors(table) -> list[str]:
    """The lines of a Markdown table: what the project promised itself and what was measured."""
    lines = [_line(["", "floor", "goal", "measured", ""]), _line(["---"] * 5)]
    for what, floor, goal, where, key in FLOORS:
        row = next((r for r in table if (r["model"], r["size"], r["threads"], r["contestant"]) == where), {})
        value = row.get(key)
        if value is not None and key.endswith("_mib"):
            value = _gb(value)
        if value is None:
            measured, verdict = "not measured", ""
        else:
            measured = f"{value:.3g}"
            verdict = "goal met" if value <= goal else "floor met" if value <= floor else "**missed**"
        lines.append(_line([what, f"≤ {floor:.3g}", f"≤ {goal:.3g}", measured, verdict]))
    return lines


def _per_label(rows):
    """Dice and difference of the soft volume of every label, for the last bf16 run of every group."""
    last = {}
    for row in rows:
        if row["precision"] == "bf16" and row["labels"]:
            last[f"{row['contestant']}, {row['size']}, {row['model']}"] = row["labels"]
    if not last:
        return ["Not measured."]
    tables = {title: dict(_entries(text)) for title, text in last.items()}
    lines = [_line(["label", *(f"{title}: Dice, ΔV mm³ (%)" for title in tables)]), _line(["---"] * (1 + len(tables)))]
    for index in dict.fromkeys(index for entries in tables.values() for index in entries):
        lines.append(_line([index, *(entries.get(index, "") for entries in tables.values())]))
    return lines


def _entries(text):
    for part in text.split():
        index, dice, mm3, percent = part.split(":")
        yield index, f"{dice}, {mm3} ({percent})"


def _line(cells):
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _spread(row, pattern, names, digits):
    values = [row.get(pattern.format(name)) for name in names.split()]
    if values[0] is None:
        return ""
    middle, low, high = (f"{value:.{digits}f}" for value in values)
    return f"{middle} ({low} to {high})" if row["n"] > 1 else middle


def _number(value, digits):
    return "" if value is None else f"{value:.{digits}f}"


def _gb(mib):
    return mib * 2**20 / 1e9


def plot(table, path):
    """Wall time (with the ratio to the reference) and peak memory: a row of panels per model and number of threads."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    table = [row for row in table if row["n"]]
    panels = list(dict.fromkeys((row["model"], row["threads"]) for row in table))
    counts = [sum((row["model"], row["threads"]) == panel for row in table) for panel in panels]
    sizes = [len({row["size"] for row in table if (row["model"], row["threads"]) == panel}) for panel in panels]
    heights = [count + 0.8 * size + 0.8 for count, size in zip(counts, sizes, strict=True)]
    figure, axes = pyplot.subplots(
        len(panels),
        2,
        figsize=(13, 0.3 * sum(heights) + 1.4),
        squeeze=False,
        gridspec_kw={"height_ratios": heights},
        layout="constrained",
    )
    for (model, threads), pair in zip(panels, axes, strict=True):
        rows = [row for row in table if (row["model"], row["threads"]) == (model, threads)]
        ticks, place = [], 0.0
        previous = None
        for row in rows:
            if previous not in (None, row["size"]):
                place += 0.8
            previous = row["size"]
            colour = COLOURS.get(row["contestant"], "#cc79a7")
            wall, peak = row["median_wall_s"], _gb(row["max_peak_rss_mib"])
            spread = [[wall - row["min_wall_s"]], [row["max_wall_s"] - wall]]
            pair[0].barh(place, wall, color=colour, height=0.8, xerr=spread, error_kw={"lw": 1, "ecolor": "#222222"})
            ratio = row.get("ratio_median")
            text = f"{wall:.1f} s" + (f"   {ratio:.2f} ×" if ratio is not None else "")
            pair[0].annotate(text, (row["max_wall_s"], place), (5, 0), textcoords="offset points", va="center", size=8)
            pair[1].barh(place, peak, color=colour, height=0.8)
            pair[1].annotate(f"{peak:.1f} GB", (peak, place), (5, 0), textcoords="offset points", va="center", size=8)
            ticks.append((place, f"{row['size'].replace('x', '×')}  {row['contestant']}"))
            place += 1
        what = f"{model}, {threads} thread{'s' * (threads > 1)}"
        for axis, title in zip(pair, ("wall time, start to exit (s; × reference.py)", "peak memory (GB)"), strict=True):
            axis.invert_yaxis()
            axis.set_title(f"{what}: {title}", size=9, loc="left")
            axis.spines[["top", "right"]].set_visible(False)
            axis.margins(x=0.22)
            axis.set_xlim(left=0)
        pair[0].set_yticks(*zip(*ticks, strict=True), size=8)
        pair[1].set_yticks([])
    row = table[0]
    figure.suptitle(
        f"{row['cpu']}, {row['cores']} cores, {row['memory_gib']:.0f} GiB, {row['system']}: medians, smallest to "
        "largest",
        size=10,
    )
    path = Path(path)
    beside = path.with_name(f".{path.stem}.part.png")
    figure.savefig(beside, dpi=110, metadata={"Software": None})
    pyplot.close(figure)
    beside.replace(path)


def platforms(results) -> str:
    """Which platforms were measured, as Markdown, from all tables in the folder."""
    rows = []
    for path in sorted(Path(results).glob("*.tsv")):
        if not path.stem.endswith("_runs"):
            rows += [(path.stem, row) for row in read_tsv(path).to_dict("records")]
    lines = ["# Benchmark results", ""]
    lines += [
        "Whole commands, network of SynthSeg 1.0's size, 192×256×192 voxels of 1 mm; the reports say the rest. code: "
        "another digest is another version of the project.",
        "",
    ]
    lines += [_line(["platform", "machine", "threads", "engine", "wall s", "× reference.py", "peak GB", "code"])]
    lines += [_line(["---"] * 8)]
    for title, system, arch, gpu in PLATFORMS:
        found = []
        for stem, row in rows:
            where = (row["system"], row["arch"]) == (system, arch) and row["contestant"].endswith(" gpu") == gpu
            if where and (row["model"], row["size"]) == HEADLINE[:2] and row["n"] != "0":
                ratio = row["ratio_median"] if row["ratio_median"] == MISSING else f"{float(row['ratio_median']):.2f}"
                numbers = f"{float(row['median_wall_s']):.1f}", ratio, f"{_gb(float(row['max_peak_rss_mib'])):.1f}"
                about = f"[{stem}]({stem}.md)", row["threads"], row["contestant"]
                found.append(_line([title, *about, *numbers, row["code"]]))
        lines += found or [_line([title, "not measured", *[""] * 6])]
    made = datetime.now(UTC).date().isoformat()
    return "\n".join(lines) + f"\n\nWritten by `benchmarks/run.py`, {made}.\n"
