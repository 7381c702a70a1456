"""Environments are made whole or not at all; interpreters are looked for where people have them."""

import base64
import errno
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

import hostile
from processes import bound_by_modes
from synthseg_native import errors, files, owners, shared_disk
from synthseg_native.cohort import environments, installers, interpreters, variables


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A project of its own, with a space in its path."""
    root = tmp_path / "a project"
    (root / "envs").mkdir(parents=True)
    for name, path in {"ROOT": root, "LOCKS": root / "envs", "ENVS": root / ".envs"}.items():
        monkeypatch.setattr(environments, name, path)
    return root


@pytest.fixture
def path(tmp_path, monkeypatch):
    """An empty PATH, and no Python but what a test puts there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(sys, "executable", str(folder / "running"))
    monkeypatch.delenv("SYNTHSEG_PYTHON311", raising=False)
    return folder


def program(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def fake_python(path, version, venv=True, machine=None):
    """A program that answers the question that find_python asks."""
    answer = f"{version.replace('.', ' ')} {machine or platform.machine()}"
    program(path, f"echo {answer}" + ("; echo venv" if venv else "; exit 1"))


# The hash of a lock


def test_lock_hash_is_of_what_is_installed(root):
    lock = root / "envs" / "demo.txt"
    lock.write_text("a==1 \\\n    --hash=sha256:00\n")
    first = environments.lock_hash("demo")
    lock.write_text("# a comment\n\na==1 \\\n  --hash=sha256:00\n")
    assert environments.lock_hash("demo") == first
    assert len(first) == 12
    lock.write_text("a==2 \\\n    --hash=sha256:00\n")
    assert environments.lock_hash("demo") != first


def test_environment_depends_on_the_processor_too(root, monkeypatch):
    (root / "envs" / "demo.txt").write_text("a==1\n")
    here = environments.env_dir("demo"), environments.lock_hash("demo")
    monkeypatch.setattr(environments, "machine", lambda: "riscv64")
    assert environments.env_dir("demo") != here[0]
    assert environments.lock_hash("demo") == here[1]


@pytest.mark.parametrize(
    ("system", "processor", "driver", "seen"),
    [
        ("linux", "x86_64", True, "NVIDIA"),
        ("linux", "aarch64", True, "NVIDIA"),
        ("linux", "x86_64", False, None),
        ("darwin", "arm64", False, "Apple"),
        ("darwin", "x86_64", False, None),  # an Intel Mac, whose GPU no engine here can use
    ],
)
def test_a_gpu_is_seen_without_any_package(tmp_path, monkeypatch, system, processor, driver, seen):
    monkeypatch.setattr(environments, "NVIDIA", tmp_path / "version")
    if driver:
        (tmp_path / "version").touch()
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(environments, "machine", lambda: processor)
    assert environments.gpu() == seen


def test_unknown_environment_is_named_with_the_known_ones(root):
    (root / "envs" / "demo.txt").write_text("")
    with pytest.raises(environments.SetupError, match="dmeo: no such environment: use one of demo"):
        environments.ensure("dmeo")


# Which Python


def test_tensorflow_takes_python311_from_path(root, path):
    fake_python(path / "python3", "3.12")
    fake_python(path / "python3.11", "3.11")
    assert environments.find_python("tensorflow") == "python3.11"


def test_a_shim_that_exists_but_fails_is_passed_over(root, path):
    program(path / "python3.11", "echo 'pyenv: python3.11: command not found' >&2; exit 127")
    fake_python(path / "python3", "3.11")
    assert environments.find_python("tensorflow") == "python3"


def test_a_program_that_prints_nonsense_is_passed_over(root, path):
    program(path / "python3.11", "echo 'xcode-select: note: no developer tools were found'")
    fake_python(path / "python", "3.11")
    assert environments.find_python("tensorflow") == "python"


def test_the_running_interpreter_serves_the_other_environments(root, path):
    fake_python(path / "running", "3.12")
    fake_python(path / "python3.11", "3.11")
    assert environments.find_python("workflow") == str(path / "running")
    assert environments.find_python("tensorflow") == "python3.11"


def test_a_python_too_new_for_the_lock_is_passed_over(root, path):
    fake_python(path / "running", "3.15")
    fake_python(path / "python3.12", "3.12")
    assert environments.find_python("workflow") == "python3.12"


def test_a_python_for_another_processor_is_passed_over(root, path):
    fake_python(path / "python3.11", "3.11", machine="m68k")
    with pytest.raises(environments.SetupError, match=r"needs Python 3\.11, and none was found"):
        environments.find_python("tensorflow")


def test_the_variable_comes_first_and_must_work(root, path, monkeypatch):
    fake_python(path / "python3.11", "3.11")
    fake_python(path / "mine", "3.11")
    monkeypatch.setenv("SYNTHSEG_PYTHON311", str(path / "mine"))
    assert environments.find_python("tensorflow") == str(path / "mine")
    fake_python(path / "mine", "3.12")
    with pytest.raises(environments.SetupError, match=r"SYNTHSEG_PYTHON311=.*: is Python 3\.12: name a"):
        environments.find_python("tensorflow")


def test_uv_is_asked_last(root, path):
    fake_python(path / "kept-by-uv", "3.11")
    program(path / "uv", f'[ "$1 $2 $6" = "python find 3.11" ] && echo "{path / "kept-by-uv"}"')
    assert environments.find_python("tensorflow") == str(path / "kept-by-uv")
    fake_python(path / "python3", "3.11")
    assert environments.find_python("tensorflow") == "python3"


@pytest.mark.parametrize(
    ("tool", "command"),
    [
        ("apt-get", "sudo apt-get install python3.11-venv"),
        ("brew", "brew install python@3.11"),
        ("dnf", "make python311"),
        (None, "make python311"),
    ],
)
def test_nothing_found_says_what_to_install(root, path, tool, command):
    fake_python(path / "running", "3.13")
    if tool:
        program(path / tool, "exit 1")
    with pytest.raises(environments.SetupError) as caught:
        environments.find_python("tensorflow")
    assert command in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("tool", "advice"),
    [
        ("apt-get", "sudo apt-get install python3.13-venv"),
        ("dnf", "sudo dnf install python3.13"),
        ("brew", "brew install python@3.13"),
        (None, "install one with your system's package manager"),
    ],
)
def test_only_a_python_too_new_is_told_what_can_be_done(root, path, tool, advice):
    for name in ("running", "python3", "python3.14"):
        fake_python(path / name, "3.14")
    if tool:
        program(path / tool, "exit 1")
    with pytest.raises(environments.SetupError) as caught:
        environments.find_python("workflow")
    assert str(caught.value) == (f"the workflow environment needs Python 3.11 to 3.13, and none was found: {advice}")
    # make python311 runs in the environment dev, which needs such a Python itself.
    with pytest.raises(environments.SetupError, match=r"needs Python 3\.11, and none was found") as caught:
        environments.find_python("tensorflow")
    assert "make" not in str(caught.value)


