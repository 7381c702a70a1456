"""What the usual linters do not see: Snakemake's own lint, profiles in step, every rule complete (make lint)."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
# Snakemake asks every rule for conda or a container; environments here are locked by hash and deployed in onstart.
NOT_OURS = "Specify a conda environment or container for each rule."
SHARED_KEYS = ("keep-going", "rerun-incomplete", "max-checksum-file-size", "quiet")
DIRECTIVES = ("message:", "log:", "resources:", "shell:", '"""')


def snakemake_lint() -> list[str]:
    """Findings of `snakemake --lint` on the demo's configuration, without the one that does not apply here."""
    command = [sys.executable, "-m", "snakemake", "--configfile", "config/demo.yaml", "--lint", "json"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ)
    try:
        report = json.loads(done.stdout)
    except ValueError:
        return [f"snakemake --lint json: {(done.stderr or done.stdout).strip()}"]
    found = [("Snakefile", lint) for part in report.get("snakefiles", []) for lint in part["lints"]]
    found += [(part["for"]["rule"], lint) for part in report.get("rules", []) for lint in part["lints"]]
    return [f"{where}: {lint['title']} {lint['body']}" for where, lint in found if lint["title"] != NOT_OURS]


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


def rules() -> list[str]:
    """Every rule has a docstring, a message, a log, resources and calls a script (all only gathers)."""
    found = []
    for path in sorted(ROOT.glob("workflow/rules/*.smk")):
        for name, body in re.findall(r"^ *rule (\w+):\n((?: .*\n|\n)+)", path.read_text(), re.M):
            found += [f"{path.relative_to(ROOT)}: rule {name} has no {d.strip(':')}" for d in DIRECTIVES if d not in body]
    return found


if __name__ == "__main__":
    findings = [*snakemake_lint(), *profiles(), *rules()]
    print("\n".join(findings) or "snakemake, profiles, rules: nothing to say")
    sys.exit(bool(findings))
