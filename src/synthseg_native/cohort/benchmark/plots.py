"""The picture of a report: wall time and peak memory of every contestant."""

from collections.abc import Sequence
from pathlib import Path

from synthseg_native.cohort.benchmark.pages import gigabytes

COLOURS = {
    "reference": "#8c8c8c",
    "upstream": "#4d4d4d",
    "tensorflow float32": "#e69f00",
    "llvm float32": "#0072b2",
    "torch float32": "#009e73",
}


def plot(table: Sequence[dict], path: Path | str) -> None:
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
            wall, peak = row["median_wall_s"], gigabytes(row["max_peak_rss_mib"])
            spread = [[wall - row["min_wall_s"]], [row["max_wall_s"] - wall]]
            pair[0].barh(place, wall, color=colour, height=0.8, xerr=spread, error_kw={"lw": 1, "ecolor": "#222222"})
            ratio = row.get("time_ratio_median")
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
