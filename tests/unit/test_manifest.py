"""The manifest of a call: written once, read a line at a time."""

import json
from dataclasses import replace

import pytest

from synthseg_native.cohort import manifest as manifests
from synthseg_native.cohort.manifest import Manifest, Run, Scan
from synthseg_native.errors import SynthSegError


def made(number: int, **changes) -> Scan:
    name = f"sub-{number:02}/anat/sub-{number:02}_T1w"
    runs = {"llvm": Run({"dseg": f"r/{name}.nii.gz"}, f"r/.state/{name}.json", {"mode": "fast", "content": "ab"})}
    values = {"entities": {"participant_id": f"{number:02}"}, "sheet": {"age": "30"}, "row": {"image": "x"}}
    return Scan(name, f"/data/{number}.nii", **values, runs=runs | changes)


@pytest.fixture
def cohort() -> Manifest:
    model = {"name": "compact2mm", "dir": "models/compact2mm", "research_grade": False}
    reference = {"reference": Run({"dseg": "y"}, "z", {"kind": "own"})}
    scans = [made(1), made(2, **reference), made(3)]
    return Manifest("results", ["llvm"], model, {"kind": "own", "runtime": "local"}, True, scans)


def test_what_is_written_is_what_is_read(cohort, tmp_path):
    assert manifests.read(cohort.write(tmp_path)) == cohort
    assert [scan.compared for scan in cohort.scans] == [False, True, False]


def test_a_job_reads_its_own_line_and_parses_no_other(cohort, tmp_path):
    path = cohort.write(tmp_path)
    head, first, second, third = path.read_text().splitlines()
    path.write_text("\n".join([head, first[:20], second, "not JSON", third]) + "\n")
    found, scan = manifests.read_scan(path, "sub-02/anat/sub-02_T1w")
    assert scan == cohort.scans[1] and found.model == cohort.model and found.scans == []


def test_a_name_that_another_begins_with_is_not_it(cohort, tmp_path):
    longer = Scan("sub-02/anat/sub-02_T1w_more", "x", {}, {}, {})
    cohort.scans.insert(0, longer)
    _, scan = manifests.read_scan(cohort.write(tmp_path), "sub-02/anat/sub-02_T1w")
    assert scan.image == "/data/2.nii"


def test_the_name_follows_the_content(cohort, tmp_path):
    first = cohort.write(tmp_path)
    cohort.scans[0].runs["llvm"].identity["mode"] = "default"
    assert replace(cohort).write(tmp_path) != first and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "No such file or directory: call the workflow again"),
        (lambda path: path.write_text("{"), "damaged: call the workflow again"),
        (lambda path: path.write_text(""), "damaged: call the workflow again"),
        (lambda path: path.write_text("[1]\n"), "damaged: call the workflow again"),
        (lambda path: path.write_text('{"schema":1}\n'), "damaged: call the workflow again"),
        (lambda path: path.write_bytes(b"\xff\xfe"), "damaged: call the workflow again"),
        (lambda path: path.write_text(json.dumps({"schema": 99}) + "\n"), "of another version"),
    ],
)
@pytest.mark.parametrize("read", [manifests.read, lambda path: manifests.read_scan(path, "sub-01/anat/sub-01_T1w")])
def test_a_damaged_one_is_said_in_one_line(cohort, tmp_path, damage, said, read):
    path = cohort.write(tmp_path)
    damage(path)
    with pytest.raises(SynthSegError) as error:
        read(path)
    assert str(path) in error.value.message and said in error.value.message and "\n" not in error.value.message


def test_a_scan_that_is_not_in_it_is_said(cohort, tmp_path):
    with pytest.raises(SynthSegError, match="no line for sub-09"):
        manifests.read_scan(cohort.write(tmp_path), "sub-09/anat/sub-09_T1w")