def test_python_without_venv_says_what_to_install(root, path):
    fake_python(path / "python3.11", "3.11", venv=False)
    program(path / "apt-get", "exit 1")
    with pytest.raises(environments.SetupError, match=r"without venv: sudo apt-get install python3\.11-venv$"):
        environments.find_python("tensorflow")


def test_the_real_interpreter_passes_the_check():
    version = sys.version_info[:2]
    assert interpreters._problem(sys.executable, version, version) is None
    assert interpreters._problem(sys.executable, (3, 6), (3, 7)) == "is Python {}.{}".format(*version)


def test_uv_is_that_of_the_path_or_that_of_the_environment_dev(root, path):
    assert environments._uv() is None
    (root / "envs" / "dev.txt").write_text("")
    of_dev = environments.env_dir("dev") / "bin" / "uv"
    of_dev.parent.mkdir(parents=True)
    program(of_dev, "exit 0")
    assert environments._uv() == str(of_dev)
    program(path / "uv", "exit 0")
    assert environments._uv() == str(path / "uv")


# Making them


def make_wheel(folder):
    """A package `tiny` with a command of the same name; returns the wheel's SHA-256."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "tiny.py": "def main():\n    print('tiny runs')\n",
        "tiny-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        "tiny-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tiny-1.0.dist-info/entry_points.txt": "[console_scripts]\ntiny = tiny:main\n",
    }
    record = ""
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip("=")
        record += f"{name},sha256={digest},{len(text)}\n"
    wheel = folder / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
        archive.writestr("tiny-1.0.dist-info/RECORD", record + "tiny-1.0.dist-info/RECORD,,\n")
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


@pytest.fixture(scope="session")
def empty_environment(tmp_path_factory):
    """A virtual environment with pip and nothing else: pip takes seconds to come into one."""
    folder = tmp_path_factory.mktemp("venv") / "empty"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    return folder


@pytest.fixture
def tiny(root, empty_environment, monkeypatch):
    """A lock of one local package, and a pip and a uv that see nothing else; uv is not found unless a test says so."""
    digest = make_wheel(root / "wheels")
    lock = root / "envs" / "tiny.txt"
    lock.write_text(f"tiny==1.0 --hash=sha256:{digest}\n")

    def venv(name, base, folder, stream, *options):
        shutil.copytree(empty_environment, folder, symlinks=True, dirs_exist_ok=True)

    monkeypatch.setattr(environments, "_venv", venv)
    monkeypatch.setattr(environments, "_uv", lambda: None)
    monkeypatch.setenv("UV_CACHE_DIR", str(root / "uv cache"))
    for variable in [v for v in os.environ if v.startswith(("PIP_", "UV_")) and v != "UV_CACHE_DIR"]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", (root / "wheels").as_uri())
    return lock


def folders(root):
    return sorted(p.name for p in (root / ".envs").iterdir() if p.is_dir())


UV = Path(sys.executable).with_name("uv")


@pytest.fixture(params=["pip", "uv"])
def tool(request, monkeypatch):
    if request.param == "uv":
        assert UV.exists(), "the environment dev has it"
        monkeypatch.setattr(environments, "_uv", lambda: str(UV))
    return request.param


@pytest.mark.slow
def test_ensure_makes_it_once_and_its_scripts_run(root, tiny, tool):
    here = shared_disk.me()
    owners = {"killed": replace(here, boot="before the restart"), "theirs": replace(here, host="node7", boot="its own")}
    left = {
        name: shared_disk.new_folder(root / ".envs", "tiny-0123456789ab.tmp-", owner) for name, owner in owners.items()
    }
    foreign = environments.env_dir("tiny")  # made on another node, from a Python that is not here
    (foreign / "bin").mkdir(parents=True)
    (foreign / "bin" / "python").symlink_to(root / "no-such-python")
    lines = []
    python = environments.ensure("tiny", lines.append)
    assert python == environments.python("tiny")
    made = environments.env_dir("tiny").name
    assert re.fullmatch(rf"{foreign.name}-py3\.\d+-[0-9a-f]{{6}}", made)
    # The build that was killed on this host has gone; what another node makes, and made, stays.
    assert folders(root) == sorted([foreign.name, left["theirs"].name, made])
    assert lines[0] == f"making the tiny environment (some MB, once, with {tool}) ..."
    assert len(lines) == 2 and lines[1].startswith("made the tiny environment in ")
    # Its scripts know where they lie now, not where they were made.
    assert subprocess.check_output([python.parent / "tiny"], text=True) == "tiny runs\n"
    assert environments.ensure("tiny", lines.append) == python
    assert len(lines) == 2


def test_an_environment_belongs_to_the_python_that_it_was_made_from(root, path):
    (root / "envs" / "demo.txt").write_text("a==1\n")
    place = environments.env_dir("demo")
    (place / "bin").mkdir(parents=True)
    (place / "lib" / "python3.11").mkdir(parents=True)
    (place / "bin" / "python").symlink_to(path / "python3.11")
    fake_python(path / "python3.11", "3.11")
    beside = place.with_name(f"{place.name}-py3.12-0a1b2c")
    (beside / "bin").mkdir(parents=True)
    (beside / "lib" / "python3.12").mkdir(parents=True)
    (beside / "bin" / "python").symlink_to(path / "python3.12")
    shutil.copytree(beside, place.with_name(f"{place.name}-py3.12-0a1b2b.tmp-1"), symlinks=True)  # in the making
    assert environments.env_dir("demo") == place
    (path / "python3.11").rename(path / "python3.12")  # another node: no 3.11, a 3.12
    assert environments.env_dir("demo") == beside
    (path / "python3.12").unlink()  # a third one, which has neither
    assert environments.env_dir("demo") == place


def test_an_environment_that_is_damaged_is_not_removed_under_those_that_run_from_it(root, monkeypatch):
    (root / "envs" / "demo.txt").write_text("a==1\n")
    place = environments.env_dir("demo")
    (place / "bin").mkdir(parents=True)
    (place / "bin" / "python").symlink_to(sys.executable)
    (place / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}").mkdir(parents=True)
    monkeypatch.setattr(environments, "_works", lambda interpreter: False)
    with pytest.raises(environments.SetupError, match=r"does not work any more: remove it when nothing runs from it"):
        environments.ensure("demo", lambda line: None)
    assert place.is_dir() and folders(root) == [place.name]


def test_environments_that_another_user_may_not_read_are_one_line_with_a_remedy(root):
    (root / "envs" / "demo.txt").write_text("a==1\n")
    envs = environments.ENVS
    (environments.env_dir("demo") / "bin").mkdir(parents=True)
    envs.chmod(0)
    try:
        with bound_by_modes(), pytest.raises(environments.SetupError) as caught:
            environments.ensure("demo", lambda line: None)
    finally:
        envs.chmod(0o755)
    assert str(caught.value).endswith(
        f"have its owner let you read it (chmod -R a+rX {envs}), or use a copy of the project of your own"
    )


def test_an_environment_is_made_with_pythons_own_venv(root):
    folder = root / "made"
    with (root / "log").open("wb") as log:
        environments._venv("tiny", sys.executable, folder, log, "--without-pip")
    assert subprocess.run([folder / "bin/python", "-c", "import pip"], capture_output=True).returncode == 1


@pytest.mark.slow
def test_two_processes_make_it_once(root):
    (root / "envs" / "tiny.txt").write_text("")
    code = f"""
