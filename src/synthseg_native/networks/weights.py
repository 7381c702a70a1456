"""Find a model's weights: a file of the user, the file beside the card, or a checked download in the cache.

Standard library only.
"""

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synthseg_native import shared_disk
from synthseg_native.errors import FULL, SynthSegError

CHUNK = 1 << 18


@dataclass(frozen=True)
class WeightsFile:
    """A weights file as a card knows it.

    file : its name · size : bytes · sha256, git_blob : hashes of its content, the latter SHA-1 of git's blob
    urls : where it can be had. What is not known is None, and not checked.
    """

    file: str
    size: int | None = None
    sha256: str | None = None
    git_blob: str | None = None
    urls: tuple[str, ...] = ()


def home() -> Path:
    """The user's home; for one without, as in a container, a folder of the user's among the temporary ones."""
    try:
        return Path.home()
    except RuntimeError:  # no HOME, and no entry in passwd
        return Path(tempfile.gettempdir(), f"synthseg-native-{os.getuid()}")


def default_cache(env: Mapping[str, str] = os.environ) -> Path:
    """Folder for downloads and kernels: ``$XDG_CACHE_HOME/synthseg-native``, else ``~/.cache/synthseg-native``.

    ``$SYNTHSEG_NATIVE_CACHE`` is how the launcher tells where it is, where Snakemake gets another.
    """
    if told := env.get("SYNTHSEG_NATIVE_CACHE"):
        return Path(told)
    base = env.get("XDG_CACHE_HOME")
    return (Path(base) if base else home() / ".cache") / "synthseg-native"


def mismatch(path: str | Path, expected: WeightsFile) -> str | None:
    """Return None if the file has the size and hashes that are expected, else what differs."""
    path = Path(path)
    size = path.stat().st_size
    if expected.size not in (None, size):
        return f"{size} bytes found, {expected.size} expected"
    sha256 = hashlib.sha256()
    # Git's blob id is the SHA-1 of a short header and the contents.
    blob = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(CHUNK):
            sha256.update(block)
            blob.update(block)
    if expected.sha256 not in (None, sha256.hexdigest()):
        return f"SHA-256 {sha256.hexdigest()} found, {expected.sha256} expected"
    if expected.git_blob not in (None, blob.hexdigest()):
        return f"git blob id {blob.hexdigest()} found, {expected.git_blob} expected"
    return None


def resolve(
    expected: WeightsFile,
    model: str,
    folder: str | Path,
    weights: str | Path | None = None,
    cache: str | Path | None = None,
    log: Callable[[str], None] | None = None,
    **options: Any,
) -> Path:
    """Return the path of the weights of a model, checked against its card; fetch them if they are nowhere.

    expected : what the card says of them · model, folder : its name and where it lies

    Looked for in this order: ``weights`` (a path that the user names), the file beside the card, the cache folder.
    A user's file whose hash is not the card's is refused; a card without hashes takes any file.
    ``options`` go to `fetch`. Raises SynthSegError.
    """
    check_there(expected, folder, weights)
    if weights is not None:
        path = Path(weights).expanduser()
        if problem := mismatch(path, expected):
            raise SynthSegError(
                "usage",
                f"{path}: not the weights of {model} ({problem}): name the right file, or make a model folder "
                "of your own with its hash (models/README.md)",
            )
        return path
    beside = Path(folder) / expected.file
    if beside.is_file():
        if problem := mismatch(beside, expected):
            raise SynthSegError("usage", f"{beside}: damaged ({problem}): restore it or delete it")
        return beside
    return fetch(expected, Path(cache or default_cache()).expanduser() / expected.file, log=log, **options)


def resolve_all(
    wanted: Sequence[tuple[WeightsFile, Path, Path | None]], model: str, cache: str | Path | None = None
) -> list[Path]:
    """`resolve` for each of several files; where one cannot be fetched, the error names all that are nowhere: whoever
    fetches them by other means does so once.

    wanted : what cards say of a file, where its card lies, and the path that the user names, or None
    """
    found, cached = [], Path(cache or default_cache()).expanduser()
    for number, (expected, folder, named) in enumerate(wanted, 1):
        try:
            found.append(resolve(expected, model, folder, named, cache))
        except SynthSegError as error:
            places = {other.file: [at or Path(beside) / other.file, cached / other.file]
                      for other, beside, at in wanted[number:]}  # fmt: skip
            lacking = [file for file, paths in places.items() if not any(Path(path).is_file() for path in paths)]
            if error.code != "timeout" or not lacking:
                raise
            text = f"{error.message}; not here either: {', '.join(lacking)}: name the folder of all of them"
            raise SynthSegError("timeout", text) from error
    return found


