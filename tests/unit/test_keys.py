"""Rerun keys: what changes them, and what must not."""

import pytest

from synthseg_native.identity import keys


@pytest.fixture
def package(tmp_path):
    folder = tmp_path / "src/synthseg_native"
    (folder / "engines").mkdir(parents=True)
    (folder / "__init__.py").write_text('"""Package."""\n')
    (folder / "cli.py").write_text(
        '"""Command line."""\nimport numpy\nfrom synthseg_native import image\n\n\n'
        'def main():\n    """Run."""\n    from synthseg_native.posterior import f\n    return f(image)\n'
    )
    (folder / "image.py").write_text("A = 1\n")
    (folder / "posterior.py").write_text("def f(x):\n    return x\n")
    (folder / "other.py").write_text("B = 1\n")
    return folder


def digest(package, **options):
    return keys.code_digest(package.parent, package / "cli.py", **options)


@pytest.mark.parametrize("name", ["cli.py", "image.py", "posterior.py"])
def test_a_statement_in_any_imported_module_counts(package, name):
    before = digest(package)
    path = package / name
    path.write_text(path.read_text() + "\nC = 2\n")
    assert digest(package) != before


def test_docstrings_comments_and_layout_do_not_count(package):
    before = digest(package)
    path = package / "cli.py"
    path.write_text("# Note\n" + path.read_text().replace("Run.", "Runs it all.").replace("return f", "return  f"))
    (package / "image.py").write_text('"""New docstring."""\n\nA = 1  # one\n')
    assert digest(package) == before


def test_a_string_that_is_no_docstring_counts(package):
    before = digest(package)
    (package / "image.py").write_text("A = 'one'\n")
    assert digest(package) != before


def test_modules_not_imported_or_left_out_do_not_count(package):
    before, without = digest(package), digest(package, without=["synthseg_native.image"])
    (package / "other.py").write_text("B = 2\n")
    assert digest(package) == before
    (package / "image.py").write_text("A = 2\n")
    assert digest(package, without=["synthseg_native.image"]) == without


def test_relative_imports_are_followed(package):
    (package / "image.py").write_text("from . import other\nfrom .engines import one\n")
    (package / "engines/__init__.py").write_text("")
    (package / "engines/one.py").write_text("from ..last import D\n")
    (package / "last.py").write_text("D = 1\n")
    seen = {digest(package)}
    for name in ("other.py", "engines/one.py", "last.py"):
        (package / name).write_text((package / name).read_text() + "E = 1\n")
        seen.add(digest(package))
    assert len(seen) == 4


def test_parts_cannot_run_together():
    assert keys.digest("ab", "c") != keys.digest("a", "bc")


def test_settings_do_not_depend_on_order():
    assert keys.settings_json(a=1, b=None) == keys.settings_json(b=None, a=1)