import time
from pathlib import Path
from synthseg_native.cohort import environments as e
e.ROOT = Path({str(root)!r}); e.LOCKS = e.ROOT / "envs"; e.ENVS = e.ROOT / ".envs"
e._works = Path.exists
def fill(name, base, uv, folder, stream, log):
    (folder / "bin").mkdir(parents=True)
    time.sleep(2)
    (folder / "bin" / "python").touch()
e._fill = fill
print(e.ensure("tiny"))
"""
    env = os.environ | {"PYTHONPATH": str(Path(environments.__file__).parents[2])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([sys.executable, "-c", code], env=env, **pipes) for _ in range(2)]
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0][0] == outputs[1][0]
    said = outputs[0][1] + outputs[1][1]
    assert said.count("made the tiny environment") == 1
    assert said.count("waiting for another process") == 1


@pytest.mark.slow
def test_a_wrong_hash_is_refused_and_nothing_is_left(root, tiny, tool):
    tiny.write_text(f"tiny==1.0 --hash=sha256:{'0' * 64}\n")
    lines = []
    with pytest.raises(environments.SetupError) as caught:
        environments.ensure("tiny", lines.append)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(f"(all of it: {Path('.envs') / 'tiny.log'})")
    log = (root / ".envs" / "tiny.log").read_text()
    assert "HASHES" in log and ("Hash mismatch" in log) == (tool == "uv")
    assert folders(root) == []
    assert [line.endswith(": now with pip") for line in lines[1:]] == [True] * (tool == "uv")


@pytest.mark.slow
@pytest.mark.parametrize("tool", ["pip", "uv"], indirect=True)
def test_of_the_users_settings_only_the_place_of_files_counts(root, tiny, tool, monkeypatch, tmp_path):
    """pip.conf and uv.toml that would install elsewhere, or nothing; those of the folder that one stands in, too."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home/.config"))
    for variable in ("PIP_CONFIG_FILE", "PIP_NO_INDEX", "PIP_FIND_LINKS"):
        monkeypatch.delenv(variable)
    wheels = (root / "wheels").as_uri()
    hostile = f"user = true\ntarget = {tmp_path}/elsewhere\ndry-run = true\nno-deps = true\nrequire-virtualenv = true\n"
    files = {
        "home/.config/pip/pip.conf": f"[global]\nno-index = true\nfind-links =\n  {wheels}\n[install]\n{hostile}",
        "home/.config/uv/uv.toml": '[pip]\ntarget = "/elsewhere"\nno-binary = ["tiny"]\n',
        "stands/uv.toml": "this is no TOML",
    }
    if tool == "uv":
        monkeypatch.setenv("PIP_FIND_LINKS", wheels)
        monkeypatch.setenv("PIP_NO_INDEX", "1")
    for file, text in files.items():
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(text)
    monkeypatch.chdir(tmp_path / "stands")
    lines = []
    python = environments.ensure("tiny", lines.append)
    assert subprocess.check_output([python.parent / "tiny"], text=True) == "tiny runs\n"
    assert not (tmp_path / "elsewhere").exists() and len(lines) == 2, lines


