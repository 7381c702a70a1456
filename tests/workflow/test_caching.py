"""What reruns when: the table of docs/caching.md with the real workflow and real runs.

Every test starts from a copy of one finished project, changes things, asks for results/summary.tsv and looks at which
results were made anew: neither a stale result may stay nor a fresh one be made again. One call is asked about many
changes, each of another row or of another kind of run; tests/unit/test_state.py has them one by one. What decides is
the same on SLURM (test_failures.py).
"""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from project import AGREE, SUMMARY, Project, add_statement, engine_of, write_image

pytestmark = pytest.mark.slow


@pytest.fixture
def project(finished, tmp_path) -> Project:
    return finished.copy(tmp_path / "project")


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def assert_wanted(call, **jobs):
    """What a dry run lists: {rule: number of jobs}, and nothing else."""
    assert call.code == 0 and not call.made, call.output
    table = call.output.split("Job stats:")[1].split("\n\n")[0] if "Job stats:" in call.output else ""
    found = dict(line.split() for line in table.splitlines() if len(line.split()) == 2 and line.split()[1].isdigit())
    found.pop("total", None)
    assert found == {rule: str(number) for rule, number in jobs.items()}, call.output


def test_what_is_no_reason(project):
    """Time stamps, the environments' folder, comments, docstrings, words, and where images and weights lie."""
    folder = project.folder
    assert "Nothing to be done" in project.run().expect().output

    shutil.rmtree(folder / ".envs")
    source = folder / "src/synthseg_native"
    for name in ("engines/llvm.py", "reference.py", "compare.py", "results/picture.py", "results/quality.py"):
        text = (source / name).read_text().split('"""', 2)[2]
        (source / name).write_text('"""Another docstring."""\n# A comment.\n' + text)
    edit(source / "cli.py", 'help="half the time', 'help="about half the time')
    edit(source / "progress.py", "TICK_S = 0.5", "TICK_S = 0.6")
    (folder / "images").rename(folder / "elsewhere")
    edit(folder / "samples.tsv", "images/sub-01", "elsewhere/sub-01")
    edit(folder / "samples.tsv", "images/sub-02", "elsewhere/sub-02")
    shutil.copy(folder / "models/compact2mm/compact2mm.h5", folder / "same.h5")
    project.configure(weights="same.h5")
    later = time.time() + 100
    for path in (path for part in ("elsewhere", "models", "src", "scripts") for path in (folder / part).rglob("*")):
        os.utime(path, (later, later))
    os.utime(folder / "samples.tsv", (later, later))
    project.run().expect()


def test_rows_one_by_one(project):
    """Added, removed; of each row another result or input changed, deleted or edited."""
    more = [{"participant_id": f"sub-{scan}", "image": "images/sub-02.nii"} for scan in ("03", "04")]
    project.sheet(["01", "02"], more)
    added = [f"{kind} {scan}" for kind in ("native", "reference", "compare") for scan in ("03", "04")]
    project.run().expect(*added, "summary")

    write_image(project.image("01"), seed=3)
    os.utime(project.image("01"), (0, 0))  # older than what was made of it, as cp -p and rsync -t leave it
    project.native_label_map("02").unlink()
    # Nothing says any more what made the label map of 02, which somebody has corrected.
    unvouched = project.label_map("02")
    shutil.copy(project.label_map("01"), unvouched)
    unvouched_labels = unvouched.read_bytes()
    project.record("02").write_text("[]")
    by_hand = project.label_map("03")
    made, picture = by_hand.read_bytes(), project.picture("03").read_bytes()
    shutil.copy(project.label_map("01"), by_hand)
    edited = by_hand.read_bytes()
    assert edited != made
    project.label_map("04", "reference").unlink()
    project.sheet(["01", "02"], more, site="A")
    call = project.run()
    call.expect(
        *("native 01", "reference 01", "compare 01", "native 02", "compare 02", "reference 04", "compare 04", "summary")
    )
    assert "1 native run again: the image changed (sub-01_T1w)" in call.output
    assert "1 native label map changed by hand: kept" in call.output
    kept = unvouched.with_name(f"{unvouched.name}.kept")
    assert kept.read_bytes() == unvouched_labels and f"kept as {kept.name}" in call.output
    assert by_hand.read_bytes() == edited and project.picture("03").read_bytes() == picture
    rows = project.summary()
    assert [row["status"] for row in rows] == ["ok", "ok", "edited", "ok"]
    assert [row["brain_mm3"] == "n/a" for row in rows] == [False, False, True, False]
    assert [row["sheet_site"] for row in rows] == ["A", "A", "n/a", "n/a"]
    project.configure(edited="overwrite")
    assert_wanted(project.run("-n", SUMMARY), native=1, picture=1, compare=1, summary=1)

    project.configure()
    by_hand.write_bytes(made)
    project.picture("01").unlink()
    project.sheet(["01", "02"], more[:1])
    project.run().expect("picture 01", "summary")
    rows = project.summary()
    assert [(row["participant_id"], row["status"]) for row in rows] == [(f"sub-0{n}", "ok") for n in (1, 2, 3)]
    assert project.label_map("04").exists(), "a row that leaves the sheet keeps its results"
    project.run().expect()


