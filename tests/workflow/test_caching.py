"""What reruns when: the table of docs/caching.md, each row with the real workflow and real runs.

Every test starts from a copy of one finished project, changes one thing, asks for results/summary.tsv and looks at
which results were made anew: neither a stale result may stay nor a fresh one be made again. What decides that is the
same on SLURM; there the tests run that depend on how jobs start, end and fail: each reads the workflow anew there, and
meets an image that is missing by itself.
"""

import os
import platform
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from project import AGREE, SUMMARY, Project, write_image

from synthseg_native.cohort.samples import read_samples

pytestmark = pytest.mark.slow


def one_node_cluster() -> bool:
    """Whether SLURM answers and this machine is its only node; on other clusters the tests' folders are not shared."""
    if not shutil.which("sinfo"):
        return False
    found = subprocess.run(["sinfo", "--noheader", "--Node", "--format=%n"], capture_output=True, text=True)
    return set(found.stdout.split()) == {platform.node().split(".")[0]}


NO_CLUSTER = pytest.mark.skipif(
    not (os.environ.get("REQUIRE_SLURM") or one_node_cluster()),
    reason="no SLURM cluster of this machine alone answers (.ci/slurm.sh makes one)",
)
on_slurm_too = pytest.mark.parametrize("project", ["default", pytest.param("slurm", marks=NO_CLUSTER)], indirect=True)


class ClusterProject(Project):
    """Runs with the SLURM profile, and asks for its jobs' state every second.

    The executor waits 10 s longer after every look in vain, which would be most of the time that these tests take.
    """

    LAUNCH = (
        "import asyncio; from snakemake.cli import main;"
        " from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor;"
        " RemoteExecutor.sleep = lambda self: asyncio.sleep(1); main()"
    )

    def command(self, *arguments) -> list[str]:
        python, _, _, *call = super().command(*arguments)  # python -m snakemake ...
        return [python, "-c", self.LAUNCH, *call]


@pytest.fixture
def project(request, finished, tmp_path) -> Project:
    profile = getattr(request, "param", "default")
    copy = finished.copy(tmp_path / "project", profile=profile)
    return ClusterProject(copy.folder, copy.profile) if profile == "slurm" else copy


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def add_statement(path: Path) -> None:
    path.write_text(path.read_text() + "\n_CHANGED = True\n")


@pytest.fixture
def one(project):
    """The same project with one image in its sheet, for changes that reach every image alike: half the runs."""
    project.sheet(["01"])
    return project


def everything(*kinds, scans=("01",)):
    """What a change that reaches the given kinds of runs makes anew."""
    return [*(f"{kind} {scan}" for kind in (*kinds, "compare") for scan in scans), "summary"]


@on_slurm_too
def test_nothing_changed(project):
    call = project.run().expect()
    assert "Nothing to be done" in call.output


def test_only_time_stamps(project):
    later = time.time() + 100
    for path in [*project.folder.glob("images/*"), *project.folder.glob("models/**/*"), project.folder / "samples.tsv"]:
        os.utime(path, (later, later))
    for path in project.folder.glob("s*/**/*.py"):
        os.utime(path, (later, later))
    project.run().expect()


def test_environments_deleted(project):
    shutil.rmtree(project.folder / ".envs")
    project.run().expect()


def test_comments_and_docstrings(project):
    for name in ("engines/openvino.py", "reference.py", "compare.py", "results/picture.py", "results/quality.py"):
        path = project.folder / "src/synthseg_native" / name
        path.write_text('"""Another docstring."""\n# A comment.\n' + path.read_text().split('"""', 2)[2])
    project.run().expect()


@on_slurm_too
def test_one_image_changed(project):
    write_image(project.image("01"), seed=3)
    project.run().expect("native 01", "reference 01", "compare 01", "summary")
    project.run().expect()


