"""Several engines, the word auto, and memory as a resource, in the real workflow."""

import json
from datetime import datetime

import pytest
from project import AGREE, ENGINE, SUMMARY, Project, add_statement, write_image

from synthseg_native import memory

pytestmark = pytest.mark.slow
SCANS = ("01", "02")


@pytest.fixture
def project(finished, tmp_path) -> Project:
    return finished.copy(tmp_path / "project")


def jobs(*kinds, engine=""):
    return [f"{kind} {scan} {engine}".strip() for kind in kinds for scan in SCANS]


def test_two_engines_side_by_side(project):
    """Each is compared with the reference, and nothing of one engine makes the other run again."""
    project.sheet(SCANS[:1])  # what reaches all scans alike is seen in one
    project.configure(engines=["tensorflow", "llvm"])
    call = project.run().expect("native 01 tensorflow", "compare 01 tensorflow", "verify_env", "summary")
    rows = project.summary()
    assert [(row["participant_id"], row["engine"]) for row in rows] == [("sub-01", "tensorflow"), ("sub-01", ENGINE)]
    assert rows[0]["verdict"] == "identical", rows  # the reference's own library: every voxel
    assert rows[1]["verdict"] in AGREE, rows
    assert {row["picture"] for row in rows} != {"n/a"}
    said = [line.split(",")[1] for line in call.output.splitlines() if line.startswith("Homogeneous: 1 run")]
    assert [words.split()[0] for words in said] == ["tensorflow", "llvm"]

    add_statement(project.folder / "src/synthseg_native" / "engines/tensorflow.py")
    add_statement(project.folder / "src/synthseg_native" / "memory.py")
    call = project.run("-n", "--quiet", "host", "--", SUMMARY).expect()
    assert "1 native run again: the code changed (network) (sub-01_T1w)" in call.output
    assert "results/tensorflow/" in call.output and "results/llvm/" not in call.output
    project.configure()
    project.run().expect("summary")
    assert project.label_map("01", "tensorflow").exists(), "an engine that leaves the list keeps its results"


def test_auto_is_chosen_once(project):
    project.sheet(SCANS[:1])
    project.configure(engines="auto")
    call = project.run("-n", SUMMARY).expect()
    assert "engine auto: chosen when the workflow runs" in call.output
    call = project.run()
    assert call.code == 0 and {"engine", "summary"} <= call.made, call.output
    written = (project.folder / "results/engine.json").read_text()
    chosen = json.loads(written)["engine"]
    assert f"engine auto: {chosen} on the" in call.output
    assert {row["engine"] for row in project.summary()} == {chosen}

    # On another machine, with other findings: it stays, and a line says so.
    elsewhere = json.loads(written)
    elsewhere["machine"]["cpu"] = "another processor"
    (project.folder / "results/engine.json").write_text(json.dumps(elsewhere))
    call = project.run().expect()
    assert f"{chosen} was chosen on another processor, and stays" in call.output

    # The user's word changes it, in the table too, and neither engine's results go.
    other = {"llvm": "tensorflow"}.get(chosen, "llvm")
    project.configure(engines=[other])
    call = project.run("-n", "--quiet", "host", "--", SUMMARY).expect()
    assert f"results/{other}/" in call.output and f"results/{chosen}/" not in call.output
    project.configure(engines="auto")
    project.run().expect()


def spans(project):
    """(start, end) of the native runs."""
    records = [json.loads(project.record(scan).read_text()) for scan in SCANS]
    return sorted((datetime.fromisoformat(r["started"]), datetime.fromisoformat(r["finished"])) for r in records)


def test_jobs_that_do_not_fit_into_memory_together_run_one_after_the_other(project):
    """Pins workflow.global_resources, which Snakemake does not document, and that a limit of the user's counts."""
    limit = memory.packing_mb()
    natives = "--until", "native", "--", SUMMARY
    project.configure(reference={"runtime": "none"}, memory_mb=int(0.6 * limit))
    for seed, scan in enumerate(SCANS):
        write_image(project.image(scan), seed=20 + seed)
    call = project.run(*natives)
    assert (call.code, call.made) == (0, {*jobs("native"), "summary"}), call.output  # which says what is there
    assert {row["status"] for row in project.summary()} == {"ok"}
    (_, first_ends), (second_starts, _) = spans(project)
    assert second_starts >= first_ends

    for seed, scan in enumerate(SCANS):
        write_image(project.image(scan), seed=30 + seed)
    call = project.run("--resources", f"mem_mb={2 * limit}", *natives)
    assert (call.code, call.made) == (0, {*jobs("native"), "summary"}), call.output  # which says what is there
    assert {row["status"] for row in project.summary()} == {"ok"}
    (_, first_ends), (second_starts, _) = spans(project)
    assert second_starts < first_ends
