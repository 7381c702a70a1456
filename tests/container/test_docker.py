"""The reference in real containers: what it may do, what it leaves, and how its failures read."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import hostile
from processes import hear_ctrl_c, wait_for
from synthseg_native.cohort import containers
from synthseg_native.cohort.runs import files
from synthseg_native.cohort.runs.reference import run_reference
from synthseg_native.errors import SynthSegError

from .conftest import PROBE

pytestmark = pytest.mark.docker
SCAN = "sub-01/anat/sub-01_T1w"
RUN = "sub-01_T1w_seg-compact2mm_res-2mm"
SEGMENT = """
import gzip, pathlib, shutil
shutil.copy("/in/image.nii.gz", "/out/dseg.nii.gz")
pathlib.Path("/out/volumes.csv").write_text("subject,left hippocampus\\r\\nx,5.5\\r\\n")
"""
SLEEP = "import pathlib, time; pathlib.Path('/out/started').touch(); time.sleep(120)"


def make_place(folder):
    """A folder with a scan and a work folder."""
    (folder / "work").mkdir(parents=True)
    labels = np.arange(12 * 13 * 14, dtype=np.int32).reshape(12, 13, 14) % 3
    nib.save(nib.Nifti1Image(labels, np.eye(4)), folder / "scan.nii.gz")
    return folder


@pytest.fixture
def place(tmp_path):
    return make_place(tmp_path / "my scans, all")  # a comma and spaces: Docker's --mount must take them


def settings(**changes):
    return {"kind": "own", "runtime": "docker", "key": PROBE, "threads": 1, "ct": False, **changes}


def run(place, root, code, timeout=None, memory_mb=None, **changes):
    """Run a program in the container, as if it were the reference; return the run record."""
    (place / "code.py").write_text(code)
    model = root / "models" / "compact2mm"
    return run_reference(
        SCAN, place / "scan.nii.gz", settings(**changes), sys.executable, model, place / "code.py", place / "work",
        timeout, memory_mb,
    )  # fmt: skip


def step(place, root, code, env=(), **changes):
    """The command line of the step, and its variables."""
    (place / "code.py").write_text(code)
    line = [sys.executable, root / "scripts/reference.py", "--scan", SCAN, "--image", place / "scan.nii.gz"]
    line += ["--settings", json.dumps(settings(**changes)), "--python", sys.executable, "--failures", place / "failed"]
    line += ["--model", root / "models/compact2mm", "--weights", place / "code.py"]
    for name, file in {**files.REFERENCE_FILES, "record": f"{RUN}_run.json"}.items():
        line += [f"--{name}", place / "out" / file]
    return [str(part) for part in line], {**os.environ, "PYTHONPATH": str(root / "src"), **dict(env)}


def running(label, value):
    line = ["docker", "ps", "--quiet", "--filter", f"label=synthseg-native.{label}={value}"]
    return subprocess.run(line, capture_output=True, text=True).stdout.split()


@pytest.mark.slow
def test_the_own_reference_gives_the_same_in_docker_as_locally(
    own_image, tmp_path, root, tensorflow_python, monkeypatch
):
    """Parcels and scores too. In the container also where the caller's variables and files are hostile
    (tests/hostile.py)."""
    surrounding = hostile.surround(tmp_path / "surrounding")
    scan = tmp_path / "scan.nii.gz"
    image = nib.load(root / "tests/golden/t1_image.nii.gz")
    image.slicer[40:150, 60:170, 40:150].to_filename(scan)
    model, weights = root / "models/compact2mm", tmp_path / "weights"  # a folder of links, as the workflow makes it
    weights.mkdir()
    for file in (model / "compact2mm.h5", *(root / "models/golden2" / name for name in ("parc.h5", "qc.h5"))):
        (weights / file.name).symlink_to(file)
    made, more = {}, {"parcels": "cortex", "scores": True}
    for runtime in ("local", "docker"):
        work = tmp_path / runtime
        work.mkdir()
        for name, value in surrounding.items() if runtime == "docker" else ():
            monkeypatch.setenv(name, value)
        made[runtime] = run_reference(
            SCAN, scan, settings(runtime=runtime, key=own_image, **more), tensorflow_python, model,
            weights, work, timeout=500, memory_mb=6000,
        )  # fmt: skip
        assert made[runtime]["error"] is None
    assert made["docker"]["output"] == made["local"]["output"]
    assert len(made["docker"]["output"]["scores"]) == 8
    assert made["docker"]["model"] == made["local"]["model"] and made["docker"]["model"]["companions"] == "golden2"
    labels = np.unique(nib.load(tmp_path / "docker/dseg.nii.gz").dataobj)
    assert {1, 2} <= set(labels // 1000) and not {3, 42} & set(labels)
    assert (tmp_path / "docker/volumes.tsv").read_text() == (tmp_path / "local/volumes.tsv").read_text()
    reference = made["docker"]["reference"]
    assert reference["id"].startswith("sha256:") and not reference["emulated"]
    assert made["docker"]["engine"]["version"] == made["local"]["engine"]["version"]
    assert made["docker"]["peak_rss_mib"] == pytest.approx(made["local"]["peak_rss_mib"], rel=0.3)
    assert made["docker"]["cgroup_peak_mib"] > 100 and made["local"]["cgroup_peak_mib"] is None
    assert made["docker"].keys() == made["local"].keys()


def test_a_container_has_no_network_and_a_read_only_root(probe_image, place, root):
    code = (
        SEGMENT
        + """
