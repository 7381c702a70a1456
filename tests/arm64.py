"""Verify the arm64 environments under emulation (.ci/arm64.sh), and write what was found as a page.

    make verify-arm64                     # everything; as root, on Debian x86-64: docs/verified/linux-arm64-emulated.md
    .envs/dev-*/bin/python tests/arm64.py --parts kernels engine    # some of it

The tests are those of `make test`; only the interpreters of the environments are others. Each part says how long it
took; a part that fails makes the exit status 1, and stands in the page as failed.
"""

import argparse
import datetime
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]

from parts import commit, run_tests  # noqa: E402
from synthseg_native.cohort import installers  # noqa: E402
from synthseg_native.files import read_json, write_json  # noqa: E402
from synthseg_native.results import record  # noqa: E402

ARM64 = ROOT / ".ci/arm64.sh"
WORK = ROOT / "build/arm64"
PAGE = ROOT / "docs/verified/linux-arm64-emulated.md"
GOLDEN = "tests/golden/test_other_engines.py"
V2 = "tests/golden/test_v2_engines.py"
STUDY = WORK / "study"
KEPT = WORK / "found.json"
CACHE = WORK / "uv"
# Without folders of this machine, which the root has not.
ENVIRONMENT = {k: v for k, v in os.environ.items() if k != "PIP_FIND_LINKS"} | {"UV_CACHE_DIR": str(CACHE)}
CONFIG = """samples: samples.tsv
model: compact2mm
allow_small_model: true
engines: auto
"""


@dataclass(frozen=True)
class Part:
    """title : in the page · environments : that it needs · tests : words for pytest, or none: the workflow is run"""

    title: str
    environments: tuple[str, ...]
    tests: tuple[str, ...] = ()


PARTS = {
    "small": Part("the kernels, one golden case by llvm", ("llvm",), ("tests/unit/test_kernels.py", GOLDEN, "-k",
                  "test_kernels or (float32_equals_upstream and llvm and t1_crop)")),
    "kernels": Part("kernels by themselves, networks of all shapes by llvm", ("llvm",),
                    ("tests/unit/test_kernels.py", "tests/unit/test_llvm.py")),
    "verification": Part("environment verification: every probe", ("llvm", "tensorflow"),
                         ("tests/unit/test_verify.py", "-k", "llvm_on_this or tensorflow_on_this")),
    "engine": Part("golden case by llvm", ("llvm",), (GOLDEN, "-k", "float32_equals_upstream and llvm and t1_crop")),
    "synthseg2": Part("golden case of SynthSeg 2.0 by llvm: parcels", ("llvm",),
                      (V2, "-k", "label_maps and llvm and t1_crop_parc")),
    # Not by default: whole images take some eight minutes of an emulated processor for each network.
    "whole": Part("all golden cases by llvm", ("llvm",), (GOLDEN, "-k", "float32_equals_upstream and llvm")),
    "robust": Part("robust mode with parcels and scores by llvm", ("llvm",),
                   (V2, "-k", "label_maps and llvm and t1_robust_parc_qc")),
    "torch": Part("golden case by torch", ("torch",), (GOLDEN, "-k", "float32_equals_upstream and torch and t1_crop")),
    "tensorflow": Part("golden case by tensorflow", ("tensorflow",),
                       ("tests/golden/test_golden.py", "-k", "test_engine_equals_upstream and t1_crop")),
    "workflow": Part("one scan through the workflow, engines: auto", ("llvm", "workflow")),
}  # fmt: skip
DEFAULT = ("engine", "synthseg2", "tensorflow", "workflow", "kernels", "verification", "torch")


