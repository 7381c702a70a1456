"""What the workflow itself costs where a sheet has many rows: planning, choosing jobs, summing up (docs/scale.md).

    .envs/dev-*/bin/python benchmarks/cohort.py --rows 1000 10000 50000 --run-all 1000 3000 10000
    .envs/dev-*/bin/python benchmarks/cohort.py --report       # table and plot again, nothing is run

In a copy of the project, in a temporary folder, whose steps are stand-ins (stand_in.py): their small results count as
current, and cost nothing. All else is the workflow as it is. Counted is user and system time of all processes of a
call, and the memory of the largest: wall time depends on who else works here. Numbers go to cohort/<machine>.tsv below
results/ after each number of rows; a later one replaces an earlier one.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

import stand_in  # noqa: E402

from synthseg_native.cohort.tables import read_tsv, write_tsv  # noqa: E402
from synthseg_native.files import write_text  # noqa: E402

COPIED = ("Snakefile", "workflow", "scripts", "src", "models", "envs", "profiles")
MEANS = (
    "User and system time of all processes of a call, and the memory of the largest one; of the last operation those "
    "of Snakemake's own process."
)
COLUMNS = ("operation", "rows", "cpu_s", "peak_mib", "wall_s", "per_scan_s")
SUMMARY = "results/summary.tsv"
RUNS, SUMMARISED, NOTHING = stand_in.RUNS, "(Rule: summary)", "Nothing to be done"  # in what a call says
# What is measured -> what it may cost at 10,000 rows: CPU seconds and MB, or seconds a scan.
OPERATIONS = {
    "plan all (-n)": "60 s, 800 MB",
    "summary alone": "90 s, 800 MB",
    "nothing to do": "60 s, 800 MB",
    "nothing to do (-n)": "60 s, 800 MB",
    "one changed, until its job starts": "60 s",
    "one changed, whole call": "",
    "run all, Snakemake's own": "0.15 s a scan",
}


def make(folder: Path, rows: int) -> None:
    """A copy of the project with a sheet of so many rows, an image each, and stand-ins for its steps."""
    import nibabel
    import numpy

    folder.mkdir(parents=True)
    for name in COPIED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        copy(
            ROOT / name,
            folder / name,
            **({"ignore": shutil.ignore_patterns("__pycache__")} if copy == shutil.copytree else {}),
        )
    (folder / ".envs").mkdir()
    for environment in (ROOT / ".envs").glob("*-*"):
        if not environment.name.startswith("code-"):
            (folder / ".envs" / environment.name).symlink_to(environment.resolve())
    for name in ("native.py", "picture.py"):
        shutil.copy(stand_in.__file__, folder / "scripts" / name)
    data = numpy.zeros((12, 13, 14), numpy.int16)
    data[2:6, 2:6, 2:6] = 17
    images = folder / "images"
    images.mkdir()
    nibabel.save(nibabel.Nifti1Image(data, numpy.eye(4)), folder / "image.nii.gz")
    image = (folder / "image.nii.gz").read_bytes()
    lines = ["participant_id\timage\tage"]
    for row in range(rows):
        (images / f"sub-{row:05}_T1w.nii.gz").write_bytes(image)
        lines.append(f"sub-{row:05}\timages/sub-{row:05}_T1w.nii.gz\t{20 + row % 70}")
    (folder / "samples.tsv").write_text("\n".join(lines) + "\n")
    config = {"samples": "samples.tsv", "model": "models/compact2mm", "allow_small_model": True, "engines": ["llvm"],
              "threads": 1, "device": "cpu", "reference": {"runtime": "none"}}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    template = {"record": _record(), "files": _files(image)}
    (folder / "scripts/template.json").write_text(json.dumps(template))


def _record() -> dict:
    """A run record of the usual size."""
    from synthseg_native.networks import cards

    labels = [int(index) for index in cards.load(ROOT / "models/compact2mm").labels.index]
    figures = {"voxel_mm3": 8.0, "values": labels, "voxels": [1000] * len(labels),
               "soft_mm3": [43000.123456789] * len(labels), "confidence": [0.9123456789] * len(labels),
               "mean_confidence": 0.91, "edge_voxels": {},
               "removed_voxels": {str(n): 0 for n in range(24)}}  # fmt: skip
    grid = {"labels_sha256": "0" * 64, "shape": [12, 13, 14], "voxel_mm": [1, 1, 1], "interpolation": "posterior",
            "labels_missing": [], "labels_rescued": []}  # fmt: skip
    return {
        "schema": 1, "kind": "native", "status": "ok", "error": None, "command": ["python"] * 20,
        "engine": {"name": "llvm", "version": "0", "onednn": None, "package_version": "0"},
        "model": {"name": "compact2mm", "research_grade": False}, "mode": "default", "precision": "float32",
        "device": "cpu", "device_reason": "x", "threads": 1,
        "input": {"name": "a.nii.gz", "shape": [12, 13, 14], "voxel_mm": [1, 1, 1], "orientation": "RAS",
                  "obliquity_deg": 0.0, "header_flags": []},
        "output": {"labels_sha256": "0" * 64, "shape": [6, 6, 7], "voxel_mm": [2, 2, 2], "mean_confidence": 0.9,
                   "qc": figures, "native_grid": grid},
        "machine": {"cpu": "x"}, "wall_s": 1.0, "peak_rss_mib": 100.0,
    }  # fmt: skip


def _files(image: bytes) -> dict[str, str]:
    from synthseg_native.networks import cards
    from synthseg_native.results import tables

    labels = cards.load(ROOT / "models/compact2mm").labels
    number = len(labels.index)
    with tempfile.TemporaryDirectory() as place:
        path = Path(place, "volumes.tsv")
        tables.save_volumes_tsv(path, tables.volume_rows(labels, [43000.1] * number, [1000] * number, (2, 2, 2)))
        volumes = path.read_text(encoding="utf-8")
    names = ("dseg", "margin", "dseg-native")
    return {"volumes": volumes, "sidecar": "{}", "sidecar-native": "{}"} | {n: image.decode("latin-1") for n in names}


class Call:
    """A call of Snakemake, measured to its end. until: a text in its output, up to which is measured too (`began`)."""

    def __init__(self, folder: Path, *arguments: str, until: str = "", code: int = 0):
        command = [sys.executable, "-m", "snakemake", "--configfile", "config.json", "--cores", "2", *arguments]
        started = time.monotonic()
        self.began, self.own, self.own_peak = None, 0.0, 0.0
        with (folder / "output.txt").open("w") as output:
            process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            watched, stop = psutil.Process(process.pid), threading.Event()
            threading.Thread(target=self._watch, args=(watched, stop), daemon=True).start()
            for line in process.stdout:
                output.write(line)
                if until and self.began is None and until in line:
                    self.began = _spent(watched)
            _, status, usage = os.wait4(process.pid, 0)
            stop.set()
        process.returncode = os.waitstatus_to_exitcode(status)
        self.wall = time.monotonic() - started
        self.cpu = usage.ru_utime + usage.ru_stime
        self.peak = usage.ru_maxrss / (1024 if sys.platform == "linux" else 1024**2)
        self.output = (folder / "output.txt").read_text()
        if process.returncode != code:
            sys.exit(f"{' '.join(command)}: {process.returncode}\n{self.output[-3000:]}")

    def _watch(self, process: psutil.Process, stop: threading.Event) -> None:
        while not stop.wait(0.05):
            try:
                with process.oneshot():
                    times, memory = process.cpu_times(), process.memory_info().rss
            except psutil.Error:
                return
            self.own = times.user + times.system or self.own
            self.own_peak = max(self.own_peak, memory / 2**20)


def _spent(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system + times.children_user + times.children_system


def measure(folder: Path, rows: int, run_all: bool, all_operations: bool) -> list[dict]:
    """The rows of the table for a cohort of so many rows."""
    make(folder, rows)
    found = []

    def note(operation: str, cpu_s: float, call: Call, own: bool = False) -> None:
        one = {"operation": operation, "rows": rows, "cpu_s": round(cpu_s, 2), "wall_s": round(call.wall, 1),
               "peak_mib": round(call.own_peak if own else call.peak)}  # fmt: skip
        one["per_scan_s"] = round(cpu_s / rows, 4) if own else None
        found.append(one)
        print("  ".join(f"{name} {value}" for name, value in one.items()), flush=True)

    call = Call(folder, "-n", SUMMARY)
    note("plan all (-n)", call.cpu, call)
    if all_operations:
        lay = [sys.executable, "scripts/native.py", "lay"]
        subprocess.run(lay, cwd=folder, env=os.environ | {"PYTHONPATH": str(folder / "src")}, check=True)
        _expect(Call(folder, SUMMARY), SUMMARISED)  # knows images by their content from here on
        (folder / SUMMARY).unlink()
        call = _expect(Call(folder, SUMMARY), SUMMARISED, without=RUNS)
        note("summary alone", call.cpu, call)
        for flags in ([], ["-n"]):
            call = _expect(Call(folder, SUMMARY, *flags), NOTHING, without=RUNS)
            note(f"nothing to do{' (-n)' if flags else ''}", call.cpu, call)
        changed = folder / f"images/sub-{rows // 2:05}_T1w.nii.gz"
        changed.write_bytes(changed.read_bytes() + b"\0")
        call = _expect(Call(folder, SUMMARY, until=RUNS), RUNS)
        note("one changed, until its job starts", call.began, call)
        note("one changed, whole call", call.cpu, call)
    if run_all:
        shutil.rmtree(folder / "results", ignore_errors=True)
        shutil.rmtree(folder / ".snakemake", ignore_errors=True)
        call = _expect(Call(folder, SUMMARY), RUNS)
        note("run all, Snakemake's own", call.own, call, own=True)
        _expect(Call(folder, "-n", SUMMARY), NOTHING, without=RUNS)  # its results were current
    return found


def _expect(call: Call, text: str, without: str = "\0") -> Call:
    if text not in call.output or without in call.output:
        sys.exit(f"not as expected: {call.output[-3000:]}")
    return call


def machine() -> str:
    """A word for this machine in the name of its file."""
    from synthseg_native.cohort.benchmark import report

    return report.machine_name(report.machine())


def report(table: list[dict], path: Path) -> None:
    """The table as a page, and each cost over the rows as a plot."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    counts = sorted({int(row["rows"]) for row in table})
    known = {(row["operation"], int(row["rows"])): row for row in table}
    head = " | ".join(f"{number:,} rows" for number in counts)
    lines = ["# What the workflow itself costs", "", f"On {machine()}, by `benchmarks/cohort.py`. {MEANS}", "",
             f"| operation | at most, for 10,000 rows | {head} |", f"|---|---|{'---|' * len(counts)}"]  # fmt: skip
    for operation, most in OPERATIONS.items():
        cells = [_cell(known.get((operation, number))) for number in counts]
        lines.append(f"| {operation} | {most} | {' | '.join(cells)} |")
    lines += ["", f"![Time and memory over the rows]({path.name}.png)"]
    write_text(f"{path}.md", "\n".join(lines) + "\n")
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for operation in OPERATIONS:
        rows = [known[operation, n] for n in counts if (operation, n) in known]
        for axis, column in zip(axes, ("cpu_s", "peak_mib"), strict=True):
            axis.plot([int(row["rows"]) for row in rows], [float(row[column]) for row in rows], "o-", label=operation)
    for axis, title in zip(axes, ("user and system time, s", "memory of the largest process, MiB"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="rows of the sheet", title=title)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    figure.savefig(f"{path}.png", dpi=100)


def _cell(row: dict | None) -> str:
    if row is None:
        return ""
    cost = f"{float(row['cpu_s']):.1f} s, {float(row['peak_mib']) * 1.048576:.0f} MB"
    return cost if row["per_scan_s"] in ("n/a", None) else f"{float(row['per_scan_s']):.3f} s a scan ({cost})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", type=int, nargs="*", default=[1000], help="row counts, for all but the last operation"
    )
    parser.add_argument("--run-all", type=int, nargs="*", default=[], help="row counts of which all jobs run")
    parser.add_argument("--report", action="store_true", help="only make table and plot again")
    parser.add_argument("--out", type=Path, help="without an ending; default: benchmarks/results/cohort/<machine>")
    parser.add_argument("--keep", type=Path, help="folder for the cohorts, which then stay there")
    options = parser.parse_args()
    out = options.out or ROOT / f"benchmarks/results/cohort/{machine()}"
    place = Path(f"{out}.tsv")
    place.parent.mkdir(parents=True, exist_ok=True)
    table = read_tsv(place) if place.is_file() else []
    for rows in [] if options.report else sorted({*options.rows, *options.run_all}):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(options.keep or temporary, f"rows-{rows}")
            shutil.rmtree(folder, ignore_errors=True)
            found = measure(folder, rows, rows in options.run_all, rows in options.rows)
        new = {(row["operation"], row["rows"]) for row in found}
        table = [row for row in table if (row["operation"], int(row["rows"])) not in new] + found
        write_tsv(place, COLUMNS, table)
    report(read_tsv(place), out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
