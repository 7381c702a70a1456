"""What the usual linters do not see: Snakemake's own lint, profiles, configurations and their docs in step (make lint).

tests/unit/test_rules.py looks at how the rules are written.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from synthseg_native.cohort import config as configuration  # noqa: E402
from synthseg_native.errors import SynthSegError  # noqa: E402

# Snakemake asks every rule for conda or a container; environments here are locked by hash and deployed in onstart.
NOT_OURS = "Specify a conda environment or container for each rule."
SHARED_KEYS = ("keep-going", "rerun-incomplete", "max-checksum-file-size", "scheduler", "scheduler-subsample")


def snakemake(*arguments) -> subprocess.CompletedProcess:
    """Snakemake on the demo's configuration, in a folder of its own: results of the user stay as they are."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "config", Path(folder, "config"))
        command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", folder]
        command += ["--config", "engines=[llvm]", *arguments]  # named: nothing is chosen, and no environment made
        return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def snakemake_lint() -> list[str]:
    """Findings of `snakemake --lint` on the demo's configuration, without the one that does not apply here.

    Its text is read: `--lint json` prints the same text in Snakemake 9.27.
    """
    done = snakemake("--lint")
    found, where, said = [], "", done.stdout + done.stderr
    for line in said.splitlines():
        if line.startswith("Lints for "):
            where = line.removeprefix("Lints for ").rstrip(":")
        elif match := re.match(r" +\* (.*):$", line):
            found.append((where, match[1]))
    if not found and "good condition" not in said:
        return [f"snakemake --lint did not work: {said.strip()}"]
    return [f"{where}: {title}" for where, title in found if title != NOT_OURS]


def edges(dot: str) -> set[tuple[str, str]]:
    """The dependencies that a graph in the DOT language draws, by label."""
    labels = dict(re.findall(r'^\s*(\w+)\s*\[label = "([^"\\]+)', dot, re.M))
    drawn = re.findall(r"^\s*(\w+) -> (\w+)(?!.*dotted)", dot, re.M)
    return {(labels.get(start, start), labels.get(end, end)) for start, end in drawn}


def rule_graph() -> list[str]:
    """The picture in the README against the rules."""
    done = snakemake("--cores", "1", "--rulegraph", "dot", "--", "results/summary.tsv")
    differing = edges(done.stdout) ^ edges((ROOT / "docs/rulegraph.dot").read_text())
    return [f"docs/rulegraph.dot: {start} -> {end} is in the rules or in the picture only" for start, end in differing]


def profiles() -> list[str]:
    """Keys that every profile must have with the same value."""
    read = {path.parent.name: yaml.safe_load(path.read_text()) for path in ROOT.glob("profiles/*/config.yaml")}
    first = read["default"]
    return [
        f"profiles/{name}/config.yaml: {key} differs from profiles/default/config.yaml"
        for name, profile in sorted(read.items())
        for key in SHARED_KEYS
        if key not in first or profile.get(key) != first[key]
    ]


def configurations() -> list[str]:
    """The shipped configurations against the schema, and the schema against the table in config/README.md."""
    schema = configuration.read_schema(ROOT / "workflow/schemas/config.schema.yaml")
    found = []
    for path in sorted(ROOT.glob("config/*.yaml")):
        try:
            configuration.complete(yaml.safe_load(path.read_text()), schema, str(path.relative_to(ROOT)))
        except SynthSegError as error:
            found += str(error).splitlines()
    table = (ROOT / "config/README.md").read_text().partition("## Keys")[2].partition("\n## ")[0]
    rows, wanted = re.findall(r"^\| `.*$", table, re.M), configuration.key_table(schema)
    found += [f"config/README.md: lacks the schema's row {row}" for row in wanted if row not in rows]
    return found + [f"config/README.md: the schema has no such row: {row}" for row in rows if row not in wanted]


if __name__ == "__main__":
    findings = [*snakemake_lint(), *rule_graph(), *profiles(), *configurations()]
    print("\n".join(findings) or "snakemake, rule graph, profiles, configurations: nothing to say")
    sys.exit(bool(findings))
