"""Reference runs in containers: images and their keys, the command, what can go wrong, and leftovers.

A container runs as the calling user, without network, on a read-only root. The scan, the model and measure.py are
mounted read-only; the work folder, /out, is the one place it can write to.
"""

import contextlib
import csv
import hashlib
import io
import json
import os
import platform as host
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from packaging.markers import Marker

from synthseg_native import measure, owners
from synthseg_native.cohort import environments, installers
from synthseg_native.cohort.runs.files import SCORES
from synthseg_native.errors import SynthSegError
from synthseg_native.identity import keys
from synthseg_native.identity.code import code_digest
from synthseg_native.identity.contents import Contents
from synthseg_native.networks import weights

RUNTIMES = ("docker", "podman", "apptainer")
OWN_NAME = "synthseg-native-reference"
UPSTREAM_IMAGE = "pwesp/synthseg:py38"
UPSTREAM_PLATFORM = "linux/amd64"
UPSTREAM_MODELS = {"synthseg1": ["--v1"], "synthseg2": []}
BASE_IMAGE = "python:3.11-slim-bookworm"
REFERENCE = Path(measure.__file__).with_name("reference.py")
LABEL_WORKDIR, LABEL_RUN, LABEL_OWNER = (f"synthseg-native.{name}" for name in ("workdir", "run", "owner"))
LABEL_KEY = "synthseg-native.key"  # of the own image: `image_key`
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

_REFUSED = re.compile(r"permission denied.*(connect|socket|daemon)|connect: permission denied", re.I)
_ABSENT = re.compile(r"cannot connect to|is the docker daemon running|connection refused|error during connect", re.I)
DIED = re.compile(r"unexpected EOF|error waiting for container|connection reset|context canceled|closed network", re.I)
_MISSING = re.compile(r"no such image|unable to find image|image not known|no such object", re.I)


# --- images ----------------------------------------------------------------------------------------------------------


def image_key(base: str = BASE_IMAGE, platform: str | None = None) -> str:
    """Rerun key of the own image: Dockerfile, lock, reference.py (what it does), base as it is named, platform.

    A base that is named by its digest (name@sha256:...) is pinned; the image's ID is in each run record.
    """
    return keys.digest(
        dockerfile().read_bytes(),
        environments.lock_hash("tensorflow"),
        code_digest([(REFERENCE.name, REFERENCE)]),
        base,
        platform or "",
    )


def dockerfile() -> Path:
    """What the own image is built by."""
    return environments.LOCKS / "reference" / "Dockerfile"


def image_tag(key: str) -> str:
    """Name of the own image with this key."""
    return f"{OWN_NAME}:{key}"


def image_of(settings: dict) -> str:
    """The image of a reference run, from its settings (kind, runtime, image, key).

    Of kind own it is the one that was built; only Apptainer, which builds nothing, may be given a file as `image`.

    >>> image_of({"kind": "own", "runtime": "docker", "key": "0123456789ab"})
    'synthseg-native-reference:0123456789ab'
    >>> image_of({"kind": "upstream", "runtime": "apptainer", "image": "somebody/synthseg:1"})
    'docker://somebody/synthseg:1'
    """
    apptainer = settings["runtime"] == "apptainer"
    if settings["kind"] == "own":
        tag = image_tag(settings["key"])
        return (settings.get("image") or f"docker-daemon:{tag}") if apptainer else tag
    image = settings.get("image") or UPSTREAM_IMAGE
    bare = apptainer and not image.endswith(".sif") and ":/" not in image
    return f"docker://{image}" if bare else image


def version_of(settings: dict) -> str:
    """What runs in the image: the lock's TensorFlow in the own image; of a foreign one only its name is known."""
    if settings["kind"] != "own":
        return image_of(settings)
    lock = environments.lock_file("tensorflow").read_text(encoding="utf-8")
    return "tensorflow " + re.search(r"^tensorflow==(\S+)", lock, re.M)[1]