def test_label_map_deleted(project):
    """On either grid; a picture is drawn again by itself."""
    project.label_map("01").unlink()
    project.native_label_map("02").unlink()
    project.run().expect("native 01", "native 02", "compare 01", "compare 02", "summary")
    project.picture("01").unlink()
    project.run().expect("picture 01", "summary")


def test_reference_label_map_deleted(project):
    project.label_map("02", "reference").unlink()
    project.run().expect("reference 02", "compare 02", "summary")


def test_rows_added_and_removed(project):
    write_image(project.image("03"), seed=3)
    project.sheet(["01", "02", "03"])
    project.run().expect("native 03", "reference 03", "compare 03", "summary")
    assert len(project.summary()) == 3
    project.sheet(["02", "03"])
    project.run().expect("summary")
    assert [row["participant_id"] for row in project.summary()] == ["sub-02", "sub-03"]
    assert project.label_map("01").exists(), "a row that leaves the sheet keeps its results"


def test_further_column_changed(project):
    project.sheet(["01", "02"], site="A")
    project.run().expect("summary")
    assert {row["sheet_site"] for row in project.summary()} == {"A"}


def test_names_and_colours_of_labels_changed(one):
    """They are shown: no network runs."""
    labels = one.folder / "models/compact2mm/labels.tsv"
    edit(labels, "left thalamus", "left thalamus proper")
    edit(labels, "#f5f5f5", "#f5f5f6")
    one.run().expect(*everything("picture"))


def test_other_weights(one):
    weights = one.folder / "models/compact2mm/compact2mm.h5"
    shutil.copy(weights, one.folder / "same.h5")
    one.configure(weights="same.h5")
    one.run().expect("summary")  # the sheet has one row now; another place of the same weights is no reason
    with (one.folder / "same.h5").open("ab") as file:
        file.write(b"\0")
    assert_wanted(one.run("-n", SUMMARY), native=1, reference=1, picture=1, compare=1, summary=1)


def test_fast_mode_and_crop(one):
    """Both runs do the same other thing, and the verdict is as good."""
    before = one.label_map("01").read_bytes()
    one.configure(mode="fast", crop=32)
    call = one.run().expect(*everything("native", "reference"))
    assert "crop: none to [32, 32, 32], mode: default to fast" in call.output
    (row,) = one.summary()
    assert row["verdict"] in AGREE and row["mode"] == "fast"
    assert one.label_map("01").read_bytes() != before


def test_threads_changed(one):
    """openvino gives the same bytes for any number; the reference promises nothing."""
    one.configure(threads=2)
    call = one.run("-n", SUMMARY).expect()
    assert "1 reference run again: threads: 1 to 2 (sub-01_T1w)" in call.output
    assert_wanted(call, reference=1, compare=1, summary=1)


@on_slurm_too
def test_engine_code_changed(project):
    add_statement(project.folder / "src/synthseg_native/engines/openvino.py")
    call = project.run().expect(*everything("native", scans=["01", "02"]))
    assert "2 native runs again: the code changed (network) (sub-01_T1w, sub-02_T1w)" in call.output


def test_shared_engine_code_changed(one):
    add_statement(one.folder / "src/synthseg_native/pipeline/posteriors.py")
    one.run().expect(*everything("native"))


def test_lock_changed(one):
    """The engine's, and the reference's, which runs in TensorFlow's environment."""
    for name in ("openvino", "tensorflow"):
        old = one.environment(name)
        edit(one.folder / f"envs/{name}.txt", "numpy==", "numpy==0.")
        # The changed lock names no real release; its environment stands ready under the name that it would get.
        old.rename(one.environment(name))
    one.run().expect(*everything("native", "reference"), "verify_env")


def test_reference_changed(one):
    add_statement(one.folder / "src/synthseg_native/reference.py")
    one.run().expect(*everything("reference"))


