"""Snakemake's command line, as far as somebody has to read it before Snakemake does.

Standard library only.
"""

import re
from collections.abc import Sequence
from pathlib import Path

# Calls that change nothing: they need no lock, and may look at a run in progress.
READ_ONLY = {
    *("--help", "-h", "--version", "-v", "--dry-run", "--dryrun", "-n", "--lint", "--list", "--list-rules", "-l"),
    *("--list-target-rules", "--lt", "--list-changes", "--lc", "--list-input-changes", "--li", "--list-params-changes"),
    *("--lp", "--list-untracked", "--lu", "--summary", "-S", "--detailed-summary", "-D", "--dag", "--rulegraph"),
    *("--filegraph", "--d3dag", "--report", "--print-compilation", "--containerize", "--export-cwl"),
}


def is_read_only(arguments: Sequence[str]) -> bool:
    """Whether a call changes nothing.

    >>> is_read_only(["-np", "results/summary.tsv"]), is_read_only(["--cores", "1"])
    (True, False)
    """
    words = [argument.split("=")[0] for argument in arguments]
    # -np and the like: flags without a value, written together.
    return any(word in READ_ONLY or re.fullmatch("-[npqkF]*n[npqkF]*", word) for word in words)


def value(arguments: Sequence[str], long: str, short: str | None = None) -> str | None:
    """The value of an option, or None.

    >>> value(["-n", "--direc=study"], "--directory", "-d"), value(["-dstudy"], "--directory", "-d")
    ('study', 'study')
    """
    for number, argument in enumerate(arguments):
        if argument == short or means(argument, long):
            if "=" in argument:
                return argument.partition("=")[2]
            return arguments[number + 1] if number + 1 < len(arguments) else None
        if short and argument.startswith(short):
            return argument[2:]
    return None


def means(argument: str, long: str) -> bool:
    """Whether an argument is this option, which may be written short, as argparse takes it: --direc=study."""
    name = argument.partition("=")[0]
    return name == long or (len(name) > 5 and long.startswith(name))


def configurations(arguments: Sequence[str]) -> list[Path]:
    """The files that a call reads its configuration from, where they are there or not.

    >>> [str(path) for path in configurations(["-n", "--configfile", "a.yaml", "b.yaml", "--cores", "1"])]
    ['a.yaml', 'b.yaml']
    >>> [str(path) for path in configurations(["-d", "study"])]
    ['study/config/config.yaml']
    """
    named = named_configurations(arguments)
    return named or [Path(value(arguments, "--directory", "-d") or ".", "config", "config.yaml")]


def named_configurations(arguments: Sequence[str]) -> list[Path]:
    """The files behind --configfile."""
    return [Path(word) for word in _words_of(arguments, ("--configfile", "--configfiles"))]


def no_settings(arguments: Sequence[str]) -> list[str]:
    """What stands behind --config and is no KEY=VALUE: Snakemake takes it for one and ends with a traceback.

    >>> no_settings(["--config", "model=synthseg2", "results/summary.tsv", "--cores", "1"])
    ['results/summary.tsv']
    """
    return [word for word in _words_of(arguments, ("--config", "-C")) if "=" not in word]


def misdirected(arguments: Sequence[str], results: str) -> str | None:
    """A target below results/ where the configuration has the results elsewhere, and what it is called there.

    >>> misdirected(["--cores", "1", "results/summary.tsv"], "out")
    'results/summary.tsv: results are in out, as the configuration says: ask for out/summary.tsv'
    >>> misdirected(["results/summary.tsv"], "results")
    """
    for word in arguments if results != "results" else ():
        if word.startswith("results/") and not Path(word).exists():
            there = word.replace("results", results, 1)
            return f"{word}: results are in {results}, as the configuration says: ask for {there}"
    return None


def _words_of(arguments: Sequence[str], names: Sequence[str]) -> list[str]:
    """The words that belong to an option of any number of them."""
    found, taking = [], False
    for word in arguments:
        name, equals, first = word.partition("=")
        if word.startswith("-"):
            taking = name in names and not equals
            found += [first] if equals and name in names else []
        elif taking:
            found.append(word)
    return found
