"""Rerun keys: settings of a run, and short hashes of what a result depends on beside its input files."""

import ast
import hashlib
import json
from pathlib import Path

PACKAGE = "synthseg_native"


def digest(*parts) -> str:
    """12 hexadecimal digits of the SHA-256 of text or bytes, in order."""
    sha = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else str(part).encode()
        sha.update(len(data).to_bytes(8, "little") + data)
    return sha.hexdigest()[:12]


def file_digest(*paths) -> str:
    """`digest` of the contents of files."""
    return digest(*(Path(path).read_bytes() for path in paths))


def settings_json(**settings) -> str:
    """Settings as one line of JSON with sorted keys: equal settings, equal text."""
    return json.dumps(settings, sort_keys=True, separators=(",", ":"))


def flags(settings: dict) -> list[str]:
    """The flags that settings of a run stand for; the engine, reference.py and upstream spell these the same.

    ct: bool; mode: "default" or "fast"; crop: None or three sizes in voxels of the network's grid (RAS). Each may lack.
    """
    found = ["--ct"] if settings.get("ct") else []
    found += ["--fast"] if settings.get("mode") == "fast" else []
    return found + (["--crop", *map(str, settings["crop"])] if settings.get("crop") else [])


def code_digest(source: Path, *entries: Path, without=()) -> str:
    """`digest` of the syntax trees, without docstrings, of scripts and of all modules of the package they import.

    source: the folder that holds the package; entries: Python files; without: modules ("synthseg_native.x") left
    out. Comments, docstrings and layout do not count: only a change that can change a result does.
    """
    source = Path(source)
    todo, files = [Path(entry) for entry in entries], {}
    while todo:
        path = todo.pop()
        if path in files:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        package = path.parent.relative_to(source).parts if path.is_relative_to(source) else ()
        todo += [found for name in _imported(tree, package) - set(without) if (found := _module(source, name))]
        files[path] = ast.dump(_without_docstrings(tree))
    return digest(*(text for path in sorted(files) for text in (path.name, files[path])))


def _imported(tree: ast.Module, package: tuple) -> set[str]:
    """Names of the package's modules that a tree imports, anywhere in it (also inside functions).

    package: the names of the packages that the tree's module lies in, for relative imports.
    """
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == PACKAGE}


def _module(source: Path, name: str) -> Path | None:
    path = source.joinpath(*name.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
            node
        ):
            node.body = node.body[1:] or [ast.Pass()]
    return tree
