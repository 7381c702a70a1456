"""The configuration against its schema: defaults, docs in step. Its mistakes: test_bad_input.py."""

import datetime
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from rule_patterns import with_patterns
from synthseg_native import engines, options
from synthseg_native.cohort import config as configuration
from synthseg_native.cohort import demo, deploy, ranking
from synthseg_native.cohort.plan import Plan
from synthseg_native.errors import SynthSegError


@pytest.fixture(scope="module")
def schema(root):
    return configuration.read_schema(root / "workflow/schemas/config.schema.yaml")


def complete(schema, **config):
    return configuration.complete({"samples": "s.tsv", "model": "synthseg1"} | config, schema)


def test_defaults_fill_nested_keys(schema):
    config = complete(schema, reference={"runtime": "docker"})
    assert config["reference"]["kind"] == "own" and config["reference"]["runtime"] == "docker"
    assert config["benchmark"] == {"scans": 0, "repeats": 5, "warmups": 1}
    assert config["reference"]["subjects"] == "all"


def test_engines_are_a_list_or_auto(schema):
    assert complete(schema)["engines"] == "auto"
    assert complete(schema, engines=["llvm", "torch"])["engines"] == ["llvm", "torch"]
    assert list(engines.NAMES) == schema["properties"]["engines"]["anyOf"][1]["items"]["enum"]
    assert list(engines.PRECISIONS) == schema["properties"]["precision"]["enum"]
    assert complete(schema, engines="llvm")["engines"] == ["llvm"]
    assert complete(schema, engines="llvm, torch")["engines"] == ["llvm", "torch"]
    for former in ("openvino", ["openvino"], ["tensorflow", "openvino"]):
        with pytest.raises(SynthSegError, match="openvino: no such engine any more: llvm took its place: write that"):
            complete(schema, engines=former)
    for wrong in ("abacus", "llvm torch", [], ["auto"], ["llvm", "llvm"]):
        with pytest.raises(SynthSegError, match="config: engines"):
            complete(schema, engines=wrong)


@pytest.mark.parametrize("written", ["results", "./results", "results/", "x/../results//"])
def test_a_folder_is_the_same_however_it_is_written(schema, written):
    """As the targets of the workflow name it: results/summary.tsv."""
    assert complete(schema, results=written)["results"] == "results"