@pytest.mark.slow
def test_a_uv_that_cannot_is_followed_by_pip(root, tiny, monkeypatch):
    program(root / "uv", "echo 'error: no such command' >&2; exit 2")
    monkeypatch.setattr(environments, "_uv", lambda: str(root / "uv"))
    lines = []
    python = environments.ensure("tiny", lines.append)
    assert subprocess.check_output([python.parent / "tiny"], text=True) == "tiny runs\n"
    assert lines[1] == (
        "the tiny environment could not be made: no such command (all of it: .envs/tiny.log): now with pip"
    )


def test_uv_is_held_to_the_rules_of_pip(tmp_path):
    lock, python = tmp_path / "a.txt", tmp_path / "python"
    env = {"PIP_INDEX_URL": "https://a/simple", "PIP_EXTRA_INDEX_URL": "https://b https://c", "PIP_FIND_LINKS": "/d"}
    commands = [installers.pip_command(python, lock), installers.uv_command("uv", python, lock, env)]
    for command in commands:
        words = " ".join(map(str, command))
        assert "--require-hashes" in command and command[-1:] != ["--no-index"]
        assert f"--only-binary :all: --no-binary {installers.SOURCE_ONLY} -r {lock}" in words
    assert words.endswith(
        "--index-url https://a/simple --extra-index-url https://b --extra-index-url https://c "
        "--index-strategy unsafe-best-match --find-links /d"
    )
    assert installers.uv_command("uv", python, lock, {"PIP_NO_INDEX": "1"})[-1] == "--no-index"


