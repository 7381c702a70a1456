"""Reference containers without a runtime: commands, keys, what a runtime's complaints become."""

import csv
import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from synthseg_native import owners
from synthseg_native.cohort import containers, environments
from synthseg_native.cohort.runs import child
from synthseg_native.errors import SynthSegError

MAC = containers.Runtime("docker", "arm64", 8, False)
LINUX = containers.Runtime("docker", "amd64", 2, False)


def job(tmp_path, model="compact2mm", folder="model", timeout=None, memory_mb=None, **settings):
    both = {"kind": "own", "runtime": "docker", "key": "0123456789ab", "threads": 4, **settings}
    work = tmp_path / "work"
    return containers.Job(
        both, tmp_path / "scan.nii", tmp_path / folder, tmp_path / "w.h5", work, model, timeout, memory_mb
    )


def value(line, option):
    return line[line.index(option) + 1]


def values(line, option):
    return [line[i + 1] for i, word in enumerate(line) if word == option]


def test_own_image_in_docker_is_shut_in(tmp_path):
    line = containers.command(job(tmp_path, timeout=90, memory_mb=3000), LINUX)
    assert line[:2] == ["docker", "run"]
    assert {"--rm", "--init", "--pull=never", "--read-only"} <= set(line)
    assert (value(line, "--network"), value(line, "--tmpfs"), value(line, "--cap-drop")) == ("none", "/tmp", "ALL")
    assert value(line, "--user") == f"{os.getuid()}:{os.getgid()}"
    assert (value(line, "--memory"), value(line, "--memory-swap")) == ("3000m", "3000m")
    assert value(line, "--cpus") == "2"  # not more than the daemon's machine has
    assert value(line, "--cidfile") == str(tmp_path / "work" / "container.id")
    assert "HOME=/tmp" in values(line, "--env") and "OMP_NUM_THREADS=4" in values(line, "--env")
    assert f"synthseg-native.workdir={containers.workdir_label()}" in values(line, "--label")
    assert "--platform" not in line
    mounts = {tuple(part.split("=", 1)[-1] for part in m.split(",")[1:]) for m in values(line, "--mount")}
    assert (str(tmp_path / "scan.nii"), "/in/image.nii", "readonly") in mounts
    assert (str(tmp_path / "model"), "/in/model", "readonly") in mounts
    assert [m for m in mounts if len(m) == 2] == [(str(tmp_path / "work"), "/out")]  # the only writable one
    inner = line[line.index("synthseg-native-reference:0123456789ab") + 1 :]
    assert inner[:7] == ["/in/measure.py", "--out", "/out/measure.json", "--cgroup", "--timeout", "90", "--"]
    assert inner[7:9] == ["python", "/opt/reference.py"]
    assert (value(inner, "--threads"), value(inner, "--model")) == ("4", "/in/model")
    assert "--memory" not in containers.command(job(tmp_path), LINUX)


def test_of_kind_own_the_image_is_the_one_that_was_built():
    own = {"kind": "own", "key": "0123456789ab", "image": "/x/r.sif"}
    for runtime in ("docker", "podman"):
        assert containers.image_of({**own, "runtime": runtime}) == "synthseg-native-reference:0123456789ab"
    assert containers.image_of({**own, "runtime": "apptainer"}) == "/x/r.sif"


@pytest.mark.parametrize(("model", "extra"), [("synthseg1", ["--v1"]), ("synthseg2", [])])
def test_upstream_image(tmp_path, model, extra):
    line = containers.command(job(tmp_path, model, kind="upstream", ct=True), MAC)
    assert value(line, "--platform") == "linux/amd64"
    inner = line[line.index("pwesp/synthseg:py38") + 1 :]
    predict = inner[inner.index("--") + 1 :]
    assert predict[:2] == ["python", "/workspace/SynthSeg/scripts/commands/SynthSeg_predict.py"]
    assert [word for word in predict if word == "--v1"] == extra and "--ct" in predict
    assert "--model" not in predict and value(line, "--entrypoint") == "python"
    pinned = f"pwesp/synthseg@sha256:{'a' * 64}"
    assert pinned in containers.command(job(tmp_path, model, kind="upstream", image=pinned), MAC)


