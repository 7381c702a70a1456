"""The launchers, run as a person runs them: a project of its own, a real Snakemake, real signals."""

import ast
import codecs
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from synthseg_native import shared_disk
from synthseg_native.cohort import config_files, environments, handover, ranking, snakemake_arguments

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCHING = ("scripts/environment.py", "scripts/launch.sh", "scripts/start_snakemake.py")
LAUNCHING += ("src/synthseg_native/yaml_text.py", "src/synthseg_native/cohort/config_files.py")
# What the launcher imports before there is an environment.
STANDARD_LIBRARY_ONLY = ("cli", "cohort/environments", "cohort/installers", "cohort/interpreters", "cohort/paths")
STANDARD_LIBRARY_ONLY += ("cohort/ranking", "cohort/variables", "engines/__init__", "errors", "networks/weights")
STANDARD_LIBRARY_ONLY += ("cohort/halting", "files", "options", "owners", "shared_disk", "stopping", "streams")
STANDARD_LIBRARY_ONLY += ("results/record", "verification/verify", "verification/speed", "cohort/snakemake_arguments")
MAIN = "import os, sys; print(os.getcwd(), os.environ['ENVIRONMENT'], sys.argv[1:])"
SNAKEFILE = """
configfile: "config/config.yaml"

rule all:
    input: "results/out.txt"

rule wait:
    output: "results/out.txt"
    shell:
        '''touch started
        ls -l /dev/fd/ > descriptors
        while [ -e hold ]; do sleep 0.1; done
        echo {config[word]} > {output:q}'''
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The launchers around a small workflow; its environments are the interpreter of the tests."""
    project = tmp_path / "a project"
    for name in (*(f"src/synthseg_native/{name}.py" for name in STANDARD_LIBRARY_ONLY), *LAUNCHING):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, project / name)
    (project / "src/synthseg_native/__init__.py").write_text("__version__ = '0'")
    for room in ("cohort", "results", "verification", "networks"):
        (project / "src/synthseg_native" / room / "__init__.py").touch()
    (project / "src/synthseg_native/__main__.py").write_text(MAIN)
    for launcher in ("snakemake", "synthseg-native"):
        shutil.copy(REPOSITORY / launcher, project)
    for folder in ("ROOT", project), ("LOCKS", project / "envs"), ("ENVS", project / ".envs"):
        monkeypatch.setattr(environments, *folder)
    (project / "envs").mkdir()
    for name in ("workflow", "tensorflow", "llvm"):
        (project / "envs" / f"{name}.txt").write_text(name)
        python = environments.python(name)
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nENVIRONMENT={name} exec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
    (project / "Snakefile").write_text(SNAKEFILE)
    for file, text in (("config/config.yaml", "word: default"), ("profiles/default/config.yaml", "keep-going: true")):
        (project / file).parent.mkdir(parents=True)
        (project / file).write_text(f"{text}\n")
    return project


def start(project, *arguments, cwd=None, **options):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([project / "snakemake", *arguments], cwd=cwd or project, **pipes, **options)


def finish(process):
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def wait_for(path, process):
    for _ in range(600):
        if path.exists():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError(f"{path.name} did not appear")


@pytest.mark.slow
def test_one_run_at_a_time_and_a_killed_one_is_no_obstacle(project):
    (project / "hold").touch()
    first = start(project, "--cores", "1")
    wait_for(project / "descriptors", first)
    # A second run: one line. Looking is allowed.
    code, _, err = finish(start(project, "--cores", "1"))
    assert code == 1
    who = f"process {first.pid} on {socket.gethostname()}"
    assert err == f"synthseg-native: another run ({who}) works in {project}: wait for it or stop it\n"
    code, out, err = finish(start(project, "--cores", "1", "-np"))
    assert code == 0 and "rule wait" in out + err
    # The job did not inherit the lock: when the workflow is killed, the job that outlives it does not hold it.
    assert "launcher.lock" not in (project / "descriptors").read_text()
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert list((project / ".snakemake" / "locks").iterdir())
    again = start(project, "--cores", "1", "--rerun-incomplete")
    (project / "hold").unlink()
    code, _, err = finish(again)
    assert code == 0, err
    assert "removed the lock that a killed run had left" in err
    assert (project / "results" / "out.txt").read_text() == "default\n"


