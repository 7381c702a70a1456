"""The files of the configuration, before anybody takes their contents: mistakes in the YAML, each with its line.

Snakemake says of such a file that it is "not valid", and takes the later one of two keys that are the same. Apart from
`config`, whose libraries take longer to import than this takes: it is asked before Snakemake starts.
"""

from collections.abc import Iterable
from pathlib import Path

from synthseg_native import yaml_text


def check(paths: Iterable[str | Path]) -> None:
    """End the process in one line at the first file that cannot be read as it is meant. One that is not there is for
    Snakemake to say."""
    for path in map(Path, paths):
        try:
            content = yaml_text.read(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise SystemExit(f"synthseg-native: {path}: {error.strerror}: make it readable") from None
        except ValueError as error:
            raise SystemExit(f"synthseg-native: {path}: {error}") from None
        if not isinstance(content, dict):
            what = "is empty" if content is None else "has no keys at its top"
            raise SystemExit(f"synthseg-native: {path}: {what}: write lines of KEY: VALUE, as config/config.yaml has")