@pytest.mark.parametrize("kind", ["own", "upstream"])
def test_mode_and_crop_reach_the_container(tmp_path, kind):
    line = containers.command(job(tmp_path, "synthseg1", kind=kind, mode="fast", crop=[160, 192, 160]), LINUX)
    at = line.index("--crop")
    assert line[at - 1 : at + 4] == ["--fast", "--crop", "160", "192", "160"] and "--ct" not in line
    line = containers.command(job(tmp_path, "synthseg1", kind=kind, mode="default", crop=None), LINUX)
    assert not {"--fast", "--crop"} & set(line)


def test_upstream_has_no_small_model(tmp_path):
    with pytest.raises(SynthSegError, match="not compact2mm: use kind own") as caught:
        containers.command(job(tmp_path, kind="upstream"), LINUX)
    assert caught.value.code == "usage"


def test_rootless_runtimes_write_as_the_caller(tmp_path):
    line = containers.command(job(tmp_path), containers.Runtime("docker", "amd64", 2, True))
    assert value(line, "--user") == "0:0"
    line = containers.command(job(tmp_path, runtime="podman"), containers.Runtime("podman", "amd64", 2, True))
    assert line[:2] == ["podman", "run"] and "--userns=keep-id" in line
    assert value(line, "--user") == f"{os.getuid()}:{os.getgid()}"


def test_apptainer(tmp_path):
    runtime = containers.Runtime("apptainer", "amd64", 2, True)
    line = containers.command(job(tmp_path, runtime="apptainer"), runtime)
    assert line[:2] == ["apptainer", "exec"]
    assert {"--containall", "--no-home", "--cleanenv"} <= set(line) and value(line, "--network") == "none"
    assert f"{tmp_path}/scan.nii:/in/image.nii:ro" in values(line, "--bind")
    assert f"{tmp_path}/work:/out" in values(line, "--bind")
    at = line.index("docker-daemon:synthseg-native-reference:0123456789ab")
    assert line[at + 1 : at + 3] == ["python", "/in/measure.py"]
    for image, named in (
        ("/x/r.sif", "/x/r.sif"),
        ("me/r:1", "docker://me/r:1"),
        (None, "docker://pwesp/synthseg:py38"),
    ):
        line = containers.command(
            job(tmp_path, "synthseg2", runtime="apptainer", kind="upstream", image=image), runtime
        )
        assert named in line
    with pytest.raises(SynthSegError, match="rename it"):
        containers.command(job(tmp_path, runtime="apptainer", folder="a:b"), runtime)