def test_what_reaches_every_row_alike(project):
    """Kinds of runs, each by changes of its own; then all that makes everything anew, and nothing after it."""
    folder, source = project.folder, project.folder / "src/synthseg_native"
    project.sheet(["01"])  # half the runs

    # What comes after the networks.
    edit(folder / "models/compact2mm/labels.tsv", "left thalamus", "left thalamus proper")
    edit(folder / "models/compact2mm/labels.tsv", "#f5f5f5", "#f5f5f6")
    add_statement(source / "results/picture.py")
    edit(source / "results/quality.py", "BRAIN_ML = (600,", "BRAIN_ML = (1,")
    assert project.summary()[0]["qc_flags"] != "none"
    project.configure(equivalence={"max_margin": 0.002})
    project.run().expect("picture 01", "compare 01", "summary")
    assert project.summary()[0]["qc_flags"] == "none", "the limits of today, on what was measured then"

    # llvm gives the same bytes for any number of threads; the reference promises nothing.
    add_statement(source / "reference.py")
    project.configure(threads=2)
    call = project.run("-n", SUMMARY)
    assert "1 reference run again: threads: 1 to 2, the code changed (reference) (sub-01_T1w)" in call.output
    assert_wanted(call, reference=1, compare=1, summary=1)

    # A stage, an engine, the glue between them, and what is asked of the engine alone.
    for name in ("pipeline/posteriors.py", "engines/llvm.py"):
        add_statement(source / name)
    edit(source / "cohort/runs/native.py", "keys.flags(settings)", "[*keys.flags(settings)]")
    project.configure(threads=2, device="cpu")
    call = project.run("-n", SUMMARY)
    assert_wanted(call, native=1, reference=1, picture=1, compare=1, summary=1)
    why = "device: auto to cpu, the code changed (network, labels, native step)"
    assert f"1 native run again: {why} (sub-01_T1w)" in call.output

    # Both runs do the same other thing, and the verdict is as good.
    for name in ("llvm", "tensorflow"):
        old = project.environment(name)
        edit(folder / f"envs/{name}.txt", "numpy==", "numpy==0.")
        # The changed lock names no real release; its environment stands ready under the name that it would get.
        old.rename(project.environment(name))
    before = project.label_map("01").read_bytes()
    project.configure(threads=2, device="cpu", mode="fast", crop=32)
    call = project.run()
    call.expect("native 01", "reference 01", "compare 01", "verify_env", "summary")
    assert "crop: none to [32, 32, 32]" in call.output and "mode: default to fast" in call.output
    (row,) = project.summary()
    assert row["verdict"] in AGREE and row["mode"] == "fast"
    assert project.label_map("01").read_bytes() != before
    project.run().expect()

    shutil.copy(folder / "models/compact2mm/compact2mm.h5", folder / "other.h5")
    with (folder / "other.h5").open("ab") as file:
        file.write(b"\0")
    project.configure(threads=2, device="cpu", mode="fast", crop=32, weights="other.h5")
    call = project.run("-n", SUMMARY)
    assert "the weights changed" in call.output
    assert_wanted(call, native=1, reference=1, picture=1, compare=1, summary=1)


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
    shutil.rmtree(project.folder / ".snakemake", ignore_errors=True)
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
    for job in ("reference ", "picture ", "compare "):
        assert job not in call.output.split("Reasons:")[0], "at most the tables"


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


def test_another_machine_and_no_reference(project):
    elsewhere = project.folder / "src"  # which every program has on its path, or in the copy that the steps run
    (elsewhere / "sitecustomize.py").write_text("import platform\nplatform.release = lambda: 'another kernel'\n")
    project.configure(reference={"runtime": "none"})
    project.run(PYTHONPATH=str(elsewhere)).expect("verify_env", "summary")
    assert {row["verdict"] for row in project.summary()} == {"not_compared"}
    project.configure()
    project.run(PYTHONPATH=str(elsewhere)).expect("summary")  # verified there already
    assert {row["verdict"] for row in project.summary()} <= AGREE