@pytest.mark.slow
def test_no_network_is_one_clear_line(root, tiny, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # nobody listens there
    monkeypatch.setenv("PIP_RETRIES", "1")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    lines = []
    with pytest.raises(environments.SetupError, match="the package index cannot be reached: check the network"):
        environments.ensure("tiny", lines.append)
    assert folders(root) == []
    assert all("cannot be reached" in line for line in lines[1:]), "uv says it too"


# Several at once


@pytest.fixture
def making(root, monkeypatch):
    """Locks a, b, c and d, and a stand-in for what fills their environments: a function that a test gives."""
    for name in "abcd":
        (root / "envs" / f"{name}.txt").write_text(name)
    monkeypatch.setattr(environments, "_works", lambda python: python.exists())

    def with_this(fill):
        def filled(name, base, uv, folder, stream, log):
            (folder / "bin").mkdir(parents=True)
            fill(name)
            (folder / "bin" / "python").touch()

        monkeypatch.setattr(environments, "_fill", filled)

    return with_this


def test_missing_environments_are_made_side_by_side(root, making):
    together = threading.Barrier(4, timeout=30)
    making(lambda name: together.wait())
    environments.ensure_all("abcdab", lambda line: None)
    assert folders(root) == sorted(environments.env_dir(name).name for name in "abcd")


def test_no_more_at_once_than_are_allowed(making, monkeypatch):
    monkeypatch.setattr(environments, "SIDE_BY_SIDE", 2)
    busy, most, pair = [], [], threading.Barrier(2, timeout=30)

    def fill(name):
        busy.append(name)
        pair.wait()
        most.append(len(busy))
        busy.remove(name)

    making(fill)
    environments.ensure_all("abcd", lambda line: None)
    assert max(most) <= 2 and len(most) == 4  # that they are made side by side, the test above says


def test_one_that_fails_leaves_the_others_whole(root, making):
    failed = threading.Event()

    def fill(name):
        if name in "bd":
            failed.set()
            raise environments.SetupError(f"{name}: no")
        assert failed.wait(30)

    making(fill)
    with pytest.raises(environments.SetupError) as caught:
        environments.ensure_all("abcd", lambda line: None)
    assert str(caught.value).splitlines() == ["b: no", "d: no"], "a line each"
    assert folders(root) == sorted(environments.env_dir(name).name for name in "ac")


def test_what_is_there_is_not_made_again(making):
    making(lambda name: None)
    lines = []
    environments.ensure_all("ab", lines.append)
    environments.ensure_all("ab", lines.append)
    assert len(lines) == 4


PIP_FETCHING = """Collecting numpy==2 (from -r a.txt (line 1))
  Downloading numpy-2-cp311.whl (16.8 MB)
"""
UV_FETCHING = """Resolved 22 packages in 1.00s
Downloading scipy (33.7MiB)
Downloading numpy (16.1MiB)
Downloading torch (1.5GiB)
 Downloaded numpy
"""


@pytest.mark.parametrize(
    ("name", "output", "expected"),
    [
        ("llvm", "", "making llvm: fetched 2 of about 140 MB"),
        ("llvm", PIP_FETCHING, "making llvm: fetched 2 of about 140 MB"),
        (
            "llvm",
            PIP_FETCHING + "Installing collected packages: numpy\n",
            "making llvm: unpacked 3 of about 530 MB",
        ),
        ("torch", PIP_FETCHING, "making torch: fetched 2 MB"),
        ("torch", UV_FETCHING, "making torch: fetched 17 of 1663 MB"),
        ("demo", "Resolved 22 packages in 1.00s\n", "making demo: unpacked 3 of about 430 MB"),  # all was in uv's cache
        ("demo", UV_FETCHING + "Prepared 22 packages in 14.42s\n", "making demo: unpacked 3 of about 430 MB"),
    ],
)
def test_how_far_an_environment_is(tmp_path, name, output, expected):
    for file, size in {"tmp/pip-unpack/a.whl": 2_000_000, "lib/b/tmp/c.so": 3_000_000}.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(bytes(size))
    assert installers.progress(name, output, tmp_path) == expected


def test_it_is_told_every_few_seconds(root, monkeypatch):
    monkeypatch.setattr(environments, "TELL_S", 0.05)
    lines = []
    with (root / "log").open("wb") as stream:
        stream.write(UV_FETCHING.encode())  # of the call before
        environments._call(["sh", "-c", "sleep 0.4"], "demo", root, stream, lines.append)
        assert lines and set(lines) == {"making demo: fetched 0 of about 90 MB"}
        program = ["sh", "-c", "echo 'ERROR: of the call before' >&2; exit 1"]
        with pytest.raises(environments.SetupError):
            environments._call(program, "demo", root, stream)
        with pytest.raises(environments.SetupError, match=r"could not be made: it \(all of it"):
            environments._call(["sh", "-c", "echo it; exit 1"], "demo", root, stream)


def test_a_folder_that_cannot_be_written_is_one_clear_line(root):
    (root / "envs" / "demo.txt").write_text("")
    (root / ".envs").write_text("a file is in the way")
    with pytest.raises(environments.SetupError, match=r"the demo environment could not be made: .*File exists"):
        environments.ensure("demo", lambda line: None)


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        *((name, "/elsewhere", False) for name in (
            "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONWARNINGS", "LD_PRELOAD", "DYLD_INSERT_LIBRARIES",
            "BASH_ENV", "MPLBACKEND", "MATPLOTLIBRC", "MPLCONFIGDIR", "KERAS_HOME", "KERAS_BACKEND",
            "TF_SET_ONEDNN_FPMATH_MODE", "XLA_FLAGS", "NVIDIA_TF32_OVERRIDE", "SCIPY_ARRAY_API", "NPY_PROMOTION_STATE",
            "HDF5_PLUGIN_PATH", "NIPY_USER_DIR", "OV_CPU_MAX_ISA", "ONEDNN_MAX_CPU_ISA", "OPENBLAS_CORETYPE",
            "PIP_TARGET", "PIP_USER", "UV_CONFIG_FILE", "VIRTUAL_ENV", "SNAKEMAKE_PROFILE", "DOCKER_DEFAULT_PLATFORM",
            "APPTAINERENV_PATH", "BASH_FUNC_python%%", "A_SITES_OWN",
        )),
        ("PATH", "/bin", True), ("LC_ALL", "C", True), ("https_proxy", "http://proxy:3128", True),
        ("CUDA_VISIBLE_DEVICES", "1", True), ("SLURM_JOB_ID", "7", True), ("DOCKER_HOST", "unix:///run/d", True),
        ("PIP_INDEX_URL", "https://mirror/simple", True), ("SYNTHSEG_PYTHON311", "/opt/python", True),
        ("OMP_NUM_THREADS", "4", True), ("OMP_NUM_THREADS", "4,2", False), ("OPENBLAS_NUM_THREADS", "-1", False),
        ("HDF5_USE_FILE_LOCKING", "FALSE", True), ("HDF5_USE_FILE_LOCKING", "/elsewhere", False),
        ("TMPDIR", "/no/such/folder", False), ("TMPDIR", "HERE", True), ("TMPDIR", ".", False),
        ("XDG_CACHE_HOME", "HERE/not yet", True), ("XDG_CACHE_HOME", "HERE/file", False),
        ("XDG_CONFIG_HOME", "relative", False), ("XDG_DATA_HOME", "HERE/file", False),
    ],
)  # fmt: skip
def test_what_is_let_through_to_a_program(tmp_path, name, value, kept):
    (tmp_path / "file").touch()
    value = value.replace("HERE", str(tmp_path))
    env = environments.clean_environment({name: value, "HOME": "/home/me"})
    ours = {"HOME": "/home/me", "PYTHONNOUSERSITE": "1", "PYTHONSAFEPATH": "1", "PYTHONUTF8": "1"}
    assert env == ours | ({name: value} if kept else {})
    more = environments.clean_environment({name: value, variables.MORE: f"ANOTHER, {name}"})
    assert more[name] == value, "a site's own variable can be let through"


