"""The locks fit what was asked for, and can be installed on all three platforms (resolved, not installed)."""

import os
import re
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from synthseg_native.cohort import installers, interpreters

ENVS = Path(__file__).resolve().parents[2] / "envs"
NAMES = sorted(path.stem for path in ENVS.glob("*.in"))
PLATFORMS = ["x86_64-manylinux_2_28", "aarch64-manylinux_2_28", "aarch64-apple-darwin"]
# The oldest and the newest Python that environments.py accepts for each.
PYTHONS = {name: ["{}.{}".format(*version) for version in interpreters.PYTHONS_DEFAULT] for name in NAMES}
PYTHONS["tensorflow"] = ["3.11"]
MACOS = {"torch": "14.0", "training": "14.0"}  # the oldest macOS with its wheels, where it is younger than uv's choice


def entries(text):
    """(requirement, hashes) per entry of a lock."""
    found = []
    for block in re.split(r"\n(?=[A-Za-z])", text.strip()):
        requirement = Requirement(block.split("\\\n")[0].strip())
        found.append((requirement, set(re.findall(r"--hash=sha256:([0-9a-f]{64})", block))))
    return found


def asked(name):
    """The requirements of an .in file, with those of the files that it includes."""
    for line in (ENVS / f"{name}.in").read_text().splitlines():
        line = line.split("#")[0].strip()
        if line.startswith("-r "):
            yield from asked(Path(line[3:]).stem)
        elif line:
            yield Requirement(line)


def problems(lock, platform, python, folder):
    """What keeps a lock from being installed there: packages that are missing, files whose hash is not allowed.

    uv resolves the lock for the platform and lists the files that would fit; every one must be in the lock.
    """
    out = folder / f"pylock.{platform}.toml"
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--format", "pylock.toml", "--output-file", out]
    # This interpreter builds what has no wheel; else uv looks for one of that version, for ten seconds.
    command += ["--python", sys.executable, "--python-platform", platform, "--python-version", python]
    command += ["--only-binary", ":all:", "--no-binary", installers.SOURCE_ONLY, lock]
    environment = dict(os.environ)
    if lock.stem in MACOS:
        environment["MACOSX_DEPLOYMENT_TARGET"] = MACOS[lock.stem]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        return [done.stderr.strip()]
    locked = {}
    for requirement, hashes in entries(lock.read_text()):
        locked.setdefault(canonicalize_name(requirement.name), {})[str(requirement.specifier)] = hashes
    found = []
    for package in tomllib.loads(out.read_text())["packages"]:
        label = f"{package['name']}=={package['version']}"
        allowed = locked.get(package["name"], {}).get(f"=={package['version']}")
        files = [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]
        if allowed is None:
            found.append(f"{label}: needed, but not in the lock")
        elif not any(file["hashes"]["sha256"] in allowed for file in files):
            found.append(f"{label}: no file for {platform} has a hash of the lock")
    return found


def test_every_request_has_a_lock():
    assert sorted(path.stem for path in ENVS.glob("*.txt")) == NAMES
    assert set(NAMES) >= {"demo", "dev", "tensorflow", "workflow"}


@pytest.mark.parametrize("name", NAMES)
def test_lock_fits_the_request(name):
    locked = {}
    for requirement, _ in entries((ENVS / f"{name}.txt").read_text()):
        version = str(requirement.specifier).removeprefix("==")
        locked.setdefault(canonicalize_name(requirement.name), []).append(version)
    for requirement in asked(name):
        versions = locked.get(canonicalize_name(requirement.name))
        assert versions, f"{requirement.name} is in {name}.in, not in {name}.txt: make locks"
        assert all(version in requirement.specifier for version in versions), f"{requirement}: {versions}: make locks"


@pytest.mark.parametrize("name", NAMES)
def test_lock_has_hashes_and_no_addresses(name):
    text = (ENVS / f"{name}.txt").read_text()
    assert all(hashes and str(requirement.specifier).startswith("==") for requirement, hashes in entries(text))
    assert not re.search(r"://|--(extra-)?index|--find-links|--trusted-host| @ ", text)


