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

import contextlib
import getpass
import re
import tempfile
from pathlib import Path

from synthseg_native import shared_disk, streams
from synthseg_native.cohort import environments, snakemake_arguments, variables

ROOT = Path(__file__).resolve().parents[1]

PROFILES = ("--workflow-profile", "--profile")
ROOM = 2**16  # bytes that a folder to write to must have room for


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
    """Become the Python of an environment."""
    env = environments.clean_environment() | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}  # for `-m training`
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
    env = environments.clean_environment() | {"PYTHONPATH": str(ROOT / "src")}
    try:
        with folder_to_write(weights.default_cache(env) / "verified") as verified:
            engine, arguments = ranking.for_command(arguments, verified)
    except SynthSegError as error:
        print(f"synthseg-native: {error.message}", file=sys.stderr)
        sys.exit(error.exit_code)
    execute([environments.ensure(engine), "-m", "synthseg_native", *arguments], env)


@contextlib.contextmanager
def folder_to_write(path):
    """This folder, made where it is missing; where it cannot be written to, one for the time of the block."""
    if is_writable(path):
        yield path
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)


def is_writable(path):
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=str(path)) as file:
            file.write(bytes(ROOM))  # the disk may be full
            file.flush()
    except OSError:
        return False
    return True


def execute(command, env, hears=True):
    """Become the command. hears: whether it is one of ours, which `stopping.hear`."""
    stopping.become([str(part) for part in command], env, hears)


def snakemake(arguments):
    """Become Snakemake, with the lock of the working directory in hand."""
    from synthseg_native.networks import weights

    place, directory = [], snakemake_arguments.value(arguments, "--directory", "-d")
    snakefile = snakemake_arguments.value(arguments, "--snakefile", "-s")
    if snakefile is None and not Path.cwd().samefile(ROOT):
        # Called by path from elsewhere: this workflow, whatever lies there, and its results beside it.
        place = ["--snakefile", ROOT / "Snakefile"]
        if directory is None:
            directory = ROOT
            place += ["--directory", ROOT]
    if not {"--help", "-h", "--version", "-v"} & set(arguments):
        words = snakemake_arguments.no_settings(arguments)
        if words:
            remedy = f"write {words[0]}=VALUE"
            if "/" in words[0] or "." in words[0]:
                remedy = f"put it before --config, as in: {words[0]} --config KEY=VALUE"
            sys.exit(f"synthseg-native: --config: {words[0]} is no KEY=VALUE: {remedy}")
        if snakefile is None or Path(snakefile).resolve().is_relative_to(ROOT):
            need_configuration(directory, arguments)
            arguments = with_profiles(arguments)
        for name in sorted(name for name in os.environ if name.startswith("SNAKEMAKE_")):
            environments.say(f"{name} is set, and left out: what it asks for is said in the call (--help)")
    env = environments.clean_environment()
    for name in variables.OF_A_RUN:  # of another run, from which this one is called
        env.pop(name, None)
    env.setdefault("HOME", str(weights.home()))  # Snakemake needs it and a name; in a container they may be nowhere
    env.setdefault("LOGNAME", user())
    cache = weights.default_cache(env)
    if not is_writable(cache.parent / "snakemake"):
        # Snakemake needs one, which all nodes see. What is kept in the user's own can be read all the same.
        env |= {"XDG_CACHE_HOME": str(Path(directory or ".", ".snakemake", "cache").absolute())}
        env |= {"SYNTHSEG_NATIVE_CACHE": str(cache)}
    interpreter = environments.ensure("workflow")
    if snakemake_arguments.is_read_only(arguments):
        need_folder(Path(directory or "."))
    else:
        take_lock(Path(directory or "."), unlock="--unlock" in arguments)
    start = ROOT / "scripts" / "start_snakemake.py"
    execute([interpreter, start, *place, *arguments], env)


def user():
    """This user's name, or number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def need_configuration(directory, arguments):
    """End in one line where the study's folder, or its configuration, is not there: Snakemake makes the folder."""
    folder, path = Path(directory or "."), Path(directory or ".", "config", "config.yaml")
    if not folder.is_dir():
        sys.exit(f"synthseg-native: --directory {directory}: no such folder: correct it, or make it, with {path}")
    if not snakemake_arguments.named_configurations(arguments) and not path.is_file():
        sys.exit(f"synthseg-native: {path}: no such configuration: copy {ROOT / 'config' / 'config.yaml'} there")


def with_profiles(arguments):
    """The arguments with whole paths of profiles; without one for the workflow, this project's default."""
    option, found = None, []
    for argument in arguments:
        name, equals, named = argument.partition("=")
        meant = next((long for long in PROFILES if snakemake_arguments.means(argument, long)), None)
        if option:
            argument, option = profile(option, argument), None
        elif meant and equals:
            argument = f"{name}={profile(meant, named)}"
        elif meant:
            option = meant
        found.append(argument)
    if not any(snakemake_arguments.means(argument, PROFILES[0]) for argument in found):
        found = [PROFILES[0], str(ROOT / "profiles" / "default"), *found]
    return found


def profile(option, name):
    """The path of a profile: this project's by its name, `slurm` or `profiles/slurm`, from anywhere, else the user's.

    Before them go, for --profile, those that the user has for all workflows, where Snakemake looks for them.
    """
    from synthseg_native.networks import weights

    if name == "none":  # Snakemake's word
        return name
    folders = []
    if option == "--profile":
        sites = (os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")
        folders = [os.environ.get("XDG_CONFIG_HOME") or weights.home() / ".config", *sites]
    places = [Path(folder, "snakemake", name) for folder in folders]
    if not name.startswith((".", "/")):
        places.append(ROOT / "profiles" / name.removeprefix("profiles/"))
    places += [Path.cwd() / name, Path.cwd() / "profiles" / name]
    there = [place for place in places if name and is_profile(place)]
    if not there:
        looked = ", ".join(map(str, dict.fromkeys(places)))
        sys.exit(f"synthseg-native: {option} {name}: no such profile: looked for a config.yaml in {looked}")
    others = [place for place in there if not place.samefile(there[0])]
    if others:
        environments.say(f"{option} {name}: {there[0]}, not {others[0]}: a whole path says which one is meant")
    return str(there[0])


def is_profile(path):
    main = re.compile(r"(profile|config)(\.v\d+\+)?\.yaml")
    return path.is_file() or any(main.fullmatch(file.name) for file in path.glob("*"))


def need_folder(directory):
    """End in one line where Snakemake cannot make the folder that it keeps what it knows in, as it does in any call."""
    need_no_file(directory / ".snakemake")
    if not (directory / ".snakemake").is_dir() and not os.access(str(directory), os.W_OK | os.X_OK):
        what = "cannot be written to, and Snakemake makes its folder .snakemake there, even for a look"
        sys.exit(f"synthseg-native: {directory.resolve()}: {what}: make it writable, or name another by --directory")


def need_no_file(folder):
    if folder.exists() and not folder.is_dir():
        sys.exit(f"synthseg-native: {folder.resolve()}: a file, where Snakemake's folder belongs: remove it")


def take_lock(directory, unlock=False):
    """Lock the working directory for as long as the process lives, whatever it becomes.

    Lock files of Snakemake's that are there although nobody works are removed: a killed run left them. They stay where
    a run of another machine may be their owner, which this one cannot ask. unlock: whether Snakemake is called to
    remove them.
    """
    folder = directory / ".snakemake"
    need_no_file(folder)
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
