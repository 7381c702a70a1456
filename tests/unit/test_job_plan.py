"""The plan as a cluster's job sees it: its own scans alone, from the manifest."""

from pathlib import Path

import pytest

from rule_patterns import with_patterns
from synthseg_native.cohort import demands, demo, job
from synthseg_native.cohort import plan as plans
from synthseg_native.cohort.plan import Plan
from synthseg_native.errors import SynthSegError
from synthseg_native.identity.contents import Contents

SCANS = [f"sub-0{n}/anat/sub-0{n}_T1w" for n in (1, 2, 3)]
CONFIG = {"samples": "samples.tsv", "model": "compact2mm", "allow_small_model": True, "engines": ["llvm"]}
CONFIG |= {"reference": {"kind": "own", "runtime": "local", "subjects": 2}}


@pytest.fixture
def planned(root, tmp_path, monkeypatch):
    """A plan of three scans, two of them compared, and its manifest."""
    monkeypatch.chdir(tmp_path)
    rows = [f"0{n}\timages/{n}.nii" for n in (1, 2, 3)]
    (tmp_path / "samples.tsv").write_text("\n".join(["participant_id\timage", *rows]) + "\n")
    (tmp_path / "images").mkdir()
    for n in (1, 2, 3):
        (tmp_path / f"images/{n}.nii").write_text(f"image {n}")
    plan = with_patterns(Plan(CONFIG, root))
    return plan, plan.manifest.write(tmp_path)


def test_a_job_wants_what_was_planned_and_looks_at_nothing_else(planned, root, monkeypatch):
    plan, manifest = planned
    compared = plan.compared[0]
    wanted = plan.identities.native_settings("llvm", compared), plan.identities.reference_settings(compared)

    def never(*_):
        raise AssertionError("a job must not plan the cohort")

    with Path("samples.tsv").open("a") as sheet:
        sheet.write("\n" * demo.LINES)
    monkeypatch.setattr(plans, "read_samples", never)
    monkeypatch.setattr(demo, "read_samples", never)
    monkeypatch.setattr(Contents, "digest", never)
    ours = with_patterns(job.JobPlan(CONFIG, root, manifest, [compared]))
    assert list(ours.scans) == ours.compared == [compared]
    assert (
        ours.identities.native_settings("llvm", compared),
        ours.identities.reference_settings(compared),
    ) == wanted
    assert ours.files("llvm", compared) == plan.files("llvm", compared)
    assert ours.image_path(compared) == plan.image_path(compared)
    assert demands.memory_mb(ours, "llvm", compared) == demands.memory_mb(plan, "llvm", compared)
    assert ours.title("llvm", compared) == plan.title("llvm", compared)


def test_a_scan_without_reference_has_none_in_its_job(planned, root):
    plan, manifest = planned
    (alone,) = set(SCANS) - set(plan.compared)
    assert job.JobPlan(CONFIG, root, manifest, [alone]).compared == []


def test_a_process_without_manifest_or_scan_plans_by_itself(planned, root, monkeypatch):
    _, manifest = planned
    monkeypatch.delenv(job.VARIABLE, raising=False)
    command = [
        "snakemake",
        "--target-jobs",
        f"native:engine=llvm,scan={SCANS[0]}",
        f"compare:scan={SCANS[0]}",
        "-f",
    ]
    assert job.plan_of(CONFIG, root, command) is None
    monkeypatch.setenv(job.VARIABLE, str(manifest))
    assert list(job.plan_of(CONFIG, root, command).scans) == [SCANS[0]]
    assert job.plan_of(CONFIG, root, [*command[:-1], "benchmark:"]) is None
    assert job.plan_of(CONFIG, root, ["snakemake", "-n"]) is None


def test_a_manifest_that_is_gone_is_said_in_one_line(root, tmp_path):
    with pytest.raises(SynthSegError, match="call the workflow again"):
        job.JobPlan(CONFIG, root, tmp_path / "gone.jsonl", [SCANS[0]])


def test_a_job_inherits_the_manifest(monkeypatch, tmp_path):
    monkeypatch.delenv(job.VARIABLE, raising=False)
    assert job.manifest_of_call() is None
    monkeypatch.setenv(job.VARIABLE, str(tmp_path))
    assert job.manifest_of_call() == tmp_path
