"""A Snakemake of the user's own, whose Python lacks what the workflow imports: this project's own takes the call over.

Standard library only.
"""

import importlib.util
import os
import sys
from os import PathLike
from pathlib import Path

from synthseg_native.cohort import environments

HANDED = "SYNTHSEG_NATIVE_HANDED"  # set for the one that takes over: it must not hand over again
# What rules and steps import beyond what Snakemake brings.
NEEDED = ("nibabel", "numpy", "pandas", "scipy", "matplotlib")


def take_over(snakefile: str | PathLike, arguments: list[str] | None = None) -> None:
    """Return where this interpreter has all that is needed; else become ./snakemake with the same arguments.

    snakefile: the main one; where it is another workflow's, which imports this one, its packages are not ours to
    choose, and the call ends in one line. arguments: of the process, the program's name first.
    """
    ours = Path(snakefile).resolve().is_relative_to(environments.ROOT)
    if ours:  # so that jobs of a cluster, which are `python -m snakemake`, take no module from the working folder
        os.environ["PYTHONSAFEPATH"] = "1"
    lacking = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if not lacking:
        return
    arguments = sys.argv if arguments is None else arguments
    what = f"this Snakemake's Python lacks {', '.join(lacking)}"
    if os.environ.get(HANDED):
        raise SystemExit(f"synthseg-native: {what}: remove {environments.env_dir('workflow')}, and call again")
    if not ours or not _is_snakemake(arguments) or (start := _start(arguments)) is None:
        raise SystemExit(f"synthseg-native: {what}: install that beside it, or use {environments.ROOT / 'snakemake'}")
    environments.say(f"{what}: going on with the Snakemake of this project's own, as ./snakemake does")
    os.chdir(start)
    os.environ[HANDED] = "1"
    launcher = environments.ROOT / "scripts" / "launch.sh"
    os.execv("/bin/sh", ["sh", str(launcher), "snakemake", *arguments[1:]])


def _is_snakemake(arguments: list[str]) -> bool:
    """Whether this process is the command: its arguments can then be given to another one."""
    program = Path(arguments[0])
    return program.name == "snakemake" or program.parts[-2:] == ("snakemake", "__main__.py")


def _start(arguments: list[str]) -> str | None:
    """The folder that the command was called in, which Snakemake leaves for a --directory; None where unknown."""
    place = next((word for word in arguments if word in ("-d", "--directory") or word.startswith("--directory=")), None)
    here = os.getcwd()  # noqa: PTH109 (a string, as the variable)
    if place is None:
        return here
    directory = place.partition("=")[2] or arguments[arguments.index(place) + 1]
    start = os.environ.get("PWD", "")
    return start if start and os.path.realpath(Path(start, directory)) == os.path.realpath(here) else None
