"""The launchers, run as a person runs them: a project of its own, a real Snakemake, real signals."""

import ast
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
from synthseg_native.cohort import environments, handover, ranking

REPOSITORY = Path(__file__).resolve().parents[2]
LAUNCHING = ("scripts/environment.py", "scripts/launch.sh", "scripts/start_snakemake.py")
# What the launcher imports before there is an environment.
STANDARD_LIBRARY_ONLY = ("cli", "cohort/environments", "cohort/installers", "cohort/interpreters", "cohort/paths")
STANDARD_LIBRARY_ONLY += ("cohort/ranking", "engines/__init__", "errors", "networks/weights", "results/record")
STANDARD_LIBRARY_ONLY += ("cohort/halting", "files", "options", "owners", "shared_disk", "stopping", "streams")
STANDARD_LIBRARY_ONLY += ("verification/verify",)
MAIN = "import os, sys; print(os.getcwd(), os.environ['ENVIRONMENT'], sys.argv[1:])"
SNAKEFILE = """
configfile: "config.yaml"

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
    for name in ("workflow", "tensorflow", "openvino"):
        (project / "envs" / f"{name}.txt").write_text(name)
        python = environments.python(name)
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nENVIRONMENT={name} exec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
    (project / "Snakefile").write_text(SNAKEFILE)
    (project / "config.yaml").write_text("word: default\n")
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
    done = subprocess.run([second, "--i", "a", "--o", "b", "--engine", "openvino"], capture_output=True, text=True)
    assert done.returncode == 0 and "openvino ['--i', 'a'" in done.stdout, done.stderr


@pytest.mark.parametrize("engine", ["openvino", "tensorflow"])
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
    shutil.copy(project / "config.yaml", study)
    code, _, err = finish(start(project, "--cores", "1", "--directory", study, cwd=tmp_path))
    assert code == 0, err
    assert (study / "results" / "out.txt").exists()
    assert (study / ".snakemake" / "launcher.lock").exists()
    assert not (project / "results").exists()


@pytest.mark.parametrize(
    ("cwd", "arguments", "place"),
    [
        ("project", [], []),
        ("project", ["--directory", "study"], []),
        ("elsewhere", [], ["--snakefile", "ROOT/Snakefile", "--directory", "ROOT"]),
        ("elsewhere", ["--directory", "study"], ["--snakefile", "ROOT/Snakefile"]),
        ("elsewhere", ["-d", "."], ["--snakefile", "ROOT/Snakefile"]),
        ("elsewhere", ["--snakefile", "Snakefile"], []),
        ("elsewhere", ["-s", "Snakefile"], []),
        ("elsewhere", ["--snakefile=Snakefile"], []),
    ],
)
def test_which_workflow_runs_and_where(project, tmp_path, monkeypatch, cwd, arguments, place):
    """A Snakefile in the folder of the caller is run only when it is named."""
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    import environment

    for folder in (tmp_path / "elsewhere", tmp_path / "elsewhere" / "study"):
        folder.mkdir()
    (tmp_path / "elsewhere" / "Snakefile").touch()
    monkeypatch.setattr(environment, "ROOT", project)
    monkeypatch.setattr(environment.environments, "ensure", lambda name: f"{name} python")
    commands = []
    monkeypatch.setattr(environment, "execute", lambda command, env: commands.append([str(c) for c in command]))
    monkeypatch.chdir(project if cwd == "project" else tmp_path / cwd)
    environment.snakemake([*arguments, "-n"])
    place = [part.replace("ROOT", str(project)) for part in place]
    start = str(project / "scripts" / "start_snakemake.py")
    assert commands == [["workflow python", start, *place, *arguments, "-n"]]


def test_engine_runs_in_the_folder_of_the_caller(project, tmp_path):
    command = [project / "synthseg-native", "--i", "my scan.nii.gz", "--engine", "openvino"]
    out = subprocess.check_output(command, cwd=tmp_path, text=True, env=os.environ | {"PYTHONPATH": "/elsewhere"})
    assert out == f"{tmp_path} openvino ['--i', 'my scan.nii.gz', '--engine', 'openvino']\n"


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


@pytest.mark.parametrize("words", [["--engine", "openvino"], ["--engine", "abacus", "--engine=openvino"]])
def test_an_engine_runs_in_its_own_environment(segment, words):
    assert segment("--i", "a.nii", *words) == ("openvino", ["--i", "a.nii", *words])


def test_without_an_engine_the_machine_s_best_one_runs(segment, monkeypatch):
    asked = []

    def verified(engine, folder, log):
        asked.append(engine)
        return {"precisions": ["float32"], "decision": {"device": "cpu", "reason": "well"}}

    monkeypatch.setattr(ranking, "verified", verified)
    monkeypatch.setattr(ranking, "RANKING", {})  # of a platform that nobody has measured
    engine = ranking.DEFAULT[0][0]
    assert segment("--i", "a.nii") == (engine, ["--i", "a.nii", "--engine", engine, "--device", "cpu"])
    assert asked == [engine]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--engine", "abacus"], 2, "--engine abacus: no such engine: use auto or one of tensorflow, openvino, torch"),
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
        lines = ["#!/bin/sh", f"""[ "$1" = -c ] && exec "{sys.executable}" -c '{pretend}' "$2\""""]
        (tools / name).write_text("\n".join([*lines, f'echo "{name} $1 ${{2##*/}} $3"', ""]))
        (tools / name).chmod(0o755)
    code, out, err = finish(start(project, "--version", env={"PATH": str(tools)}))
    assert (code, out, err) == (0, f"{chosen} -S environment.py snakemake\n", "")


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


def test_it_is_handed_over_once(take_over, monkeypatch):
    assert take_over("--cores", "1") and os.environ[handover.HANDED]
    with pytest.raises(SystemExit, match=r"lacks nibabel: remove .*workflow-[0-9a-f]*, and call again"):
        take_over("--cores", "1")


def test_a_snakemake_that_has_all_goes_on(take_over, monkeypatch):
    monkeypatch.setattr(handover.importlib.util, "find_spec", lambda name: name)
    assert take_over("--cores", "1") is None


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
    with pytest.raises(SystemExit, match="lacks nibabel, numpy, pandas, scipy, matplotlib: install"):
        handover.take_over(project / "Snakefile", ["my_script.py"])


def test_old_interpreters_can_read_the_script_that_refuses_them():
    text = (REPOSITORY / "scripts" / "environment.py").read_text()
    ast.parse(text, feature_version=(3, 6))
    before = text[: text.index("if sys.version_info")]
    assert [line for line in before.splitlines() if line.startswith(("import", "from"))] == ["import sys"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
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
def test_read_only_calls_are_known(monkeypatch, arguments, expected):
    monkeypatch.syspath_prepend(REPOSITORY / "scripts")
    import environment

    assert environment.is_read_only(arguments) is expected


def test_unknown_command_shows_the_usage(project):
    command = ["sh", project / "scripts" / "launch.sh", "ensur", "dev"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "environment.py ensure NAME..." in done.stderr