def test_of_a_hostile_surrounding_only_what_is_the_users_to_say_is_let_through(tmp_path):
    """What that does to results: tests/workflow/test_hostile_environment.py."""
    given = hostile.surround(tmp_path)
    kept = {name for name, value in environments.clean_environment(given).items() if given.get(name) == value}
    assert kept == {"HOME", "LANG", "LC_ALL", *variables.OF_A_RUN} and len(given) > 80


@pytest.mark.parametrize(("needed", "kept"), [(False, "HERE/driver"), (True, "/opt/old/lib:HERE/driver:")])
def test_libraries_of_a_module_system_are_kept_from_our_pythons(tmp_path, monkeypatch, needed, kept):
    """But not the driver of a GPU, nor what this Python itself does not start without."""
    (tmp_path / "driver").mkdir()
    (tmp_path / "driver" / "libcuda.so.1").touch()
    monkeypatch.setattr(environments, "_starts_alone", lambda: not needed)
    env = environments.clean_environment({"LD_LIBRARY_PATH": f"/opt/old/lib:{tmp_path}/driver:"})
    assert env["LD_LIBRARY_PATH"] == kept.replace("HERE", str(tmp_path))


def test_this_python_starts_without_a_module_systems_libraries():
    environments._starts_alone.cache_clear()
    assert environments._starts_alone()


