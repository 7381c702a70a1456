"""The configuration against its schema: defaults, docs in step. Its mistakes: test_bad_input.py."""

import re

import pytest
import yaml

from synthseg_native import engines
from synthseg_native.cohort import config as configuration
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
    assert complete(schema)["engines"] == ["tensorflow"], "the default names an engine"
    assert complete(schema, engines="auto")["engines"] == "auto"
    assert complete(schema, engines=["openvino", "torch"])["engines"] == ["openvino", "torch"]
    assert list(engines.NAMES) == schema["properties"]["engines"]["anyOf"][1]["items"]["enum"]
    assert list(engines.PRECISIONS) == schema["properties"]["precision"]["enum"]
    for wrong in ("openvino", [], ["auto"], ["openvino", "openvino"]):
        with pytest.raises(SynthSegError, match="config: engines"):
            complete(schema, engines=wrong)


def test_own_data_are_not_compared_by_default(schema):
    assert complete(schema)["reference"]["runtime"] == "none"


def test_the_model_has_no_default(schema, root):
    assert yaml.safe_load((root / "config/config.yaml").read_text())["model"] is None
    assert schema["properties"]["model"]["default"] is None


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


@pytest.mark.parametrize("name", ["config.yaml", "demo.yaml", "demo-docker.yaml"])
def test_shipped_configurations_are_valid(schema, root, name):
    configuration.complete(yaml.safe_load((root / "config" / name).read_text()), schema, name)


def test_readme_lists_every_key(schema, root):
    text = (root / "config/README.md").read_text().split("## Keys")[1]
    for row in configuration.key_table(schema):
        assert row in text, f"config/README.md lacks or differs in: {row}"
    listed = re.findall(r"^\| `([a-z0-9_.]+)` \|", text, re.M)
    assert len(listed) == len(configuration.key_table(schema)), "a key that the schema does not have"