def platform_of(settings: dict) -> str | None:
    """The platform asked for, or None for the daemon's own."""
    return settings.get("platform") or (UPSTREAM_PLATFORM if settings["kind"] == "upstream" else None)


@dataclass(frozen=True)
class Runtime:
    """What a container runtime says of itself."""

    name: str
    architecture: str  # amd64, arm64
    cpus: int
    rootless: bool


def runtime(name: str) -> Runtime:
    """Ask a runtime whether it works. Raises SynthSegError("daemon"), one line that says what to do."""
    if name == "apptainer":
        _ask(name, ["--version"])
        return Runtime(name, _ARCHITECTURES.get(host.machine(), host.machine()), os.cpu_count(), True)
    told = json.loads(_ask(name, ["info", "--format", "{{json .}}"]))
    if name == "podman":
        machine = told["host"]
        rootless = bool(machine.get("security", {}).get("rootless"))
        return Runtime(name, machine["arch"], int(machine["cpus"]), rootless)
    if told.get("ServerErrors"):  # newer clients print their own half and exit with 0
        raise problem(name, " ".join(told["ServerErrors"]))
    architecture = _ARCHITECTURES.get(told["Architecture"], told["Architecture"])
    return Runtime(name, architecture, int(told["NCPU"]), "rootless" in " ".join(told.get("SecurityOptions") or []))


def inspect(name: str, image: str, kind: str = "own", platform: str | None = None) -> tuple[str | None, str | None]:
    """Return (image ID, architecture) of an image that the runtime has. Raises SynthSegError("daemon")."""
    if name == "apptainer":
        sha256 = _remembered_sha256(image)
        return sha256 and f"sha256:{sha256}", None
    try:
        told = _ask(name, ["image", "inspect", "--format", "{{.Id}} {{.Architecture}}", image])
    except SynthSegError as error:
        if not _MISSING.search(error.message):
            raise
        pull = f"{name} pull {f'--platform {platform} ' if platform else ''}{image}"
        remedy = "build it with make reference-image" if kind == "own" else f"fetch it with {pull}"
        raise SynthSegError("daemon", f"{image}: {name} has no such image: {remedy}") from None
    identity, architecture = told.split()
    return identity if ":" in identity else f"sha256:{identity}", _ARCHITECTURES.get(architecture, architecture)


def need_own(settings: dict) -> None:
    """That a file in place of the own image, which only Apptainer is given, holds the reference that `key` names.

    Raises SynthSegError("usage") for another one: an old file would pass for the new code.
    """
    image, key = settings.get("image"), settings.get("key")
    if (settings["kind"], settings["runtime"]) != ("own", "apptainer") or not image:
        return
    try:
        told = json.loads(_ask("apptainer", ["inspect", "--json", "--labels", image]))
        found = told["data"]["attributes"]["labels"][LABEL_KEY]
    except (ValueError, KeyError, TypeError):
        found = None
    if found != key:
        what = f"holds another reference ({found}, not {key})" if found else "does not say which reference it holds"
        again = f"make reference-image, then apptainer build {image} docker-daemon:{image_tag(key)}"
        raise SynthSegError("usage", f"{image}: {what}: build it again: {again}")


def _remembered_sha256(image: str) -> str | None:
    """Of Apptainer's file of an image, which is some GB and asked for with every scan; None where it is no file."""
    known = Contents(weights.default_cache() / "images.json")
    found = known.sha256(Path(image).resolve())
    with contextlib.suppress(OSError):  # a cache that cannot be written to: it is read again
        known.save()
    return found


def has_image(name: str, image: str) -> bool:
    """Whether the runtime has the image. Raises SynthSegError("daemon") when it cannot be asked."""
    runtime(name)
    try:
        inspect(name, image)
    except SynthSegError as error:
        if "no such image" in error.message:
            return False
        raise
    return True