@pytest.fixture
def taking(monkeypatch, tmp_path):
    """take_lock of a folder with a lock file of Snakemake's, for a process of a host; whether that file was removed."""
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    import environment

    lock = tmp_path / ".snakemake" / "locks" / "0.output.lock"
    lock.parent.mkdir(parents=True)

    def take(owner, unlock=False):
        lock.touch()
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(shared_disk, "me", lambda: owner)
            # A file system that gives every node locks of its own.
            elsewhere.setattr(shared_disk.fcntl, "flock", lambda handle, how: None)
            environment.take_lock(tmp_path, unlock)
        return not lock.exists()

    return take


def test_the_lock_of_a_run_on_another_node_is_left_to_it(taking):
    here = shared_disk.me()
    ended = replace(here, boot="before the restart")
    there = replace(here, host="node7/00000007", boot="its own", since=here.since)
    assert taking(ended), "nobody is known"
    assert taking(here), "the one before has ended"
    with pytest.raises(SystemExit, match=rf"another run \(process {here.pid} on {socket.gethostname()}\) works in"):
        taking(there)
    with pytest.raises(SystemExit, match="or was killed there: wait for it, or, if it has ended, call with --unlock"):
        taking(there)  # the first refusal has not made it this one's
    assert not taking(there, unlock=True), "that is Snakemake's to do"


@pytest.mark.slow
def test_called_by_path_from_elsewhere(project, tmp_path):
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    (elsewhere / "mine.yaml").write_text("word: mine\n")
    (elsewhere / "Snakefile").write_text("raise SystemExit('a foreign workflow')")
    code, _, err = finish(start(project, "--cores", "1", "--configfile", "mine.yaml", cwd=elsewhere))
    assert code == 0, err
    assert (project / "results" / "out.txt").read_text() == "mine\n"
    assert sorted(p.name for p in elsewhere.iterdir()) == ["Snakefile", "mine.yaml"]


@pytest.mark.parametrize("how", ["absolute", "relative"])
def test_a_link_on_the_path_is_the_launcher(project, tmp_path, how):
    (tmp_path / "bin").mkdir()
    to = project / "synthseg-native"
    first, second = tmp_path / "bin/first", tmp_path / "bin/seg"
    first.symlink_to(to if how == "absolute" else os.path.relpath(to, first.parent))
    second.symlink_to("first")
    done = subprocess.run([second, "--i", "a", "--o", "b", "--engine", "llvm"], capture_output=True, text=True)
    assert done.returncode == 0 and "llvm ['--i', 'a'" in done.stdout, done.stderr