def test_paths_may_begin_in_the_home(schema, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = complete(schema, samples="~/study/s.tsv", weights="~/w.h5", weights_cache="~/cache/",
                      reference={"kind": "existing", "pattern": "~/maps//{scan}/*.nii"})  # fmt: skip
    assert (config["samples"], config["weights"]) == ("/home/me/study/s.tsv", "/home/me/w.h5")
    assert config["weights_cache"] == "/home/me/cache"
    assert config["reference"]["pattern"] == "/home/me/maps/{scan}/*.nii"
    image = complete(schema, reference={"runtime": "apptainer", "image": "~/own.sif"})["reference"]
    assert configuration.complete_reference(image, "synthseg1")["image"] == "/home/me/own.sif"
    with pytest.raises(
        SynthSegError, match=r"config: ~nobody-here/s\.tsv: there is no such user: write the whole path"
    ):
        complete(schema, samples="~nobody-here/s.tsv")


def test_every_key_that_is_a_path_is_read_as_one(schema):
    """A new key with a path in it must say so, or ~ and ./ would not be what they are elsewhere."""

    def paths(part, name=""):
        for key, value in part.get("properties", {}).items():
            yield from [f"{name}{key}"] if value.get("format") == "path" else paths(value, f"{name}{key}.")

    assert set(paths(schema)) == {"samples", "results", "weights", "weights_cache", "reference.pattern"}


@pytest.mark.parametrize("written", ["/home/me/out", "~/out"])
def test_results_elsewhere_are_refused_with_the_way_out(schema, monkeypatch, written):
    """A folder named ~ would be made otherwise."""
    monkeypatch.setenv("HOME", "/home/me")
    with pytest.raises(SynthSegError, match="set it to out, and add --directory /home/me to the call"):
        complete(schema, results=written)


def test_what_is_typed_behind_config_is_what_a_file_would_say(schema):
    """Snakemake hands on `true`, and all that stands in braces, as text."""
    typed = {"allow_small_model": "true", "benchmark": {"scans": "0"}, "crop": "null", "results": "1"}
    found = complete(schema, **typed)
    assert found["allow_small_model"] is True and found["benchmark"]["scans"] == 0
    assert found["crop"] is None and found["results"] == "1"
    for crop in (["64", "64", "96"], "64,64,96"):
        assert complete(schema, crop=crop)["crop"] == [64, 64, 96]
    assert complete(schema, allow_small_model="yes")["allow_small_model"] is True
    assert complete(schema, equivalence={"max_margin": "1e-3"})["equivalence"]["max_margin"] == 0.001
    assert complete(schema, results=2024)["results"] == "2024"
    for threads in (2.0, "2.0", "2"):
        assert repr(complete(schema, threads=threads)["threads"]) == "2"
    assert repr(complete(schema, crop=[64.0, 64, 96.0])["crop"]) == "[64, 64, 96]"
    assert complete(schema, results=datetime.date(2024, 5, 1))["results"] == "2024-05-01"
    for key, wrong in {"threads": "two", "allow_small_model": "perhaps", "crop": "[1", "timeout_min": "nan"}.items():
        with pytest.raises(SynthSegError, match=f"config: {key}: "):
            complete(schema, **{key: wrong})


def test_own_data_are_not_compared_by_default(schema):
    assert complete(schema)["reference"]["runtime"] == "none"


def test_the_model_has_no_default(schema):
    assert schema["properties"]["model"]["default"] is None


def test_a_crop_is_no_larger_than_the_command_takes(schema):
    ways = schema["properties"]["crop"]["anyOf"]
    assert [ways[1]["maximum"], ways[2]["items"]["maximum"]] == [options.MAX_CROP] * 2


# The demonstration ---------------------------------------------------------------------------------------------------


@pytest.fixture
def shipped(root, tmp_path, monkeypatch):
    """A function that completes the shipped configuration with these changes, as Snakemake merges --config."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(root / "config", tmp_path / "config")
    schema = configuration.read_schema(root / "workflow/schemas/config.schema.yaml")

    def completed(**changes):
        config = yaml.safe_load(Path("config/config.yaml").read_text())
        return configuration.complete(demo.settings(config | changes), schema)

    return completed


def test_the_shipped_configuration_is_the_demonstration(shipped):
    config = shipped()
    assert (config["model"], config["allow_small_model"], config["engines"]) == ("compact2mm", True, "auto")
    assert config["reference"]["runtime"] == "local" and config["benchmark"]["scans"] == 1
    assert config["parcellation"] and config["quality_scores"] and not config["robust"]
    assert config["benchmark"]["repeats"] >= 2, "a standard deviation needs two"
    first = [line.split(":")[0] for line in Path("config/config.yaml").read_text().splitlines() if line[:1] not in "# "]
    assert first[:2] == ["samples", "model"]


@pytest.mark.parametrize("way", ["--config", "edited"])
def test_two_lines_make_it_a_cohort_of_ones_own(shipped, schema, way):
    Path("mine.tsv").write_text("participant_id\timage\n01\tscan.nii\n")
    if way == "edited":
        file = Path("config/config.yaml")
        text = file.read_text().replace("samples: config/demo_samples.tsv", "samples: mine.tsv")
        file.write_text(text.replace("model: compact2mm", "model: synthseg2"))
    config = shipped(**({} if way == "edited" else {"samples": "mine.tsv", "model": "synthseg2"}))
    assert config == configuration.complete({"samples": "mine.tsv", "model": "synthseg2"}, schema)
    assert not config["allow_small_model"]
    assert config["reference"]["runtime"] == "none" and config["benchmark"]["scans"] == 0


def test_what_is_set_by_hand_goes_before_the_section(shipped):
    config = shipped(threads=1, reference={"runtime": "docker"})
    assert config["threads"] == 1 and config["allow_small_model"]
    assert config["reference"]["runtime"] == "docker" and config["reference"]["kind"] == "own"


def test_the_demonstrations_sheet_is_known_by_its_images(shipped):
    assert demo.is_sheet("config/demo_samples.tsv")
    text = Path("config/demo_samples.tsv").read_text()
    Path("config/two.tsv").write_text("".join(text.splitlines(keepends=True)[:3]))
    assert demo.is_sheet("config/two.tsv")
    # Own images under the same name, the phantoms of another folder, no images, no sheet at all.
    Path("config/demo_samples.tsv").write_text(text + "sub-04\tT1w\t../mine/sub-04.nii\n")
    assert not demo.is_sheet("config/demo_samples.tsv")
    Path("elsewhere").mkdir()
    Path("elsewhere/a.tsv").write_text(text.replace("../demo", "demo"))
    assert demo.is_sheet("./config/../config/two.tsv")
    for sheet in ("elsewhere/a.tsv", "config/samples.tsv", "nowhere.tsv", "config", "a\0b", None, ["a"], 3):
        assert not demo.is_sheet(sheet), sheet


def test_an_edited_sheet_of_the_demonstration_allows_no_small_model(shipped, root):
    with Path("config/demo_samples.tsv").open("a") as file:
        file.write("sub-04\tT1w\t../mine/sub-04.nii\n")
    config = yaml.safe_load(Path("config/config.yaml").read_text())
    with pytest.raises(SynthSegError, match="compact2mm is not research grade: set model: synthseg1 or synthseg2, or"):
        Plan(config, root)
    with pytest.raises(SynthSegError, match="compact2mm is not research grade"):
        Plan(config | {"allow_small_model": False}, root)


def test_the_demonstration_says_so_at_both_ends(shipped, root, capfd, monkeypatch):
    monkeypatch.delenv("SYNTHSEG_NATIVE_CODE", raising=False)
    monkeypatch.setattr(ranking, "of_results", lambda *asked, beside: print(*beside, file=sys.stderr) or "llvm")
    config = yaml.safe_load(Path("config/config.yaml").read_text())
    plan = Plan(config, root)
    first, beside = capfd.readouterr().err.splitlines()
    assert first.startswith("this is the demonstration: ") and demo.WHAT_TO_CHANGE in first
    assert beside == "tensorflow demo", "made along with the engine's"
    deploy.finish(with_patterns(plan), success=True)
    assert capfd.readouterr().err == f"this was the demonstration; {demo.WHAT_TO_CHANGE}\n"
    # The jobs of a cluster read the same Snakefile, and a dry run is none: neither says it again.
    Plan(config, root, dry_run=True)
    monkeypatch.setenv("SYNTHSEG_NATIVE_CODE", "/the/runs")
    Plan(config, root)
    assert capfd.readouterr().err == "tensorflow demo\n" * 2
    Path("mine.tsv").write_text("participant_id\timage\n01\tscan.nii\n")
    plan = Plan({"samples": "mine.tsv", "model": "synthseg1", "engines": ["llvm"]}, root)
    deploy.finish(with_patterns(plan), success=True)
    assert capfd.readouterr().err == "" and plan.demo_images == []


@pytest.mark.parametrize(
    ("reference", "runtime"),
    [
        ({}, "none"),
        ({"kind": "upstream", "runtime": "docker"}, "docker"),
        ({"kind": "existing", "pattern": "/a/{scan}.nii"}, "local"),
    ],
)
def test_references_that_can_work(schema, reference, runtime, monkeypatch):
    monkeypatch.setenv("SYNTHSEG_BASE_IMAGE", "here:1")
    done = configuration.complete_reference(complete(schema, reference=reference)["reference"], "synthseg1")
    assert (done["runtime"], done["base_image"]) == (runtime, "here:1")


@pytest.mark.parametrize("name", ["config.yaml", "demo-docker.yaml", "demo-synthseg2.yaml"])
def test_shipped_configurations_are_valid(schema, root, name):
    config = yaml.safe_load((root / "config" / name).read_text())
    configuration.complete(config, schema, name)
    configuration.complete({"samples": "s.tsv", "model": "synthseg1"} | config.get(demo.SECTION, {}), schema, name)


def test_readme_lists_every_key(schema, root):
    text = (root / "config/README.md").read_text().split("## Keys")[1]
    for row in configuration.key_table(schema):
        assert row in text, f"config/README.md lacks or differs in: {row}"
    listed = re.findall(r"^\| `([a-z0-9_.]+)` \|", text, re.M)
    assert len(listed) == len(configuration.key_table(schema)), "a key that the schema does not have"