def _ask(name, arguments, limit=120):
    try:
        options = {"env": environments.clean_environment(), "stdin": subprocess.DEVNULL, "timeout": limit}
        done = subprocess.run([name, *arguments], **options, capture_output=True, text=True)
    except FileNotFoundError:
        raise SynthSegError("daemon", f"{name}: not installed: install it, or set reference.runtime to local") from None
    except subprocess.TimeoutExpired:
        raise SynthSegError("daemon", f"{name}: no answer within {limit} s: restart it and call again") from None
    if done.returncode != 0:
        raise problem(name, done.stderr or done.stdout)
    return done.stdout.strip()


def problem(name: str, text: str) -> SynthSegError:
    """Say in one line, as a SynthSegError, why a runtime refused, from what it printed.

    >>> print(problem("podman", "Error: something\\nError: no space for the layer"))
    podman: Error: no space for the layer: mend this and call again
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("See '", "Run '"))]  # "... docker run --help"
    if _REFUSED.search(text):
        remedy = "add this user to the group docker and log in again" if name == "docker" else "ask the administrator"
        return SynthSegError("daemon", f"{name}: this user may not use it: {remedy}, or use podman or runtime local")
    if DIED.search(text):
        return SynthSegError("daemon", f"{name}: its daemon went away during the run: start it and call again")
    if _ABSENT.search(text):
        where = f" at {os.environ['DOCKER_HOST']}" if name == "docker" and os.environ.get("DOCKER_HOST") else ""
        start = "start it (sudo systemctl start docker, or Docker Desktop)" if name == "docker" else "start it"
        return SynthSegError("daemon", f"{name}: no daemon answers{where}: {start} and call again")
    last = lines[-1] if lines else "it said nothing"
    return SynthSegError("daemon", f"{name}: {last}: mend this and call again")


# --- the command -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A reference run in a container. Paths are the host's; memory_mb None for no limit; timeout in seconds.
    companions : the folder of the model from which the card takes networks that are not its own
    """

    settings: dict
    scan: Path
    model_dir: Path
    weights: Path | None
    work: Path
    model: str
    timeout: float | None = None
    memory_mb: int | None = None
    companions: Path | None = None
    run: str = field(default_factory=lambda: secrets.token_hex(8))

    @property
    def cidfile(self) -> Path:
        """Where the runtime writes the ID of the container that it has started."""
        return self.work.resolve() / "container.id"


def inner_command(job: Job) -> tuple[list[str], list[tuple[Path, str]]]:
    """What runs inside, and the mounts it needs: (list of words, [(host path, container path)]).

    Raises SynthSegError("usage") for a model that upstream's image does not have.
    """
    suffix = next((s for s in (".nii.gz", ".nii", ".mgz", ".mgh") if job.scan.name.lower().endswith(s)), ".nii.gz")
    scan, settings = f"/in/image{suffix}", job.settings
    mounts = [(job.scan, scan), (Path(measure.__file__), "/in/measure.py")]
    words = ["/in/measure.py", "--out", "/out/measure.json", "--cgroup"]
    words += [] if job.timeout is None else ["--timeout", f"{job.timeout:g}"]
    words += ["--", "python"]
    same = ["--i", scan, "--o", "/out/dseg.nii.gz", "--vol", "/out/volumes.csv", "--threads", str(settings["threads"])]
    same += [*keys.flags(settings), *(["--qc", f"/out/{SCORES}"] if settings.get("scores") else [])]
    if settings["kind"] == "upstream":
        if job.model not in UPSTREAM_MODELS:
            only = " and ".join(UPSTREAM_MODELS)
            raise SynthSegError("usage", f"reference.kind upstream: has {only}, not {job.model}: use kind own")
        words += [
            "/workspace/SynthSeg/scripts/commands/SynthSeg_predict.py",
            *same,
            "--cpu",
            *UPSTREAM_MODELS[job.model],
        ]
    else:
        place = "/in/weights.h5"
        if job.weights.is_dir():  # of links, which lead nowhere inside
            place = "/in/weights"
            mounts += [(path.resolve(), f"{place}/{path.name}") for path in sorted(job.weights.glob("*.h5"))]
        else:
            mounts.append((job.weights, place))
        mounts.append((job.model_dir, "/in/model"))
        words += ["/opt/reference.py", *same, "--model", "/in/model", "--weights", place]
        if job.companions:
            mounts.append((job.companions, "/in/companions"))
            words += ["--companions", "/in/companions"]
    return words, mounts


