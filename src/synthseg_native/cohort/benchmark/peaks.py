"""Peak memory of every contestant at several sizes, for the fit of `memory`: memory.tsv."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from synthseg_native import memory
from synthseg_native.cohort.benchmark.contestants import REFERENCE, Contestant, Runner, Task
from synthseg_native.cohort.benchmark.rounds import Say, in_header, predicted_mib, too_large
from synthseg_native.cohort.tables import as_text, read_tsv
from synthseg_native.networks import cards

MEMORY_COLUMNS = (
    *("engine", "precision", "device", "model", "input_x", "input_y", "input_z", "voxel_mm"),
    *("padded_x", "padded_y", "padded_z", "native_grid", "peak_rss_mib"),
)
# For --memory: size, voxel size in mm, and whether the label map on the scan's own grid is asked for too.
MEMORY_SCANS = (
    *(((n, n, n), 1.0, False) for n in (128, 160, 192)),
    ((192, 256, 192), 1.0, False),
    ((256, 256, 256), 1.0, False),
    ((192, 256, 192), 1.0, True),
    ((320, 416, 320), 0.6, False),
    ((320, 416, 320), 0.6, True),
)


def measure_memory(
    runner: Runner,
    contestants: Sequence[Contestant],
    tasks: Iterable[tuple[Task, float, bool]],
    path: Path | str,
    say: Say,
) -> None:
    """Run each contestant once per entry of `tasks`: (Task, voxel_mm, own grid or not); append rows to `path`."""
    path = Path(path)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\t".join(MEMORY_COLUMNS) + "\n", encoding="utf-8")
    have = {tuple(row.values())[:-1] for row in read_tsv(path)}
    for task, voxel_mm, own_grid in tasks:
        model = cards.load(task.model)
        name = "synthseg1" if model.name == "synthseg1size" else model.name
        shape = memory.padded_shape(model.network, task.size, in_header(voxel_mm))
        for contestant in contestants:
            row = (contestant.engine, contestant.precision, contestant.device, name, *task.size, voxel_mm, *shape)
            row = tuple(map(as_text, (*row, own_grid)))
            if row in have or (own_grid and contestant.engine == REFERENCE):  # which has the network's grid alone
                continue
            about = f"{name}, {'x'.join(map(str, task.size))} voxels of {voxel_mm:g} mm, {contestant.name}"
            if why := too_large(predicted_mib(task, contestant, voxel_mm, own_grid)):
                say(f"{about}: left out: {why}")
                continue
            work = runner.cache.parent / "memory"
            more = ["--native-grid", work / "native.nii.gz"] if own_grid else []
            found = runner.run(contestant, task, work, more)
            if found["status"] != "ok":
                say(f"{about}: failed: {found['error']}")
                continue
            with path.open("a", encoding="utf-8") as stream:
                stream.write("\t".join((*row, as_text(found["peak_rss_mib"]))) + "\n")
            say(f"{about}: {found['peak_rss_mib']:.0f} MiB, {found['wall_s']:.1f} s")
