"""A hook of MkDocs: pages that lie elsewhere in the repository, and the files that pages link to, are on the site too.

Links are written as GitHub wants them, relative to the file that they stand in; here they are turned into the site's.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
# In the repository : on the site, as mkdocs.yml names it. What lies in docs/ keeps its name.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/results/README.md": "benchmark_results.md",
    "config/README.md": "configuration.md",
    "SECURITY.md": "security.md",
    "models/README.md": "models.md",
    "tests/golden/README.md": "golden.md",
}
_FENCED = re.compile(r"(^ *```.*?^ *```$)", re.M | re.S)
_LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")


def on_files(files, config):
    """Add the pages above, and every file of the repository that a page links to."""
    added = dict(PAGES)
    texts = [(f"docs/{page.src_uri}", page.content_string) for page in files.documentation_pages()]
    texts += [(path, (ROOT / path).read_text(encoding="utf-8")) for path in PAGES]
    while texts:
        path, text = texts.pop()
        for target in _targets(path, text):
            if not target.startswith("docs/") and target not in added and (ROOT / target).is_file():
                added[target] = _uri(target)
                if target.endswith(".md"):
                    texts.append((target, (ROOT / target).read_text(encoding="utf-8")))
    for path, uri in added.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Turn the links of a page from the repository's places into the site's."""
    here = page.file.src_uri
    path = next((path for path, uri in PAGES.items() if uri == here), None)
    path = path or (here.removeprefix("repository/") if here.startswith("repository/") else f"docs/{here}")
    if path.startswith("benchmarks/results/"):
        page.meta["search"] = {"exclude": True}  # tables of numbers only, in which every word is found

    def turned(match):
        target, _, anchor = match[0].partition("#")
        if not target or "://" in target:
            return match[0]
        relative = posixpath.relpath(_uri(_resolved(path, target)), posixpath.dirname(here) or ".")
        return f"{relative}#{anchor}" if anchor else relative

    parts = _FENCED.split(markdown)  # every second one is code
    return "".join(part if number % 2 else _LINK.sub(turned, part) for number, part in enumerate(parts))


def _targets(path, text):
    """The repository's files that a page links to."""
    links = (link.partition("#")[0] for part in _FENCED.split(text)[::2] for link in _LINK.findall(part))
    return {_resolved(path, link) for link in links if link and "://" not in link}


def _resolved(path, target):
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), target))


def _uri(path):
    """Where a file of the repository lies on the site."""
    return PAGES.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else f"repository/{path}")
