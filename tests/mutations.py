"""Seeded faults: does a test fail for each? Run by hand; pytest does not collect this.

python tests/mutations.py [--only NAME ...] [--checkout FOLDER] [--jobs N] [--list]

Each fault is a small change of text in one file. It is made in a scratch copy of the checkout, and the tests named
beside it must fail there. They are the quick ones; the tests with real networks and containers guard the same again.
First the same tests run without any fault: what fails then catches nothing, and its faults are unclear. The exit status
is 1 if a fault survives, 2 if one is unclear: its text is not there once, or its tests fail without it.

--checkout takes another state of the project, with the same list: a fault may have several places, of which the first
whose file is there counts.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = (".git", ".envs", ".snakemake", ".wheelhouse", ".*_cache", ".hypothesis", "build", "demo", "results")
PACKAGE = "src/synthseg_native"
LIMIT_S = 600
FAILED = 1  # pytest's exit status where a test failed; others say that the tests could not run


@dataclass(frozen=True)
class Fault:
    """area, name : what is wrong · places : (file, text, its replacement), the first whose file is there counts
    tests : files below tests/unit, of which those that are there run
    """

    area: str
    name: str
    places: tuple[tuple[str, str, str], ...]
    tests: tuple[str, ...]


def fault(area, name, file, old, new, *tests, earlier=()):
    """earlier: places in states in which the code lay elsewhere, a file's name or (file, text, replacement)."""
    more = [(place, old, new) if isinstance(place, str) else place for place in earlier]
    return Fault(area, name, ((file, old, new), *more), tests)