def main(argv: list[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=DEFAULT)
    parser.add_argument("--page", type=Path, help="where to write the page (default: none for some parts alone)")
    arguments = parser.parse_args(argv)
    page = arguments.page or (PAGE if arguments.parts == DEFAULT else None)
    WORK.mkdir(parents=True, exist_ok=True)
    pythons, failed = {}, False
    for name in arguments.parts:
        part = PARTS[name]
        for environment in part.environments:
            if environment not in pythons:
                say(f"the {environment} environment")
                begun = time.monotonic()
                there, pythons[environment] = made(environment)
                versions = versions_of(pythons[environment]) if environment != "workflow" else ""
                if not there or lock(environment) not in kept():
                    outcome = "was there" if there else "done, hashes checked"
                    keep(lock(environment), begun, outcome=outcome, versions=versions)
        say(part.title)
        begun = time.monotonic()
        outcome, golden = run_part(name, part, pythons) if part.tests else run_workflow()
        keep(name, begun, outcome=outcome, golden=golden)
        say(f"{outcome} ({time.monotonic() - begun:.0f} s)")
        failed |= "failed" in outcome
        if page:  # after each part: what is killed, or made part by part, leaves a page that says so
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(page_of(kept()), encoding="utf-8")
    if page:
        say(f"wrote {page}")
    return int(failed)


def lock(environment: str) -> str:
    """What `kept` calls an environment."""
    return f"envs/{environment}.txt"


def kept() -> dict[str, dict]:
    """What was found of environments and parts, by their names, by this call and earlier ones."""
    return read_json(KEPT) or {}


def keep(name: str, begun: float, **facts: object) -> None:
    """Add what was found just now, with the state of the code and how long it took."""
    about = {"code": commit(), "date": f"{datetime.date.today()}", "seconds": time.monotonic() - begun}
    write_json(KEPT, kept() | {name: about | facts})


def say(line: str) -> None:
    """Print a line at once."""
    print(f"verify-arm64: {line}", flush=True)


def arm64(*words: str) -> str:
    """The last line of what .ci/arm64.sh prints."""
    done = subprocess.run([ARM64, *words], stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    if done.returncode:
        raise SystemExit(f"verify-arm64: {ARM64.name} {' '.join(words)} failed: see above")
    return done.stdout.strip().splitlines()[-1]


def made(name: str) -> tuple[bool, str]:
    """Whether an environment was there, else it is made now; a program that starts its Python.

    uv fetches the packages outside the root: inside it takes an hour for those of CUDA. What makes the environment
    takes them from uv's cache, by the hashes of the lock again.
    """
    there = "from synthseg_native.cohort import environments; print(environments.python({!r}).exists())"
    if arm64("run", "env", f"PYTHONPATH={ROOT / 'src'}", "python3", "-c", there.format(name)) == "True":
        return True, arm64("python", name)
    command = [sys.executable, "-m", "uv", "pip", "install", "--no-config", "--quiet", "--require-hashes"]
    command += ["--python-platform", "aarch64-unknown-linux-gnu", "--python-version", "3.11", "--only-binary", ":all:"]
    command += ["--no-binary", installers.SOURCE_ONLY, "-r", ROOT / f"envs/{name}.txt", "--target", CACHE / "target"]
    if subprocess.run(command, env=ENVIRONMENT).returncode:
        say(f"the packages of {name} could not be fetched from here: the root fetches them")
    shutil.rmtree(CACHE / "target", ignore_errors=True)
    try:
        return False, arm64("python", name)
    finally:
        shutil.rmtree(CACHE, ignore_errors=True)  # gigabytes


def versions_of(python: str) -> str:
    """What an emulated interpreter runs."""
    code = (
        "import platform\nfrom importlib.metadata import distributions\n"
        "found = {d.metadata['Name'].lower(): d.version for d in distributions()}\n"
        "names = [n for n in ('llvmlite', 'tensorflow-cpu-aws', 'torch', 'numpy', 'scipy') if n in found]\n"
        "print(platform.machine(), 'Python', platform.python_version(), *(f'{n} {found[n]}' for n in names), sep=', ')"
    )
    return subprocess.run([python, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def run_part(name: str, part: Part, pythons: dict[str, str]) -> tuple[str, list[str]]:
    """Run tests with the emulated interpreters: the outcome in words, and what the tests said of golden cases."""
    given = {f"SYNTHSEG_{environment.upper()}_PYTHON": python for environment, python in pythons.items()}
    found = run_tests(part.tests, WORK / f"{name}.xml", given)
    engine = name if name in ("tensorflow", "torch") else "llvm"
    return found.words, [f"| {engine} | `{case}` | {different} of {of} |" for case, different, of in found.golden]


def run_workflow() -> tuple[str, list[str]]:
    """One golden image through the workflow, in the emulated root: the outcome in words."""
    shutil.rmtree(STUDY, ignore_errors=True)  # nothing is current
    (STUDY / "config").mkdir(parents=True)
    (STUDY / "config/config.yaml").write_text(CONFIG)
    (STUDY / "samples.tsv").write_text(f"participant_id\timage\nsub-01\t{ROOT}/tests/golden/thick_image.nii.gz\n")
    command = ["run", "sh", "-c", f"{ROOT}/snakemake --cores 2 results/summary.tsv --directory {STUDY}"]
    done = subprocess.run([ARM64, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(done.stdout, flush=True)
    table = STUDY / "results/summary.tsv"
    rows = [line.split("\t") for line in table.read_text().splitlines()] if table.is_file() else []
    row = dict(zip(*rows, strict=True)) if len(rows) == 2 else {}
    if done.returncode or row.get("status") != "ok":
        return f"failed: status {done.returncode}, {row.get('error', 'no row')}", []
    return f"ok, by {row['engine']}", []


def page_of(found: dict[str, dict]) -> str:
    """The page, as Markdown. found : from `kept`"""
    qemu = subprocess.run(["qemu-aarch64-static", "--version"], stdout=subprocess.PIPE, text=True).stdout
    version = re.search(r"version (\S+)", qemu)
    names = dict.fromkeys([*DEFAULT, *(name for name in PARTS if name in found)])
    environments = dict.fromkeys(environment for name in names for environment in PARTS[name].environments)
    titles = {lock(name): f"`{lock(name)}` installed" for name in environments}
    titles |= {name: PARTS[name].title for name in names}
    rows, golden, versions = [], [], []
    for name, title in titles.items():
        about = found.get(name)
        cells = (about["outcome"], f"{about['seconds'] / 60:.1f} min", about["date"], about["code"]) if about else ()
        rows.append(f"| {title} | {' | '.join(cells or ('**not run**', '', '', ''))} |")
        golden += about.get("golden", ()) if about else ()
        versions += filter(None, [about.get("versions")]) if about else ()
    text = f"""# Linux arm64, in emulation

Written by `make verify-arm64`, on {record.cpu_model()} ({os.cpu_count()} processors), QEMU
{version[1] if version else "of unknown version"}, in a Debian 12 for arm64. The environments are installed from their
locks by pip or uv as on a real machine; the tests are those of `make test`.

| what | found | took | on | state of the code |
|---|---|---|---|---|
{chr(10).join(rows)}

What ran: {"; ".join(versions)}.

| engine | golden case | voxels that differ from upstream's label map |
|---|---|---|
{chr(10).join(dict.fromkeys(golden))}

## What emulation does not show

- Speed and memory: QEMU takes some thirty times as long, and needs memory of its own. The minutes above are those of
  whatever else the machine did meanwhile, too.
- The processor's own faults: QEMU computes Arm's instructions by the rules of IEEE 754, as Arm's processors do. What
  LLVM chooses for one of those (by its name) is not what it chooses here; PyTorch is told that this is a Neoverse N1.
- PyTorch on a GPU: its locked environment for Linux arm64 brings CUDA, which has no device here.
- Whole images by every engine, and robust mode: a network takes some eight minutes of an emulated processor for one
  image, so that the golden cases here are the cropped ones (`ARGS="--parts whole robust"` computes the others).
- macOS, Apple's GPU, and SLURM or containers on Arm.
"""
    return text


if __name__ == "__main__":
    sys.exit(main())
