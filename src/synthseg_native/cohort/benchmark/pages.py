"""The report of `make benchmark` as Markdown: for one machine, and for all that were measured."""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from synthseg_native.cohort.benchmark.weights import FAMILY
from synthseg_native.cohort.tables import MISSING, read_tsv

HEADLINE = ("synthseg1size", "192x256x192", 2)
# What the project promised itself: measure, the floor, the goal, and how to read it from the statistics.
LLVM = "llvm float32"
FLOORS = (
    ("wall, 192x256x192, upstream = 1", 1 / 6, 1 / 8, (*HEADLINE, LLVM), "upstream_time_ratio_median"),
    ("the same, --robust", 1 / 3, 1 / 5, (f"{FAMILY} --robust", *HEADLINE[1:], LLVM), "upstream_time_ratio_median"),
    ("the same, --parc --qc", 1 / 4, 1 / 6, (f"{FAMILY} --parc --qc", *HEADLINE[1:], LLVM),
     "upstream_time_ratio_median"),
    ("peak memory in GB, 192x256x192", 2.0, 1.5, (*HEADLINE, LLVM), "max_peak_rss_mib"),
    ("the same, --robust", 3, 2, (f"{FAMILY} --robust", *HEADLINE[1:], LLVM), "max_peak_rss_mib"),
    ("the same, --parc --qc", 3.5, 2.5, (f"{FAMILY} --parc --qc", *HEADLINE[1:], LLVM), "max_peak_rss_mib"),
    ("peak memory in GB, 256x256x256", 3.2, 2.5, ("synthseg1size", "256x256x256", 2, LLVM), "max_peak_rss_mib"),
    ("seconds from start to the first byte read", 1, 0.3, (*HEADLINE, LLVM), "median_first_read_s"),
    ("seconds, compact2mm, one 1 mm head", 8, 4, ("compact2mm", "192x256x192", 2, LLVM), "median_wall_s"),
)  # fmt: skip
PLATFORMS = (
    ("Linux x86-64, CPU", "Linux", "x86_64", False),
    ("Linux x86-64, NVIDIA GPU", "Linux", "x86_64", True),
    ("Linux arm64, CPU", "Linux", "aarch64", False),
    ("macOS arm64, CPU", "Darwin", "arm64", False),
    ("macOS arm64, Apple GPU", "Darwin", "arm64", True),
)


def sentence(table: Sequence[dict]) -> str:
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


def _image(row: dict) -> str:
    name = row["image"].rsplit(" ", 1)[0]
    return "a phantom" if name == "phantom" else f"the image {name}"


def markdown(table: Sequence[dict], rows: Sequence[dict], picture: str) -> str:
    """The report of one machine. table : rows of `report.summarise` · rows : of the runs · picture : its file name"""
    some = next(row for row in table if row["n"])
    lines = ["# Benchmark", "", f"{sentence(table)}.", "", f"Versions: {some['versions']}. Code: {some['code']}.", ""]
    lines += [f"![Wall time and peak memory]({picture})", ""]
    upstream = any("upstream_time_ratio_median" in row for row in table)
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
        cells.append(_spread(row, "time_ratio_{}", "median min max", 3))
        if upstream:
            cells.append(_spread(row, "upstream_time_ratio_{}", "median min max", 3))
        cells += [f"{gigabytes(row['max_peak_rss_mib']):.2f}", _number(row["median_cpu_s"], 1)]
        cells.append(_number(row["median_first_read_s"], 2))
        around = row["median_around_network_s"]
        cells.append("" if around is None else f"{100 * around / row['median_wall_s']:.0f} %")
        cells.append(_labels(row))
        lines.append(_line(cells))
    lines += ["", "Around network: reading, regridding, labels and writing, as a share of the wall time."]
    if disturbed := sum(row.get("n_disturbed") or 0 for row in table):
        lines.append(f"Other programs used the processors during {disturbed} of the runs.")
    lines += ["", "## Floors and goals", "", *floors(table)]
    if labels := _per_label(rows):
        lines += ["", "## bf16: every label", "", *labels]
    return "\n".join(lines) + "\n"


