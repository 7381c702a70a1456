"""YAML as people write it: read quickly, and every mistake has its line; a key that stands twice is one."""

from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from synthseg_native.files import decoded

# 8 instead of 75 ms where PyYAML has its part in C.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read(path: str | PathLike) -> Any:
    """The contents of a YAML file, or a JSON one. Raises OSError, and ValueError that says what is wrong, and where."""
    try:
        text = decoded(Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{error}: save it as UTF-8") from None
    return load(text.removeprefix("\ufeff"))


def load(text: str) -> Any:
    r"""The contents of a YAML text. Raises ValueError.

    >>> load("model: synthseg1\nthreads: 2")
    {'model': 'synthseg1', 'threads': 2}
    >>> load("model: synthseg1\nthreads: 2\nmodel: synthseg2")
    Traceback (most recent call last):
    ValueError: line 3: model stands there twice, first in line 1: leave one out
    """
    loader = LOADER(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _check_keys(root, set())
        return loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{where}{' '.join(str(error.problem or error.context).split())}: correct the YAML") from None
    except (yaml.YAMLError, RecursionError) as error:  # a character that no YAML holds; brackets in thousands
        reason = getattr(error, "reason", None) or error
        raise ValueError(f"{' '.join(str(reason).split())[:200]}: correct the YAML") from None
    finally:
        loader.dispose()


def _check_keys(node: yaml.Node, seen: set[int]) -> None:
    """Raise ValueError for a key that a mapping has twice: which one counts would be anybody's guess."""
    if id(node) in seen or isinstance(node, yaml.ScalarNode):
        return
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if key.value in first and key.value != "<<":
                    what = f"{key.value} stands there twice, first in line {first[key.value]}"
                    raise ValueError(f"line {line}: {what}: leave one out")
                first[key.value] = line
    for below in node.value:
        for part in below if isinstance(below, tuple) else (below,):
            _check_keys(part, seen)