def command(job: Job, engine: Runtime) -> list[str]:
    """The whole command line of a run. Raises SynthSegError("usage") for a path that cannot be mounted."""
    words, mounts = inner_command(job)
    image, threads = image_of(job.settings), job.settings["threads"]
    variables = {
        "HOME": "/tmp",
        "PYTHONDONTWRITEBYTECODE": "1",
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)),
    }
    if engine.name == "apptainer":
        line = ["apptainer", "exec", "--containall", "--no-home", "--cleanenv", "--net", "--network", "none"]
        for source, target in mounts:
            line += ["--bind", f"{_mountable(source, ':,')}:{target}:ro"]
        line += ["--bind", f"{_mountable(job.work, ':,')}:/out", "--pwd", "/out"]
        for key, value in variables.items():
            line += ["--env", f"{key}={value}"]
        return [*line, image, "python", *words]

    user = f"{os.getuid()}:{os.getgid()}"
    line = [engine.name, "run", "--rm", "--init", "--pull=never", "--cidfile", str(job.cidfile)]
    labels = {LABEL_WORKDIR: workdir_label(), LABEL_RUN: job.run}
    labels[LABEL_OWNER] = owners.text_of(owners.me()).strip()
    for label, value in labels.items():
        line += ["--label", f"{label}={value}"]
    line += ["--network", "none", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"]
    # Without the second, SELinux would keep the container from its mounts.
    line += ["--security-opt", "no-new-privileges", "--security-opt", "label=disable"]
    if engine.rootless:  # there root inside is the calling user, unless podman is told to keep the number
        line += ["--userns=keep-id", "--user", user] if engine.name == "podman" else ["--user", "0:0"]
    else:
        line += ["--user", user]
    line += ["--cpus", str(min(threads, engine.cpus))]
    if job.memory_mb:
        line += ["--memory", f"{job.memory_mb}m", "--memory-swap", f"{job.memory_mb}m"]  # no swap beyond it
    if platform_of(job.settings):
        line += ["--platform", platform_of(job.settings)]
    for key, value in variables.items():
        line += ["--env", f"{key}={value}"]
    for source, target in mounts:
        line += ["--mount", _mount(engine.name, source, target, readonly=True)]
    line += ["--mount", _mount(engine.name, job.work, "/out")]
    return [*line, "--workdir", "/out", "--entrypoint", "python", image, *words]


def _mount(name, source, target, readonly=False):
    """The value of --mount: a line of CSV, so that a path may hold commas; podman splits there all the same."""
    source = _mountable(source, ",") if name == "podman" else str(Path(source).resolve())
    fields = ["type=bind", f"source={source}", f"target={target}", *(["readonly"] if readonly else [])]
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(fields)
    return line.getvalue()


def _mountable(path, forbidden):
    path = str(Path(path).resolve())
    if any(character in path for character in forbidden):
        raise SynthSegError("usage", f"{path}: this runtime cannot mount a path with any of {forbidden!r}: rename it")
    return path


# --- building the own image ------------------------------------------------------------------------------------------


def ensure_image(
    reference: dict, root: str | PathLike = environments.ROOT, say: Callable[[str], None] = environments.say
) -> str:
    """Build the own image where the runtime lacks it; return its name.

    reference: the configuration's reference section (runtime, base_image, platform). Apptainer builds nothing: it is
    given a file, or takes the image from Docker. Raises SynthSegError.
    """
    tag = image_tag(image_key(reference["base_image"], reference["platform"]))
    if reference["runtime"] != "apptainer" and not has_image(reference["runtime"], tag):
        build(reference["runtime"], reference["base_image"], reference["platform"], root=root, say=say)
    return tag


def build(
    name: str,
    base: str = BASE_IMAGE,
    platform: str | None = None,
    wheels: str | PathLike | None = None,
    root: str | PathLike = environments.ROOT,
    say: Callable[[str], None] = environments.say,
) -> str:
    """Build the own image from a folder of wheels, without network; return its name.

    wheels: a folder with the wheels of envs/tensorflow.txt; without it they are fetched to <root>/.wheelhouse.
    platform: such as linux/amd64, without it the daemon's own. Raises SynthSegError.
    """
    engine = runtime(name)
    architecture = platform.split("/")[1] if platform else engine.architecture
    key = image_key(base, platform)
    tag = image_tag(key)
    wheels = Path(wheels) if wheels else fetch_wheels(architecture, root, say)
    say(f"building {tag} on {base} (once, about 2 GB) ...")
    log = Path(root) / ".wheelhouse" / "build.log"
    log.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=log.parent) as context:
        context = Path(context)
        lock = environments.lock_file("tensorflow")
        for file, target in ((dockerfile(), "Dockerfile"), (lock, lock.name), (REFERENCE, REFERENCE.name)):
            shutil.copyfile(file, context / target)
        # Links where the file system has them: the wheels are 0.6 GB.
        shutil.copytree(wheels, context / "wheelhouse", copy_function=_link)
        line = [name, "build", "--network", "none", "--build-arg", f"BASE={base}", "--tag", tag]
        line += ["--label", f"{LABEL_KEY}={key}"]
        line += ["--platform", platform] if platform else []
        with log.open("wb") as stream:
            options = {"env": environments.clean_environment(), "stdin": subprocess.DEVNULL}
            done = subprocess.run([*line, str(context)], **options, stdout=stream, stderr=stream)
    if done.returncode != 0:
        raise _build_problem(name, base, log)
    say(f"built {tag}")
    return tag


