"""Make the locked environments and run commands in them.

environment.py ensure NAME...           make the environments that are missing
environment.py run NAME -- ARGS...      the environment's Python with ARGS, this project's packages importable
environment.py segment ARGS...          the command synthseg-native, in the environment of its --engine
environment.py snakemake ARGS...        Snakemake, one run per working directory at a time
"""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  (this file must stay readable for Python 3.6, to get here)
    sys.exit("synthseg-native: this is Python %d.%d: use Python 3.11 to 3.13" % sys.version_info[:2])  # noqa: UP031

import os

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.realpath(__file__))), "src"))  # noqa: PTH118, PTH120

from synthseg_native import stopping

if __name__ == "__main__":
    stopping.hear(stopping.end_at_once)  # until all is imported

import re
from pathlib import Path

from synthseg_native import shared_disk, streams
from synthseg_native.cohort import environments

ROOT = Path(__file__).resolve().parents[1]

# Calls that change nothing: they need no lock, and may look at a run in progress.
READ_ONLY = {
    *("--help", "-h", "--version", "-v", "--dry-run", "--dryrun", "-n", "--lint", "--list", "--list-rules", "-l"),
    *("--list-target-rules", "--lt", "--list-changes", "--lc", "--list-input-changes", "--li", "--list-params-changes"),
    *("--lp", "--list-untracked", "--lu", "--summary", "-S", "--detailed-summary", "-D", "--dag", "--rulegraph"),
    *("--filegraph", "--d3dag", "--report", "--print-compilation", "--containerize", "--export-cwl"),
}


def main(argv):
    if len(argv) > 1 and argv[0] == "ensure":
        environments.ensure_all(argv[1:])
    elif len(argv) > 3 and argv[0] == "run" and argv[2] == "--":
        run(argv[1], argv[3:])
    elif argv[:1] == ["segment"]:
        segment(argv[1:])
    elif argv[:1] == ["snakemake"]:
        snakemake(argv[1:])
    else:
        sys.exit(__doc__.strip())


def run(name, arguments):
    """Become the Python of an environment; for `-m training` the folder that one stands in counts."""
    env = environments.clean_environment() | {"PYTHONPATH": str(ROOT / "src")}
    del env["PYTHONSAFEPATH"]
    execute([environments.ensure(name), *arguments], env, hears=False)


def segment(arguments):
    """Become the command synthseg-native, in the environment of the engine that it is to use."""
    from synthseg_native import cli
    from synthseg_native.cohort import ranking
    from synthseg_native.errors import SynthSegError
    from synthseg_native.networks import weights

    if not arguments:
        sys.exit(cli.main([]))
    cli.parser().parse_args(arguments)  # --help and wrong use end here: no environment is made for them
    try:
        engine, arguments = ranking.for_command(arguments, weights.default_cache() / "verified")
    except SynthSegError as error:
        print(f"synthseg-native: {error.message}", file=sys.stderr)
        sys.exit(error.exit_code)
    env = environments.clean_environment() | {"PYTHONPATH": str(ROOT / "src")}
    execute([environments.ensure(engine), "-m", "synthseg_native", *arguments], env)


def execute(command, env, hears=True):
    """Become the command. hears: whether it is one of ours, which `stopping.hear`."""
    stopping.become([str(part) for part in command], env, hears)


def snakemake(arguments):
    """Become Snakemake, with the lock of the working directory in hand."""
    interpreter = environments.ensure("workflow")
    place = []
    directory = option(arguments, "--directory", "-d")
    if option(arguments, "--snakefile", "-s") is None and not Path.cwd().samefile(ROOT):
        # Called by path from elsewhere: this workflow, whatever lies there, and its results beside it.
        place = ["--snakefile", ROOT / "Snakefile"]
        if directory is None:
            directory = ROOT
            place += ["--directory", ROOT]
    if not is_read_only(arguments):
        take_lock(Path(directory or "."), unlock="--unlock" in arguments)
    start = ROOT / "scripts" / "start_snakemake.py"
    execute([interpreter, start, *place, *arguments], environments.clean_environment())


def option(arguments, long, short):
    """The value of an option of Snakemake's, or None."""
    for number, argument in enumerate(arguments):
        if argument in (long, short):
            return arguments[number + 1] if number + 1 < len(arguments) else None
        if argument.startswith(long + "="):
            return argument[len(long) + 1 :]
    return None


def is_read_only(arguments):
    words = [argument.split("=")[0] for argument in arguments]
    # -np and the like: flags without a value, written together.
    return any(word in READ_ONLY or re.fullmatch("-[npqkF]*n[npqkF]*", word) for word in words)


def take_lock(directory, unlock=False):
    """Lock the working directory for as long as the process lives, whatever it becomes.

    Lock files of Snakemake's that are there although nobody works are removed: a killed run left them. They stay where
    a run of another machine may be their owner, which this one cannot ask. unlock: whether Snakemake is called to
    remove them.
    """
    folder = directory / ".snakemake"
    folder.mkdir(parents=True, exist_ok=True)
    left = [path for path in (folder / "locks").glob("*") if path.is_file()]
    try:
        others = shared_disk.claim(folder / "launcher.lock", at_rest=not left)
    except shared_disk.Held as held:
        who = held.owner or "of another process"
        sys.exit(f"synthseg-native: another run ({who}) works in {directory.resolve()}: wait for it or stop it")
    if left and others and not unlock:
        works = f"another run ({others[-1]}) works in {directory.resolve()}, or was killed there"
        sys.exit(f"synthseg-native: {works}: wait for it, or, if it has ended, call with --unlock and then again")
    if left and not others:
        for path in left:
            path.unlink(missing_ok=True)
        environments.say("removed the lock that a killed run had left")


if __name__ == "__main__":
    try:
        with stopping.hearing(), streams.outlived():
            main(sys.argv[1:])
    except (environments.SetupError, OSError) as error:
        sys.exit("\n".join(f"synthseg-native: {line}" for line in str(error).splitlines()))
    except stopping.Stopped as reason:
        stopping.tell(reason)
        sys.exit(reason.exit_code)