import json, os, socket
def allowed(what):
    try:
        what()
    except OSError:
        return False
    return True
tried = {path: allowed(lambda: open(path + "/x", "w")) for path in ("/", "/opt", "/in", "/in/model", "/tmp", "/out")}
tried["scan"] = allowed(lambda: open("/in/image.nii.gz", "r+"))
tried["network"] = allowed(lambda: socket.create_connection(("192.0.2.1", 80), 3))
tried["interfaces"] = [name for _, name in socket.if_nameindex()]
tried["home"] = os.environ["HOME"]
json.dump(tried, open("/out/tried.json", "w"))
"""
    )
    record = run(place, root, code)
    assert record["error"] is None
    tried = json.loads((place / "work/tried.json").read_text())
    assert {path for path, done in tried.items() if done is True} == {"/tmp", "/out"}
    assert tried["interfaces"] == ["lo"] and tried["home"] == "/tmp"
    assert (place / "work/x").is_file()  # what it may write to is the work folder


@pytest.mark.skipif(os.getuid() != 0, reason="only root can hand the work folder to somebody else")
def test_files_belong_to_the_calling_user(probe_image, place, root, monkeypatch):
    os.chown(place / "work", 12345, 12346)
    for folder in (place, place.parent):
        folder.chmod(0o755)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    monkeypatch.setattr(os, "getgid", lambda: 12346)
    record = run(place, root, SEGMENT)
    assert record["error"] is None, (place / "work/log.txt").read_text()
    for file in ("dseg.nii.gz", "volumes.csv", "measure.json"):
        info = (place / "work" / file).stat()
        assert (info.st_uid, info.st_gid) == (12345, 12346)


def test_memory_beyond_the_limit_is_named_as_such(probe_image, place, root):
    code = "x = bytearray(900 << 20)\nx[::4096] = b'1' * len(x[::4096])\n" + SEGMENT
    record = run(place, root, code, memory_mb=200)
    assert record["error"]["code"] == "oom" and record["error"]["transient"]
    assert "not enough memory" in record["error"]["message"]
    assert run(place, root, code, memory_mb=2000)["error"] is None  # the same, with room


def test_a_run_that_takes_too_long_is_ended(probe_image, place, root):
    record = run(place, root, SLEEP, timeout=2)
    assert record["error"]["code"] == "timeout" and not running("workdir", containers.workdir_label())


def test_bad_input_is_told_with_the_path_that_the_user_knows(probe_image, place, root):
    record = run(place, root, "sys.exit('reference.py: /in/image.nii.gz: 4 dimensions: give a 3-D image')")
    assert record["error"]["code"] == "bad_input"
    assert record["error"]["message"] == f"{place}/scan.nii.gz: 4 dimensions: give a 3-D image"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopping_the_step_ends_its_container(probe_image, place, root, number):
    line, env = step(place, root, SLEEP)
    pipes = {"stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(line, env=env, cwd=place, preexec_fn=hear_ctrl_c, **pipes)
    assert wait_for(lambda: list(place.glob("out/.work*/*/started")), 40)
    label = containers.workdir_label(place)
    assert len(running("workdir", label)) == 1
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    assert "stopped by" in process.stderr.read()
    assert not running("workdir", label) and not list(place.glob("out/*"))


def test_what_a_killed_step_leaves_is_removed_at_the_next_start(probe_image, place, root, tmp_path):
    line, env = step(place, root, SLEEP)
    process = subprocess.Popen(line, env=env, cwd=tmp_path)
    assert wait_for(lambda: list(place.glob("out/.work*/*/started")), 40)
    process.kill()
    process.wait()
    mine = running("workdir", containers.workdir_label(tmp_path))
    assert len(mine) == 1
    assert containers.reap("docker", tmp_path / "other") == []  # another directory's containers stay
    assert running("workdir", containers.workdir_label(tmp_path)) == mine
    assert containers.reap("docker", tmp_path) == mine
    assert running("workdir", containers.workdir_label(tmp_path)) == []


def test_an_absent_daemon_is_one_line_and_transient(docker, place, root):
    line, env = step(place, root, SEGMENT, env={"DOCKER_HOST": f"unix://{place}/nothing.sock"})
    done = subprocess.run(line, env=env, capture_output=True, text=True)
    assert done.returncode == 4 and done.stderr.count("\n") == 1
    assert f"docker: no daemon answers at unix://{place}/nothing.sock: start it" in done.stderr
    failure = json.loads((place / f"failed/reference/sub-01/anat/{RUN}.json").read_text())
    assert failure["error"]["code"] == "daemon" and failure["error"]["transient"]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become a user whom the daemon refuses")
def test_a_daemon_that_refuses_is_one_line(docker):
    socket = Path(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://"))
    if not socket.is_socket() or socket.stat().st_mode & 0o006:
        pytest.skip("anyone may use this daemon")
    done = subprocess.run(
        ["docker", "version"], user=65534, group=65534, extra_groups=[], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "this user may not use it" in containers.problem("docker", done.stderr).message


def test_a_missing_image_says_how_to_get_it(docker, place, root):
    record = run(place, root, SEGMENT, key="aaaaaaaaaaaa")
    assert record["error"]["code"] == "daemon" and "make reference-image" in record["error"]["message"]


@pytest.fixture
def second_daemon(docker, probe_image, tmp_path):
    """A daemon of our own, to be killed: its process and its address. It has the probe image."""
    if os.getuid() != 0:
        pytest.skip("only root can start a second daemon")
    sockets = Path(tempfile.mkdtemp(prefix="sn-"))  # tmp_path can be too long: a socket's path holds 107 characters
    address = f"unix://{sockets}/d.sock"
    line = ["dockerd", "--host", address, "--data-root", tmp_path / "data", "--exec-root", sockets / "exec"]
    line += ["--pidfile", tmp_path / "pid", "--iptables=false", "--ip6tables=false", "--bridge=none"]
    with (tmp_path / "dockerd.log").open("wb") as log:
        daemon = subprocess.Popen([str(part) for part in line], stdout=log, stderr=log, start_new_session=True)
    try:
        answers = ["docker", "--host", address, "version"]
        ready = wait_for(lambda: subprocess.run(answers, capture_output=True).returncode == 0, 40)
        assert ready, (tmp_path / "dockerd.log").read_text()[-2000:]
        save = subprocess.Popen(["docker", "save", probe_image], stdout=subprocess.PIPE)
        subprocess.run(["docker", "--host", address, "load"], stdin=save.stdout, check=True, capture_output=True)
        save.wait()
        yield daemon, address
    finally:
        # Its containers first: they outlive a killed daemon.
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(sockets) in words and int(path.parent.name) != daemon.pid:
                os.kill(int(path.parent.name), signal.SIGKILL)
        daemon.kill()
        daemon.wait()
        mounts = f"{sockets}/exec/netns/* {tmp_path}/data/overlay2/*/merged {tmp_path}/data"
        subprocess.run(f"umount -l {mounts}", shell=True, capture_output=True)
        shutil.rmtree(sockets, ignore_errors=True)


@pytest.mark.slow
def test_a_daemon_that_dies_half_way_is_one_line_and_transient(second_daemon, place, root):
    daemon, address = second_daemon
    line, env = step(place, root, SLEEP, env={"DOCKER_HOST": address})
    process = subprocess.Popen(line, env=env, stderr=subprocess.PIPE, text=True)
    assert wait_for(lambda: list(place.glob("out/.work*/*/started")), 40), process.stderr.read()
    daemon.kill()
    daemon.wait()
    assert process.wait(60) == 4
    said = process.stderr.read()
    assert "docker: its daemon went away during the run" in said and said.count("\n") == 1
    failure = json.loads((place / f"failed/reference/sub-01/anat/{RUN}.json").read_text())
    assert failure["error"]["code"] == "daemon" and not list(place.glob("out/*"))


def test_the_base_image_that_cannot_be_had_is_one_line(docker, tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    with pytest.raises(SynthSegError, match=r"no-such-base:1: the base image is not here and cannot be fetched"):
        containers.build("docker", "localhost:1/no-such-base:1", wheels=wheels, root=tmp_path, say=lambda line: None)