FAULTS = [
    # The engine: from the scan to posteriors, labels and the scan's own grid.
    fault("engine", "padding has its odd plane on the near side", "scan/grid.py",
          "np.pad(data, [(m // 2, m - m // 2) for m in margins])",
          "np.pad(data, [(m - m // 2, m // 2) for m in margins])", "test_image.py", earlier=["image.py"]),
    fault("engine", "resampling aligns centres instead of outer faces", "scan/grid.py",
          "start = -(factor - 1) / (2 * factor)", "start = 0.0", "test_image.py", earlier=["image.py"]),
    fault("engine", "the new affine keeps the old origin", "scan/grid.py",
          "new[:3, 3] = new[:3, 3] - new[:3, :3] @ (0.5 * (factor - 1))", "new[:3, 3] = new[:3, 3]",
          "test_image.py", earlier=["image.py"]),
    fault("engine", "brightness is cut at another percentile", "scan/grid.py",
          "[0.5, 99.5], overwrite_input", "[0.5, 99.0], overwrite_input", "test_image.py", earlier=["image.py"]),
    fault("engine", "axes point the other way", "scan/grid.py",
          "affine[np.arange(3), axes] < 0", "affine[np.arange(3), axes] > 0", "test_image.py", earlier=["image.py"]),
    fault("engine", "a crop forgets flipped axes on the way back", "scan/grid.py",
          "origin[axis] = n - stop if flip else start", "origin[axis] = start",
          "test_image.py", "test_cli_many.py", earlier=["image.py"]),
    fault("engine", "CT is not clipped from below", "scan/grid.py",
          "np.clip(data, 0, MAX_HOUNSFIELD)", "np.minimum(data, MAX_HOUNSFIELD)",
          "test_image.py", "test_cli.py", earlier=["image.py"]),
    fault("engine", "the intercept of a header is forgotten", "scan/reading.py",
          "np.float64(intercept or 0)", "np.float64(0)", "test_scan.py", earlier=["scan.py"]),
    fault("engine", "voxel sizes may contradict each other by half", "scan/reading.py",
          "if difference > 0.05:", "if difference > 0.5:", "test_scan.py", "test_bad_input.py", earlier=["scan.py"]),
    fault("engine", "a cut-off file is not noticed", "scan/reading.py",
          "        if len(content) < needed:\n", "        if len(content) < 0:\n",
          "test_scan.py", "test_bad_input.py", earlier=["scan.py"]),
    fault("engine", "a scan may be exchanged while it is read", "scan/reading.py",
          "seen(path) != before", "False", "test_scan.py"),
    fault("engine", "what was read ahead stands for another file", "scan/content.py",
          "if self._ahead and seen(self.path) == self._ahead[0] else", "if self._ahead else", "test_scan.py"),
    fault("engine", "a mirrored qform is no fault", "scan/reading.py",
          "np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < 0",
          "np.linalg.det(sform[:3, :3]) * np.linalg.det(qform[:3, :3]) < -1e9",
          "test_scan.py", "test_bad_input.py", earlier=["scan.py"]),
    fault("engine", "the mirror image is weighed less", "pipeline/posteriors.py",
          "block *= np.float32(0.5)", "block *= np.float32(0.4)", "test_posterior.py", earlier=["posterior.py"]),
    fault("engine", "the mirror image keeps its sides", "pipeline/posteriors.py",
          ", 2, 0)[flip], order", ", 2, 0), order",
          "test_posterior.py", earlier=["posterior.py"]),
    fault("engine", "a tie goes to the last label", "pipeline/labels.py",
          "where=posterior > best)", "where=posterior >= best)", "test_posterior.py", earlier=["posterior.py"]),
    fault("engine", "the smallest part of the brain is kept", "pipeline/labels.py",
          "sizes[1:].argmax() + 1", "sizes[1:].argmin() + 1", "test_posterior.py", earlier=["posterior.py"]),
    fault("engine", "in step the mirror image is not turned back", "pipeline/posteriors.py",
          "next(other)[1][::-1]", "next(other)[1]", "test_posterior.py"),
    fault("engine", "where there is no posterior at all there is background", "pipeline/posteriors.py",
          " | (background == 0)", "", "test_posterior.py"),
    fault("engine", "results are copied beside others that differ", "engines/kernels/planes.py",
          "(3, 3)).all(axis=(2, 3))", "(3, 3)).any(axis=(2, 3))", "test_llvm.py"),
    fault("engine", "a rescued label takes another's last voxel", "scan/own_grid.py",
          "if voxel in taken or (holder > 0 and counts[holder] == 1):", "if voxel in taken:",
          "test_native_grid.py", earlier=["native_grid.py"]),
    fault("engine", "nearest labels round halves down", "scan/own_grid.py",
          "np.floor(_centres(n, f) + 0.5 + 1e-6)", "np.floor(_centres(n, f) + 0.5 - 1e-6)",
          "test_native_grid.py", earlier=["native_grid.py"]),
    # SynthSeg 2.0 in full: robust mode, parcels, scores.
    fault("networks", "the denoiser has a skip more", "networks/layers.py",
          "if level >= levels_without_skip:", "if level >= levels_without_skip - 1:", "test_network.py"),
    fault("networks", "parcels are smoothed beside scores too", "pipeline/modes.py",
          "(FAST, True, True): Mode(RAW, cortex=SMOOTHED, parcels=RAW, scores=RAW)",
          "(FAST, True, True): Mode(RAW, cortex=SMOOTHED, parcels=SMOOTHED, scores=RAW)", "test_modes.py"),
    fault("networks", "labels are always of smoothed posteriors", "pipeline/core.py",
          "0.0 if mode.labels == modes.RAW else sigma,", "sigma,", "test_modes.py"),
    fault("networks", "the parcellation is told of cortex by the wrong channels", "pipeline/core.py",
          "np.isin(labels.index, parcels_of.CORTEX)", "np.isin(np.arange(len(labels)), parcels_of.CORTEX)",
          "test_modes.py"),
    fault("networks", "parcels of the right add up to the cortex of the left", "pipeline/parcels.py",
          '{"left": 0, "right": 1}.get(side, -1)', '{"left": 1, "right": 0}.get(side, -1)', "test_parcels.py"),
    fault("networks", "background may win in the cortex", "pipeline/parcels.py",
          "channels[0] = ~cortex", "channels[0] = 1", "test_parcels.py"),
    fault("networks", "parcels are compared before they are divided", "pipeline/parcels.py",
          "            posterior /= total\n", "", "test_parcels.py"),
    fault("networks", "parcels add up to white matter with labels of 1.0 too", "pipeline/parcels.py",
          "WHITE_MATTER if labels.has_total_intracranial else CORTEX", "WHITE_MATTER", "test_parcels.py"),
    fault("networks", "the box of the scores is a voxel off", "pipeline/scores.py",
          "low -= _ceil_half(edge - (high - low))", "low -= (edge - (high - low)) // 2", "test_scores.py"),
    fault("networks", "the label 24 is left out of the box, not its channel", "pipeline/scores.py",
          "LEFT_OUT = 24", "LEFT_OUT = 16", "test_scores.py"),
    fault("networks", "groups of labels are exchanged", "pipeline/scores.py",
          "labels.quality_groups.astype(np.uint8)", "labels.quality_groups[labels.topology].astype(np.uint8)",
          "test_scores.py", "test_modes.py"),
    fault("networks", "scores may be above 1", "pipeline/scores.py",
          "np.clip(found, 0, 1)", "np.clip(found, 0, None)", "test_scores.py"),
    fault("networks", "a companion's networks take the place of a card's own", "networks/cards.py",
          "if name in others and name not in networks}", "if name in others}", "test_model.py"),
    fault("networks", "a file of weights that is named is the parcellation's too", "pipeline/segment.py",
          "return self._named if network.name not in cards.COMPANIONS else None", "return self._named",
          "test_cli_networks.py"),
    fault("networks", "a scan's earlier row of scores stays beside the new one", "jobs.py",
          '["Volumes"][ROWS[option]] or ()', '["Volumes"]["csv"] or ()', "test_cli_networks.py"),
    fault("networks", "tables of other columns are gone on with", "cli.py",
          "header[1:] != tuple(self.columns[option])", "False", "test_cli_networks.py", "test_cli_many.py"),
    # Memory and measurement.
    fault("engine", "the prediction forgets the largest stage", "memory.py",
          "max(stages) /", "min(stages) /", "test_memory.py"),
    fault("engine", "a job declares what is predicted and no more", "memory.py",
          "predicted * (1 + TOLERANCE) * MIB", "predicted * MIB", "test_memory.py", "test_plan.py"),
    fault("engine", "auto takes the slowest engine", "cohort/ranking.py",
          'key=lambda row: row["seconds"] or 0', 'key=lambda row: -(row["seconds"] or 0)', "test_ranking.py"),
    fault("engine", "another machine's time of an engine counts", "verification/speed.py",
          "-{verify.fingerprint(engine)}.json", ".json", "test_ranking.py"),
    fault("engine", "a skip tensor leaves its level after the normalisation", "engines/kernels/steps.py",
          "if readers[tensor] == [layer]:", "if True:", "test_doctests.py"),
    fault("engine", "an upsampled image is read one number further", "engines/kernels/winograd.py",
          "for n in range(-half, count + half)]", "for n in range(1 - half, 1 + count + half)]", "test_kernels.py"),
    fault("records", "a signal is no failure of the command", "measure.py",
          "else 128 + killed_by", "else 0", "test_measure.py"),
    fault("records", "the peak is another unit", "measure.py",
          "if sys.platform == \"darwin\" else 2**10), 1)", "if sys.platform == \"darwin\" else 2**20), 1)",
          "test_measure.py", "test_runs.py"),
    # The comparison.
    fault("comparison", "ten times as many voxels may differ", "compare.py",
          '"max_fraction_different": 1e-5', '"max_fraction_different": 1e-4', "test_compare.py"),
    fault("comparison", "a voxel that changed side is excused", "compare.py",
          "side[pairs[0]] * side[pairs[1]] < 0", "side[pairs[0]] * side[pairs[1]] < -1", "test_compare.py"),
    fault("comparison", "a margin at the limit is a close call", "compare.py",
          "~(values < min(MAX_MARGIN, limit))", "~(values <= min(MAX_MARGIN, limit))", "test_compare.py"),
    fault("comparison", "the largest margin that a map holds is a close call", "compare.py",
          "min(MAX_MARGIN, limit)", "limit", "test_compare.py"),
    fault("comparison", "a lost label is named in the wrong map", "compare.py",
          '"reference" if e["n_voxels_native"] else "native"', '"native" if e["n_voxels_native"] else "reference"',
          "test_compare.py"),
    fault("comparison", "a lost label is no difference", "compare.py",
          '    if result["labels_lost"]:\n', '    if len(result["labels_lost"]) > 9:\n', "test_compare.py"),
    fault("comparison", "both limits of a volume must be broken", "compare.py",
          '"max_volume_difference_mm3"] and not within_percent', '"max_volume_difference_mm3"] and within_percent',
          "test_compare.py"),
    fault("comparison", "the distance is taken in one map", "compare.py",
          "distance = np.maximum(distance, np.sqrt(", "distance = np.maximum(0, np.sqrt(", "test_compare.py"),
    fault("comparison", "grids may be a millimetre apart", "compare.py",
          "GEOMETRY_TOLERANCE_MM = 0.01", "GEOMETRY_TOLERANCE_MM = 1.0", "test_compare.py"),
    # What is written.
    fault("records", "labels are hashed as 16 bits", "results/hashes.py",
          'dtype="<i4")', 'dtype="<i2")', "test_outputs.py", earlier=["results/outputs.py", "outputs.py"]),
    fault("records", "margins are cut off instead of rounded", "results/images.py",
          "np.rint(steps, out=steps)", "np.floor(steps, out=steps)", "test_outputs.py",
          earlier=["results/outputs.py", "outputs.py"]),
    fault("records", "a phase in two parts counts its last", "results/record.py",
          "self.seconds[phase] += ", "self.seconds[phase] = ", "test_record.py", earlier=["record.py"]),
    fault("records", "no failure passes by itself", "results/record.py",
          '"transient": error.transient', '"transient": False', "test_record.py", "test_cli.py", earlier=["record.py"]),
    fault("records", "the colour table has another version", "results/images.py",
          'struct.pack(">5i", 1, -2,', 'struct.pack(">5i", 1, -1,', "test_outputs.py",
          earlier=["results/outputs.py", "outputs.py"]),
    fault("records", "the brain counts label 24", "results/quality.py",
          "(index != 0) & (index != CSF)", "(index != 0) & (index != -CSF)", "test_quality.py", earlier=["quality.py"]),
    fault("records", "only a larger left side is asymmetric", "results/quality.py",
          "abs(asymmetry) > ", "asymmetry > ", "test_quality.py", earlier=["quality.py"]),
    fault("records", "the last plane is no edge of the image", "results/figures.py",
          "np.take(labels, end, axis=axis)", "np.take(labels, abs(end), axis=axis)", "test_quality.py",
          earlier=[(file, "for end in (0, -1)]", "for end in (0, 1)]")
                   for file in ("results/quality.py", "quality.py")]),
    # The summary and the sheet.
    fault("summary", "what is odd about scans is not told", "cohort/summary/terminal.py",
          "    if flagged := _by_header_flag(rows):", "    if flagged := {}:", "test_summary.py"),
    fault("summary", "a verdict on other label maps is shown", "cohort/summary/aggregate.py",
          "elif made_from and made_from != there:", "elif made_from and not there:", "test_summary.py",
          earlier=["cohort/summary.py"]),
    fault("summary", "participants lose their prefix", "cohort/summary/aggregate.py",
          '"participant_id": "sub-"', '"participant_id": ""', "test_summary.py", earlier=["cohort/summary.py"]),
    fault("summary", "the brain is what is not brain", "cohort/summary/aggregate.py",
          'if row["index"] != CSF]', 'if row["index"] == CSF]', "test_summary.py", earlier=["cohort/summary.py"]),
    fault("summary", "every cohort is homogeneous", "cohort/summary/homogeneity.py",
          "len(counts) == 1 for counts in kinds.values()", "len(counts) >= 1 for counts in kinds.values()",
          "test_summary.py", earlier=["cohort/summary.py"]),
    fault("summary", "names that differ in case share results", "cohort/samples.py",
          "key = scan.scan.casefold()", "key = scan.scan", "test_samples.py", "test_bad_input.py"),
    fault("summary", "the suffix CT is no CT", "cohort/samples.py",
          'if not ct and entities["suffix"] == "CT":', 'if ct == "auto" and entities["suffix"] == "CT":',
          "test_samples.py"),
    fault("summary", "a row that the sheet refuses is run", "cohort/runs/steps.py",
          'if settings.get("refused"):', 'if settings.get("refuses"):', "test_runs.py"),
    fault("summary", "one echo is taken for the image of all", "cohort/bids.py",
          '("ce", "echo", "inv", "part", "rec")', '("ce", "inv", "part", "rec")', "test_bids_samples.py"),
    fault("summary", "who has no image is not on the list", "cohort/bids.py",
          "if len(images) + len(others) == before", "if len(images) + len(others) < before", "test_bids_samples.py"),
    # The containers.
    fault("containers", "a container has the network", "cohort/containers.py",
          '["--network", "none", "--read-only"', '["--read-only"', "test_containers.py"),
    fault("containers", "the scan can be written to", "cohort/containers.py",
          "_mount(engine.name, source, target, readonly=True)", "_mount(engine.name, source, target)",
          "test_containers.py"),
    fault("containers", "a container may swap", "cohort/containers.py",
          ', "--memory-swap", f"{job.memory_mb}m"]', "]", "test_containers.py"),
    fault("containers", "the base image is no part of an image's key", "cohort/containers.py",
          "        base,\n        platform or \"\",", '        platform or "",', "test_containers.py", "test_plan.py"),
    fault("containers", "a daemon that died is a broken scan", "cohort/containers.py",
          "if DIED.search(text):", "if DIED.fullmatch(text):", "test_containers.py"),
    # The launcher and its environments.
    fault("launcher", "a dry run needs the lock", "cohort/snakemake_arguments.py",
          '"-v", "--dry-run", "--dryrun", "-n",', '"-v", "--dryrun", "-n",',
          "test_launcher.py"),
    fault("launcher", "a foreign workflow in the folder is run", "scripts/environment.py",
          "not Path.cwd().samefile(ROOT)", 'not Path("Snakefile").exists()', "test_launcher.py"),
    fault("launcher", "an option's value after = is not seen", "cohort/snakemake_arguments.py",
          'if "=" in argument:', 'if "==" in argument:', "test_launcher.py"),
    fault("launcher", "another project's default profile is taken", "scripts/environment.py",
          'found = [PROFILES[0], str(ROOT / "profiles" / "default"), *found]', "pass", "test_launcher.py"),
    fault("launcher", "a profile that is nowhere is passed over", "scripts/environment.py",
          "    if not there:\n", "    if not there:\n        return name\n", "test_launcher.py"),
    fault("launcher", "foreign packages are let in", "cohort/variables.py",
          "XDG_RUNTIME_DIR XDG_CONFIG_DIRS", "PYTHONPATH XDG_CONFIG_DIRS", "test_environments.py"),
    fault("launcher", "a folder that cannot be written to is TMPDIR", "cohort/variables.py",
          "and os.access(value, os.W_OK | os.X_OK)", "", "test_environments.py"),
    fault("launcher", "a module system's libraries are let in", "cohort/environments.py",
          "if not path or not _starts_alone():", "if path:", "test_environments.py"),
    fault("trust", "a card's file may lie elsewhere", "networks/cards.py",
          '(r"[^./\\\\][^/\\\\]*", "the', '(r".*", "the', "test_model.py"),
    fault("trust", "any address will do", "networks/download.py",
          "if urlsplit(url).scheme not in SCHEMES:", "if False:", "test_weights.py"),
    fault("trust", "a download has no end", "networks/download.py",
          "            if have > total:\n                return", "            if False:\n                return",
          "test_weights.py"),
    fault("trust", "what cannot be checked is fetched", "networks/weights.py",
          "if expected.size is None or expected.sha256 is None:", "if False:", "test_weights.py"),
    fault("trust", "another network passes for an official one", "networks/cards.py",
          "if shipped.is_dir() and not _same(model, _load(shipped, companions)):", "if False:", "test_model.py",
          earlier=[("networks/cards.py", "if shipped.is_dir() and not _same(model, load(shipped)):", "if False:")]),
    fault("trust", "an Apptainer file of another reference is taken", "cohort/containers.py",
          "    if found != key:", "    if False:", "test_containers.py"),
    fault("trust", "kernels that others can write are loaded", "engines/kernels/library.py",
          "shared_disk.is_private(file) and shared_disk.is_mine(os.fstat(stream.fileno()))", "True", "test_kernels.py"),
    fault("launcher", "of two keys in a configuration the later one wins", "yaml_text.py",
          'if key.value in first and key.value != "<<":', "if False:", "test_launcher.py"),
    fault("launcher", "processors share an environment", "cohort/environments.py",
          '{lock_hash(name)} {sys.platform} {machine()}"', '{lock_hash(name)} {sys.platform}"',
          "test_environments.py"),
    # Identity: what is current.
    fault("identity", "what was edited passes for what was written", "files.py",
          "value[SEAL] == _seal(value)", "True", "test_state.py", "test_jobs.py", "test_damaged_state.py"),
    fault("identity", "a cut label map counts as somebody's work", "identity/current.py",
          "name in LABEL_MAPS and _is_image(files[name])", "name in LABEL_MAPS", "test_state.py"),
    fault("identity", "a label map that nothing vouches for is lost", "results/kept.py",
          "if _is_same_file(path, kept) or _says_the_same(path, kept):", "if True:", "test_cli_many.py"),
    fault("identity", "a label map without a record counts as one with", "identity/current.py",
          "name in LABEL_MAPS and name not in known]", "False]", "test_state.py"),
    fault("identity", "results that may not be written to are left to Snakemake", "cohort/deploy.py",
          "    if locked:\n", "    if False:\n", "test_state.py"),
    fault("identity", "an edited table of the cohort stays", "cohort/state.py",
          "and not changed_tables(plan)", "", "test_state.py"),
    fault("identity", "settings in another order are others", "identity/keys.py",
          "sort_keys=True, ", "", "test_keys.py", "test_code.py", earlier=["cohort/keys.py"]),
    fault("identity", "parts of a digest run together", "identity/keys.py",
          'sha.update(len(data).to_bytes(8, "little") + data)', "sha.update(data)",
          "test_keys.py", "test_code.py", earlier=["cohort/keys.py"]),
    fault("identity", "fast mode is not asked for", "identity/keys.py",
          '{"fast": ["--fast"],', '{"Fast": ["--fast"],',
          "test_runs.py", earlier=["cohort/keys.py"]),
    fault("identity", "a docstring makes a cohort run again", "identity/code.py",
          "return isinstance(node.value, ast.Constant)", "return False", "test_code.py", "test_keys.py",
          earlier=[(file, "node.body = node.body[1:] or [ast.Pass()]", "node.body = node.body or [ast.Pass()]")
                   for file in ("identity/keys.py", "cohort/keys.py")]),
    fault("identity", "a picture of another run stays", "cohort/identities.py",
          "self.states[name, scan].seal for name in sources", '"" for name in sources', "test_state.py"),
    fault("identity", "a summary of other runs stays", "cohort/state.py",
          "[found.word, found.seal,", '[found.word, "",', "test_state.py"),
    fault("identity", "Snakemake is not asked for a comparison", "cohort/plan.py",
          "if path in found or not again.isdisjoint(", "if not again.isdisjoint(", "test_state.py"),
    fault("identity", "a replaced image with its old time is not seen", "identity/contents.py",
          "seen = [about.st_size, about.st_mtime_ns, about.st_ctime_ns, about.st_ino]",
          "seen = [about.st_size, 0, 0, 0]", "test_contents.py", "test_plan.py",
          earlier=[("cohort/state.py", "seen = [stat.st_size, stat.st_mtime_ns]", "seen = [stat.st_size, 0]")]),
    fault("identity", "a vanished image is another one", "identity/contents.py",
          "return known[-1] if known and len(known) == 5 else None",
          "return known[-1] if known and len(known) == 5 and Path(path).exists() else None",
          "test_contents.py", "test_plan.py",
          earlier=[("cohort/state.py", "return self.known.get(path, [None])[-1]",
                    "return self.known.get(path, [None])[-1] if Path(path).exists() else None")]),
]  # fmt: skip


