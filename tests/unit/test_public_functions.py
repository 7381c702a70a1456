"""Public functions say what they take and give: types for all parameters and the result, and a docstring."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "src" / "synthseg_native"
MODULES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def public_functions(tree):
    """The functions without an underscore of a module and of its classes, with the names that they go by."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from ((f"{node.name}.{name}", function) for name, function in public_functions(node))
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node.name, node


def faults(source):
    """What the public functions of a module do not say, a line each."""
    found = []
    for name, function in public_functions(ast.parse(source)):
        arguments = function.args
        given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        given += [more for more in (arguments.vararg, arguments.kwarg) if more]
        untyped = [a.arg for a in given if a.annotation is None and a.arg not in ("self", "cls")]
        found += [f"{name}: {argument} has no type" for argument in untyped]
        if function.returns is None:
            found.append(f"{name}: the result has no type")
        if not ast.get_docstring(function):
            found.append(f"{name}: no docstring")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_public_functions_are_typed_and_documented(module):
    found = faults((PACKAGE / module).read_text(encoding="utf-8"))
    assert found == []


def test_what_is_missing_is_named():
    source = '''
def a(x: int, *rest: str, key=None) -> int:
    """Something."""

def _private(x): ...

class Thing:
    def open(self, path): ...
    def _own(self): ...
'''
    wanted = ["a: key has no type", "Thing.open: path has no type", "Thing.open: the result has no type"]
    assert faults(source) == [*wanted, "Thing.open: no docstring"]