# Snapshots of the code


@pytest.fixture
def code(root):
    cohort = root / "src" / "synthseg_native" / "cohort"
    cohort.mkdir(parents=True)
    for module in (environments, installers, interpreters, variables):
        shutil.copy(module.__file__, cohort)
    for module in (errors, files, owners, shared_disk):
        shutil.copy(module.__file__, cohort.parent)
    (root / "scripts").mkdir()
    (root / "scripts" / "step.py").write_text("print(1)\n")
    return root


def test_snapshot_holds_the_code_of_its_moment(code):
    first = environments.snapshot()
    assert first.parent == code / ".envs"
    (code / "scripts" / "step.py").write_text("print(2)\n")
    second = environments.snapshot()
    assert [(s / "scripts" / "step.py").read_text() for s in (first, second)] == ["print(1)\n", "print(2)\n"]
    (code / "scripts" / "step.py").write_text("print(1)\n")
    assert environments.snapshot() == first
    assert len(folders(code)) == 2


def test_snapshot_does_not_see_caches(code):
    first = environments.snapshot()
    cache = code / "scripts" / "__pycache__"
    cache.mkdir()
    (cache / "step.cpython-311.pyc").write_bytes(b"x")
    assert environments.snapshot() == first
    assert not (first / "scripts" / "__pycache__").exists()