@pytest.mark.parametrize("engine", ["llvm", "tensorflow"])
def test_another_pythons_variables_and_files_are_not_ours(project, tmp_path, engine):
    """PYTHONHOME of another Python; modules named like the library's in a foreign path, and where one stands."""
    for name in ("enum.py", "random.py", "yaml.py"):
        (tmp_path / name).write_text("raise SystemExit('a foreign module')")
    foreign = {"PYTHONHOME": "/opt/other", "PYTHONPATH": str(tmp_path), "PYTHONSTARTUP": str(tmp_path / "enum.py")}
    (project / "src/synthseg_native/__main__.py").write_text(f"import enum, random\n{MAIN}")
    done = subprocess.run(
        [project / "synthseg-native", "--i", "a", "--o", "b", "--engine", engine],
        cwd=tmp_path, env=os.environ | foreign, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and f"{engine} ['--i', 'a'" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_a_directory_of_ones_own(project, tmp_path):
    study = tmp_path / "study"
    study.mkdir()
    shutil.copytree(project / "config", study / "config")
    code, _, err = finish(start(project, "--cores", "1", "--directory", study, cwd=tmp_path))
    assert code == 0, err
    assert (study / "results" / "out.txt").exists()
    assert (study / ".snakemake" / "launcher.lock").exists()
    assert not (project / "results").exists()


@pytest.fixture
def snakemake(project, tmp_path, monkeypatch):
    """A function that calls the launcher in this process, in the folder `elsewhere`, and says what it becomes: the
    arguments of Snakemake, with ROOT for the project's folder and ELSEWHERE for that one, and the variables."""
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    import environment

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copytree(project / "config", elsewhere / "study/config")
    (elsewhere / "Snakefile").touch()
    monkeypatch.setattr(environment, "ROOT", project)
    monkeypatch.setattr(environment.environments, "ensure", lambda name: f"{name} python")
    became = []
    monkeypatch.setattr(environment, "execute", lambda command, env: became.append((command, env)))
    monkeypatch.chdir(elsewhere)

    def call(*words):
        environment.snakemake([word.replace("ELSEWHERE", str(elsewhere)) for word in words])
        command, env = became[-1]
        assert command[:2] == ["workflow python", project / "scripts" / "start_snakemake.py"]
        words = [str(word).replace(str(elsewhere), "ELSEWHERE") for word in command[2:]]
        return [word.replace(str(project), "ROOT") for word in words], env

    return call


DEFAULT = ("--workflow-profile", "ROOT/profiles/default")


@pytest.mark.parametrize(
    ("cwd", "arguments", "place"),
    [
        ("project", [], [*DEFAULT]),
        ("project", ["--directory", "ELSEWHERE/study"], [*DEFAULT]),
        ("elsewhere", [], ["--snakefile", "ROOT/Snakefile", "--directory", "ROOT", *DEFAULT]),
        ("elsewhere", ["--directory", "study"], ["--snakefile", "ROOT/Snakefile", *DEFAULT]),
        ("elsewhere", ["-d", "study"], ["--snakefile", "ROOT/Snakefile", *DEFAULT]),
        ("elsewhere", ["-dstudy"], ["--snakefile", "ROOT/Snakefile", *DEFAULT]),
        ("elsewhere", ["--direc=study"], ["--snakefile", "ROOT/Snakefile", *DEFAULT]),
        ("elsewhere", ["--snakefile", "Snakefile"], []),
        ("elsewhere", ["-s", "Snakefile"], []),
        ("elsewhere", ["--snakefile=Snakefile"], []),
    ],
)
def test_which_workflow_runs_and_where(project, snakemake, monkeypatch, cwd, arguments, place):
    """A Snakefile in the folder of the caller is run only when it is named."""
    if cwd == "project":
        monkeypatch.chdir(project)
    assert snakemake(*arguments, "-n")[0] == [*place, *arguments, "-n"]


# Where profiles and configurations come from


@pytest.fixture
def profiles(project, tmp_path, snakemake, monkeypatch):
    """The project's profiles default and slurm; where one stands default, slurm and mine; in the home slurm and all."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_DIRS", raising=False)
    (project / "profiles/slurm").mkdir()
    (project / "profiles/slurm/config.yaml").touch()
    for place in ("elsewhere/profiles/default", "elsewhere/profiles/mine", "elsewhere/here", "home/snakemake/all"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "config.v8+.yaml").touch()
    (tmp_path / "elsewhere/nothing").mkdir()
    return snakemake


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ([], DEFAULT),
        (["--workflow-profile", "profiles/slurm"], ["--workflow-profile", "ROOT/profiles/slurm"]),
        (["--workflow-profile=slurm"], ["--workflow-profile=ROOT/profiles/slurm"]),
        (["--workflow-prof", "slurm"], ["--workflow-prof", "ROOT/profiles/slurm"]),
        (["--workflow-profile", "profiles/mine"], ["--workflow-profile", "ELSEWHERE/profiles/mine"]),
        (["--workflow-profile", "mine"], ["--workflow-profile", "ELSEWHERE/profiles/mine"]),
        (["--workflow-profile", "./profiles/default"], ["--workflow-profile", "ELSEWHERE/profiles/default"]),
        (["--workflow-profile", "ELSEWHERE/here"], ["--workflow-profile", "ELSEWHERE/here"]),
        (["--workflow-profile", "none"], ["--workflow-profile", "none"]),
        (["--profile", "slurm"], [*DEFAULT, "--profile", "ROOT/profiles/slurm"]),
        (["--profile=all"], [*DEFAULT, "--profile=HOME/snakemake/all"]),
    ],
)
def test_which_profile_counts(profiles, tmp_path, asked, found):
    """Of another Snakemake project in the working folder none replaces ours unasked."""
    words, _ = profiles("--directory", "study", *asked, "-n")
    words = [word.replace(str(tmp_path / "home"), "HOME") for word in words]
    assert words[:2] == ["--snakefile", "ROOT/Snakefile"]
    assert sorted(words[2:]) == sorted(["--directory", "study", *found, "-n"])


def test_two_profiles_of_a_name_are_said(profiles, tmp_path, project, capsys):
    profiles("--directory", "study", "--workflow-profile", "default", "-n")
    other = tmp_path / "elsewhere/profiles/default"
    said = f"{project}/profiles/default, not {other}: a whole path says which one is meant"
    assert capsys.readouterr().err == f"--workflow-profile default: {said}\n"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--directory", "study", "--workflow-profile", "profiles/nonsense"],
         "--workflow-profile profiles/nonsense: no such profile: looked for a config.yaml in ROOT/profiles/nonsense, "
         "ELSEWHERE/profiles/nonsense, ELSEWHERE/profiles/profiles/nonsense"),
        (["--directory", "study", "--workflow-profile", "./nothing"],
         "--workflow-profile ./nothing: no such profile: looked for a config.yaml in ELSEWHERE/nothing, "
         "ELSEWHERE/profiles/nothing"),
        (["--directory", "study", "--profile", "nonsense"],
         "--profile nonsense: no such profile: looked for a config.yaml in HOME/snakemake/nonsense, "
         "/etc/xdg/snakemake/nonsense, ROOT/profiles/nonsense, ELSEWHERE/nonsense, ELSEWHERE/profiles/nonsense"),
        (["--directory", "stduy"],
         "--directory stduy: no such folder: correct it, or make it, with stduy/config/config.yaml"),
        (["--directory", "stduy", "--configfile", "mine.yaml"],
         "--directory stduy: no such folder: correct it, or make it, with stduy/config/config.yaml"),
        (["--directory", "nothing"],
         "nothing/config/config.yaml: no such configuration: copy ROOT/config/config.yaml there"),
        (["--directory", "study", "--config", "model"], "--config: model is no KEY=VALUE: write model=VALUE"),
        (["--directory", "study", "--config", "model=synthseg2", "results/summary.tsv"],
         "--config: results/summary.tsv is no KEY=VALUE: put it before --config, as in: results/summary.tsv --config "
         "KEY=VALUE"),
    ],
)  # fmt: skip
def test_what_is_not_there_ends_the_call_in_one_line(profiles, project, tmp_path, words, says):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        profiles(*words, "--cores", "1")
    for folder, name in ((tmp_path / "elsewhere", "ELSEWHERE"), (tmp_path / "home", "HOME"), (project, "ROOT")):
        says = says.replace(name, str(folder))
    assert ended.value.code == f"synthseg-native: {says}"
    assert sorted(tmp_path.rglob("*")) == before, "no folder was made"


def test_a_look_at_a_study_that_may_not_be_written_to_is_one_line(snakemake, tmp_path, monkeypatch):
    study = tmp_path / "elsewhere/study"
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the tests may run as root
    with pytest.raises(SystemExit) as ended:
        snakemake("--directory", "study", "-n")
    what = "cannot be written to, and Snakemake makes its folder .snakemake there, even for a look"
    remedy = "make it writable, or name another by --directory"
    assert ended.value.code == f"synthseg-native: {study}: {what}: {remedy}"
    (study / ".snakemake").touch()
    for look in (["-n"], ["--cores", "1"]):
        with pytest.raises(SystemExit, match=r"\.snakemake: a file, where Snakemake's folder belongs: remove it$"):
            snakemake("--directory", "study", *look)
    (study / ".snakemake").unlink()
    (study / ".snakemake").mkdir()
    snakemake("--directory", "study", "-n")


def test_another_runs_variables_and_snakemakes_change_no_run(snakemake, monkeypatch, capsys):
    for name in ("SNAKEMAKE_PROFILE", "SNAKEMAKE_OUTPUT_CACHE", "SYNTHSEG_NATIVE_CODE", "SYNTHSEG_NATIVE_MANIFEST"):
        monkeypatch.setenv(name, "old")
    monkeypatch.setenv("SYNTHSEG_NATIVE_MODELS", "/models")
    _, env = snakemake("--directory", "study", "-n")
    assert env["SYNTHSEG_NATIVE_MODELS"] == "/models" and "old" not in env.values()
    left_out = "is set, and left out: what it asks for is said in the call (--help)"
    assert capsys.readouterr().err == f"SNAKEMAKE_OUTPUT_CACHE {left_out}\nSNAKEMAKE_PROFILE {left_out}\n"


@pytest.mark.parametrize("way", ["default", "--configfile F", "--configfiles other.yaml F --cores 1", "--configfile=F"])
@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("samples: a.tsv\nresults: größe\n", None),
        (codecs.BOM_UTF8 + b"samples: a.tsv", None),
        (b'{"samples": "a.tsv"}', None),
        ("samples: &a {b: 1}\nmodel: &c {<<: *a, b: 2}\nother: {<<: *a, <<: *c}", None),
        ("results: größe\n".encode("latin-1"),
         "not UTF-8 text, maybe Latin-1 or Windows-1252 (line 1): save it as UTF-8"),
        ("results: größe\n".encode("utf-16"), "not UTF-8 text, UTF-16 (line 1): save it as UTF-8"),
        ("model: synthseg1\n# Comment\n'model': synthseg2\n",
         "line 3: model stands there twice, first in line 1: leave one out"),
        ("reference:\n  kind: own\n  image: a\n  kind: existing\n",
         "line 4: kind stands there twice, first in line 2: leave one out"),
        ("results: a\n\tmodel: b\n", "line 2: found a tab character that violates indentation: correct the YAML"),
        ("results: a\n model: b\n", "line 2: mapping values are not allowed in this context: correct the YAML"),
        ('results: "a\nmodel: b\n', "line 3: found unexpected end of stream: correct the YAML"),
        ("results: &a b\nmodel: *b\n", "line 2: found undefined alias: correct the YAML"),
        ("results: \x07\n", "control characters are not allowed: correct the YAML"),
        ("[" * 5000, ": correct the YAML"),
        ("# nothing\n", "is empty: write lines of KEY: VALUE, as config/config.yaml has"),
        ("- samples\n", "has no keys at its top: write lines of KEY: VALUE, as config/config.yaml has"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_yaml_of_a_configuration_is_one_line(tmp_path, monkeypatch, way, content, says):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / ("config/config.yaml" if way == "default" else "mine.yaml")
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    words = ["--directory", "."] if way == "default" else way.replace("F", "mine.yaml").split()
    paths = snakemake_arguments.configurations([*words, "-n"])
    if not says:
        config_files.check(paths)
        return
    with pytest.raises(SystemExit) as ended:
        config_files.check(paths)
    assert "\n" not in ended.value.code and ended.value.code.endswith(f": {says}" if says[0] != ":" else says)
    assert ended.value.code.startswith(f"synthseg-native: {file.relative_to(tmp_path)}: ")


def test_engine_runs_in_the_folder_of_the_caller(project, tmp_path):
    command = [project / "synthseg-native", "--i", "my scan.nii.gz", "--engine", "llvm"]
    out = subprocess.check_output(command, cwd=tmp_path, text=True, env=os.environ | {"PYTHONPATH": "/elsewhere"})
    assert out == f"{tmp_path} llvm ['--i', 'my scan.nii.gz', '--engine', 'llvm']\n"


@pytest.fixture
def segment(project, monkeypatch):
    """A function that calls the launcher in this process and says what it becomes: (environment, arguments)."""
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    import environment

    became = []
    monkeypatch.setattr(environment.environments, "ensure", lambda name, log=None: name)
    monkeypatch.setattr(environment, "execute", lambda command, env: became.append((command[0], command[3:])))

    def call(*words):
        environment.segment(list(words))
        return became[-1]

    return call


@pytest.mark.parametrize("words", [["--engine", "llvm"], ["--engine", "abacus", "--engine=llvm"]])
def test_an_engine_runs_in_its_own_environment(segment, words):
    assert segment("--i", "a.nii", *words) == ("llvm", ["--i", "a.nii", *words])


def test_without_an_engine_the_machine_s_best_one_runs(segment, monkeypatch, tmp_path):
    asked = []

    def verified(engine, folder, log):
        asked.append(engine)
        return {"precisions": ["float32"], "decision": {"device": "cpu", "reason": "well"}}

    monkeypatch.setattr(ranking, "verified", verified)
    monkeypatch.setenv("SYNTHSEG_NATIVE_CACHE", str(tmp_path / "no times"))
    monkeypatch.setattr(ranking, "timed", lambda engine, *_: {"tensorflow": 1.0, "llvm": 2.0}[engine])
    monkeypatch.setattr(environments, "gpu", lambda: None)
    found = segment("--i", "a.nii")
    assert found == ("tensorflow", ["--i", "a.nii", "--engine", "tensorflow", "--device", "cpu"])
    assert asked == ["tensorflow"]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--engine", "abacus"], 2, "--engine abacus: no such engine: use one of auto, tensorflow, llvm, torch"),
        (
            ["--engine", "torch"],
            2,
            "--engine torch: no NVIDIA or Apple GPU is seen on this machine: use another engine, or --device cpu",
        ),
        (["--thread", "2"], 2, "unrecognized arguments: --thread 2: see synthseg-native --help"),
        (["--threads", "two"], 2, "argument --threads: invalid int value: 'two': see synthseg-native --help"),
        ([], 2, "usage: synthseg-native --i SCAN"),
        (["--version"], 0, ""),
        (["--i", "a.nii", "--help"], 0, ""),
    ],
)
def test_wrong_use_and_help_need_no_environment(segment, monkeypatch, capsys, words, code, says):
    if words[:2] == ["--engine", "torch"] and environments.gpu():
        pytest.skip("this machine has a GPU")
    monkeypatch.setattr(environments, "ensure", lambda *_: pytest.fail("an environment was made"))
    with pytest.raises(SystemExit) as caught:
        segment(*words)
    out, err = capsys.readouterr()
    assert caught.value.code == code and says in err and (out != "") == (code == 0)
    assert not says or not words or err == f"synthseg-native: {says}\n"


@pytest.mark.parametrize("answer", ["exit 1", "echo 'pyenv: python3: command not found' >&2; exit 127"])
def test_no_python_is_one_line(project, tmp_path, answer):
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("sh", "dirname"):
        (tools / tool).symlink_to(shutil.which(tool))
    for name in ("python3", "python3.12"):
        (tools / name).write_text(f"#!/bin/sh\n{answer}\n")
        (tools / name).chmod(0o755)
    code, out, err = finish(start(project, "--version", env={"PATH": str(tools)}))
    assert code == 1 and out == ""
    assert err.startswith("synthseg-native: no Python 3.11 to 3.13: install one (Debian, Ubuntu: sudo apt-get install")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("versions", "chosen"),
    [
        ({"python3": 12, "python3.13": 13}, "python3"),
        ({"python3": 14, "python3.13": 13, "python3.11": 11}, "python3.13"),
        ({"python3": 14, "python3.14": 14, "python3.11": 11}, "python3.11"),
        ({"python3": 10, "python": 12}, "python"),
        ({"python3": 14, "python3.14": 14}, "python3"),  # environment.py looks further, and says what to install
    ],
)
def test_a_python_that_the_locks_fit_comes_first(project, tmp_path, versions, chosen):
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("sh", "dirname"):
        (tools / tool).symlink_to(shutil.which(tool))
    for name, minor in versions.items():
        pretend = f"import sys; sys.version_info = (3, {minor}, 0); exec(sys.argv[1])"
        lines = ["#!/bin/sh", f"""[ "$2" = -c ] && exec "{sys.executable}" -c '{pretend}' "$3\""""]
        (tools / name).write_text("\n".join([*lines, f'echo "{name} $1 ${{2##*/}} $3"', ""]))
        (tools / name).chmod(0o755)
    code, out, err = finish(start(project, "--version", env={"PATH": str(tools)}))
    assert (code, out, err) == (0, f"{chosen} -IS environment.py snakemake\n", "")


