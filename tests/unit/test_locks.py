"""The locks fit what was asked for, and can be installed on all three platforms (resolved, not installed)."""

import re
import struct
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import locks
from locks import ENVS, NAMES, entries
from synthseg_native.cohort import environments, installers, ranking

PLATFORMS = ["x86_64-manylinux_2_28", "aarch64-manylinux_2_28", locks.MAC]
# The oldest and the newest Python that environments.py accepts for each.
PYTHONS = {name: sorted({locks.pythons(name)[0], locks.pythons(name)[-1]}) for name in NAMES}


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
    try:
        packages = locks.listed(lock, platform, python, out, f"{installers.oldest_macos(lock.stem)}.0")
    except ValueError as error:
        return [str(error)]
    locked = {}
    for requirement, hashes in entries(lock.read_text()):
        locked.setdefault(canonicalize_name(requirement.name), {})[str(requirement.specifier)] = hashes
    found = []
    for package in packages:
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


# --- a Mac: envs/macos.tsv, without the index ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rows():
    return locks.read_table()


@pytest.mark.parametrize(("name", "python"), [(name, python) for name in NAMES for python in locks.pythons(name)])
def test_every_package_has_a_wheel_for_the_macos_that_is_promised(name, python, rows):
    """Of the locked version, for this Python; the newest of what they need is the promise itself."""
    found = locks.needs(name, python, rows)
    assert len(found) > 15
    promised = installers.oldest_macos(name)
    assert {package: macos for package, macos in found.items() if macos > promised} == {}
    if name != "docs":  # which is for this project's own pages, and needs less
        assert max(found.values()) == promised


def test_every_wheel_of_the_table_is_one_that_a_lock_allows(rows):
    allowed = {}
    for name in NAMES:
        for python in locks.pythons(name):
            for key, hashes in locks.on_a_mac(name, python).items():
                allowed.setdefault(key, set()).update(hashes)
    wrong = [row["file"] for row in rows if row["sha256"] not in allowed.get((row["package"], row["version"]), ())]
    assert wrong == [], "make locks writes the table anew"
    assert [row["file"] for row in rows if row["macos"] != locks.of_file(row["file"])] == []


def test_a_package_that_the_table_lacks_is_noticed(rows):
    with pytest.raises(KeyError, match=r"scipy==\S+ for Python 3.11"):
        locks.needs("llvm", "3.11", [row for row in rows if row["package"] != "scipy"])
    with pytest.raises(KeyError, match="scipy"):
        locks.needs("llvm", "3.11", [row | {"version": "0"} if row["package"] == "scipy" else row for row in rows])
    newer = [row for row in rows if row["package"] != "scipy" or row["macos"] == "14"]
    assert locks.needs("llvm", "3.11", newer)["scipy"] == 14


def test_what_is_known_to_be_built_for_a_newer_macos_than_its_name_says(rows):
    """Not what keeps a wheel from being installed: docs/mac.md says what it is."""
    wrong = {row["package"] for row in rows if row["code"] and int(row["code"]) > int(row["macos"].replace("any", "0"))}
    page = (ENVS.parent / "docs/mac.md").read_text()
    assert wrong == {"shfmt-py", "tensorflow-io-gcs-filesystem"} and all(f"`{package}`" in page for package in wrong)


def test_a_table_of_the_page_says_what_each_environment_needs(rows):
    """docs/mac.md: | `llvm` | 12 | the packages that need it |"""
    page = (ENVS.parent / "docs/mac.md").read_text()
    said = {
        name: (macos, packages) for name, macos, packages in re.findall(r"^\| `(\w+)` \| (\d+) \| (.*) \|$", page, re.M)
    }
    for name in NAMES:
        found = locks.needs(name, locks.pythons(name)[0], rows)
        newest = max(found.values())
        for_it = sorted(package for package, macos in found.items() if macos == newest and newest > locks.MACOS[0])
        assert said[name] == (str(newest), ", ".join(for_it) or "Apple's processors came with it"), name
    for file in ("README.md", "docs/mac.md", "docs/tutorial.md"):
        text = " ".join((ENVS.parent / file).read_text().split())
        (oldest,) = set(re.findall(r"macOS (\d+) or newer", text))
        assert int(oldest) == installers.OLDEST_MACOS_DEFAULT, file