def _link(source, target):
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _build_problem(name, base, log):
    text = log.read_text(encoding="utf-8", errors="replace")
    if re.search(r"pull access denied|failed to resolve|no such host|manifest unknown|dial tcp|short-name", text):
        remedy = f"load it ({name} load) or name another as reference.base_image"
        return SynthSegError("daemon", f"{base}: the base image is not here and cannot be fetched: {remedy}")
    if "No space left on device" in text:
        return SynthSegError("disk", f"{name}: the disk is full: make room and call again")
    error = problem(name, text)
    return SynthSegError("daemon", f"{error.message} (all of it: {log})")


def fetch_wheels(
    architecture: str, root: str | PathLike = environments.ROOT, say: Callable[[str], None] = environments.say
) -> Path:
    """Fetch the wheels of envs/tensorflow.txt for Linux and Python 3.11, hashes checked; return their folder.

    architecture: amd64 or arm64. The folder is there whole or not at all. Raises SynthSegError("daemon").
    """
    final = Path(root) / ".wheelhouse" / f"{environments.lock_hash('tensorflow')}-{architecture}"
    if final.is_dir():
        return final
    say(f"fetching the wheels for {final.name} (about 0.6 GB, once) ...")
    final.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=final.parent) as beside:
        lock = Path(beside) / "lock.txt"
        lock.write_text(lock_for(environments.lock_file("tensorflow").read_text(encoding="utf-8"), architecture))
        machine = {"amd64": "x86_64", "arm64": "aarch64"}[architecture]
        tags = [f"manylinux_2_{minor}_{machine}" for minor in range(36, 4, -1)]  # 36: Debian 12, the oldest base
        line = [sys.executable, "-m", "pip", "download", "--no-input", "--progress-bar", "off", "--no-deps"]
        line += ["--require-hashes", "--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp"]
        for tag in (*tags, *(f"manylinux{year}_{machine}" for year in (2014, 2010, 1))):
            line += ["--platform", tag]
        wheels = Path(beside) / "wheels"
        line += ["--dest", str(wheels), "--requirement", str(lock)]
        env = environments.clean_environment()
        env |= installers.pip_settings(sys.executable, env)
        done = subprocess.run(line, env=env, capture_output=True, text=True)
        if done.returncode != 0:
            lines = [text for text in done.stderr.splitlines() if text.startswith("ERROR")] or ["pip failed"]
            why = lines[-1].removeprefix("ERROR: ")
            raise SynthSegError("daemon", f"the wheels of the reference image: {why}: check the network and call again")
        try:
            wheels.rename(final)
        except OSError:  # another process was first
            if not final.is_dir():
                raise
    return final