def test_several_environments_are_made_in_one_call(project, monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    import environment

    made = []
    monkeypatch.setattr(environment.environments, "ensure_all", made.extend)
    environment.main(["ensure", "dev", "demo"])
    assert made == ["dev", "demo"]


# A Snakemake of the user's own: what its Python lacks


@pytest.fixture
def take_over(project, monkeypatch):
    """A function that says what becomes of a call: the arguments of the launcher and the folder they are given in."""
    became = []
    monkeypatch.setattr(os, "execv", lambda program, words: became.append((words, os.getcwd())))  # noqa: PTH109
    monkeypatch.setattr(handover.importlib.util, "find_spec", lambda name: None if name == "nibabel" else name)
    monkeypatch.chdir(project)

    monkeypatch.setenv(handover.HANDED, "")
    monkeypatch.setenv("PYTHONSAFEPATH", "")

    def call(*arguments, snakefile=project / "Snakefile"):
        became.clear()
        handover.take_over(snakefile, ["/usr/bin/snakemake", *arguments])
        return became[-1] if became else None

    return call


def test_a_snakemake_that_lacks_a_package_hands_over(project, take_over, capsys):
    words = ["--cores", "1", "results/summary.tsv"]
    assert take_over(*words) == (["sh", f"{project}/scripts/launch.sh", "snakemake", *words], str(project))
    said = "going on with the Snakemake of this project's own, as ./snakemake does"
    assert capsys.readouterr().err == f"this Snakemake's Python lacks nibabel: {said}\n"


@pytest.mark.parametrize(
    "words", [["--workflow-profile", "profiles/nonsense"], ["--workflow-profile=profiles/nonsense"]]
)
def test_a_profile_that_a_snakemake_of_ones_own_passes_over_ends_the_call(project, take_over, monkeypatch, words):
    monkeypatch.setattr(handover.importlib.util, "find_spec", lambda name: name)
    with pytest.raises(SystemExit) as ended:
        take_over("--cores", "1", *words)
    places = (project / "profiles/nonsense", project / "profiles/profiles/nonsense")
    looked = ", ".join(map(str, places))
    says = f"synthseg-native: --workflow-profile profiles/nonsense: no such profile: looked in {looked}"
    assert ended.value.code == says
    for name in ("default", "none", "profiles/default", str(project / "profiles/default")):
        assert take_over("--workflow-profile", name) is None


def test_it_is_handed_over_once(take_over, monkeypatch):
    assert take_over("--cores", "1") and os.environ[handover.HANDED]
    with pytest.raises(SystemExit, match=r"lacks nibabel: remove .*workflow-[0-9a-f]*, and call again"):
        take_over("--cores", "1")


def test_a_snakemake_that_has_all_goes_on(project, take_over, monkeypatch, tmp_path):
    """Its cluster's jobs, `python -m snakemake`, take no module from the working folder; another workflow's may."""
    monkeypatch.setattr(handover.importlib.util, "find_spec", lambda name: name)
    monkeypatch.delenv("PYTHONSAFEPATH")
    assert take_over("--cores", "1", snakefile=tmp_path / "Snakefile") is None and "PYTHONSAFEPATH" not in os.environ
    assert take_over("--cores", "1") is None and os.environ["PYTHONSAFEPATH"] == "1"


@pytest.mark.parametrize("words", [["--directory", "study"], ["--directory=study"], ["-d", "study"]])
def test_the_call_is_repeated_where_it_was_made(project, take_over, monkeypatch, words):
    """Snakemake has gone to its --directory before it reads the workflow."""
    (project / "study").mkdir()
    monkeypatch.setenv("PWD", str(project))
    monkeypatch.chdir(project / "study")
    assert take_over(*words)[1] == str(project)
    monkeypatch.setenv(handover.HANDED, "")
    monkeypatch.setenv("PWD", "/")  # of a program that called from another folder than its shell's
    with pytest.raises(SystemExit, match=r"lacks nibabel: install that beside it, or use .*/snakemake"):
        take_over(*words)


def test_another_workflow_that_imports_this_one_is_told(take_over, tmp_path):
    with pytest.raises(SystemExit, match="synthseg-native: this Snakemake's Python lacks nibabel: install that beside"):
        take_over("--cores", "1", snakefile=tmp_path / "Snakefile")


def test_a_program_that_is_not_the_command_is_told(project, monkeypatch):
    monkeypatch.setattr(handover.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="lacks nibabel, numpy, scipy, matplotlib: install"):
        handover.take_over(project / "Snakefile", ["my_script.py"])


def test_old_interpreters_can_read_the_script_that_refuses_them():
    text = (REPOSITORY / "scripts" / "environment.py").read_text()
    ast.parse(text, feature_version=(3, 6))
    before = text[: text.index("if sys.version_info")]
    assert [line for line in before.splitlines() if line.startswith(("import", "from"))] == ["import sys"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-n"], True),
        (["-np", "results/summary.tsv"], True),
        (["--cores", "1", "--dry-run"], True),
        (["--report=r.html"], True),
        (["--rulegraph"], True),
        (["--cores", "1"], False),
        (["--cores", "1", "--nolock"], False),
        (["-pF", "--cores", "1", "--unlock"], False),
        (["--configfile", "n"], False),
    ],
)
def test_read_only_calls_are_known(words, expected):
    assert snakemake_arguments.is_read_only(words) is expected


