"""In place of the tensorflow environment's interpreter in the tests' projects: runs the reference once per input.

kept_reference.py PYTHON FOLDER ARGS...   runs `PYTHON ARGS...`. Where that is the reference, what it wrote is kept in
                                          FOLDER, and the next call with the same code, image, model, weights and flags
                                          gets a copy. Nothing else is kept, and no failure.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

OUTPUTS = ("--o", "--vol")
# Flag -> files below what it names that the results depend on ("" is the file itself).
READ = {"--i": ("",), "--weights": ("",), "--model": ("labels.tsv", "card.yaml")}


def write(path: Path, python: Path, folder: Path) -> None:
    """Write an interpreter that calls this file: `python` is the real one, `folder` has what is kept."""
    path.parent.mkdir(parents=True)
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{__file__}" "{python}" "{folder}" "$@"\n')
    path.chmod(0o755)


def key(arguments: list[str]) -> str:
    """A hash of the reference's code and of all that its command line names but the outputs."""
    digest = hashlib.sha256(Path(arguments[0]).read_bytes())
    flag = ""
    for word in arguments[1:]:
        flag = word if word.startswith("--") else flag
        if word == flag or flag not in READ:
            digest.update(b"" if flag in OUTPUTS else f"{word}\0".encode())
        else:
            for name in READ[flag]:
                digest.update(hashlib.sha256((Path(word) / name if name else Path(word)).read_bytes()).digest())
    return digest.hexdigest()


def main(python: str, folder: str, *arguments: str) -> int:
    if not arguments or Path(arguments[0]).name != "reference.py":
        os.execv(python, [python, *arguments])
    outputs = [Path(arguments[arguments.index(flag) + 1]) for flag in OUTPUTS]
    try:
        kept = Path(folder) / key(list(arguments))
    except OSError:  # a file is missing: the reference says so
        os.execv(python, [python, *arguments])
    Path(folder).mkdir(parents=True, exist_ok=True)
    with kept.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            status = subprocess.call([python, *arguments])
            if status == 0:
                beside = kept.with_suffix(".new")
                shutil.rmtree(beside, ignore_errors=True)
                beside.mkdir()
                for flag, output in zip(OUTPUTS, outputs, strict=True):
                    shutil.copy2(output, beside / flag)
                beside.rename(kept)
            return status
    for flag, output in zip(OUTPUTS, outputs, strict=True):
        shutil.copy2(kept / flag, output)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