def test_thresholds_and_drawing_changed(one):
    """What comes after the networks: no network runs."""
    one.configure(equivalence={"max_margin": 0.002})
    add_statement(one.folder / "src/synthseg_native/results/picture.py")
    one.run().expect(*everything("picture"))
    edit(one.folder / "src/synthseg_native/results/quality.py", "BRAIN_ML = (600,", "BRAIN_ML = (1,")
    assert one.summary()[0]["qc_flags"] != "none"
    one.run().expect("picture 01", "summary")
    assert one.summary()[0]["qc_flags"] == "none", "the limits of today, on what was measured then"


def assert_wanted(call, **jobs):
    """What a dry run lists: {rule: number of jobs}, and nothing else."""
    assert call.code == 0 and not call.made, call.output
    table = call.output.split("Job stats:")[1].split("\n\n")[0] if "Job stats:" in call.output else ""
    found = dict(line.split() for line in table.splitlines() if len(line.split()) == 2 and line.split()[1].isdigit())
    found.pop("total", None)
    assert found == {rule: str(number) for rule, number in jobs.items()}, call.output


def files(project) -> dict:
    """Every file of a project but those of Snakemake, with its time."""
    paths = (path for path in project.folder.rglob("*") if ".snakemake" not in path.parts and path.is_file())
    return {path: path.lstat().st_mtime_ns for path in paths if ".envs" not in path.parts or "code-" in str(path)}


def test_what_results_say_decides_whatever_snakemake_remembers(project, tmp_path):
    """With its folder, without it, and with one of other results; asked in dry runs, which write nothing."""
    kept, before = tmp_path / "kept", files(project)
    (project.folder / ".snakemake").rename(kept)
    assert_wanted(project.run("-n", SUMMARY))
    project.configure(mode="fast")
    call = project.run("-n", SUMMARY)
    assert "2 native runs again: mode: default to fast (sub-01_T1w, sub-02_T1w)" in call.output
    assert_wanted(call, native=2, reference=2, picture=2, compare=2, summary=1)

    # Of elsewhere: metadata of these paths, of other settings and another shell command.
    shutil.rmtree(project.folder / ".snakemake")
    shutil.copytree(kept, project.folder / ".snakemake")
    for path in (project.folder / ".snakemake/metadata").iterdir():
        path.write_text(path.read_text().replace("native.py", "other.py").replace("compact2mm", "other"))
    project.configure()
    assert_wanted(project.run("-n", SUMMARY))
    assert {path: time for path, time in files(project).items() if path.name != "config.json"} == {
        path: time for path, time in before.items() if path.name != "config.json"
    }


def test_a_copied_results_folder(project):
    """In another order, with times of today and without what was remembered."""
    results, copy = project.folder / "results", project.folder / "copy"
    shutil.copytree(results, copy, copy_function=shutil.copy)
    shutil.rmtree(results)
    copy.rename(results)
    (results / ".state/contents.json").unlink()
    shutil.rmtree(project.folder / ".snakemake")
    call = project.run("-n", SUMMARY)
    assert " again" not in call.output and "native " not in call.output.split("Reasons:")[0], call.output
    assert "reference " not in call.output.split("Reasons:")[0], "no network runs"


def test_a_moved_dataset(project):
    """The images are the same images, and no table says where they lie."""
    (project.folder / "images").rename(project.folder / "elsewhere")
    (project.folder / "elsewhere").joinpath("sub-01.nii").touch()
    sheet = project.folder / "samples.tsv"
    sheet.write_text(sheet.read_text().replace("images/", "elsewhere/"))
    assert_wanted(project.run("-n", SUMMARY))


def test_other_contents_of_the_same_size_and_time(project):
    image = project.image("01")
    before = image.stat()
    data = bytearray(image.read_bytes())
    data[-1] ^= 1
    image.write_bytes(data)
    os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
    call = project.run("-n", SUMMARY)
    assert "1 native run again: the image changed (sub-01_T1w)" in call.output
    assert_wanted(call, native=1, reference=1, picture=1, compare=1, summary=1)