def test_tests_run_the_snakemake_of_the_users():
    workflow, dev = (entries((ENVS / f"{name}.txt").read_text()) for name in ("workflow", "dev"))
    assert {str(requirement) for requirement, _ in workflow} <= {str(requirement) for requirement, _ in dev}


def test_no_cuda_packages_come_along():
    text = (ENVS / "tensorflow.txt").read_text()
    assert not [
        requirement.name for requirement, _ in entries(text) if requirement.name.startswith(("nvidia", "triton"))
    ]


@pytest.fixture(scope="module")
def resolved(request, tmp_path_factory):
    """(name, python, platform) -> what is wrong there, of all asked for; mostly waiting, so several at once."""

    def problem(case):
        name, python, platform = case
        return problems(ENVS / f"{name}.txt", platform, python, folders[case])

    found = [item.callspec.params for item in request.session.items if item.originalname == "test_lock_resolves"]
    cases = [(case["name"], case["python"], case["platform"]) for case in found]
    folders = {case: tmp_path_factory.mktemp("lock") for case in cases}
    with ThreadPoolExecutor(6) as pool:
        return dict(zip(cases, pool.map(problem, cases), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize(("name", "python"), [(name, python) for name in NAMES for python in PYTHONS[name]])
def test_lock_resolves(name, python, platform, resolved):
    assert resolved[name, python, platform] == []


@pytest.mark.slow
@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_mutated_lock_fails(platform, tmp_path):
    text = (ENVS / "tensorflow.txt").read_text()
    blocks = re.split(r"\n(?=[A-Za-z])", text)
    arm = platform.startswith("aarch64-manylinux")

    def mutated(change):
        lock = tmp_path / "tensorflow.txt"
        lock.write_text("\n".join(filter(None, (change(block) for block in blocks))))
        return problems(lock, platform, "3.11", tmp_path)

    def break_hashes(block):
        return re.sub(r"[0-9a-f]{64}", "0" * 64, block) if block.startswith("h5py==") else block

    assert [line.split("==")[0] for line in mutated(lambda b: "" if b.startswith("gast==") else b)] == ["gast"]
    (line,) = mutated(break_hashes)
    assert re.fullmatch(rf"h5py==\S+: no file for {platform} has a hash of the lock", line)
    # TensorFlow's wheel for Linux on Arm has no code: its lock needs one more package.
    lost = mutated(lambda b: "" if b.startswith("tensorflow-cpu-aws==") else b)
    assert [line.split("==")[0] for line in lost] == (["tensorflow-cpu-aws"] if arm else [])
    assert "no-such-package" in mutated(lambda b: b.replace("gast==", "no-such-package=="))[0]


@pytest.mark.slow
def test_a_hash_that_one_platform_misses_is_noticed(tmp_path):
    """Each platform has files of its own: with only the Mac's hash left, the others must fail."""
    text = (ENVS / "tensorflow.txt").read_text()
    assert problems(ENVS / "tensorflow.txt", PLATFORMS[2], "3.11", tmp_path) == []
    packages = tomllib.loads((tmp_path / f"pylock.{PLATFORMS[2]}.toml").read_text())["packages"]
    wheels = next(package["wheels"] for package in packages if package["name"] == "h5py")
    keep = {wheel["hashes"]["sha256"] for wheel in wheels}
    blocks = re.split(r"\n(?=[A-Za-z])", text)
    number = next(number for number, block in enumerate(blocks) if block.startswith("h5py=="))
    hashes = " \\\n".join(f"    --hash=sha256:{digest}" for digest in sorted(keep))
    blocks[number] = blocks[number].split("\n")[0] + "\n" + hashes
    out = tmp_path / "tensorflow.txt"
    out.write_text("\n".join(blocks))
    assert [bool(problems(out, platform, "3.11", tmp_path)) for platform in PLATFORMS] == [True, True, False]
