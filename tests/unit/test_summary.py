"""The cohort's tables, from run records, volumes and comparisons written by hand."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from rule_patterns import patterns
from synthseg_native.cohort import benchmark
from synthseg_native.cohort.manifest import Manifest, Run, Scan
from synthseg_native.cohort.paths import failure_of
from synthseg_native.cohort.samples import read_samples
from synthseg_native.cohort.summary import summarise, terminal
from synthseg_native.cohort.summary.rows import COLUMNS, read_rows
from synthseg_native.cohort.summary.terminal import print_summary
from synthseg_native.cohort.tables import read_tsv, write_tsv
from synthseg_native.files import write_sealed, write_text
from synthseg_native.identity import stages
from synthseg_native.networks.cards import read_labels
from synthseg_native.results.tables import VOLUME_COLUMNS

ROOT = Path(__file__).parents[2]
MODELS = {"compact2mm": ROOT / "models" / "compact2mm", "synthseg2": ROOT / "models" / "synthseg2"}
IDENTITY = {"form": stages.FORM, "code": {"labels": "one"}, "mode": "default"}
DESIGN_COLUMNS = """\
participant_id session_id acq run suffix status error_code error qc_flags
model research_grade mode engine engine_version precision device threads verdict verdict_reason reference_kind
reference_runtime reference_id reference_emulated geometry_equal n_voxels_foreground n_voxels_different
n_voxels_contralateral min_dice min_dice_label max_volume_difference_mm3 max_volume_difference_label native_wall_s
reference_wall_s native_peak_rss_mib reference_peak_rss_mib input_shape input_voxel_mm input_orientation obliquity_deg
header_flags output_voxel_mm brain_mm3 total_intracranial_mm3 n_labels_missing labels_at_fov_edge
mean_confidence
"""


class Cohort:
    """A results folder with sub-01 (compared), sub-02 session a (not compared yet) and sub-03, made by hand."""

    def __init__(self, folder, model="compact2mm", runtime="docker"):
        self.results, self.model = folder / "results", model
        self.scans = {
            "sub-01/anat/sub-01_T1w": self.entities("01"),
            "sub-02/ses-a/anat/sub-02_ses-a_run-1_T1w": self.entities("02", session_id="a", run="1"),
            "sub-03/anat/sub-03_T1w": self.entities("03"),
        }
        self.plan = {
            "results": str(self.results),
            "engines": ["tensorflow"],
            "model": {"name": model, "dir": str(MODELS[model]), "research_grade": model != "compact2mm"},
            "reference": {"kind": "own", "runtime": runtime},
            "scans": [
                {
                    "scan": scan,
                    "entities": entities,
                    "sheet": {"age": "30", "site": ""},
                    "row": {"participant_id": entities["participant_id"], "image": f"i/{number}.nii", "age": "30"},
                    "image": str(folder / f"i/{number}.nii"),
                    "reference": True,
                }
                for number, (scan, entities) in enumerate(self.scans.items(), start=1)
            ],
            "benchmark": False,
        }
        self.labels = read_labels(MODELS[model] / "labels.tsv")

    @staticmethod
    def entities(participant, **further):
        return {"participant_id": participant, "session_id": "", "acq": "", "run": "", "suffix": "T1w", **further}

    def scan(self, number):
        return list(self.scans)[number - 1]

    def files(self, number, engine="tensorflow", model=None):
        found, scan = patterns(self.results, model or self.model, "2mm"), self.scan(number)
        names = found.reference if engine == "reference" else found.of_engine
        return {name: Path(found.path(name, engine, scan)) for name in names}

    def run(
        self,
        number,
        engine="tensorflow",
        finished="2026-11-22T10:00:00.000+00:00",
        labels_sha256="aa",
        flags=None,
        **output,
    ):
        """A good run: label k has the soft volume 10 k and k voxels of 8 mm3; the last label has none.

        flags: of the header; output: further entries of the record's output, as qc.
        """
        files = self.files(number, engine)
        reference = {"kind": "own", "runtime": "docker", "id": "sha256:1f", "emulated": True}
        record = {
            "kind": "native" if engine != "reference" else "reference",
            "status": "ok",
            "scan": self.scan(number),
            "engine": {"name": engine, "version": "2.15.1", "package_version": "0.1.0"},
            "model": {"name": self.model, "weights_sha256": "ww"},
            "mode": "default",
            "precision": "float32",
            "device": "cpu",
            "threads": 2,
            "input": {
                "name": "1.nii",
                "sha256": "ii",
                "shape": [60, 70, 80],
                "voxel_mm": [1.2, 0.9, 1.5],
                "orientation": "LIA",
                "obliquity_deg": 6.0,
                "header_flags": ["sform_qform_differ", "oblique"] if flags is None else flags,
            },
            "output": {"labels_sha256": labels_sha256, "shape": [36, 32, 60], "voxel_mm": [2.0, 2.0, 2.0]} | output,
            "machine": {"cpu": "Zen 5", "system": "Linux", "arch": "x86_64", "emulated": False},
            "predicted_peak_mib": 1100,
            "wall_s": 12.5 if engine != "reference" else 20.0,
            "peak_rss_mib": 1000.4,
            "reference": reference if engine == "reference" else None,
            "key": IDENTITY,
            "finished": finished,
        }
        for name in set(files) - {"record", "compare", "picture"}:
            write_text(files[name], "")
        last = len(self.labels) - 1
        lines = ["\t".join(VOLUME_COLUMNS)]
        known = "n/a\tn/a" if engine == "reference" else None  # the last two columns: only of native runs
        for k in range(1, len(self.labels)):
            count = k if k != last else 0
            name = f"{self.labels.index[k]}\t{self.labels.names[k]}\t{self.labels.freesurfer_names[k]}"
            of_native = f"{'0.9000' if count else 'n/a'}\t{str(k == 1).lower()}"
            lines.append(f"{name}\t{10 * k:.3f}\t{count}\t{8 * count:.3f}\t{known or of_native}")
        write_text(files["volumes"], "\n".join(lines) + "\n")
        write_sealed(files["record"], record)

    def fail(
        self,
        number,
        engine="tensorflow",
        code="bad_input",
        message="it broke",
        finished="2026-11-22T11:00:00",
        model=None,
    ):
        error = {"code": code, "message": message, "transient": code != "bad_input"}
        record = self.files(number, engine, model)["record"]
        path = failure_of(self.results / ".state/failed", engine, self.scan(number), record)
        write_sealed(path, {"status": "failed", "error": error, "reference": None, "finished": finished})

    def compare(self, number, native="aa", reference="aa"):
        comparison = {
            "verdict": "identical",
            "verdict_reason": "every voxel has the same label",
            "geometry_equal": True,
            "n_voxels_foreground": 100,
            "n_voxels_different": 0,
            "n_voxels_contralateral": 0,
            "min_dice": 1.0,
            "min_dice_label": "left cerebral cortex",
            "max_volume_difference_mm3": -0.25,
            "max_volume_difference_label": "left cerebral white matter",
            "labels_sha256": {"native": native, "reference": reference},
        }
        write_sealed(self.files(number)["compare"], comparison)

    def good(self, *numbers):
        for number in numbers:
            self.run(number)
            self.run(number, "reference")
            self.compare(number)

    def manifest(self, **changes) -> Manifest:
        plan = self.plan | changes
        engines = plan["engines"]

        def run(number, engine):
            files = {name: str(path) for name, path in self.files(number, engine).items()}
            failure = failure_of(self.results / ".state/failed", engine, self.scan(number), files["record"])
            return Run(files, str(failure), IDENTITY)

        scans = []
        for number, row in enumerate(plan["scans"], start=1):
            names = [*engines, *(["reference"] if row["reference"] else [])]
            about = {name: row[name] for name in ("scan", "image", "entities", "sheet", "row")}
            scans.append(Scan(**about, runs={engine: run(number, engine) for engine in names}))
        return Manifest(**plan | {"scans": scans})

    def rows(self):
        summarise(self.manifest())
        return read_tsv(self.results / "summary.tsv")


def column(table, name):
    return [row[name] for row in table]


@pytest.fixture
def cohort(tmp_path):
    return Cohort(tmp_path)


def test_a_good_row(cohort):
    cohort.good(1, 2, 3)
    first, second, _ = cohort.rows()
    expected = {
        "participant_id": "sub-01",
        "session_id": "n/a",
        "status": "ok",
        "error": "n/a",
        "research_grade": "false",
        "engine": "tensorflow",
        "threads": "2",
        "verdict": "identical",
        "reference_kind": "own",
        "reference_runtime": "docker",
        "reference_id": "sha256:1f",
        "reference_emulated": "true",
        "geometry_equal": "true",
        "n_voxels_different": "0",
        "max_volume_difference_mm3": "-0.25",
        "native_wall_s": "12.5",
        "reference_wall_s": "20.0",
        "input_shape": "60x70x80",
        "input_voxel_mm": "1.2x0.9x1.5",
        "output_voxel_mm": "2x2x2",
        "header_flags": "sform_qform_differ,oblique",
        "brain_mm3": "4960.0",  # 10 mm3 x (1 + ... + 31)
        "total_intracranial_mm3": "n/a",
        "n_labels_missing": "1",
        "mean_confidence": "n/a",
        "label_map": "tensorflow/sub-01/anat/sub-01_T1w_seg-compact2mm_res-2mm_dseg.nii.gz",
        "run_record": "tensorflow/sub-01/anat/sub-01_T1w_seg-compact2mm_res-2mm_run.json",
        "sheet_age": "30",
        "sheet_site": "n/a",
    }
    assert {name: first[name] for name in expected} == expected
    assert (second["session_id"], second["run"]) == ("ses-a", "1")


def test_quality_flags_and_what_is_at_the_edge(cohort):
    cohort.run(1, qc={"flags": ["low_confidence", "asymmetry"], "labels_at_fov_edge": [3, 16]})
    cohort.run(2, qc={"flags": [], "labels_at_fov_edge": []})
    cohort.run(3)  # a record of before there were any
    rows = cohort.rows()
    assert [row["qc_flags"] for row in rows] == ["low_confidence,asymmetry", "none", "n/a"]
    assert [row["labels_at_fov_edge"] for row in rows] == ["left cerebral cortex,brain-stem", "none", "n/a"]


def test_pandas_reads_the_tables_with_their_types(cohort):
    """As people do: no quotes, n/a is what is missing, numbers are numbers, ids are text."""
    cohort.good(1, 2)
    cohort.fail(3)
    cohort.rows()
    table = pd.read_csv(cohort.results / "summary.tsv", sep="\t", quoting=3, dtype={"participant_id": str})
    assert list(table["participant_id"]) == ["sub-01", "sub-02", "sub-03"]
    assert list(table["status"]) == ["ok", "ok", "failed"]
    assert table["brain_mm3"].dtype == "float64" and list(table["brain_mm3"].isna()) == [False, False, True]
    volumes = pd.read_csv(cohort.results / "volumes.tsv", sep="\t", quoting=3)
    assert volumes["soft_volume_mm3"].notna().all() and len(volumes) == len(read_tsv(cohort.results / "volumes.tsv"))


def test_files_that_are_not_there_are_not_named(cohort):
    cohort.good(1)
    write_text(cohort.files(1)["dseg_native"], "")
    first, second, _ = cohort.rows()
    assert first["label_map_native"] == "tensorflow/sub-01/anat/sub-01_T1w_seg-compact2mm_res-native_dseg.nii.gz"
    assert (first["picture"], second["label_map"]) == ("n/a", "n/a")
    write_text(cohort.files(1)["picture"], "")
    assert cohort.rows()[0]["picture"] == "tensorflow/sub-01/anat/sub-01_T1w_seg-compact2mm_res-2mm_qc.png"


def test_where_nothing_ran_nothing_is_said_of_how(cohort, capsys):
    cohort.fail(1)
    cohort.rows()
    print_summary(cohort.manifest())
    said = capsys.readouterr().out
    assert "Homogeneous" not in said and "\n\n\n" not in said and "Odd in" not in said


def test_odd_scans_are_named_for_people_but_not_hundreds_of_them(cohort, capsys):
    for number in (1, 2, 3):
        cohort.run(number, qc={"flags": ["low_confidence", "asymmetry"][:number], "labels_at_fov_edge": []})
    cohort.rows()
    print_summary(cohort.manifest())
    said = capsys.readouterr().out
    assert "Worth a look:\n  sub-01_T1w: low_confidence\n  sub-02_ses-a_run-1_T1w: low_confidence, asymmetry\n" in said
    table = read_tsv(cohort.results / "summary.tsv")
    more = [{**row, "acq": str(n)} for n in range(4) for row in table]
    write_tsv(cohort.results / "summary.tsv", list(table[0]), more)
    print_summary(cohort.manifest())
    said = capsys.readouterr().out
    assert said.count(": low_confidence") == 10 and "\n  and 2 more\n" in said


def test_what_is_odd_about_scans_is_told_by_flag(cohort, capsys):
    """It may bias volumes, and a whole cohort of one scanner may have it."""
    cohort.plan["engines"] = ["tensorflow", "llvm"]
    for number, flags in ((1, ["sheared"]), (2, ["sheared", "sform_zeros"]), (3, [])):
        for engine in cohort.plan["engines"]:
            cohort.run(number, engine, flags=flags)
    cohort.rows()
    print_summary(cohort.manifest())
    second = "sub-02_ses-a_run-1_T1w"
    said = capsys.readouterr().out
    assert f"volumes):\n  sheared: sub-01_T1w, {second}\n  sform_zeros: {second}\n\n" in said
    table = read_tsv(cohort.results / "summary.tsv")
    more = [{**row, "acq": str(n)} for n in range(4) for row in table]
    write_tsv(cohort.results / "summary.tsv", list(table[0]), more)
    print_summary(cohort.manifest())
    said = capsys.readouterr().out
    assert "  sheared: sub-01_acq-0_T1w, sub-02_ses-a_acq-0_run-1_T1w, sub-01_acq-1_T1w and 5 more\n" in said


def test_a_scan_that_all_engines_find_odd_is_named_once(cohort, capsys):
    cohort.plan["engines"] = ["tensorflow", "llvm"]
    odd = {"flags": ["asymmetry"], "labels_at_fov_edge": []}
    cohort.run(1, qc=odd)
    cohort.run(1, "llvm", qc=odd)
    cohort.run(2, "llvm", qc=odd)
    cohort.run(2, qc={"flags": [], "labels_at_fov_edge": []})
    cohort.rows()
    print_summary(cohort.manifest())
    said = capsys.readouterr().out
    assert "Worth a look:\n  sub-01_T1w: asymmetry\n  sub-02_ses-a_run-1_T1w llvm: asymmetry\n\n" in said


def test_what_produced_the_cohort_is_told_at_the_end(cohort, capsys):
    cohort.good(1, 2)
    cohort.fail(3)
    cohort.rows()
    found = json.loads((cohort.results / "homogeneity.json").read_text())
    assert found["tensorflow"]["homogeneous"] is True and found["tensorflow"]["runs"] == 2
    assert found["tensorflow"]["cpu"] == {"Zen 5": 2} and found["tensorflow"]["engine_version"] == {"2.15.1": 2}
    print_summary(cohort.manifest())
    said = capsys.readouterr().out
    assert "\nHomogeneous: 2 runs, tensorflow 2.15.1, float32, cpu, 2 threads, Zen 5\n" in said

    record = json.loads(cohort.files(2)["record"].read_text())
    record["machine"]["cpu"], record["device"] = "Xeon", "gpu"
    write_sealed(cohort.files(2)["record"], record)
    cohort.rows()
    assert json.loads((cohort.results / "homogeneity.json").read_text())["tensorflow"]["homogeneous"] is False
    print_summary(cohort.manifest())
    said = capsys.readouterr().out
    assert "\nMixed: 2 runs of tensorflow differ in device: cpu (1), gpu (1); cpu: Zen 5 (1), Xeon (1)\n" in said


def test_every_engine_is_a_cohort_of_its_own(cohort, capsys):
    cohort.plan["engines"] = ["tensorflow", "llvm"]
    cohort.good(1)
    cohort.run(1, "llvm")
    cohort.rows()
    print_summary(cohort.manifest())
    said = capsys.readouterr().out.splitlines()
    assert [line.split(",")[1] for line in said if line.startswith("Homogeneous: 1 run,")] == [
        " tensorflow 2.15.1",
        " llvm 2.15.1",
    ]


def test_columns_are_the_design_s_and_every_one_is_explained(cohort):
    cohort.good(1)
    columns = list(cohort.rows()[0])
    assert " ".join(columns).startswith(" ".join(DESIGN_COLUMNS.split()))
    assert columns == [*COLUMNS, "sheet_age", "sheet_site"]
    described = json.loads((cohort.results / "summary.json").read_text())
    assert list(described) == columns and all(entry["Description"] for entry in described.values())
    assert described["native_wall_s"]["Units"] == "s" and "Units" not in described["status"]


def test_a_failed_a_missing_and_a_repaired_scan(cohort):
    cohort.good(1)
    cohort.fail(1, finished="2026-11-22T09:00:00")  # before the success
    cohort.run(2)
    cohort.fail(2, message="/data/my project/sub-02.nii: not an image: replace it")  # after an older success
    first, second, third = cohort.rows()
    assert first["status"] == "ok" and first["verdict"] == "identical"
    assert (second["status"], second["error_code"]) == ("failed", "bad_input")
    assert second["error"] == "my project/sub-02.nii: not an image: replace it"
    assert second["label_map"] == second["native_wall_s"] == second["brain_mm3"] == "n/a"
    assert second["verdict_reason"].startswith("native run failed: my project/sub-02.nii")
    assert (third["status"], third["error"], third["error_code"]) == ("missing", "has not run", "n/a")
    assert third["verdict_reason"] == "native run has not run"


def test_a_label_map_that_was_deleted_is_missing(cohort):
    cohort.good(1)
    cohort.files(1)["dseg"].unlink()
    assert cohort.rows()[0]["status"] == "missing"


def test_a_reference_that_failed(cohort):
    cohort.good(1)
    cohort.run(2)
    cohort.fail(2, "reference", code="daemon", message="docker: no daemon answers: start it")
    row = cohort.rows()[1]
    assert row["status"] == "ok" and row["label_map"] != "n/a"
    assert (row["verdict"], row["verdict_reason"]) == (
        "not_compared",
        "reference failed: docker: no daemon answers: start it",
    )
    assert (row["error_code"], row["error"]) == ("daemon", "reference: docker: no daemon answers: start it")
    assert (row["reference_kind"], row["reference_runtime"], row["reference_id"]) == ("own", "docker", "n/a")
    assert row["geometry_equal"] == row["min_dice"] == row["reference_wall_s"] == "n/a"
    failed = read_tsv(cohort.results / "failed.tsv")
    assert [(row["participant_id"], row["error_code"]) for row in failed] == [("02", "daemon"), ("03", "n/a")]


def test_no_reference_asked_for(cohort):
    cohort.good(1)  # of an earlier run with a reference
    cohort.plan["reference"] = None
    for scan in cohort.plan["scans"]:
        scan["reference"] = False
    row = cohort.rows()[0]
    assert (row["verdict"], row["verdict_reason"]) == ("not_compared", "no reference asked for")
    assert row["reference_kind"] == row["reference_labels_sha256"] == row["n_voxels_foreground"] == "n/a"
    assert row["error"] == "n/a"


def test_a_comparison_of_other_label_maps_is_not_shown(cohort):
    cohort.good(1, 2, 3)
    cohort.run(1, labels_sha256="bb")
    cohort.files(2)["compare"].unlink()
    first, second, third = cohort.rows()
    assert first["verdict"] == "not_compared" and "other label maps" in first["verdict_reason"]
    assert second["verdict"] == "not_compared" and second["verdict_reason"] == "the comparison has not run"
    assert third["verdict"] == "identical"


def test_the_failure_of_another_model_does_not_touch_this_ones_result(cohort):
    cohort.good(1, 2, 3)
    cohort.fail(1, model="synthseg2")
    assert [row["status"] for row in cohort.rows()] == ["ok"] * 3


def test_failed_tsv_is_a_sample_sheet(cohort):
    cohort.good(1)
    cohort.fail(2, message="two\nlines\tand a tab")
    cohort.fail(3)
    cohort.rows()
    failed = read_tsv(cohort.results / "failed.tsv")
    assert list(failed[0]) == ["participant_id", "image", "age", "error_code", "error"]
    assert column(failed, "error") == ["two lines and a tab", "it broke"]
    scans = read_samples(cohort.results / "failed.tsv")
    assert [Path(scan.image).resolve() for scan in scans] == [
        Path(cohort.plan["scans"][number]["image"]).resolve() for number in (1, 2)
    ]


def test_an_image_named_relative_to_the_working_directory_is_found_from_failed_tsv(cohort, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    cohort.plan["scans"][0]["image"] = "data/1.nii"
    summarise(cohort.manifest(results="results"))
    assert read_tsv("results/failed.tsv")[0]["image"] == "../data/1.nii"


def test_failed_tsv_keeps_a_strange_path(cohort):
    strange = Path(cohort.plan["scans"][0]["image"]).with_name('  J\u00fcrgen\'s  "best" {scan} #1.nii')
    cohort.plan["scans"][0]["image"] = str(strange)
    cohort.rows()
    assert Path(read_samples(cohort.results / "failed.tsv")[0].image).resolve() == strange.resolve()


def test_failed_tsv_has_its_header_only_when_nothing_failed(cohort):
    cohort.good(1, 2, 3)
    cohort.rows()
    assert (cohort.results / "failed.tsv").read_text() == "participant_id\timage\tage\terror_code\terror\n"


def test_a_sheet_that_was_failed_tsv_does_not_bring_its_errors_back(cohort):
    for scan in cohort.plan["scans"]:
        scan["sheet"] |= {"error_code": "oom", "error": "old"}
        scan["row"] |= {"error_code": "oom", "error": "old"}
    cohort.good(1, 2)
    assert [name for name in cohort.rows()[0] if name.startswith("sheet_")] == ["sheet_age", "sheet_site"]
    assert column(read_tsv(cohort.results / "failed.tsv"), "error") == ["has not run"]


def test_volumes_long_and_wide(cohort):
    cohort.good(1)
    cohort.run(2)
    cohort.rows()
    long = read_tsv(cohort.results / "volumes.tsv")
    assert len(long) == 3 * 31 and set(column(long, "engine")) == {"tensorflow", "reference"}
    row = next(row for row in long if (row["name"], row["engine"]) == ("left cerebral cortex", "reference"))
    assert (row["participant_id"], row["index"], row["soft_volume_mm3"]) == ("sub-01", "3", "20.0")
    assert (row["n_voxels"], row["voxel_volume_mm3"]) == ("2", "16.0")
    assert (row["mean_posterior"], row["at_fov_edge"]) == ("n/a", "n/a"), "nobody knows a reference's posteriors"
    native = [row for row in long if (row["participant_id"], row["engine"]) == ("sub-02", "tensorflow")]
    assert column(native, "mean_posterior") == ["0.9"] * 30 + ["n/a"]
    assert column(native, "at_fov_edge") == ["true"] + ["false"] * 30
    wide = read_tsv(cohort.results / "volumes_wide.tsv")
    assert column(wide, "engine") == ["tensorflow", "reference", "tensorflow"] and wide[2]["run"] == "1"
    assert column(wide, "Left-Cerebral-Cortex_soft_volume_mm3") == ["20.0"] * 3 and len(wide[0]) == 5 + 1 + 31


def test_volumes_as_synthseg_writes_them(cohort):
    cohort.good(1)
    cohort.run(2)
    cohort.rows()
    raw = (cohort.results / "volumes_synthseg.csv").read_bytes()
    assert raw.count(b"\r\n") == 3 == raw.count(b"\n")
    header, first, second = csv.reader(raw.decode().splitlines())
    upstream = (ROOT / "tests/golden/t1_default_volumes.csv").read_text().splitlines()
    assert header == next(csv.reader(upstream))
    assert first[:3] == ["sub-01_T1w", "10.0", "20.0"] and second[0] == "sub-02_ses-a_run-1_T1w"


def test_total_intracranial_of_a_model_with_csf(tmp_path):
    cohort = Cohort(tmp_path, "synthseg2")
    cohort.good(1)
    row = cohort.rows()[0]
    total = 10 * 32 * 33 / 2  # 32 labels, label k has 10 k mm3
    assert float(row["total_intracranial_mm3"]) == total
    assert float(row["brain_mm3"]) == total - 160, "csf is channel 16"
    header, first = csv.reader((cohort.results / "volumes_synthseg.csv").read_text().splitlines())
    assert header[1] == "total intracranial" and float(first[1]) == total


def test_volumes_without_soft_values_stay_out_of_sums(cohort):
    cohort.good(1)
    path = cohort.files(1)["volumes"]
    path.write_text(re.sub(r"\t10\.000\t", "\tn/a\t", path.read_text()))
    for missing in ("n/a", "nan"):
        path.write_text(path.read_text().replace("\tn/a\t", f"\t{missing}\t"))
        assert cohort.rows()[0]["brain_mm3"] == "n/a"
    assert len((cohort.results / "volumes_synthseg.csv").read_text().splitlines()) == 1
    assert read_tsv(cohort.results / "volumes.tsv")[0]["soft_volume_mm3"] == "n/a"


def test_each_derivative_describes_itself(cohort):
    cohort.good(1)
    cohort.rows()
    native, reference = (
        json.loads((cohort.results / name / "dataset_description.json").read_text())
        for name in ("tensorflow", "reference")
    )
    assert native["DatasetType"] == "derivative" and native["GeneratedBy"][0]["Version"] == "0.1.0"
    assert "not for research" in native["Name"] and "Container" not in native["GeneratedBy"][0]
    assert reference["GeneratedBy"][0]["Container"] == {"Type": "docker", "Tag": "sha256:1f"}
    table = read_tsv(cohort.results / "reference" / "dseg.tsv")
    assert column(table, "index")[:3] == ["0", "2", "3"] and table[1]["color"] == "#f5f5f5"


def test_existing_label_maps_are_not_said_to_be_the_models(cohort):
    cohort.plan["reference"] = {"kind": "existing", "runtime": "none"}
    cohort.run(1, "reference")
    record = json.loads(cohort.files(1, "reference")["record"].read_text())
    write_sealed(cohort.files(1, "reference")["record"], {**record, "reference": cohort.plan["reference"]})
    cohort.rows()
    text = (cohort.results / "reference" / "dataset_description.json").read_text()
    assert json.loads(text)["Name"] == "Existing label maps" and "compact2mm" not in text


def test_no_absolute_path_in_the_summary(cohort, tmp_path):
    cohort.good(1)
    cohort.fail(2, message=f"{tmp_path}/x.nii: no such file: see {tmp_path}/log (code 1/2)")
    cohort.fail(3, "reference", message=f"'{tmp_path}/y' failed")
    cohort.run(3)
    rows = cohort.rows()
    assert str(tmp_path) not in (cohort.results / "summary.tsv").read_text()
    assert rows[1]["error"] == "x.nii: no such file: see log (code 1/2)"


def test_a_damaged_record_gives_no_numbers(cohort):
    cohort.good(1)
    cohort.files(1)["record"].write_text('{"status": "o')
    row = cohort.rows()[0]
    assert row["status"] == "stale" and row["state_reason"].endswith("run.json is not as it was made")
    assert row["brain_mm3"] == row["labels_sha256"] == "n/a"


def test_table_for_people(cohort, capsys):
    cohort.good(1)
    cohort.fail(2, message="2.nii: not an image: replace it")
    cohort.run(3)
    cohort.fail(3, "reference", code="daemon", message="no daemon")
    cohort.rows()
    header = "scan engine n median_wall_s mean_wall_s sd_wall_s"
    header += " time_ratio_geomean time_ratio_ci95_low time_ratio_ci95_high n_pairs threads cpu"
    header += " reference_kind reference_runtime reference_emulated"
    values = "all tensorflow 5 10.04 10.06 0.213 0.7332 0.704 0.763 5 1 M4 own docker true"
    reference = "all reference 5 13.7 13.7 0.1 n/a n/a n/a n/a 1 M4 own docker true"
    table = "\n".join("\t".join(line.split()) for line in (header, values, reference)) + "\n"
    write_text(cohort.results / "benchmark.tsv", table)
    print_summary(cohort.manifest(benchmark=True))
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert " ".join(lines[1].split()) == "sub-01_T1w ok identical (to the own reference) 0 12.5 1000"
    assert len({line.index("ok") for line in (lines[1], lines[3])}) == 1, "columns are aligned"
    assert "  sub-02_ses-a_run-1_T1w: 2.nii: not an image: replace it" in lines
    assert "  sub-03_T1w: reference: no daemon" in lines
    quoted = "Benchmark: tensorflow 10.0 s (median of 5, mean 10.1 ± 0.2 s); 0.73 of the time of the own reference"
    assert f"{quoted} (docker, emulated) (5 pairs, 95 % interval 0.70 to 0.76), 1 thread, M4" in lines
    assert out.count("Benchmark:") == 1 and "summary.tsv has everything" in out and "not for research" in out
    print_summary(cohort.manifest())  # the table of a benchmark that is no longer asked for
    assert "Benchmark:" not in capsys.readouterr().out


def run_script(*arguments):
    command = [sys.executable, str(ROOT / "scripts" / "summarise.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT / "src")})


@pytest.mark.slow
def test_script(cohort, tmp_path):
    cohort.good(1, 2, 3)
    manifest = cohort.manifest().write(tmp_path)
    done = run_script("--manifest", manifest)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (cohort.results / "failed.tsv").unlink()
    done = run_script("--manifest", manifest, "--show")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("identical (to the own reference)") == 3
    assert not (cohort.results / "failed.tsv").exists(), "showing writes nothing"
    done = run_script("--manifest", cohort.manifest(results=str(tmp_path / "elsewhere")).write(tmp_path), "--show")
    assert done.returncode == 1 and "summary.tsv: no such file: run the workflow first" in done.stderr


def test_docs_name_every_column_as_the_code_does():
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for name, (unit, meaning) in COLUMNS.items():
        assert f"| | `{name}` | {unit} | {meaning} |" in page
    sections = page.split("| **`")
    for file, columns in (("benchmark_runs.tsv", benchmark.RUN_COLUMNS), ("benchmark.tsv", benchmark.COLUMNS)):
        section = next(part for part in sections if part.startswith(f"{file}`"))
        assert [name for name in columns if f"`{name}`" not in section] == []


def test_of_many_rows_their_number_is_told(cohort, monkeypatch):
    cohort.good(1, 2)
    cohort.fail(3)
    cohort.rows()
    monkeypatch.setattr(terminal, "MOST_ROWS", 2)
    said = list(terminal.lines(cohort.manifest(), read_rows(cohort.results / "summary.tsv")))
    assert said[:2] == ["status: ok 2, failed 1", "verdict: identical 2, not compared 1"]
