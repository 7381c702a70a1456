"""Digests of code: what changes them, what must not, and that every Python gives the same."""

import ast
import os
import re
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

from synthseg_native.identity import stages
from synthseg_native.identity.code import code_digest

SOURCE = Path(__file__).parent / "identity_cases" / "source.txt"
GOLDEN = "b84d20ff8cb9"

PRINT = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("code_of", sys.argv[1])
code = importlib.util.module_from_spec(spec)
spec.loader.exec_module(code)
from pathlib import Path
package = Path(sys.argv[3])
print(code.code_digest([("source.py", Path(sys.argv[2]))]))
print(code.code_digest([(path.relative_to(package).as_posix(), path) for path in package.rglob("*.py")]))
"""


def pythons() -> list[Path]:
    """Every Python from 3.11 on that the path or pyenv has, one of each minor version."""
    places = [*os.environ["PATH"].split(os.pathsep), *Path.home().glob(".pyenv/versions/*/bin")]
    found = {}
    for folder in places:
        for file in Path(folder).glob("python3.*"):
            match = re.fullmatch(r"python3\.(\d+)", file.name)
            if match and int(match[1]) >= 11 and file.parent.name != "shims" and os.access(file, os.X_OK):
                found.setdefault(int(match[1]), file)
    return list(found.values())


@pytest.mark.slow
def test_the_digest_is_the_same_under_every_python(root):
    package = root / "src/synthseg_native"
    parts = [(path.relative_to(package).as_posix(), path) for path in package.rglob("*.py")]
    expected = [code_digest([("source.py", SOURCE)]), code_digest(parts)]
    assert expected[0] == GOLDEN
    for python in pythons():
        given = [python, "-c", PRINT, package / "identity/code.py", SOURCE, package]
        done = subprocess.run(given, capture_output=True, text=True, check=True)
        assert done.stdout.split() == expected, python


@pytest.fixture
def digest(tmp_path):
    def of(text, name="a.py"):
        (tmp_path / "a.py").write_text(text)
        return code_digest([(name, tmp_path / "a.py")])

    return of


CODE = '''"""Words."""

def f(x: int, *, fast: bool = False) -> int:
    """Words."""
    if x < 0:
        raise SynthSegError("bad_input", f"{x}: too small: give more")
    add("--x", help="words", metavar="N")
    return x + 1
'''


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""Words."""', '"""Other words."""'),
        ('    """Words."""\n', ""),
        ("return x + 1", "return (x  +\n        1)  # a comment"),
        ('help="words"', 'help="better words"'),
        ('metavar="N"', 'metavar="M"'),
        ("too small: give more", "below 0: give more"),
        ("x: int", "x: float"),
        (" -> int", ""),
        ("    return", "    pass\n    return"),
    ],
)
def test_what_changes_no_result_does_not_count(digest, old, new):
    assert old in CODE
    assert digest(CODE.replace(old, new)) == digest(CODE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x + 1", "x + 2"),
        ("x + 1", "x + 1.0"),
        ("x < 0", "x <= 0"),
        ('"bad_input"', '"disk"'),
        ('"--x"', '"--y"'),
        ("fast: bool = False", "fast: bool = True"),
        ("*, fast", "fast"),
        ("def f", "def g"),
        ("return x + 1", 'print("one text")\n    return x + 1'),
    ],
)
def test_what_may_change_a_result_counts(digest, old, new):
    assert old in CODE
    assert digest(CODE.replace(old, new)) != digest(CODE)


def test_a_text_that_is_no_sentence_of_an_error_counts(digest):
    assert digest('x = "one text"') != digest('x = "other text"')
    assert digest('x = f"one {y}"') != digest('x = f"other {y}"')
    assert digest('x = f"{y}"') != digest('x = f"{y:.2f}"') != digest('x = f"{y!r}"')


def test_parts_of_a_file(digest):
    text = "A = 1\n\ndef f():\n    return A\n\ndef g():\n    return 2\n"
    assert digest(text, "a.py:f,A") == digest(text.replace("return 2", "return 3"), "a.py:f,A")
    assert digest(text, "a.py:f,A") != digest(text.replace("A = 1", "A = 2"), "a.py:f,A")
    with pytest.raises(KeyError):
        digest(text, "a.py:h")


def test_a_file_s_place_counts_and_the_order_of_files_does_not(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.py").write_text(f"{name} = 1\n")
    files = [("a.py", tmp_path / "a.py"), ("b.py", tmp_path / "b.py")]
    assert code_digest(files) == code_digest(files[::-1])
    assert code_digest(files) != code_digest([("b.py", tmp_path / "a.py"), ("a.py", tmp_path / "b.py")])


# The list of stages --------------------------------------------------------------------------------------------------


def modules_in(package):
    return {path.relative_to(package).as_posix() for path in package.rglob("*.py")}


def listed(package):
    """{module: whether all of it counts} of every stage, with every engine."""
    found = {}
    for stage in stages.STAGES.values():
        for engine in stages.engines.NAMES:
            for name, _ in stages.files_of(stage, engine, package):
                module, _, parts = name.partition(":")
                found[module] = found.get(module, False) or not parts
    return found


def test_every_module_is_in_a_stage_or_changes_no_result(root):
    """With a reason; of a module that is listed in part too, for the rest of it."""
    package = root / "src/synthseg_native"
    in_lists = listed(package)
    in_full = {module for module, whole in in_lists.items() if whole}
    unlisted = modules_in(package) - in_full
    assert {name for name in unlisted if not any(fnmatch(name, known) for known in stages.UNCHANGING)} == set()
    gone = [known for known in stages.UNCHANGING if not any(fnmatch(name, known) for name in modules_in(package))]
    assert gone == []
    assert all(" " in why or why == "empty" for why in stages.UNCHANGING.values())
    for name in (name for name, why in stages.UNCHANGING.items() if why == "empty"):
        assert all(isinstance(node, ast.Expr) for node in ast.parse((package / name).read_text()).body), name
    scripts = {name for stage in stages.STAGES.values() for name in stage.scripts}
    assert scripts <= {path.name for path in (root / "scripts").glob("*.py")}


def test_every_stage_s_code_can_be_read():
    """A list that names a file, or a part of one, that is gone has a hole."""
    for engine in stages.engines.NAMES:
        found = stages.codes(stages.STAGES, engine)
        assert set(found) == set(stages.STAGES)


def test_what_a_stage_reads_is_made_before_or_comes_from_outside():
    outside = {"image", "weights", "label map of the user"}
    known = set(outside)
    for stage in stages.STAGES.values():
        assert set(stage.reads) <= known | {stage.name}, stage.name
        known.add(stage.name)


def test_a_file_that_is_gone_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="stage read names it"):
        stages.codes(["read"], package=tmp_path)