def check_there(expected: WeightsFile, folder: str | Path, weights: str | Path | None = None) -> None:
    """Raise SynthSegError("usage") for weights that are nowhere and cannot be fetched; nothing is read or fetched.

    Arguments as those of `resolve`.
    """
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.is_file():
            raise SynthSegError("usage", f"{path}: no such weights file: correct the path, or leave it out")
    elif not expected.urls and not (beside := Path(folder) / expected.file).is_file():
        raise SynthSegError("usage", f"{beside}: no such weights file, and the card has no address: put it there")


def fetch(
    expected: WeightsFile,
    destination: str | Path,
    urls: Sequence[str] | None = None,
    log: Callable[[str], None] | None = None,
    attempts: int = 4,
    pause: float = 1.0,
    timeout: float = 30.0,
    lock_wait: float = 3600.0,
) -> Path:
    """Download weights to ``destination`` unless a right file is there already; return the path.

    What has arrived waits in ``<destination>.part`` and is completed by a Range request, by this call or a later one.
    Each address is tried ``attempts`` times, with a pause that starts at ``pause`` seconds and doubles; ``timeout``
    (seconds) is for one wait on the network. The file takes its place only after size and hashes were right; wrong
    bytes are deleted. A lock keeps a second process waiting, at most ``lock_wait`` seconds. ``log`` gets lines of text
    (default: stderr). Raises SynthSegError when no address gave the file. Nothing is fetched whose size and SHA-256 are
    not known, nor more of it than that size and one chunk, nor from an address that is not https.
    """
    destination = Path(destination)
    if expected.size is None or expected.sha256 is None:
        raise SynthSegError("usage", f"{destination}: not fetched: its card must give size and sha256: add them")
    log = log or (lambda line: print(line, file=sys.stderr, flush=True))
    try:
        if destination.is_file() and mismatch(destination, expected) is None:  # also where nothing can be written
            return destination
        destination.parent.mkdir(parents=True, exist_ok=True)
        with _lock(destination, lock_wait, log):
            if destination.is_file():
                problem = mismatch(destination, expected)
                if problem is None:
                    return destination
                log(f"{destination}: damaged ({problem}): fetching it again")
            _fetch_locked(expected, destination, urls or expected.urls, log, attempts, pause, timeout)
    except OSError as error:
        code = "disk" if error.errno in FULL else "usage"
        raise SynthSegError(
            code, f"{destination}: cannot be written ({error.strerror or error}): make room or choose another folder"
        ) from error
    return destination


def _fetch_locked(expected, destination, urls, log, attempts, pause, timeout):
    from synthseg_native.networks import download  # here: nobody who has the weights waits for its imports

    part = destination.with_name(destination.name + ".part")
    failures = []
    for url in urls:
        wait = pause
        for attempt in range(attempts):
            resumed = part.exists()
            failure, again = None, True
            if attempt == 0 or resumed:
                log(f"{destination.name}: {'resuming' if resumed else 'fetching'} from {url}")
            try:
                download.bring(url, part, expected.size, timeout, log)
            except download.AddressError as error:
                failure, again = str(error), error.again
            else:
                failure = mismatch(part, expected)
                if failure is None:
                    part.replace(destination)
                    log(f"{destination}: {destination.stat().st_size} bytes, hash as expected")
                    return
                part.unlink()
                again = resumed  # the first half may have come from elsewhere
            if not again or attempt == attempts - 1:
                log(f"{destination.name}: {failure}")
                failures.append(f"{url}: {failure}")
                break
            log(f"{destination.name}: {failure}, again in {wait:g} s")
            time.sleep(wait)
            wait *= 2
    raise SynthSegError(
        "timeout",  # transient: the next call goes on where this one stopped
        f"{destination}: could not be fetched ({'; '.join(failures)}): try again later, or fetch it by other means and "
        "name the file (weights: PATH in the configuration, --weights PATH on the command line)",
    )


@contextmanager
def _lock(destination: Path, wait: float, log: Callable[[str], None]) -> Iterator[None]:
    """Hold ``<destination>.lock``, at most ``wait`` seconds after it was asked for."""
    path = destination.with_name(destination.name + ".lock")
    try:
        with shared_disk.hold(path, wait, lambda: log(f"{destination.name}: another process is fetching it, waiting")):
            yield
    except shared_disk.Held as held:
        raise SynthSegError(
            "timeout", f"{path}: {held.owner or 'another process'} has held it for {wait:.0f} s: end it and try again"
        ) from None