def test_words_and_glue(project):
    """A help text is a help text; what builds the engine's command line is not."""
    source = project.folder / "src/synthseg_native"
    edit(source / "cli.py", 'help="half the time', 'help="about half the time')
    edit(source / "progress.py", "TICK_S = 0.5", "TICK_S = 0.6")
    assert_wanted(project.run("-n", SUMMARY))
    edit(source / "cohort/runs/native.py", "keys.flags(settings)", '["--fast", *keys.flags(settings)]')
    call = project.run("-n", SUMMARY)
    assert "2 native runs again: the code changed (native step)" in call.output
    assert_wanted(call, native=2, picture=2, compare=2, summary=1)


def test_a_label_map_changed_by_hand(project):
    """It is kept, said, and not counted; until somebody says that it may go."""
    path = project.label_map("01")
    made = path.read_bytes()
    shutil.copy(project.label_map("02"), path)
    by_hand, picture = path.read_bytes(), project.picture("01").read_bytes()
    call = project.run().expect("summary")
    assert "1 native label map changed by hand: kept" in call.output
    rows = project.summary()
    assert [(row["status"], row["brain_mm3"] == "n/a") for row in rows] == [("edited", True), ("ok", False)]
    assert path.read_bytes() == by_hand and project.picture("01").read_bytes() == picture
    project.run().expect()
    project.configure(edited="overwrite")
    assert_wanted(project.run("-n", SUMMARY), native=1, picture=1, compare=1, summary=1)
    project.configure()
    path.write_bytes(made)
    project.run().expect("summary")
    assert [row["status"] for row in project.summary()] == ["ok", "ok"]


def test_ctrl_c_among_changed_settings(project):
    """The tables hold no row of the old settings that calls itself good."""
    project.configure(mode="fast", reference={"runtime": "none"})
    process = project.start("--cores", "1", SUMMARY)
    engine_of(project)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=300)
    rows = project.summary()
    assert "stale" in {row["status"] for row in rows}, output
    assert all(row["mode"] == "fast" for row in rows if row["status"] == "ok"), rows
    volumes = (project.folder / "results/volumes.tsv").read_text()
    assert all(row["participant_id"] not in volumes for row in rows if row["status"] != "ok")


@on_slurm_too
def test_benchmark_settings_changed(project):
    project.configure(benchmark={"scans": 1, "repeats": 1, "warmups": 0})
    project.run().expect("benchmark", "summary")
    project.configure(benchmark={"scans": 1, "repeats": 2, "warmups": 0})
    project.run().expect("benchmark", "summary")
    project.run().expect()
    table = (project.folder / "results/benchmark_runs.tsv").read_text().splitlines()
    assert len(table) == 1 + 4


def test_machine_changed(project, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "sitecustomize.py").write_text("import platform\nplatform.release = lambda: 'another kernel'\n")
    project.run(PYTHONPATH=str(elsewhere)).expect("verify_env", "summary")


def test_reference_none_and_back(project):
    project.configure(reference={"runtime": "none"})
    project.run().expect("summary")
    assert {row["verdict"] for row in project.summary()} == {"not_compared"}
    project.configure()
    project.run().expect("summary")


@on_slurm_too
def test_failed_image(project):
    """Exit code, the others, the row; again; repaired as soon as the image is."""
    good = project.image("01").read_bytes()
    project.image("01").write_bytes(good[:50_000])
    write_image(project.image("02"), seed=3)
    call = project.run().expect("native 02", "reference 02", "compare 02", "summary", code=1)
    assert "sub-01.nii" in call.output and "Traceback" not in call.output
    rows = {row["participant_id"]: row for row in project.summary()}
    assert (rows["sub-01"]["status"], rows["sub-01"]["error_code"]) == ("failed", "bad_input")
    assert rows["sub-02"]["status"] == "ok"
    assert "sub-01" in (project.folder / "results/failed.tsv").read_text()
    assert project.run().code == 1
    project.image("01").write_bytes(good)
    assert "native 01" in project.run().made
    assert {row["status"] for row in project.summary()} == {"ok"}
    project.run().expect()


