"""What Python source does, as a digest: equal for code that gives equal results, under every Python from 3.11 on.

The normal form is the syntax tree in a notation of our own (`ast.dump` differs between versions of Python) without
what changes no result: layout, comments, docstrings, annotations of functions, help texts, and the sentences of errors.
"""

import ast
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

# Words of a command's help, wherever they are given.
HELP = frozenset({"help", "metavar", "usage", "description", "epilog"})
# Fields that some versions of Python have and others not, or that say what a program's text does not do.
LEFT_OUT = frozenset({"type_params", "type_comment", "type_ignores", "kind", "ctx", "returns"})
ERROR = "SynthSegError"  # it is also made without a raise: what it says is for people


def code_digest(parts: Iterable[tuple[str, Path]]) -> str:
    """12 hexadecimal digits of what some Python files do.

    parts: (name, file), in any order. A name stands for its file's place and counts too. Behind a colon it may list
    what of the file counts, functions, classes or constants at its top level: "cohort/runs.py:run_native,_load".
    Raises OSError, SyntaxError, and KeyError for what the file has not.
    """
    sha = hashlib.sha256()
    for name, file in sorted(parts):
        for text in (name, _normal_form(Path(file).read_bytes(), name.partition(":")[2])):
            data = text.encode()
            sha.update(len(data).to_bytes(8, "little") + data)
    return sha.hexdigest()[:12]


@functools.lru_cache(maxsize=1024)
def _normal_form(source: bytes, wanted: str) -> str:
    tree = ast.parse(source)
    if not wanted:
        return normal_form(tree)
    by_name = {name: node for node in tree.body for name in _names(node)}
    return "".join(normal_form(by_name[name]) for name in wanted.split(","))


def _names(statement: ast.stmt) -> list[str]:
    """What a statement at the top level of a module defines."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def normal_form(node: ast.AST | str | int | None, in_error: bool = False) -> str:
    """A node of a syntax tree as text. in_error: within what an error is made of, whose sentences do not count."""
    if not isinstance(node, ast.AST):  # a name in a list of names, or a place that is left empty
        return repr(node)
    in_error = in_error or isinstance(node, ast.Raise) or _makes_error(node)
    if isinstance(node, ast.JoinedStr):
        return "Text" if in_error else f"JoinedStr[{','.join(_pieces(node))}]"
    if isinstance(node, ast.Constant):
        return "Text" if in_error and _is_sentence(node.value) else f"Constant({node.value!r})"
    fields = []
    for field, value in ast.iter_fields(node):
        if field in LEFT_OUT or (field == "annotation" and isinstance(node, ast.arg)):
            continue
        if isinstance(value, list):
            parts = [normal_form(part, in_error) for part in value if not _says_nothing(part)]
            text = f"[{','.join(parts)}]" if parts else None
        else:
            text = None if value is None else normal_form(value, in_error)
        if text is not None:
            fields.append(f"{field}={text}")
    return f"{type(node).__name__}({','.join(fields)})"


def _makes_error(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == ERROR


def _is_sentence(value) -> bool:
    """Whether a text is for people: codes such as "bad_input", which decide what happens, have no blanks."""
    return isinstance(value, str) and " " in value


def _says_nothing(node) -> bool:
    """Docstrings and other bare constants, pass, and the help texts of a call."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    return isinstance(node, ast.Pass) or (isinstance(node, ast.keyword) and node.arg in HELP)


def _pieces(node: ast.JoinedStr) -> list[str]:
    """The parts of an f-string; neighbouring constants are one, whatever a version of Python makes of them."""
    pieces: list[str | ast.FormattedValue] = []
    for part in node.values:
        if isinstance(part, ast.FormattedValue):
            pieces.append(part)
        elif pieces and isinstance(pieces[-1], str):
            pieces[-1] += part.value
        elif part.value:
            pieces.append(part.value)
    return [repr(piece) if isinstance(piece, str) else normal_form(piece) for piece in pieces]
