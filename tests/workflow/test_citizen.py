"""As a workflow among others: by every way of calling it, as a module, in a report, for the catalog and the linter."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
import warm_snakemake
import yaml
from project import CONFIG, ROOT, write_image

from rule_patterns import patterns

pytestmark = pytest.mark.slow

JOBS = {"verify_env": 1, "native": 2, "picture": 2, "reference": 2, "compare": 2, "summary": 1}
HEAD = """
configfile: "config.yaml"


rule mine_first:
    input:
        "out/mine.txt",
"""
MODULE = """
module {name}:
    snakefile:
        "{root}/workflow/Snakefile"
    config:
        config["{name}"]
    {more}


use rule * from {name} as {name}_*
"""
MINE = """
rule mine:
    input:
        rules.synthseg_summary.output.summary,
    output:
        "out/mine.txt",
    shell:
        "cp {input} {output}"
"""


def importer(*names: str, more: str = "") -> str:
    """A workflow that imports this one, once under each name."""
    return HEAD + "".join(MODULE.format(name=name, root=ROOT, more=more) for name in names) + MINE


def snakemake(folder, *arguments, **environment) -> subprocess.CompletedProcess:
    env = {k: v for k, v in os.environ.items() if not k.startswith("SYNTHSEG_NATIVE")} | environment
    call = warm_snakemake.Process(arguments, folder, env)
    output, _ = call.communicate(timeout=300)
    return subprocess.CompletedProcess(arguments, call.returncode, output)


def jobs(output: str) -> dict[str, int]:
    """Rule and number of jobs, as a dry run counts them."""
    table = output.rpartition("job  ")[2].partition("total")[0]
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", table, re.M)}


@pytest.fixture
def study(tmp_path):
    """A folder with a sheet of two images and a configuration, and nothing of the workflow."""
    (tmp_path / "images").mkdir()
    for scan in ("01", "02"):
        write_image(tmp_path / f"images/sub-{scan}.nii")
    rows = [f"sub-{scan}\timages/sub-{scan}.nii" for scan in ("01", "02")]
    (tmp_path / "samples.tsv").write_text("\n".join(["participant_id\timage", *rows]) + "\n")
    config = CONFIG | {"model": "compact2mm", "engines": ["llvm"], "results": "derivatives/a b"}
    (tmp_path / "mine.json").write_text(json.dumps(config))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"synthseg": config, "mine": 1}))
    return tmp_path


@pytest.mark.parametrize("snakefile", ["Snakefile", "workflow/Snakefile"])
def test_both_snakefiles_are_the_workflow_from_anywhere(study, snakefile, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    call = ["--directory", study, "--configfile", study / "mine.json", "--cores", 1, "-n"]
    done = snakemake(elsewhere, "--snakefile", ROOT / snakefile, *call)
    assert done.returncode == 0, done.stdout
    assert jobs(done.stdout) == JOBS | {"all": 1}


def test_a_module_lists_all_jobs_below_the_importers_results(study):
    (study / "Snakefile").write_text(importer("synthseg"))
    done = snakemake(study, "--cores", 1, "-n")
    assert done.returncode == 0, done.stdout
    wanted = {f"synthseg_{name}": count for name, count in JOBS.items()}
    assert jobs(done.stdout) == wanted | {"mine": 1, "mine_first": 1}, "the importer's first rule is the target"
    assert "derivatives/a b/llvm/sub-01/anat/sub-01_T1w_seg-compact2mm_res-2mm_dseg.nii.gz" in done.stdout
    assert not (study / "results").exists()


def test_two_modules_keep_their_models_apart(study):
    config = yaml.safe_load((study / "config.yaml").read_text())
    (study / "models").symlink_to(ROOT / "models")
    config["other"] = config["synthseg"] | {"model": "models/compact2mm", "results": "other", "engines": ["tensorflow"]}
    (study / "config.yaml").write_text(yaml.safe_dump(config))
    (study / "Snakefile").write_text(importer("synthseg", "other"))
    done = snakemake(study, "--cores", 1, "-n", "-p", "other_all", "synthseg_all")
    assert done.returncode == 0, done.stdout
    commands = re.findall(r"scripts/native\.py(?:.*\\\n)+", done.stdout)
    folders = {re.search(r"--dseg '?(\w+)", c)[1]: re.search(r"--model (\S+)", c)[1] for c in commands}
    assert len(commands) == 4
    assert folders == {"derivatives": str(ROOT / "models/compact2mm"), "other": "models/compact2mm"}


def test_what_moves_only_snakemakes_paths_is_refused_in_one_line(study):
    (study / "Snakefile").write_text(importer("synthseg", more='prefix:\n        "moved"'))
    done = snakemake(study, "--cores", 1, "-n")
    assert done.returncode != 0
    assert "synthseg-native: module: prefix, replace_prefix or pathvars move the results: set results" in done.stdout


def test_a_module_whose_code_is_not_on_the_disk_is_one_line(study):
    (study / "workflow/rules").mkdir(parents=True)
    for file in ("workflow/Snakefile", "workflow/rules/common.smk"):
        (study / file).write_text((ROOT / file).read_text())
    done = snakemake(study, "--configfile", "mine.json", "--cores", 1, "-n")
    assert done.returncode != 0 and "Traceback" not in done.stdout
    assert f"synthseg-native: {study}: its code is not there: clone the project" in done.stdout


def test_a_report_has_everything_by_category_without_a_network(finished, tmp_path):
    project = finished.copy(tmp_path / "project")
    project.configure(benchmark={"scans": 1})
    for table in ("benchmark.tsv", "benchmark_runs.tsv"):
        (project.folder / "results" / table).write_text("scan\tengine\nall\ttensorflow\n")
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = snakemake(project.folder, "--configfile", "config.json", "--report", "report.zip", **nowhere)
    assert done.returncode == 0, done.stdout
    with zipfile.ZipFile(project.folder / "report.zip") as archive:
        names = {name.rpartition("/")[2] for name in archive.namelist()}
        page = archive.read("report/report.html").decode()
    start = "T1w_seg-compact2mm_res-2mm"
    per_scan = {f"sub-{scan}_{start}_{end}" for scan in ("01", "02") for end in ("qc.png", "compare.json")}
    tables = {"summary.tsv", "volumes_wide.tsv", "benchmark.tsv", "benchmark_runs.tsv"}
    assert names == per_scan | tables | {"report.html"}
    verdicts = {row["verdict"] for row in project.summary()}
    for said in ("Summary", "Benchmark", "Verdicts", "Pictures", "sub-01_T1w", "Outlines of the labels", *verdicts):
        assert said in page, said
    assert "checks the label maps voxel by" in page, "what the workflow does"


def test_a_report_goes_without_what_failed(finished, tmp_path):
    project = finished.copy(tmp_path / "project")
    project.picture("02").unlink()
    done = snakemake(project.folder, "--configfile", "config.json", "--report", "report.zip")
    assert done.returncode == 0, done.stdout
    with zipfile.ZipFile(project.folder / "report.zip") as archive:
        pictures = [name for name in archive.namelist() if name.endswith(".png")]
    assert len(pictures) == 1


def test_a_job_of_a_cluster_needs_its_line_of_the_manifest_alone(finished, tmp_path):
    project = finished.copy(tmp_path / "project")
    picture = project.picture("01")
    picture.unlink()
    (project.folder / "samples.tsv").unlink()
    (manifest,) = (project.folder / "results/.state").glob("manifest-*.jsonl")
    job = f"picture:engine={picture.relative_to(project.folder / 'results').parts[0]},scan=sub-01/anat/sub-01_T1w"
    call = ["--configfile", "config.json", "--cores", 1, "--mode", "remote", "--target-jobs", job]
    call += ["--allowed-rules", "picture", "--nolock", "--ignore-incomplete", "--no-hooks"]
    done = snakemake(project.folder, *call, SYNTHSEG_NATIVE_MANIFEST=str(manifest))
    assert done.returncode == 0 and picture.is_file(), done.stdout


def test_the_patterns_that_tests_read_are_snakemakes(study):
    done = snakemake(study, "--snakefile", ROOT / "Snakefile", "--configfile", "mine.json", "--summary")
    assert done.returncode == 0, done.stdout
    listed = {line.split("\t")[0] for line in done.stdout.splitlines() if line.startswith("derivatives/")}
    found, scan = patterns("derivatives/a b", "compact2mm", "2mm"), "sub-01/anat/sub-01_T1w"
    expected = {found.path(name, "llvm", scan) for name in found.of_engine}
    expected |= {found.path(name, "reference", scan) for name in found.reference}
    assert expected | set(found.summary.values()) <= listed


def test_the_linter_names_nothing_but_what_is_refused_on_purpose():
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; sys.path.insert(0, '.'); import lint; print(lint.snakemake_lint(), lint.rule_graph())",
        ],
        cwd=ROOT / "scripts",
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "[] []", done.stdout + done.stderr


def test_the_linter_chooses_no_engine(tmp_path):
    """As shipped, the engine is the best one that works here: to find it takes environments and minutes."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    done = snakemake(tmp_path, "--snakefile", ROOT / "Snakefile", "--lint")
    assert "Lints for rule native" in done.stdout, done.stdout
    assert not (tmp_path / "results/engine.json").exists() and not (tmp_path / "results/env").exists()


def test_the_catalog_finds_what_it_asks_for():
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text())["usage"]
    assert set(usage) == {"mandatory-flags", "software-stack-deployment", "report"} and usage["report"] is True
    assert set(usage["mandatory-flags"]) == {"desc", "flags"}
    assert not any(usage["software-stack-deployment"].values()), "environments come from locks"
    for file in ("workflow/Snakefile", "config/README.md", "config/config.yaml", "README.md", "LICENSE"):
        assert (ROOT / file).is_file()