class Unclear(Exception):
    """Whether a fault is caught cannot be told; the message is one line."""


def place_of(found: Fault, checkout: Path) -> tuple[Path, str, str]:
    """Path below the checkout, text and replacement of a fault. Raises Unclear."""
    for name, old, new in found.places:
        path = Path(name) if name.startswith("scripts/") else Path(PACKAGE) / name
        if (checkout / path).is_file():
            times = (checkout / path).read_text(encoding="utf-8").count(old)
            if times != 1:
                raise Unclear(f"{path}: {times} times, not once: {old.strip()}")
            return path, old, new
    raise Unclear(f"no such file: {' or '.join(name for name, _, _ in found.places)}")


def tests_of(found: Fault, checkout: Path, broken: frozenset[str] = frozenset()) -> list[str]:
    """The fault's test files that the checkout has, but the broken ones. Raises Unclear where it has none."""
    files = (f"tests/unit/{name}" for name in found.tests if name not in broken)
    there = [file for file in files if (checkout / file).is_file()]
    if not there:
        raise Unclear(f"no such tests: {' '.join(found.tests)}")
    return there


def scratch(checkout: Path, folder: Path) -> Path:
    """A copy of what the tests need of a checkout; its environments are linked."""
    left_out, compiled = shutil.ignore_patterns(*LEFT_OUT), shutil.ignore_patterns("__pycache__")

    def ignore(place: str, names: list[str]) -> set[str]:
        return (left_out if Path(place) == checkout else compiled)(place, names)

    shutil.copytree(checkout, folder, ignore=ignore, symlinks=True)
    (folder / ".envs").mkdir()
    for environment in (checkout / ".envs").glob("*-*"):
        if not environment.name.startswith("code-"):
            (folder / ".envs" / environment.name).symlink_to(environment.resolve())
    return folder


