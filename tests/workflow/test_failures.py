"""How jobs and calls fail and are mended, on this machine and on SLURM.

What reruns is decided alike on both (test_caching.py); here the tests run that depend on how jobs start, end and fail:
each reads the workflow anew on SLURM, and meets an image that is missing by itself. A job takes as long to start there
as a network to run, so those tests have as many as there are rules, and no more.
"""

import os
import platform
import shutil
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from project import AGREE, Project, add_statement, engine_of, processes_in, write_image

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


@pytest.fixture
def project(request, finished, tmp_path) -> Project:
    return finished.copy(tmp_path / "project", profile=request.param)


@on_slurm_too
def test_images_that_cannot_be_read_and_a_benchmark(project):
    """Missing, of unknown orientation, vanished, a pipe, an id that no disk can name: each is its row's own trouble,
    until it is mended (tests/unit/test_bad_rows.py has all the others).

    A result whose image vanished stays, also where its code changed: nothing could make it again.
    """
    cluster = project.profile == "slurm"
    odd = {"participant_id": "03", "image": 'images/J\u00fcrgen\'s "best" scan $HOME {scan}.nii'}
    write_image(project.folder / odd["image"], seed=3, oriented=False)
    project.image("02").unlink()
    kept = project.label_map("02").read_bytes()
    pipe = {"participant_id": "05", "image": "images/pipe.nii.gz"}
    os.mkfifo(project.folder / pipe["image"])
    too_long = {"participant_id": "6" * 300, "image": "images/sub-01.nii"}
    project.sheet(["01", "02", "04"], more=[odd, pipe, too_long])
    compared = {"reference": {"kind": "own", "runtime": "local", "subjects": 2}}  # sub-01 and sub-03
    project.configure(**compared)
    if not cluster:
        add_statement(project.folder / "src/synthseg_native/pipeline/posteriors.py")
    vanished = "ok" if cluster else "stale"

    call = project.run().expect(*([] if cluster else ["native 01", "compare 01"]), "summary", code=1)
    assert "Traceback" not in call.output and project.label_map("02").read_bytes() == kept
    why = "1 native run not again, the image is gone: the code changed (labels) (sub-02_T1w)"
    assert cluster or why in call.output
    rows = project.summary()
    assert [row["status"] for row in rows] == ["ok", vanished, *["failed"] * 4]
    assert {row["error_code"] for row in rows[2:]} == {"bad_input"}
    said = call.output.partition("Failed (results/failed.tsv is a sample sheet of these):")[2].splitlines()[1:5]
    assert [line.strip()[:7] for line in said] == ["sub-04_", "sub-03_", "sub-05_", "sub-666"]
    assert "not an ordinary file" in said[2] and "a name of 308 characters" in said[3]
    assert "no such file" in said[0]
    assert odd["image"] in said[1] and "--accept no_orientation (sheet: column accept)" in said[1]
    failed = (project.image("04"), *(project.folder / row["image"] for row in (odd, pipe, too_long)))
    again = [Path(scan.image).resolve() for scan in read_samples(project.folder / "results/failed.tsv")]
    assert again == [path.resolve() for path in failed]

    write_image(project.image("04"), seed=3)
    mended = [] if cluster else ["04"]
    project.sheet(["01", "02", *mended], more=[odd | {"accept": "no_orientation"}])
    project.configure(**compared, benchmark={"scans": 1, "repeats": 1, "warmups": 0})
    natives = [f"native {scan}" for scan in ("03", *mended)]
    project.run().expect(*natives, "reference 03", "compare 03", "benchmark", "summary")
    rows = project.summary()
    assert [row["status"] for row in rows] == ["ok", vanished, *("ok" for _ in natives)]
    assert rows[-1]["verdict"] in AGREE and "no_orientation" in rows[-1]["header_flags"]
    project.run().expect()
    if not cluster:  # Snakemake sees it, whoever runs the job
        project.configure(**compared, benchmark={"scans": 1, "repeats": 2, "warmups": 0})
        project.run().expect("benchmark", "summary")
        table = (project.folder / "results/benchmark_runs.tsv").read_text().splitlines()
        assert len(table) == 1 + 4


@on_slurm_too
def test_sigkill_of_a_job_and_of_the_workflow(project):
    write_image(project.image("01"), seed=3)
    if project.profile == "slurm":
        project.configure(reference={"runtime": "none"})
    process = project.start()
    engine_of(project).kill()
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 1, output
    assert "ended by SIGKILL" in output, output
    row = project.summary()[0]
    assert (row["participant_id"], row["status"], row["error_code"]) == ("sub-01", "failed", "killed")

    process = project.start()
    engine_of(project)
    process.send_signal(signal.SIGKILL)
    psutil.wait_procs(processes_in(project), timeout=300)
    process.communicate(timeout=60)
    assert project.run("--unlock").code == 0
    call = project.run()
    assert call.code == 0, call.output
    assert "native 02" not in call.made  # a job on SLURM outlives its workflow: then 01 is made already
    assert {row["status"] for row in project.summary()} == {"ok"}
    assert {row["verdict"] for row in project.summary()} <= (
        AGREE if project.profile == "default" else {"not_compared"}
    )
    project.run().expect()