def test_code_in_a_snapshot_knows_the_project(code):
    taken = environments.snapshot()
    ask = "from synthseg_native.cohort import environments as e; print(e.ROOT)"
    env = os.environ | {"PYTHONPATH": str(taken / "src")}
    assert subprocess.check_output([sys.executable, "-c", ask], env=env, text=True).strip() == str(code)


def test_snapshots_long_unused_go(code):
    first = environments.snapshot()
    (code / "scripts" / "step.py").write_text("print(2)\n")
    long_ago = time.time() - environments.SNAPSHOTS_KEPT_S - 60
    os.utime(first, (long_ago, long_ago))
    second = environments.snapshot()
    assert folders(code) == [second.name]


def refuse_to_write(monkeypatch):
    """As on a read-only disk (rights alone do not stop root)."""

    def refuse(*arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system", ".envs")

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(os, "utime", refuse)


def test_a_read_only_project_without_a_snapshot_is_one_clear_line(code, monkeypatch):
    refuse_to_write(monkeypatch)
    monkeypatch.delenv("SYNTHSEG_NATIVE_CODE", raising=False)
    with pytest.raises(environments.SetupError) as caught:
        environments.run_snapshot()
    said = str(caught.value)
    assert said.startswith("the code could not be copied to .envs/: ") and "\n" not in said
    assert said.endswith("Read-only file system: '.envs': use a copy of the project that you can write to")
    assert "SYNTHSEG_NATIVE_CODE" not in os.environ
    (code / "envs" / "demo.txt").write_text("")
    with pytest.raises(environments.SetupError, match="use a copy of the project that you can write to"):
        environments.ensure("demo", lambda line: None)


def test_a_read_only_project_with_its_snapshot_is_enough(code, monkeypatch):
    first = environments.snapshot()
    refuse_to_write(monkeypatch)
    assert environments.snapshot() == first


def test_the_jobs_of_a_run_use_its_snapshot(code, monkeypatch):
    monkeypatch.setenv("SYNTHSEG_NATIVE_CODE", "/the/run's")
    assert environments.run_snapshot() == Path("/the/run's")
    assert not (code / ".envs").exists()
    monkeypatch.setenv("SYNTHSEG_NATIVE_CODE", "")
    assert environments.run_snapshot() == environments.snapshot()
