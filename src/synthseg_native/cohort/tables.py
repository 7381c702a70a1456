"""Tab-separated tables as BIDS wants them: n/a for what is missing, no quoting needed to read them.

Without pandas, which takes half a second to import: every call of the workflow writes the tables twice and reads them.
"""

import contextlib
import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike

from synthseg_native.files import read_text, writing

MISSING = "n/a"


def as_text(value: object) -> str:
    """One cell: n/a for what is missing, true/false, at most 6 decimals, text on one line.

    >>> [as_text(value) for value in (None, float("nan"), True, 2 / 3, 5, "two\\nlines")]
    ['n/a', 'n/a', 'true', '0.666667', '5', 'two lines']
    """
    if value is None or value == "":
        return MISSING
    if isinstance(value, float):
        return repr(round(value, 6)) if math.isfinite(value) else MISSING
    if isinstance(value, str) and value.isprintable():  # without a look for tabs: a cohort has millions of cells
        return value.strip()
    if isinstance(value, bool):
        return str(value).lower()
    return re.sub(r"[\t\r\n]+", " ", str(value)).strip()


def write_tsv(path: str | PathLike, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write dicts as the rows of a table, whole or not at all; a key that a row lacks is n/a."""
    with tsv_writer(path, columns) as add:
        for row in rows:
            add([as_text(row.get(name)) for name in columns])


@contextlib.contextmanager
def tsv_writer(path: str | PathLike, columns: Sequence[str]) -> Iterator[Callable[[list[str]], object]]:
    """What writes one row of cells after the other; the table is there whole at the end of the block, or not at all."""
    with writing(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(columns)
        yield writer.writerow


def read_tsv(path: str | PathLike) -> list[dict[str, str]]:
    """The rows of a table, every cell as its text: n/a stays n/a, and 01 stays 01. Of a row that is cut short the rest
    is empty."""
    return list(csv.DictReader(io.StringIO(read_text(path)), delimiter="\t", restval=""))
