"""The rules as people read them: complete, literal, one flag a line, nothing that is not explained."""

import re

import pytest

from rule_patterns import ROOT, directive, patterns, rules
from synthseg_native.cohort import demo
from synthseg_native.cohort.runs.files import NATIVE_FILES, REFERENCE_FILES

COMMON = (ROOT / "workflow/rules/common.smk").read_text()
WORKING = {name: body for name, (_, body) in rules().items() if directive(body, "shell")}
# What a rule asks of the whole cohort: for the summary's job alone, and only when Snakemake needs to know.
OF_THE_COHORT = (
    "wanted_runs",
    "wanted_once",
    "benchmarked_images",
    "benchmark_memory",
    "benchmark_key",
    "benchmark_order",
    "manifest",
)


def test_every_rule_is_looked_at():
    assert set(rules()) == {"all", *WORKING}
    assert set(WORKING) == {*patterns("results", "m", "1mm").__dict__, "demo"}


@pytest.mark.parametrize("name", WORKING)
def test_every_rule_is_complete(name):
    body = WORKING[name]
    assert re.match(r' +"""[A-Z].+\."""\n', body), "a docstring first"
    for wanted in ("message", "log", "resources", "output", "params"):
        assert directive(body, wanted).strip(), wanted
    assert {"mem_mb=", "runtime="} <= set(re.findall(r"\w+=", directive(body, "resources")))
    step = re.search(r'step=lambda wildcards(, input)?: step_code\("', body)
    settings = re.search(r"settings=lambda wildcards(, input)?: PLAN\.", body)
    assert bool(step) != bool(settings), "other code of the step runs it again"


@pytest.mark.parametrize("name", WORKING)
def test_a_command_has_one_flag_a_line_in_one_raw_block(name):
    block = directive(WORKING[name], "shell")
    assert re.fullmatch(r'\s*r"""\n(.*\n)+\s*"""\n', block) and block.count('"""') == 2
    for line in block.splitlines():
        assert len(line) <= 100 and len(re.findall(r"(?<!\S)--?[a-zA-Z]", line.replace(" -B ", " "))) <= 1, line


@pytest.mark.parametrize("name", WORKING)
def test_what_a_command_uses_is_named_and_quoted(name):
    body = WORKING[name]
    block = directive(body, "shell")
    assert "$" not in block, "nothing comes from the environment"
    for kind, key, quoted in re.findall(r"(?<!\{)\{(\w+)(?:\.(\w+))?(:q)?\}", block):
        assert quoted or f'"{{{kind}.{key}}}"' in block, f"{kind}.{key}"
        if kind in ("params", "input", "output"):
            assert re.search(rf"^ +{key}=", directive(body, kind), re.M), f"{kind}.{key}"
        else:
            assert kind in ("wildcards", "log")


def test_every_variable_is_explained_where_it_is_set():
    used = {word for body in WORKING.values() for word in re.findall(r"^ +\w+=([A-Z][A-Z_]+),", body, re.M)}
    explained = set(re.findall(r"^([A-Z][A-Z_]+) = (?:constant\(|of_input\(|lambda).*  # \S.+$", COMMON, re.M))
    assert used and used <= explained
    assert explained <= used, "set, but used nowhere"
    words = {word for body in WORKING.values() for word in re.findall(r"<(\w+)>", body)}
    assert words == set(re.findall(r"^    (\w+)=PLAN\..*,  # \S.+$", COMMON, re.M))


@pytest.mark.parametrize("name", WORKING)
def test_outputs_and_logs_are_literal(name):
    body = WORKING[name]
    for text in (directive(body, "output"), directive(body, "log")):
        paths = re.findall(r'"([^"\s]+/[^"\s]+)"', re.sub(r"caption=.*", "", text))
        assert paths and all(path.startswith(("<results>/", "demo/")) for path in paths)
        assert "PLAN" not in text and 'f"' not in text


def test_only_functions_ask_for_the_whole_cohort():
    """Else every job of a cluster would look at all of it when it reads the rules."""
    for name, body in WORKING.items():
        for line in body.splitlines():
            if any(f"PLAN.{method}" in line for method in OF_THE_COHORT):
                assert "lambda wildcards" in line, f"{name}: {line}"


def test_every_file_of_a_run_has_its_flag():
    found = patterns("results", "synthseg2", "1mm")
    assert set(found.native) == {*NATIVE_FILES, "record"}
    assert set(found.reference) == {*REFERENCE_FILES, "record"}
    for name in ("native", "reference"):
        for key in getattr(found, name):
            assert f"--{key.replace('_', '-')} {{output.{key}:q}}" in WORKING[name]


def test_file_names_stay():
    found, scan = patterns("results", "synthseg2", "1mm"), "sub-01/ses-a/anat/sub-01_ses-a_T1w"
    start = f"results/llvm/{scan}_seg-synthseg2_res-1mm"
    assert {name: found.path(name, "llvm", scan) for name in found.of_engine} == {
        "dseg": f"{start}_dseg.nii.gz",
        "sidecar": f"{start}_dseg.json",
        "volumes": f"{start}_volumes.tsv",
        "margin": f"{start}_margin.nii.gz",
        "record": f"{start}_run.json",
        "compare": f"{start}_compare.json",
        "picture": f"{start}_qc.png",
        "dseg_native": f"results/llvm/{scan}_seg-synthseg2_res-native_dseg.nii.gz",
        "sidecar_native": f"results/llvm/{scan}_seg-synthseg2_res-native_dseg.json",
    }
    same = {name: path.format(engine="reference", scan=scan) for name, path in found.native.items()}
    for name in found.reference:
        assert found.path(name, "reference", scan) == same[name]
    assert found.summary["summary"] == "results/summary.tsv"
    assert found.benchmark == {"runs": "results/benchmark_runs.tsv", "table": "results/benchmark.tsv"}
    assert found.verify_env == {"finding": "results/env/{engine}.json"}


def test_what_a_rule_reads_another_makes():
    found = patterns("<results>", "<model>", "<grid>")
    made = {path for rule in vars(found).values() for path in rule.values()} | {"<results>/.state/token"}
    for name, body in WORKING.items():
        for path in re.findall(r'"(<results>/[^"]+)"', directive(body, "input")):
            assert path in made, f"{name}: {path}"


def test_the_demo_makes_the_images_of_its_sheet():
    assert re.findall(r'"([^"]+)"', directive(WORKING["demo"], "output")) == demo.image_paths()


def test_the_first_result_comes_first():
    priority = {name: int(directive(body, "priority").split("#")[0] or 0) for name, body in WORKING.items()}
    order = sorted(priority, key=priority.get, reverse=True)
    assert order.index("picture") < order.index("native") < order.index("compare") < order.index("reference")
    assert priority["benchmark"] == 0 and priority["verify_env"] == max(priority.values())


def test_every_caption_is_there():
    for name, (path, body) in rules().items():
        for caption in re.findall(r'caption="([^"]+)"', body):
            assert (path.parent / caption).is_file(), f"{name}: {caption}"
