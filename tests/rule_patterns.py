"""What the rules say, read from their text: for tests that need no Snakemake."""

import functools
import re
from pathlib import Path

from synthseg_native.cohort.paths import Patterns

ROOT = Path(__file__).parents[1]
RULE = re.compile(r"^( *)rule (\w+):\n((?:\1 +.*\n|\n)+)", re.M)


@functools.cache
def rules() -> dict[str, tuple[Path, str]]:
    """The file and the text of every rule, without the margin that it stands behind."""
    found = {}
    for path in [ROOT / "workflow/Snakefile", *sorted(ROOT.glob("workflow/rules/*.smk"))]:
        for margin, name, body in RULE.findall(path.read_text()):
            found[name] = path, re.sub(f"^{margin}", "", body, flags=re.M)
    return found


def directive(body: str, name: str) -> str:
    """The text of one directive of a rule; "" where the rule has none."""
    found = re.search(rf"^    {name}:(.*\n(?:        .*\n|\n)*)", body, re.M)
    return found[1] if found else ""


def patterns(results, model: str, grid: str) -> Patterns:
    """The outputs' patterns with what stands in <...> filled in."""
    words = {"results": str(results), "model": model, "grid": grid}

    def outputs(name):
        text = directive(rules()[name][1], "output")
        found = re.findall(r'^        (\w+)=(?:report\(\s*)?"([^"]+)"', text, re.M)
        return {key: re.sub(r"<(\w+)>", lambda word: words[word[1]], path) for key, path in found}

    return Patterns(**{name: outputs(name) for name in Patterns.__dataclass_fields__})


def with_patterns(plan):
    """The plan, as it is when Snakemake has read the rules."""
    plan.patterns = patterns(plan.results, plan.model.name, plan.resolution)
    return plan
