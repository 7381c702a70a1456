"""A Snakemake of the user's own, whose Python lacks what the workflow imports: this project's own takes the call over.

Standard library only.
"""

import importlib.util
import os
import sys
from os import PathLike
from pathlib import Path

from synthseg_native.cohort import environments, snakemake_arguments

HANDED = "SYNTHSEG_NATIVE_HANDED"  # set for the one that takes over: it must not hand over again
# What rules and steps import beyond what Snakemake brings.
NEEDED = ("nibabel", "numpy", "scipy", "matplotlib")


def take_over(snakefile: str | PathLike, arguments: list[str] | None = None) -> None:
    """Return where this interpreter has all that is needed; else become ./snakemake with the same arguments.

    snakefile: the main one; where it is another workflow's, which imports this one, its packages are not ours to
    choose, and the call ends in one line. arguments: of the process, the program's name first.
    """
    ours = Path(snakefile).resolve().is_relative_to(environments.ROOT)
    arguments = sys.argv if arguments is None else arguments
    if ours:  # so that jobs of a cluster, which are `python -m snakemake`, take no module from the working folder
        os.environ["PYTHONSAFEPATH"] = "1"
        _need_profile(snakefile, arguments)
    lacking = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if not lacking:
        return
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


def _need_profile(snakefile: str | PathLike, arguments: list[str]) -> None:
    """End where the workflow's profile is none: Snakemake passes it over, and a cluster's jobs run where one stands."""
    name = snakemake_arguments.value(arguments, "--workflow-profile")
    if name in (None, "none") or not _is_snakemake(arguments) or (start := _start(arguments)) is None:
        return
    places = [Path(start, name), Path(start, "profiles", name), Path(snakefile).parent / "profiles" / name]
    if not any(place.exists() for place in places):
        looked = ", ".join(map(str, dict.fromkeys(places)))
        raise SystemExit(f"synthseg-native: --workflow-profile {name}: no such profile: looked in {looked}")


def _is_snakemake(arguments: list[str]) -> bool:
    """Whether this process is the command: its arguments can then be given to another one."""
    program = Path(arguments[0])
    return program.name == "snakemake" or program.parts[-2:] == ("snakemake", "__main__.py")


def _start(arguments: list[str]) -> str | None:
    """The folder that the command was called in, which Snakemake leaves for a --directory; None where unknown."""
    directory = snakemake_arguments.value(arguments, "--directory", "-d")
    here = os.getcwd()  # noqa: PTH109 (a string, as the variable)
    if directory is None:
        return here
    start = os.environ.get("PWD", "")
    return start if start and os.path.realpath(Path(start, directory)) == os.path.realpath(here) else None