@pytest.fixture
def apptainer(tmp_path, monkeypatch):
    """A function that puts an Apptainer on the path, which prints a text and notes how it was called."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")

    def says(text):
        (tmp_path / "said").write_text(text)
        program = f'#!/bin/sh\necho "$@" > {tmp_path}/called\nenv > {tmp_path}/variables\ncat {tmp_path}/said\n'
        (tmp_path / "bin/apptainer").write_text(program)
        (tmp_path / "bin/apptainer").chmod(0o755)
        return tmp_path

    return says


OWN_SIF = {"kind": "own", "runtime": "apptainer", "image": "/x/r.sif", "key": "0123456789ab"}


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ('{"data": {"attributes": {"labels": {"synthseg-native.key": "ffffffffffff"}}}}',
         "holds another reference (ffffffffffff, not 0123456789ab)"),
        ('{"data": {"attributes": {"labels": {"maintainer": "somebody"}}}}', "does not say which reference it holds"),
        ('{"data": {"attributes": {"labels": null}}}', "does not say which reference it holds"),
        ("WARNING: no labels", "does not say which reference it holds"),
    ],
)  # fmt: skip
def test_a_file_of_another_reference_is_refused(apptainer, said, told):
    apptainer(said)
    with pytest.raises(SynthSegError) as caught:
        containers.need_own(OWN_SIF)
    message = caught.value.message
    assert message.startswith(f"/x/r.sif: {told}") and "\n" not in message
    tag = "docker-daemon:synthseg-native-reference:0123456789ab"
    assert message.endswith(f": build it again: make reference-image, then apptainer build /x/r.sif {tag}")


def test_a_file_of_this_reference_is_taken(apptainer, monkeypatch):
    place = apptainer('{"data": {"attributes": {"labels": {"synthseg-native.key": "0123456789ab"}}}}')
    for name in ("APPTAINERENV_PYTHONPATH", "SINGULARITYENV_LD_PRELOAD", "APPTAINER_BIND"):
        monkeypatch.setenv(name, "/elsewhere")
    containers.need_own(OWN_SIF)
    assert (place / "called").read_text() == "inspect --json --labels /x/r.sif\n"
    assert "/elsewhere" not in (place / "variables").read_text(), "what would be let into the container"
    (place / "called").unlink()
    for other in ({"kind": "upstream"}, {"runtime": "docker"}, {"image": None}):
        containers.need_own(OWN_SIF | other)
    assert not (place / "called").exists(), "nothing to look at"


def test_a_runtime_is_started_without_the_callers_variables(tmp_path, monkeypatch):
    """Its run too: Apptainer would hand APPTAINERENV_... on, Docker build and run for DOCKER_DEFAULT_PLATFORM."""
    for name in ("APPTAINERENV_PYTHONPATH", "DOCKER_DEFAULT_PLATFORM", "LD_PRELOAD"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("DOCKER_HOST", "unix:///run/mine.sock")
    assert child.call(["env"], tmp_path / "log", folder=tmp_path) == 0
    names = {line.partition("=")[0] for line in (tmp_path / "log").read_text().splitlines()}
    assert "DOCKER_HOST" in names
    assert not names & {"APPTAINERENV_PYTHONPATH", "DOCKER_DEFAULT_PLATFORM", "LD_PRELOAD"}


def test_the_own_image_is_labelled_with_its_key(tmp_path, monkeypatch):
    called = []

    def run(line, **options):
        called.append(line)
        return subprocess.CompletedProcess(line, 0)

    monkeypatch.setattr(containers, "runtime", lambda name: LINUX)
    monkeypatch.setattr(containers.subprocess, "run", run)
    (tmp_path / "wheels").mkdir()
    containers.build("docker", wheels=tmp_path / "wheels", root=tmp_path, say=lambda line: None)
    assert value(called[-1], "--label") == f"synthseg-native.key={containers.image_key()}"


def test_a_large_file_is_not_read_into_memory(tmp_path, monkeypatch):
    (tmp_path / "r.sif").write_bytes(b"image")
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("it was"))
    identity, _ = containers.inspect("apptainer", str(tmp_path / "r.sif"))
    assert identity == f"sha256:{hashlib.sha256(b'image').hexdigest()}"


def test_paths_with_spaces_and_commas(tmp_path):
    line = containers.command(job(tmp_path, folder='a model, "mine"'), LINUX)
    fields = [next(csv.reader([mount])) for mount in values(line, "--mount")]
    assert ["type=bind", f'source={tmp_path}/a model, "mine"', "target=/in/model", "readonly"] in fields
    podman = containers.Runtime("podman", "amd64", 2, False)
    assert containers.command(job(tmp_path, runtime="podman", folder="a model"), podman)
    with pytest.raises(SynthSegError, match="rename it"):
        containers.command(job(tmp_path, runtime="podman", folder="a,b"), podman)


def test_the_key_of_the_own_image_follows_what_it_is_made_of(tmp_path, monkeypatch):
    locks = tmp_path / "envs"
    (locks / "reference").mkdir(parents=True)
    (locks / "reference" / "Dockerfile").write_text(containers.dockerfile().read_text())
    (locks / "tensorflow.txt").write_text("a==1\n")
    code = tmp_path / "synthseg_native" / "reference.py"
    code.parent.mkdir()
    code.write_text('"""Text."""\nx = 1\n')
    monkeypatch.setattr(environments, "LOCKS", locks)
    monkeypatch.setattr(containers, "REFERENCE", code)
    seen = [containers.image_key()]
    code.write_text('"""Other text."""\n# a comment\nx = 1\n')
    assert containers.image_key() == seen[0] and len(seen[0]) == 12
    code.write_text("x = 2\n")
    seen.append(containers.image_key())
    (locks / "tensorflow.txt").write_text("a==2\n")
    seen.append(containers.image_key())
    (locks / "reference" / "Dockerfile").write_text("FROM scratch\n")
    seen.append(containers.image_key())
    seen += [containers.image_key("debian@sha256:1"), containers.image_key(platform="linux/amd64")]
    assert len(set(seen)) == 6


def test_the_lock_is_cut_to_the_container_not_to_this_machine():
    lock = (
        "# made by uv\n"
        "cffi==2.1 ; platform_python_implementation != 'PyPy' \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\n"
        "plain==1\n"
        "cloud==2 ; platform_machine == 'aarch64' and sys_platform == 'linux' \\\n    --hash=sha256:cc\n"
        "metal==3 ; sys_platform == 'darwin' \\\n    --hash=sha256:dd\n"
    )
    amd = "cffi==2.1 \\\n    --hash=sha256:aa \\\n    --hash=sha256:bb\nplain==1\n"
    assert containers.lock_for(lock, "amd64") == amd
    assert containers.lock_for(lock, "arm64") == amd + "cloud==2 \\\n    --hash=sha256:cc\n"
    real = containers.lock_for((Path(containers.environments.LOCKS) / "tensorflow.txt").read_text(), "arm64")
    assert "tensorflow-cpu-aws==" in real and "tensorflow-metal" not in real and " ; " not in real


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?",
            "no daemon",
        ),
        ("error during connect: Get http://%2Frun: dial tcp: connect: connection refused", "no daemon answers"),
        (
            "permission denied while trying to connect to the Docker daemon socket at unix:///run/d.sock",
            "may not use it",
        ),
        ("Got permission denied while trying to connect: dial unix /run/d.sock: connect: permission denied", "may not"),
        ("time=x level=error msg='error waiting for container: unexpected EOF'", "went away during the run"),
        ("docker: Error response from daemon: invalid mount config.\nSee 'docker run --help'.", "invalid mount config"),
        ("", "it said nothing"),
    ],
)
def test_a_runtime_that_fails_is_one_line(text, says, monkeypatch):
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    error = containers.problem("docker", text)
    assert error.code == "daemon" and error.transient and says in error.message and "\n" not in error.message


def fake_runtime(tmp_path, monkeypatch, script, name="docker"):
    path = tmp_path / name
    path.write_text(f"#!{sys.executable}\nimport sys\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)


def test_a_runtime_that_is_not_installed(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SynthSegError, match="docker: not installed"):
        containers.runtime("docker")
    monkeypatch.setattr(containers, "_ask", None)  # it is not even asked
    for name in containers.RUNTIMES:
        assert containers.reap(name) == []  # nothing to clear away, and no reason to stop


REAPED = """
import os
label = dict(word.split("=", 1) for word in sys.argv if word.startswith("label=")).get("label")
if sys.argv[1] == "ps":
    print("aaaaaaaaaaaa bbbbbbbbbbbb cccccccccccc dddddddddddd".replace(" ", chr(10)) if label == {label!r} else "")
