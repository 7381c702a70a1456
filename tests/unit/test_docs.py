"""README and docs: links that lead somewhere, commands that exist with the flags they are shown with, keys of the
configuration, files of the repository; and the site that is made of them (slow)."""

import argparse
import contextlib
import os
import re
import runpy
import shlex
import subprocess
import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from synthseg_native.cohort import config as configuration
from synthseg_native.cohort import environments

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("docs", "config", "models", "benchmarks", "tests", "training", "envs", "scripts", "workflow")
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("*.md"), *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md")))
    if not path.is_relative_to(ROOT / "training/data") and not path.is_relative_to(ROOT / "training/out")
)
TOOLS = ("./snakemake", "snakemake", "./synthseg-native", "synthseg-native", "make", "python", "python3", "sh")
PROGRAMS = {  # targets of make that hand ARGS to a script
    "benchmark": "benchmarks/run.py",
    "prove": "tests/prove.py",
    "reference-image": "scripts/reference_image.py build",
    "verify-arm64": "tests/arm64.py",
}
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.M | re.S)
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)")


def text_of(page):
    return (ROOT / page).read_text(encoding="utf-8")


def prose(page):
    """The page without its blocks of code."""
    return FENCE.sub("", text_of(page))


def anchors(page):
    """Where a link can lead to within a page: its headings, as GitHub names them."""
    seen = {}
    for heading in re.findall(r"^#{1,6} (.+)$", prose(page), re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        name = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        seen[name] = seen.get(name, -1) + 1
        yield name if not seen[name] else f"{name}-{seen[name]}"


def commands(page):
    """The commands on a page, as lists of words: lines in blocks of code, and code within sentences."""
    text = text_of(page)
    lines = [line for _, block in FENCE.findall(text) for line in block.splitlines()]
    lines += [line for line in FENCE.sub("", text).splitlines() if line.startswith("    sh ")]
    lines += INLINE.findall(prose(page))
    for line in lines:
        with contextlib.suppress(ValueError):  # half a quotation is prose, or another language
            for part in " ".join(line.removeprefix("$ ").split()).split("; "):
                words = shlex.split(part, comments=True)
                while words and re.fullmatch(r"[A-Z_0-9]+=\S*", words[0]):  # variables before the command
                    words.pop(0)
                if len(words) > 1 and words[0] in TOOLS and "..." not in words:
                    yield words


# --- links -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    dead = []
    for target in LINK.findall(INLINE.sub("", prose(page))):
        if "://" in target:
            if not re.fullmatch(r"https://[\w.-]+\.[a-z]+(/[\w./#?=&%~+-]*)?", target):
                dead.append(target)
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        found = file.resolve()
        there = found.is_file() and found.is_relative_to(ROOT)
        if not there or (anchor and anchor not in anchors(found.relative_to(ROOT))):
            dead.append(target)
    assert dead == []


def test_headings_are_named_as_on_github(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# What `x` can do, and what not\n```\n# no heading\n```\n## A [link](b.md)\n## A link\n")
    assert list(anchors(page)) == ["what-x-can-do-and-what-not", "a-link", "a-link-1"]


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page):
    named = re.compile(rf"(?:{'|'.join(FOLDERS)}|src|profiles)/[\w./-]+\.\w+")
    names = {name for name in INLINE.findall(prose(page)) if named.fullmatch(name)}
    made = ("training/out/", "training/data/")  # by commands of the page
    assert [name for name in sorted(names) if not name.startswith(made) and not (ROOT / name).exists()] == []


def test_pages_that_code_names_exist():
    code = [ROOT / name for name in ("Makefile", "Snakefile", "pyproject.toml", ".ci/run")]
    for folder in ("src", "scripts", "workflow", "config", "profiles", "tests", "models"):
        code += [path for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".smk", ".yaml", ".rst", "")]
    named = {
        (name, path.relative_to(ROOT).as_posix())
        for path in code
        if path.is_file() and path.name != Path(__file__).name
        for name in re.findall(r"\b(?:docs|config|models|benchmarks)/[\w-]+\.md\b", path.read_text(encoding="utf-8"))
    }
    assert len({name for name, _ in named}) > 5, "the code is read wrongly"
    assert [f"{path}: {name}" for name, path in sorted(named) if not (ROOT / name).is_file()] == []


# --- commands --------------------------------------------------------------------------------------------------------


class Parsed(Exception):
    """The arguments were understood; nothing is run."""


@cache
def make_targets():
    return set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


@cache
def schema():
    return configuration.read_schema(ROOT / "workflow/schemas/config.schema.yaml")