def test_unknown_command_shows_the_usage(project):
    command = ["sh", project / "scripts" / "launch.sh", "ensur", "dev"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "environment.py ensure NAME..." in done.stderr


# Without a home, or with one that cannot be written to


@pytest.mark.parametrize("home", ["none", "unwritable"])
def test_without_a_home_to_write_to(snakemake, tmp_path, monkeypatch, home):
    """Snakemake gets a cache of its own in the study's folder; what lies in the user's can be read all the same."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("HOME", "LOGNAME", "USER", "SYNTHSEG_NATIVE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    if home == "none":
        monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
        monkeypatch.setattr("getpass.getuser", lambda: {}["no entry in passwd"])
        _, env = snakemake("--directory", "study", "-n")
        folder = tmp_path / f"synthseg-native-{os.getuid()}"
        assert (env["HOME"], env["LOGNAME"]) == (str(folder), str(os.getuid())) and folder.is_dir()
        assert "XDG_CACHE_HOME" not in env
    else:
        (tmp_path / "home").touch()  # no folder can be made below a file, not by root either
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        _, env = snakemake("--directory", "study", "-n")
        assert env["XDG_CACHE_HOME"] == str(tmp_path / "elsewhere/study/.snakemake/cache")
        assert env["SYNTHSEG_NATIVE_CACHE"] == str(tmp_path / "home/.cache/synthseg-native")


@pytest.mark.parametrize("why", ["no folder", "full"])
def test_engines_are_verified_where_nothing_can_be_kept(segment, monkeypatch, tmp_path, why):
    import environment

    (tmp_path / "home").touch()
    cache = tmp_path / ("home/cache" if why == "no folder" else "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    kept = []

    def full(dir=None):
        raise OSError(errno.ENOSPC, "No space left on device", dir)

    if why == "full":
        monkeypatch.setattr(environment.tempfile, "TemporaryFile", full)

    def for_command(arguments, folder):
        assert folder.is_dir() and cache not in folder.parents
        kept.append(folder)
        return "llvm", arguments

    monkeypatch.setattr(ranking, "for_command", for_command)
    assert segment("--i", "a.nii") == ("llvm", ["--i", "a.nii"])
    assert not kept[0].exists(), "it went with the call"


@pytest.mark.parametrize(
    ("needs", "given", "kept"),
    [
        ("", "/old/lib:DRIVER", "DRIVER"),
        ("/old/lib", "/old/lib:DRIVER:", "/old/lib:DRIVER:"),
        ("", "/old/lib", ""),
        ("", "", ""),
    ],
)
def test_the_libraries_of_a_module_system_are_for_a_python_that_needs_them(project, tmp_path, needs, given, kept):
    tools, driver = tmp_path / "tools", tmp_path / "driver"
    for folder in (tools, driver):
        folder.mkdir()
    (driver / "libcuda.so.1").touch()
    for tool in ("sh", "dirname"):
        (tools / tool).symlink_to(shutil.which(tool))
    starts = f'case "$LD_LIBRARY_PATH" in {needs}*) exit 0 ;; esac; exit 1'
    program = f'#!/bin/sh\nif [ "$2" = -c ]; then {starts}; fi\necho "$LD_LIBRARY_PATH ${{LD_PRELOAD-none}}"\n'
    (tools / "python3").write_text(program)
    (tools / "python3").chmod(0o755)
    env = {"PATH": str(tools), "LD_LIBRARY_PATH": given.replace("DRIVER", str(driver)), "LD_PRELOAD": ""}
    code, out, err = finish(start(project, "--version", env=env))
    assert (code, out, err) == (0, f"{kept.replace('DRIVER', str(driver))} none\n", "")