def pytest(folder: Path, tests: list[str]) -> tuple[int, str]:
    """Exit status of the quick tests in some files, and the first test that failed or the last line."""
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    command += ["--basetemp", folder.with_name(f"{folder.name}-tests"), "-m", "not slow and not docker", *tests]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        return FAILED, f"more than {LIMIT_S} s"
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    failed = [line.split(" - ")[0].split("::", 1)[-1] for line in lines if line.startswith(("FAILED", "ERROR"))]
    return done.returncode, failed[0] if failed else lines[-1] if lines else ""


def try_fault(found: Fault, folder: Path, broken: frozenset[str]) -> tuple[bool, str]:
    """Whether the fault, made in a scratch copy, is caught, and by which test. Raises Unclear.

    broken : test files that fail without any fault
    """
    path, old, new = place_of(found, folder)
    text = (folder / path).read_text(encoding="utf-8")
    try:
        (folder / path).write_text(text.replace(old, new), encoding="utf-8")
        status, said = pytest(folder, tests_of(found, folder, broken))
    finally:
        (folder / path).write_text(text, encoding="utf-8")
    if status not in (0, FAILED):
        raise Unclear(f"pytest ended with {status}: {said}")
    return status == FAILED, said


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="faults whose area or name has this word")
    parser.add_argument("--checkout", type=Path, default=ROOT, metavar="FOLDER", help="another state of the project")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="how many at once (default 2)")
    parser.add_argument("--list", action="store_true", help="name the faults, and run nothing")
    args = parser.parse_args(argv)
    faults = [one for one in FAULTS if not args.only or any(word in f"{one.area} {one.name}" for word in args.only)]
    if not faults:
        parser.error("no fault has such a name")
    checkout, start, count = args.checkout.resolve(), time.monotonic(), {"caught": 0, "SURVIVED": 0, "UNCLEAR": 0}
    for one in faults if args.list else []:
        print(f"{one.area:10}  {one.name}  ({' '.join(one.tests)})")
    if args.list:
        return 0

    with tempfile.TemporaryDirectory(prefix="mutations-") as place:
        folders = SimpleQueue()
        for number in range(args.jobs):
            folders.put(scratch(checkout, Path(place) / str(number)))

        def borrow(work):
            """Run work(folder) in a scratch copy that nobody uses."""
            folder = folders.get()
            try:
                return work(folder)
            finally:
                folders.put(folder)

        def one_fault(one):
            try:
                caught, said = borrow(lambda folder: try_fault(one, folder, broken))
                outcome = "caught" if caught else "SURVIVED"
            except Unclear as error:
                outcome, said = "UNCLEAR", str(error)
            return one, outcome, said

        with ThreadPoolExecutor(args.jobs) as pool:
            files = sorted({f for one in faults for f in one.tests if (checkout / "tests/unit" / f).is_file()})
            sound = pool.map(lambda f: (f, *borrow(lambda folder: pytest(folder, [f"tests/unit/{f}"]))), files)
            failing = {file: said for file, status, said in sound if status != 0}
            for file, said in failing.items():
                print(f"{file}: fails without any fault: {said}", flush=True)
            broken = frozenset(failing)
            for one, outcome, said in pool.map(one_fault, faults):
                count[outcome] += 1
                print(f"{outcome:8}  {one.area:10}  {one.name}: {said}", flush=True)
    print(f"{count['caught']} of {len(faults)} faults caught in {time.monotonic() - start:.0f} s")
    return 2 if count["UNCLEAR"] else 1 if count["SURVIVED"] else 0


if __name__ == "__main__":
    sys.exit(main())
