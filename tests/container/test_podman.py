"""The same under Podman, where it runs; the image comes from Docker."""

import json
import os
import shutil
import signal
import subprocess

import pytest

from processes import wait_for
from synthseg_native.cohort import containers

from .conftest import PROBE, unless_required
from .test_docker import SEGMENT, SLEEP, make_place, run, step

pytestmark = pytest.mark.docker

# What a root without all of root's rights needs (a container, say): no systemd, no higher limits than its own.
CONFIGURATION = """
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
"""


@pytest.fixture
def place(tmp_path):
    return make_place(tmp_path / "my scans")


@pytest.fixture(scope="module")
def podman(probe_image, tmp_path_factory):
    if not shutil.which("podman"):
        unless_required("podman is not installed", "REQUIRE_PODMAN")
    with pytest.MonkeyPatch.context() as patch:
        if os.getuid() == 0:
            configuration = tmp_path_factory.mktemp("podman") / "containers.conf"
            configuration.write_text(CONFIGURATION)
            patch.setenv("CONTAINERS_CONF", str(configuration))
        with subprocess.Popen(["docker", "save", probe_image], stdout=subprocess.PIPE) as save:
            subprocess.run(["podman", "load"], stdin=save.stdout, capture_output=True)
        done = subprocess.run(
            ["podman", "run", "--rm", "--init", "--network=none", probe_image, "true"], capture_output=True
        )
        if done.returncode != 0:
            said = done.stderr.decode().strip()[-300:]
            unless_required(f"podman cannot run a container here: {said}", "REQUIRE_PODMAN")
        yield containers.runtime("podman")


def test_runs_shut_in_and_measured(podman, place, root):
    code = SEGMENT + (
        "import json, os, socket\n"
        "json.dump([name for _, name in socket.if_nameindex()], open('/out/interfaces.json', 'w'))\n"
        "for path in ('/opt', '/in'):\n"
        "    try:\n        open(path + '/x', 'w')\n    except OSError:\n        continue\n    raise SystemExit(path)\n"
    )
    record = run(place, root, code, runtime="podman")
    assert record["error"] is None
    assert json.loads((place / "work/interfaces.json").read_text()) == ["lo"]
    assert (place / "work/dseg.nii.gz").stat().st_uid == os.getuid()
    assert record["peak_rss_mib"] > 1 and record["reference"]["id"].startswith("sha256:")


def test_failures_have_their_codes(podman, place, root):
    assert run(place, root, SLEEP, timeout=2, runtime="podman")["error"]["code"] == "timeout"
    assert run(place, root, SEGMENT, runtime="podman", key="aaaaaaaaaaaa")["error"]["code"] == "daemon"
    if os.getuid() == 0:  # without root, limits need control groups of version 2
        code = "x = bytearray(900 << 20)\nx[::4096] = b'1' * len(x[::4096])\n"
        assert run(place, root, code, memory_mb=200, runtime="podman")["error"]["code"] == "oom"


def test_no_container_outlives_its_step(podman, place, root, tmp_path):
    def left():
        line = [
            "podman",
            "ps",
            "--quiet",
            "--filter",
            f"label=synthseg-native.workdir={containers.workdir_label(tmp_path)}",
        ]
        return subprocess.run(line, capture_output=True, text=True).stdout.split()

    for number in (signal.SIGTERM, signal.SIGKILL):
        line, env = step(place, root, SLEEP, runtime="podman", key=PROBE)
        process = subprocess.Popen(line, env=env, cwd=tmp_path, stderr=subprocess.DEVNULL)
        started = f"out/.work*/{process.pid}@*/started"
        assert wait_for(lambda started=started: list(place.glob(started)), 40)
        assert len(left()) == 1
        process.send_signal(number)
        process.wait(60)
        if number == signal.SIGKILL:
            assert len(containers.reap("podman", tmp_path)) == 1
        assert left() == []