def parses(run, arguments, monkeypatch):
    """Whether the argparse of a command takes the arguments: it is started as it is, and ended once it has them."""

    def parse_args(parser, args=None, namespace=None):
        original(parser, args, namespace)
        raise Parsed

    original = argparse.ArgumentParser.parse_args
    with monkeypatch.context() as patch, pytest.raises(Parsed):
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(sys, "argv", ["command", *arguments])
        patch.setattr(sys, "path", [str(ROOT), *sys.path])
        try:
            run()
        except SystemExit as end:
            assert not end.code, f"not understood: {' '.join(arguments)}"
            raise Parsed from end  # --help


def check_snakemake(arguments):
    from snakemake.cli import get_argument_parser

    given = get_argument_parser().parse_args([word for word in arguments if word != "--help"])
    for key in given.config or {}:
        name = key.partition("=")[0]
        assert name in schema()["properties"], f"--config {name}: no such key"
    files = [*(given.configfile or []), *([given.workflow_profile] if given.workflow_profile else [])]
    assert [str(file) for file in files if not (ROOT / file).exists()] == []
    assert all(target == "results/summary.tsv" for target in given.targets), given.targets


def check_make(words, monkeypatch):
    targets = [word for word in words if "=" not in word]
    settings = dict(word.split("=", 1) for word in words if "=" in word)
    assert set(targets) <= make_targets(), f"make {' '.join(targets)}: no such target"
    variables = re.findall(r"^(\w+) *=", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert set(settings) <= set(variables), f"make {' '.join(targets)}: no such variable"
    assert all((ROOT / path).exists() for path in settings.get("TESTS", "").split())
    if "ARGS" in settings and (program := PROGRAMS.get(targets[0])):
        script, *first = program.split()
        check_script(script, [*first, *shlex.split(settings["ARGS"])], monkeypatch)


def check_script(script, arguments, monkeypatch):
    assert (ROOT / script).is_file(), f"{script}: no such script"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "path", [str((ROOT / script).parent), *sys.path])
        parses(lambda: runpy.run_path(str(ROOT / script), run_name="__main__"), arguments, monkeypatch)


def check_python(words, monkeypatch):
    if words[0] == "-m":
        parses(lambda: runpy.run_module(words[1], run_name="__main__"), words[2:], monkeypatch)
    else:
        check_script(words[0], words[1:], monkeypatch)


def check(words, monkeypatch):
    tool, *rest = words
    if tool.endswith("snakemake"):
        check_snakemake(rest)
    elif tool.endswith("synthseg-native"):
        from synthseg_native import cli

        parses(cli.main, rest, monkeypatch)
    elif tool == "make":
        check_make(rest, monkeypatch)
    elif tool == "sh":
        assert rest[:2] == ["scripts/launch.sh", "run"] and rest[3] == "--", words
        assert (ROOT / "envs" / f"{rest[2]}.in").is_file(), f"{rest[2]}: no such environment"
        check_python(rest[4:], monkeypatch)
    elif rest[0] != "-m" or rest[1] in ("training", "synthseg_native"):
        check_python(rest, monkeypatch)