def _labels(row: dict) -> str:
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
    if row["model"].split()[0] == FAMILY:  # networks that are random leave close calls everywhere
        return f"{text}: random networks, whose label maps are equal to none"
    return text + ("" if row["equal"] else ": **not equal**")


def floors(table: Sequence[dict]) -> list[str]:
    """The lines of a Markdown table: what the project promised itself and what was measured."""
    lines = [_line(["", "floor", "goal", "measured", ""]), _line(["---"] * 5)]
    for what, floor, goal, where, key in FLOORS:
        row = next((r for r in table if (r["model"], r["size"], r["threads"], r["contestant"]) == where), {})
        value = row.get(key)
        if value is not None and key.endswith("_mib"):
            value = gigabytes(value)
        if value is None:
            measured, verdict = "not measured", ""
        else:
            measured = f"{value:.3g}"
            verdict = "goal met" if value <= goal else "floor met" if value <= floor else "**missed**"
        lines.append(_line([what, f"≤ {floor:.3g}", f"≤ {goal:.3g}", measured, verdict]))
    return lines


def _per_label(rows: Sequence[dict]) -> list[str]:
    """Dice and difference of the soft volume of every label, for the last bf16 run of every group; nothing of none."""
    last = {}
    for row in rows:
        if row["precision"] == "bf16" and row["labels"]:
            last[f"{row['contestant']}, {row['size']}, {row['model']}"] = row["labels"]
    if not last:
        return []
    tables = {title: dict(_entries(text)) for title, text in last.items()}
    lines = [_line(["label", *(f"{title}: Dice, ΔV mm³ (%)" for title in tables)]), _line(["---"] * (1 + len(tables)))]
    for index in dict.fromkeys(index for entries in tables.values() for index in entries):
        lines.append(_line([index, *(entries.get(index, "") for entries in tables.values())]))
    return lines


def _entries(text: str) -> Iterator[tuple[str, str]]:
    """(label, "Dice, difference in mm3 (in %)") of the column `labels`."""
    for part in text.split():
        index, dice, mm3, percent = part.split(":")
        yield index, f"{dice}, {mm3} ({percent})"


def _line(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def _spread(row: dict, pattern: str, names: str, digits: int) -> str:
    """ "median (smallest to largest)"."""
    values = [row.get(pattern.format(name)) for name in names.split()]
    if values[0] is None:
        return ""
    middle, low, high = (f"{value:.{digits}f}" for value in values)
    return f"{middle} ({low} to {high})" if row["n"] > 1 else middle


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def gigabytes(mib: float) -> float:
    """MiB as GB of 10^9 bytes."""
    return mib * 2**20 / 1e9


def platforms(results: Path | str) -> str:
    """Which platforms were measured, as Markdown, from all tables in the folder."""
    rows = []
    for path in sorted(Path(results).glob("*.tsv")):
        if not path.stem.endswith("_runs"):
            rows += [(path.stem, row) for row in read_tsv(path)]
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
                ratio = row.get("time_ratio_median", MISSING)  # a table of an older version lacks it
                ratio = ratio if ratio == MISSING else f"{float(ratio):.2f}"
                peak = f"{gigabytes(float(row['max_peak_rss_mib'])):.1f}"
                numbers = f"{float(row['median_wall_s']):.1f}", ratio, peak
                about = f"[{stem}]({stem}.md)", row["threads"], row["contestant"]
                found.append(_line([title, *about, *numbers, row["code"]]))
        lines += found or [_line([title, "not measured", *[""] * 6])]
    made = datetime.now(UTC).date().isoformat()
    return "\n".join(lines) + f"\n\nWritten by `benchmarks/run.py`, {made}.\n"