@pytest.mark.parametrize(
    ("file", "python", "macos", "fits"),
    [
        ("a-1-cp311-cp311-macosx_12_0_arm64.whl", "3.11", 12, True),
        ("a-1-cp311-cp311-macosx_12_0_arm64.whl", "3.11", 11, False),
        ("a-1-cp311-cp311-macosx_12_0_arm64.whl", "3.12", 26, False),
        ("a-1-cp311-cp311-macosx_14_0_x86_64.whl", "3.11", 26, False),
        ("a-1-cp39-abi3-macosx_10_9_universal2.whl", "3.13", 11, True),
        ("a-1-cp311-cp311-manylinux_2_28_aarch64.whl", "3.11", 26, False),
        ("a-1-py3-none-any.whl", "3.13", 11, True),
    ],
)
def test_which_wheels_fit_a_mac(file, python, macos, fits):
    assert locks.taken([file], python, macos) == (file if fits else None)


def test_of_two_that_fit_the_newer_macos_takes_the_one_made_for_it():
    files = [f"a-1-cp311-cp311-macosx_{macos}_0_arm64.whl" for macos in (11, 14)] + ["a-1-py3-none-any.whl"]
    assert [locks.taken(files, "3.11", macos) for macos in (11, 13, 14, 26)] == [files[0], files[0], files[1], files[1]]


def test_code_says_which_macos_it_was_built_for():
    def of(kind, macos, command=0x32):
        rest = [1, macos << 16] if command == 0x32 else [macos << 16, 0]
        header = struct.pack("<8I", 0xFEEDFACF, kind, 0, 6, 2, 40, 0, 0)
        return header + struct.pack("<4I", 0x1B, 16, 0, 0) + struct.pack("<4I2I", command, 24, *rest, 0, 0)

    arm, intel = of(0x0100000C, 12), of(0x01000007, 14)
    assert locks.built_for(arm) == 12 and locks.built_for(of(0x0100000C, 11, 0x24)) == 11
    assert locks.built_for(intel) == locks.built_for(b"\x7fELF") == locks.built_for(b"") == 0
    start = 8 + 2 * 20
    fat = struct.pack(">2I", 0xCAFEBABE, 2) + struct.pack(">5I", 0x01000007, 3, start, len(intel), 0)
    fat += struct.pack(">5I", 0x0100000C, 0, start + len(intel), len(arm), 0) + intel + arm
    assert locks.built_for(fat) == 12


@pytest.mark.parametrize(
    ("macos", "torch", "llvm"),
    [
        ("12.7.6", True, False),
        ("11.7", True, True),
        ("14.0", False, False),
        ("26.1", False, False),
        ("10.16", False, False),  # it does not tell
        ("", False, False),  # no Mac
    ],
)
def test_a_macos_that_is_too_old_is_one_line(monkeypatch, macos, torch, llvm):
    monkeypatch.setattr(installers.platform, "mac_ver", lambda: (macos, ("", "", ""), "arm64"))
    monkeypatch.setattr(environments, "gpu", lambda: "Apple")
    needs = {"torch": 14, "llvm": 12}
    for name, refused in (("torch", torch), ("llvm", llvm)):
        line = f"needs macOS {needs[name]} or newer, and this is macOS {macos}"
        assert installers.too_old(name) == (line if refused else None)
        outcome = next(row["outcome"] for row in ranking.candidates() if row["engine"] == name)
        assert outcome == (f"{name}: {line}" if refused else None), "auto passes it over"


def test_an_environment_that_this_macos_is_too_old_for_is_not_begun(monkeypatch, tmp_path):
    monkeypatch.setattr(installers.platform, "mac_ver", lambda: ("13.6", ("", "", ""), "arm64"))
    monkeypatch.setattr(environments, "ENVS", tmp_path)
    with pytest.raises(environments.SetupError) as refused:
        environments.ensure("torch")
    line = "the torch environment needs macOS 14 or newer, and this is macOS 13.6: update macOS, or use another engine"
    assert str(refused.value) == line