def lock_for(text: str, architecture: str) -> str:
    """The part of a lock that Linux with this architecture installs, without markers.

    pip would judge the markers by the machine that it runs on, which may be a Mac.

    >>> lock_for('numpy==2 ; python_version >= "3.11"\\ncolorama==1 ; sys_platform == "win32"', "amd64")
    'numpy==2\\n'
    """
    machine = {"amd64": "x86_64", "arm64": "aarch64"}[architecture]
    target = {
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": machine,
        "os_name": "posix",
        "python_version": "3.11",
        "python_full_version": "3.11.0",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    kept = []
    for entry in re.split(r"\n(?=\S)", text.strip()):
        if entry.startswith("#"):
            continue
        requirement, *hashes = entry.split("\\\n")
        name, _, marker = (part.strip() for part in requirement.partition(" ; "))
        if not marker or Marker(marker).evaluate(target):
            kept.append(" \\\n".join([name, *(line.rstrip() for line in hashes)]))
    return "\n".join(kept) + "\n"


# --- leftovers -------------------------------------------------------------------------------------------------------


def workdir_label(workdir: str | PathLike | None = None) -> str:
    """What containers of a working directory (default: the current one) carry: a hash of this host and the path.

    Several hosts, dev containers or CI jobs may share one daemon and have their checkouts at the same path.
    """
    text = f"{owners.me().host} {Path(workdir or '.').resolve()}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def remove(name: str, label: str, value: str, limit: float = 120, only_ended: bool = False) -> list[str]:
    """Kill and remove every container with a label; return their IDs. Silent where the runtime does not answer.

    limit: seconds that it has to answer. only_ended: leave those whose owner, the process that started them, still runs
    or cannot be asked from here.
    """
    try:
        found = _ask(name, ["ps", "--all", "--quiet", "--filter", f"label={label}={value}"], limit).split()
        if found and only_ended:
            shown = _ask(
                name, ["inspect", "--format", f'{{{{.Id}}}} {{{{index .Config.Labels "{LABEL_OWNER}"}}}}', *found]
            )
            told = {line[:12]: owners.owners_of(line.partition(" ")[2]) for line in shown.splitlines()}
            ended = {id for id, owner in told.items() if owner and owners.is_alive(owner[0]) is False}
            found = [container for container in found if container[:12] in ended]
        if found:
            _ask(name, ["rm", "--force", *found])
    except SynthSegError:
        return []
    return found


def reap(name: str, workdir: str | PathLike | None = None) -> list[str]:
    """Remove what killed runs of a working directory (default: the current one) left; return the containers' IDs.

    Runs of another host, or that are alive, keep theirs. Quick and silent where the runtime is not installed or does
    not answer.
    """
    if name not in ("docker", "podman") or not shutil.which(name):
        return []
    return remove(name, LABEL_WORKDIR, workdir_label(workdir), limit=10, only_ended=True)


def stop(job: Job) -> None:
    """End the container of a job, whatever state it is in."""
    name = job.settings["runtime"]
    if name != "apptainer":  # there it is a child process like any other
        remove(name, LABEL_RUN, job.run)