@pytest.mark.parametrize("page", PAGES)
def test_commands_exist(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands(page):
        try:
            check(words, monkeypatch)
        except (AssertionError, SystemExit) as error:
            pytest.fail(f"{page}: {shlex.join(words)}: {error}")


def test_the_pages_show_the_commands_that_matter():
    shown = {shlex.join(words) for page in PAGES for words in commands(page)}
    assert len(shown) > 30, "the pages are read wrongly"
    readme = {shlex.join(words) for words in commands("README.md")}
    first, own = "./snakemake --cores 1 results/summary.tsv", "--config samples=my.tsv model=synthseg2"
    assert first in readme and any(line.endswith(own) for line in readme)
    assert "./synthseg-native --i T1.nii.gz --o labels.nii.gz" in readme


@pytest.mark.parametrize(
    "line",
    [
        "make demmo",
        "make test TEST=tests",
        "make test TESTS=tests/nowhere",
        "make benchmark ARGS=--no-such-flag",
        "make prove ARGS='--parts all'",
        "./snakemake --no-such-flag results/summary.tsv",
        "./snakemake --cores 1 results/summary.tsv --config sample=my.tsv",
        "./snakemake --cores 1 --configfile config/nowhere.yaml",
        "./synthseg-native --i a.nii --oh b.nii",
        "python3 scripts/nowhere.py",
        "python3 scripts/bids_samples.py --no-such-flag",
        "sh scripts/launch.sh run nowhere -- -m training train",
        "sh scripts/launch.sh run training -- -m training trian",
    ],
)
def test_a_wrong_command_is_noticed(line, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises((AssertionError, SystemExit, pytest.fail.Exception)):
        check(shlex.split(line), monkeypatch)


# --- keys and columns ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page in PAGES if page == "README.md" or page.startswith("docs/")])
def test_keys_of_the_configuration_exist(page):
    for kind, block in FENCE.findall(text_of(page)):
        if kind == "yaml":
            for settings in yaml.safe_load_all(block):
                configuration.complete({"samples": "s.tsv", "model": "synthseg1"} | settings, schema())
    known = schema()["properties"]
    for code in INLINE.findall(prose(page)):
        if re.fullmatch(r"[a-z_]+: \S.*", code):
            configuration.complete({"samples": "s.tsv", "model": "synthseg1"} | yaml.safe_load(code), schema())
        if (match := re.fullmatch(r"([a-z_]+)\.([a-z_]+)", code)) and known.get(match[1], {}).get("type") == "object":
            files = ("py", "tsv")
            assert match[2] in (*known[match[1]]["properties"], *files), f"{page}: {code}: no such key"


def test_the_excerpt_of_the_summary_is_what_its_command_cuts():
    text = text_of("docs/tutorial.md")
    wanted = [int(number) for number in re.search(r"cut -f([\d,]+) results/summary.tsv", text)[1].split(",")]
    rows = text_of("docs/results.md").partition("| **`summary.tsv`**")[2].partition("`sheet_<name>`")[0]
    columns = re.findall(r"^\| \| `(\w+)`", rows, re.M)
    assert re.search(r"^participant_id .*", text, re.M)[0].split() == [columns[number - 1] for number in wanted]


def test_readme_quotes_the_benchmark():
    """Its one number, wall time and peak of a whole command, is in the table of what was measured."""
    rows = re.findall(r"^\|.*\[intel-xeon-processor.*$", text_of("benchmarks/results/README.md"), re.M)
    measured = {}
    for row in rows:
        *_, threads, engine, wall, _, peak, _ = (cell.strip() for cell in row.strip("|").split("|"))
        measured[engine, threads] = float(wall), float(peak)
    (ours, our_peak), (theirs, their_peak) = measured["llvm float32", "2"], measured["upstream", "2"]
    claim = f"**{ours} s and {our_peak} GB** a scan, where SynthSeg's own code takes {theirs:.0f} s and {their_peak} GB"
    assert claim in " ".join(text_of("README.md").split())


def test_every_promise_names_a_test_that_exists():
    tables = text_of("docs/reliability.md").partition("## Bad inputs")[2].split("## Faults")
    sources = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*/test_*.py")}
    for table, least in zip(tables, (90, 40), strict=True):
        rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
        assert len(rows) >= least and f"\n{len(rows)} cases" in table
        for row in rows:
            named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row.rpartition(" | ")[2])
            assert named, row
            for file, name in named:
                assert re.search(rf"^def {name}\(", sources.get(file, ""), re.M), f"no {file}::{name}"


def test_readme_fits_on_a_screen():
    assert len(text_of("README.md").splitlines()) <= 80


# --- the site --------------------------------------------------------------------------------------------------------


class Addresses(HTMLParser):
    """What a page loads by itself, and where its links lead."""

    def __init__(self):
        super().__init__()
        self.loaded, self.linked = [], []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        loads = tag != "a" and attributes.get("rel") not in ("canonical", "next", "prev")
        for name in ("src", "srcset", "href", "data"):
            if address := attributes.get(name):
                (self.loaded if loads else self.linked).append(address)


def foreign(address):
    return address.startswith("//") or urlsplit(address).scheme in ("http", "https")


@pytest.mark.slow
def test_the_site_is_made_without_a_warning_and_fetches_nothing(tmp_path):
    """As make docs does it; strict: every page in the contents, every link and anchor found."""
    python = environments.ensure("docs")
    site = tmp_path / "site"
    command = [python, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", site]
    environment = dict(os.environ, NO_MKDOCS_2_WARNING="1")
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr, done.stdout + done.stderr
    made = sorted(site.rglob("*.html"))
    assert {"index.html", "tutorial.html", "configuration.html", "golden.html"} <= {page.name for page in made}
    for page in made:
        addresses = Addresses()
        addresses.feed(page.read_text(encoding="utf-8"))
        assert [address for address in addresses.loaded if foreign(address)] == [], page.name
        hosts = {urlsplit(address).hostname for address in addresses.linked if foreign(address)}
        assert hosts <= {"github.com", "squidfunk.github.io"}, page.name
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\W*(https?:|//)", style.read_text(encoding="utf-8")), style.name


def test_every_sentence_of_the_security_page_has_its_test():
    text = text_of("SECURITY.md")
    sentences = re.findall(r"^- (.*?)(?=^- |^#|\Z)", text, re.M | re.S)
    assert len(sentences) > 10
    for sentence in sentences:
        (named,) = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", sentence) or [(sentence, "has no test")]
        file, test = named
        assert f"def {test}(" in text_of(file), named
