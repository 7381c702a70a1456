"""Signals: heard in one way, ended by in one line; and the lock of Snakemake's that they wait for no more."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from processes import hear_ctrl_c
from synthseg_native import files, stopping, streams
from synthseg_native.cohort import environments

ROOT = Path(__file__).resolve().parents[2]
RULES = '''
import sys
sys.path.insert(0, {source!r})
from synthseg_native.cohort import halting
halting.prepare(lambda: workflow.persistence.unlock())

onstart:
    halting.prepare(lambda: workflow.persistence.unlock(), workflow.scheduler)

rule all:
    input: expand("made/{{n}}", n=range(200))

rule one:
    output: "made/{{n}}"
    shell:
        """
        trap '' INT HUP QUIT USR1 USR2
        {python} -B scripts/step.py {{output}} 2>&1 | sh {source}/../scripts/log.sh {{output}}.log >&2
        """
'''
STEP = """
import sys, time
from synthseg_native import stopping
def main():
    time.sleep(0.3)
    open(sys.argv[1], "w").close()
sys.exit(stopping.run(main))
"""


@pytest.fixture(autouse=True)
def as_before():
    """Whatever a test does to them, the handlers of the tests' own process stay."""
    before = {number: signal.getsignal(number) for number in stopping.NUMBERS}
    for number in stopping.NUMBERS:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", stopping.NUMBERS)
def test_every_signal_is_one_line_and_its_status(number, capfd):
    def main():
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(number)  # a second one breaks no clearing up
            print("cleared up", flush=True)

    assert stopping.run(main) == 128 + number
    out, err = capfd.readouterr()
    assert (out, err) == ("cleared up\n", f"synthseg-native: stopped by {signal.Signals(number).name}: call again\n")
    assert signal.getsignal(number) == signal.SIG_DFL, "as before"


@pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT", "EROFS", "EACCES", "EIO", "ESTALE", "ENOENT"])
def test_what_the_machine_refuses_a_step_is_one_line(tmp_path, monkeypatch, capfd, error):
    def refuse(path, data):
        raise OSError(getattr(errno, error), os.strerror(getattr(errno, error)))  # of writing: names no file

    monkeypatch.setattr(Path, "write_bytes", refuse)
    table = tmp_path / "volumes.tsv"
    if error == "ENOENT":  # a fault of ours, and told as one
        with pytest.raises(OSError):
            stopping.run(lambda: files.write_text(table, "a"))
        return
    assert stopping.run(lambda: files.write_text(table, "a")) == 4
    what, remedy = os.strerror(getattr(errno, error)), "make room" if error in ("ENOSPC", "EDQUOT") else "mend this"
    assert capfd.readouterr().err == f"synthseg-native: {table}: {what}: {remedy} and call again\n"
    assert list(tmp_path.iterdir()) == []


def test_what_was_ignored_stays_ignored():
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
    with stopping.hearing():
        signal.raise_signal(signal.SIGHUP)
        with pytest.raises(stopping.Stopped):
            signal.raise_signal(signal.SIGTERM)


def test_what_must_be_done_whole_is():
    done = []
    with stopping.hearing(), pytest.raises(stopping.Stopped, match="SIGTERM"), stopping.whole():
        signal.raise_signal(signal.SIGTERM)
        done.append("all of it")
    assert done


def test_a_signal_waits_while_a_program_becomes_another():
    """From the launcher to what it starts no moment is without a handler."""
    heard = "from synthseg_native import stopping\nimport sys\nsys.exit(stopping.run(lambda: None))"
    become = f"""
import os, signal, sys
from synthseg_native import stopping
signal.pthread_sigmask(signal.SIG_BLOCK, stopping.NUMBERS)
os.kill(os.getpid(), signal.SIGTERM)
stopping.become([sys.executable, "-c", {heard!r}], dict(os.environ))
"""
    env = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", become], capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr) == (143, "synthseg-native: stopped by SIGTERM: call again\n")


def test_no_pip_begins_where_a_stopped_uv_ended(monkeypatch):
    monkeypatch.setattr(environments, "_ENDING", ending := environments.threading.Event())
    ending.set()
    with pytest.raises(environments.SetupError, match="stopped"):
        environments._call(["true"], "workflow", Path("nowhere"), SimpleStream())


class SimpleStream:
    """Just enough of a log file."""

    name = os.devnull

    def flush(self):
        pass

    def tell(self):
        return 0


@pytest.mark.parametrize("where", ["a pipe that is closed", "a full disk"])
def test_a_stream_that_is_gone_ends_nothing(where):
    if where == "a full disk":
        gone = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, gone = os.pipe()
        os.close(reader)
    with os.fdopen(gone, "w", buffering=1) as file:
        stream = streams.lasting(file)
        for _ in range(3):
            print("a line", file=stream, flush=True)
        assert streams.lasting(stream) is stream


@pytest.mark.parametrize("where", ["read", "a pipe that is closed", "no log"])
def test_what_a_step_says_fails_nothing(tmp_path, where):
    log = tmp_path / "gone/log" if where == "no log" else tmp_path / "log"
    reader, writer = os.pipe()
    if where == "a pipe that is closed":
        os.close(reader)
    step = f"{sys.executable} -c 'for n in range(9999): print(n)'"
    words = ["bash", "-c", f"set -euo pipefail; {step} 2>&1 | sh {ROOT}/scripts/log.sh {log} >&2"]
    process = subprocess.Popen(words, stderr=writer)
    os.close(writer)
    if where != "a pipe that is closed":
        assert os.fdopen(reader).read().count("\n") == 9999
    assert process.wait(20) == 0
    assert where == "no log" or log.read_text().count("\n") == 9999


@pytest.mark.slow
@pytest.mark.parametrize(("number", "to"), [(signal.SIGTERM, "snakemake"), (signal.SIGINT, "group")])
def test_snakemake_ends_whatever_lock_it_holds(tmp_path, number, to):
    """Among hundreds of jobs it nearly always holds the one that its own handler of SIGTERM waits for."""
    (tmp_path / "Snakefile").write_text(RULES.format(source=str(ROOT / "src"), python=sys.executable))
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/step.py").write_text(STEP)
    process = subprocess.Popen(
        [sys.executable, "-m", "snakemake", "--cores", "2", "--keep-going"], cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, preexec_fn=hear_ctrl_c,
        env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    while not list(tmp_path.glob("made/*")) and process.poll() is None:
        time.sleep(0.05)
    time.sleep(1)
    (os.killpg if to == "group" else os.kill)(process.pid, number)
    began = time.monotonic()
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 128 + number and time.monotonic() - began < 30, output
    assert output.count("what is finished is kept, call again to go on") == 1, output
    assert not any(word in output for word in ("Traceback", "RuleException", "Error in rule")), output
    assert not list(tmp_path.glob(".snakemake/locks/*"))
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