@on_slurm_too
def test_image_of_unknown_orientation_and_strange_name(project):
    """Refused alone, in a line that says how to take it; taken once the sheet says so."""
    odd = {"participant_id": "03", "image": 'images/J\u00fcrgen\'s "best" scan $HOME {scan}.nii'}
    write_image(project.folder / odd["image"], seed=3, oriented=False)
    project.sheet(["01", "02"], more=[odd])
    call = project.run().expect("summary", code=1)
    said = next(line for line in call.output.splitlines() if odd["image"] in line)
    assert "accept" in said and "no_orientation" in said and "Traceback" not in call.output
    assert [row["status"] for row in project.summary()] == ["ok", "ok", "failed"]
    again = read_samples(project.folder / "results/failed.tsv")
    assert [Path(scan.image).resolve() for scan in again] == [(project.folder / odd["image"]).resolve()]

    project.sheet(["01", "02"], more=[odd | {"accept": "no_orientation"}])
    project.run().expect("native 03", "reference 03", "compare 03", "summary")
    row = project.summary()[2]
    assert row["verdict"] in AGREE and "no_orientation" in row["header_flags"]


@on_slurm_too
def test_image_missing_from_the_start(project):
    project.sheet(["01", "02", "03"])
    call = project.run().expect("summary", code=1)
    assert "sub-03.nii" in call.output
    assert [row["status"] for row in project.summary()] == ["ok", "ok", "failed"]
    write_image(project.image("03"), seed=3)
    project.run().expect("native 03", "reference 03", "compare 03", "summary")


@on_slurm_too
def test_image_vanishes_after_success(project):
    project.image("01").unlink()
    kept = project.label_map("01").read_bytes()
    project.run().expect()
    project.label_map("02").unlink()
    project.run().expect("native 02", "compare 02", "summary")
    add_statement(project.folder / "src/synthseg_native/pipeline/posteriors.py")
    project.run().expect("native 02", "compare 02", "summary")
    assert project.label_map("01").read_bytes() == kept


@on_slurm_too
def test_sigkill_of_a_job(project):
    write_image(project.image("01"), seed=3)
    process = project.start()
    engine_of(project).kill()
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 1, output
    assert "ended by SIGKILL" in output, output
    row = project.summary()[0]
    assert (row["participant_id"], row["status"], row["error_code"]) == ("sub-01", "failed", "killed")
    assert "native 01" in project.run().made
    assert {row["status"] for row in project.summary()} == {"ok"}


@on_slurm_too
def test_sigkill_of_the_workflow(project):
    write_image(project.image("01"), seed=3)
    process = project.start()
    engine_of(project)
    process.send_signal(signal.SIGKILL)
    psutil.wait_procs(processes_in(project), timeout=300)
    process.communicate(timeout=60)
    assert project.run("--unlock").code == 0
    call = project.run()
    assert call.code == 0, call.output
    assert "native 02" not in call.made
    assert {row["verdict"] for row in project.summary()} <= AGREE
    project.run().expect()


def processes_in(project: Project) -> list[psutil.Process]:
    """What works in the project's folder: the workflow and its jobs, also those that SLURM started."""
    folder = os.path.realpath(project.folder)
    return [process for process in psutil.process_iter(["cwd", "cmdline"]) if process.info["cwd"] == folder]


def engine_of(project: Project, timeout: float = 120) -> psutil.Process:
    """The engine's process, once it runs."""
    end = time.time() + timeout
    while time.time() < end:
        for process in processes_in(project):
            command = " ".join(process.info["cmdline"] or [])
            if "-m synthseg_native " in command and "measure.py" not in command:
                return process
        time.sleep(0.1)
    raise AssertionError("the engine did not start")
