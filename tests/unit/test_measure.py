"""measure.py: time, memory, exit status, and nothing left running."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from processes import alive, hear_ctrl_c, wait_for
from synthseg_native import measure

SCRIPT = measure.__file__


def run(tmp_path, *command, options=(), python=sys.executable):
    out = tmp_path / "m.json"
    done = subprocess.run([python, SCRIPT, "--out", out, *options, "--", *command], capture_output=True, text=True)
    return done, json.loads(out.read_text()) if out.exists() else None


@pytest.mark.slow
def test_measures_wall_time_and_the_largest_process(tmp_path):
    # The memory is a grandchild's: the engine may be behind a launcher.
    grandchild = "x = bytearray(200 << 20); x[::4096] = b'1' * len(x[::4096])"
    child = f"import subprocess, sys, time; time.sleep(0.4); subprocess.run([sys.executable, '-c', {grandchild!r}])"
    done, result = run(tmp_path, sys.executable, "-c", child)
    assert (done.returncode, result["returncode"], result["signal"], result["timed_out"]) == (0, 0, None, False)
    assert 0.4 < result["wall_s"] < 10
    assert 200 < result["peak_rss_mib"] < 320
    assert result["started"] < result["finished"]
    assert result["cgroup_peak_mib"] is None


def test_passes_the_exit_status_on(tmp_path):
    done, result = run(tmp_path, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, result["returncode"]) == (7, 7)
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_names_the_signal_that_ended_the_command(tmp_path):
    done, result = run(tmp_path, "sh", "-c", "kill -9 $$")
    assert (done.returncode, result["returncode"], result["signal"]) == (137, 137, 9)
    if sys.platform == "linux":
        assert result["oom_kills"] == 0


@pytest.mark.slow
def test_timeout_ends_the_whole_group(tmp_path):
    _, result = run(tmp_path, "sh", "-c", f"sleep 60 & echo $! > {tmp_path}/pid; wait", options=["--timeout", "1"])
    assert result["timed_out"] and result["signal"] == signal.SIGTERM and 1 <= result["wall_s"] < 8
    assert wait_for(lambda: not alive(int((tmp_path / "pid").read_text())), 3)


def test_a_command_that_cannot_start_is_one_line(tmp_path):
    done, result = run(tmp_path, str(tmp_path / "nothing"))
    assert done.returncode == 127 and result is None
    assert done.stderr == f"{tmp_path}/nothing: cannot be started: No such file or directory\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_command_and_its_children(tmp_path, number):
    child = f"sleep 60 & echo $! > {tmp_path}/pid; wait"
    command = [sys.executable, SCRIPT, "--out", tmp_path / "m.json", "--", "sh", "-c", child]
    process = subprocess.Popen(command, preexec_fn=hear_ctrl_c)
    assert wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    process.send_signal(number)
    assert process.wait(10) != 0
    assert json.loads((tmp_path / "m.json").read_text())["returncode"] == process.returncode
    assert wait_for(lambda: not alive(int((tmp_path / "pid").read_text())), 3)


def test_with_parent_ends_the_command_of_a_killed_caller(tmp_path):
    inner = [sys.executable, SCRIPT, "--out", str(tmp_path / "m.json"), "--with-parent", "--",
             "sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 60"]  # fmt: skip
    caller = subprocess.Popen([sys.executable, "-c", f"import subprocess; subprocess.run({inner!r})"])
    assert wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    caller.kill()
    caller.wait()
    assert wait_for(lambda: not alive(int((tmp_path / "pid").read_text())), 5)


def test_reads_the_control_group_of_either_version(monkeypatch):
    files = {"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/memory.peak": "3145728\n"}
    monkeypatch.setattr(measure, "_read", lambda path: files.get(path, ""))
    assert measure.cgroup_peak_mib() == 3.0
    files.clear()
    # Version 1 without a namespace of its own: the path is the host's, the mount the container's.
    files.update({"/proc/self/cgroup": "5:cpu,cpuacct:/x\n4:memory:/docker/abc\n",
                  "/sys/fs/cgroup/memory/memory.max_usage_in_bytes": "1048576\n"})  # fmt: skip
    assert measure.cgroup_peak_mib() == 1.0
    files.clear()
    assert measure.cgroup_peak_mib() is None and measure.oom_kills() is None


def test_runs_on_the_python_of_old_images(tmp_path):
    python = shutil.which("python3.8")
    if python is None or subprocess.run([python, "--version"], capture_output=True).returncode:
        pytest.skip("no Python 3.8 here (the syntax is checked below)")
    done, result = run(tmp_path, "true", python=python)
    assert done.returncode == 0 and result["returncode"] == 0


def test_stands_alone_in_the_syntax_of_python_3_8():
    import ast

    tree = ast.parse(Path(SCRIPT).read_text(), feature_version=(3, 8))
    imported = {n.name for node in ast.walk(tree) if isinstance(node, ast.Import) for n in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} <= sys.stdlib_module_names