elif sys.argv[1] == "inspect":
    assert sys.argv[3].startswith("{{{{.Id}}}}") and len(sys.argv) == 8
    print({shown!r})
else:
    open({log!r}, "w").write(" ".join(sys.argv[1:]))
"""


def test_only_containers_whose_process_has_ended_on_this_host_are_reaped(monkeypatch, tmp_path):
    me = owners.me()
    given = {
        "a": me,  # this one: it runs
        "b": replace(me, started="0"),  # the number is another process's now
        "c": replace(me, space="pid:[7]"),  # of a container with this host's name
        "d": None,
    }
    texts = {key: owners.text_of(owner).strip() if owner else "<no value>" for key, owner in given.items()}
    shown = "\n".join(f"{key * 64} {text}" for key, text in texts.items())
    label = f"synthseg-native.workdir={containers.workdir_label(tmp_path)}"
    script = REAPED.format(label=label, shown=shown, log=str(tmp_path / "log"))
    fake_runtime(tmp_path, monkeypatch, script)
    assert containers.reap("docker", tmp_path) == ["bbbbbbbbbbbb"]
    assert (tmp_path / "log").read_text() == "rm --force bbbbbbbbbbbb"
    (tmp_path / "log").unlink()
    assert containers.reap("docker", tmp_path / "other") == [] and not (tmp_path / "log").exists()


def test_another_hosts_containers_have_another_label(monkeypatch, tmp_path):
    mine = containers.workdir_label(tmp_path)
    monkeypatch.setattr(owners, "_host", lambda: "node7/00000007")
    assert containers.workdir_label(tmp_path) != mine


def test_reaping_is_silent_where_no_daemon_answers_in_time(monkeypatch, tmp_path, capfd):
    fake_runtime(tmp_path, monkeypatch, "sys.exit('Cannot connect to the Docker daemon at unix:///d.sock.')")
    assert containers.reap("docker") == []
    fake_runtime(tmp_path, monkeypatch, "import time; time.sleep(60)")
    ask, limits = containers._ask, []
    monkeypatch.setattr(containers, "_ask", lambda name, words, limit: limits.append(limit) or ask(name, words, 0.5))
    assert containers.reap("docker") == [] and limits == [10]
    assert capfd.readouterr() == ("", "")


def test_a_user_that_the_daemon_refuses(monkeypatch, tmp_path):
    refuses = "sys.exit('permission denied while trying to connect to the Docker daemon socket at unix:///d.sock')"
    fake_runtime(tmp_path, monkeypatch, refuses)
    with pytest.raises(SynthSegError, match="group docker and log in again"):
        containers.runtime("docker")


def test_a_new_client_that_hides_the_error_in_its_answer(monkeypatch, tmp_path):
    answer = '{"ServerErrors": ["Cannot connect to the Docker daemon at unix:///d.sock."], "NCPU": 0}'
    fake_runtime(tmp_path, monkeypatch, f"print('''{answer}''')")
    with pytest.raises(SynthSegError, match="no daemon answers"):
        containers.runtime("docker")


def test_an_image_that_is_missing_says_how_to_get_it(monkeypatch, tmp_path):
    fake_runtime(tmp_path, monkeypatch, "sys.exit('Error: No such image: ' + sys.argv[-1])")
    with pytest.raises(SynthSegError, match="make reference-image"):
        containers.inspect("docker", "synthseg-native-reference:1")
    with pytest.raises(SynthSegError, match="docker pull --platform linux/amd64 pwesp/synthseg:py38"):
        containers.inspect("docker", "pwesp/synthseg:py38", "upstream", "linux/amd64")


def test_podman_tells_in_its_own_words(monkeypatch, tmp_path):
    told = '{"host": {"arch": "arm64", "cpus": 5, "security": {"rootless": true}}}'
    fake_runtime(tmp_path, monkeypatch, f"print('''{told}''' if sys.argv[1] == 'info' else 'abc amd64')", "podman")
    assert containers.runtime("podman") == containers.Runtime("podman", "arm64", 5, True)
    assert containers.inspect("podman", "x") == ("sha256:abc", "amd64")


def test_an_image_of_apptainer_is_read_once(tmp_path, monkeypatch):
    """In pieces: it is some GB."""
    monkeypatch.setattr(containers.weights, "default_cache", lambda: tmp_path / "cache")
    (tmp_path / "r.sif").write_bytes(b"image")
    wanted = "sha256:" + hashlib.sha256(b"image").hexdigest()
    assert containers.inspect("apptainer", str(tmp_path / "r.sif")) == (wanted, None)
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    assert containers.inspect("apptainer", str(tmp_path / "r.sif")) == (wanted, None)
    assert containers.inspect("apptainer", "docker://x") == (None, None)
