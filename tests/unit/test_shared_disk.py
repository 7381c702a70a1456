"""Owners, locks and temporary folders on a disk that several machines use, with other machines simulated."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from synthseg_native import owners, shared_disk
from synthseg_native.shared_disk import Held, claim, collect, hold, is_alive, me, new_folder, owners_of

SOURCE = Path(shared_disk.__file__).parents[1]
ELSEWHERE = {"host": "node7/00000007", "boot": "boot of node7", "space": "pid:[7]"}
HOLDER = """
import sys, time
from pathlib import Path
from synthseg_native import shared_disk
with shared_disk.hold(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def there(**changes):
    """A process of this one's number on another machine."""
    return replace(me(), **(ELSEWHERE | changes))


def ended():
    """A process of this host that has ended."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    owner = replace(me(), pid=child.pid, started=owners._started(child.pid))
    child.communicate(b"\n")
    return owner


@pytest.fixture
def holder(tmp_path):
    """Another process of this host that holds tmp_path / "lock"."""
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    line = [sys.executable, "-c", HOLDER, tmp_path / "lock"]
    child = subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "held\n"
    yield child
    child.kill()
    child.communicate()


@pytest.fixture
def no_flock(monkeypatch):
    """A file system without locks."""

    def refuse(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.fixture
def node_flock(monkeypatch):
    """A file system that gives every node locks of its own: nobody else's is seen."""
    monkeypatch.setattr(fcntl, "flock", lambda handle, how: None)


# Owners


def test_who_is_alive():
    assert is_alive(me()) is True
    assert is_alive(ended()) is False
    assert is_alive(replace(me(), started="0")) is False, "another process has the number now"
    assert is_alive(replace(me(), started="")) is True, "a system that does not tell when"
    assert is_alive(replace(me(), boot="an earlier one")) is False, "this host has been restarted"
    assert is_alive(there()) is None
    assert is_alive(there(boot=me().boot)) is None, "a container on this kernel: its processes have their own numbers"
    assert is_alive(there(host=me().host, boot="")) is None, "a system that numbers no starts"
    here = there()
    assert is_alive(me(), here) is None, "seen from there"


def test_a_process_that_only_waits_to_be_collected_has_ended():
    child = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.DEVNULL)
    owner = replace(me(), pid=child.pid, started="")
    deadline = time.monotonic() + 20
    while is_alive(owner) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert is_alive(owner) is False
    child.wait()


def test_an_owner_is_read_as_it_was_written():
    text = shared_disk.text_of(me()) + '{"pid": 1}\n' + "4711" + "\n{}\n[]\n\0\n" + shared_disk.text_of(there())
    assert owners_of(text) == [me(), there()]
    assert str(there()) == f"process {os.getpid()} on node7"


# Locks that are held for a while


def test_a_lock_is_held_by_one(tmp_path, holder):
    said = []
    with pytest.raises(Held) as caught, hold(tmp_path / "lock", 0.3, lambda: said.append("waiting")):
        pass
    assert caught.value.owner.pid == holder.pid and said == ["waiting"]
    holder.kill()
    holder.wait()
    with hold(tmp_path / "lock", 5):
        assert owners_of((tmp_path / "lock").read_text()) == [me()]
    assert (tmp_path / "lock").read_text() == ""


@pytest.mark.slow
def test_without_locks_of_the_system_the_owner_in_the_file_counts(tmp_path, no_flock):
    (tmp_path / "lock").write_text(shared_disk.text_of(ended()))
    with hold(tmp_path / "lock", 5):
        assert owners_of((tmp_path / "lock").read_text()) == [me()]
        with pytest.raises(Held), hold(tmp_path / "lock", 0.3):
            pass
    with hold(tmp_path / "lock", 0):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("system", ["no_flock", "node_flock"])
def test_a_lock_of_another_host_counts_as_long_as_it_gives_signs_of_life(tmp_path, request, system):
    request.getfixturevalue(system)
    lock = tmp_path / "lock"
    lock.write_text(shared_disk.text_of(there()))
    over = threading.Event()

    def live():
        while not over.wait(0.1):
            os.utime(lock)

    thread = threading.Thread(target=live)
    thread.start()
    with pytest.raises(Held) as caught, hold(lock, 1.0, patience_s=0.6):
        pass
    over.set()
    thread.join()
    assert caught.value.owner == there() and owners_of(lock.read_text()) == [there()]
    with hold(lock, 5, patience_s=0.6):  # it has ended: nothing comes any more
        assert owners_of(lock.read_text()) == [me()]


def test_the_holder_gives_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_disk, "SIGN_OF_LIFE_S", 0.05)
    before = threading.active_count()
    with hold(tmp_path / "lock"):
        os.utime(tmp_path / "lock", (1, 1))
        deadline = time.monotonic() + 20
        while (tmp_path / "lock").stat().st_mtime == 1 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert (tmp_path / "lock").stat().st_mtime > 1
    assert threading.active_count() == before


def test_a_lock_of_a_container_on_this_kernel_is_free_when_the_kernel_says_so(tmp_path):
    (tmp_path / "lock").write_text(shared_disk.text_of(there(boot=me().boot)))
    with hold(tmp_path / "lock", 0):
        pass


def test_an_unknown_text_is_no_owner(tmp_path):
    (tmp_path / "lock").write_text("4711")  # as older versions wrote it
    with hold(tmp_path / "lock", 0):
        pass


# Locks that a process keeps until its end


def test_a_claim_lasts_as_long_as_the_process(tmp_path):
    code = "from pathlib import Path; from synthseg_native import shared_disk as s; import os, sys\n"
    code += "s.claim(Path(sys.argv[1]), True); os.execv('/bin/sh', ['sh', '-c', 'echo claimed; read line'])"
    line = [sys.executable, "-c", code, tmp_path / "lock"]
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    child = subprocess.Popen(line, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "claimed\n"
    with pytest.raises(Held) as caught:
        claim(tmp_path / "lock", at_rest=True)
    assert caught.value.owner.pid == child.pid
    child.communicate("\n")
    assert claim(tmp_path / "lock", at_rest=False) == []
    assert owners_of((tmp_path / "lock").read_text()) == [me()]


def test_without_locks_of_the_system_a_claim_on_this_host_is_known(tmp_path, no_flock, holder):
    owner = replace(me(), pid=holder.pid, started=owners._started(holder.pid))
    (tmp_path / "claim").write_text(shared_disk.text_of(owner))
    with pytest.raises(Held):
        claim(tmp_path / "claim", at_rest=True)
    assert owners_of((tmp_path / "claim").read_text()) == [owner]


@pytest.mark.parametrize("system", ["no_flock", "node_flock"])
def test_a_claim_of_another_host_is_told_and_kept(tmp_path, request, system):
    request.getfixturevalue(system)
    lock, long_ago = tmp_path / "lock", time.time() - shared_disk.STARTING_S - 60
    now, before = there(), there(host="node8/00000008", since=long_ago)
    lock.write_text("".join(map(shared_disk.text_of, (before, now, ended()))))
    assert claim(lock, at_rest=False) == [before, now]
    assert owners_of(lock.read_text()) == [before, now, me()]
    assert claim(lock, at_rest=True) == [now], "a day ago, and no trace of its work"
    assert owners_of(lock.read_text()) == [now, me()]


# Temporary folders


def test_only_what_nobody_can_use_is_cleared_away(tmp_path):
    given = {"mine": me(), "ended": ended(), "restarted": replace(me(), boot="earlier"), "there": there()}
    folders = {name: new_folder(tmp_path, f"run-{name}-", owner) for name, owner in given.items()}
    folders["nobody's"] = tmp_path / "run-of-an-older-version"
    folders["nobody's"].mkdir()
    (tmp_path / "other").mkdir()
    renamed = new_folder(tmp_path, "run-renamed-", ended())
    renamed.rename(tmp_path / "result")
    gone = collect(tmp_path, "run-*")
    assert set(gone) == {folders["ended"], folders["restarted"], renamed}
    assert not any(path.exists() for path in (*gone, *map(shared_disk._owner_file, gone)))
    left = {folders[name] for name in ("mine", "there", "nobody's")} | {tmp_path / "other", tmp_path / "result"}
    assert {path for path in tmp_path.iterdir() if path.is_dir()} == left


def test_of_another_host_only_what_was_long_left_alone(tmp_path):
    folder = new_folder(tmp_path, "run-", there())
    file = folder / "deep" / "file"
    file.parent.mkdir()
    file.touch()
    long_ago = time.time() - 8 * 86400
    for path in (shared_disk._owner_file(folder), folder, file.parent):
        os.utime(path, (long_ago, long_ago))
    assert collect(tmp_path, "run-*") == [], "somebody writes deep below"
    os.utime(file, (long_ago, long_ago))
    assert collect(tmp_path, "run-*", days=9) == []
    assert collect(tmp_path, "run-*") == [folder] and list(tmp_path.iterdir()) == []


def test_a_temporary_folder_goes_with_its_block(tmp_path):
    with pytest.raises(OSError, match="full"), shared_disk.temporary_folder(tmp_path / "new", "run-") as folder:
        (folder / "file").touch()
        assert folder.name.startswith(f"run-{os.getpid()}@")
        raise OSError("full")
    assert list((tmp_path / "new").iterdir()) == []


# What may be trusted


def test_private_is_what_nobody_else_can_write(tmp_path, monkeypatch):
    folder, file = tmp_path / "kernels", tmp_path / "kernels" / "file"
    folder.mkdir()
    folder.chmod(0o775)
    file.touch(0o600)
    assert not shared_disk.is_private(file), "a folder that the group can write to"
    shared_disk.make_private(folder)
    assert shared_disk.is_private(file) and folder.stat().st_mode & 0o777 == 0o755
    file.chmod(0o622)
    assert not shared_disk.is_private(file)
    file.chmod(0o644)
    (folder / "link").symlink_to(file)
    assert shared_disk.is_private(file) and not shared_disk.is_private(folder / "missing")
    monkeypatch.setattr(os, "geteuid", lambda: file.stat().st_uid + 1)
    assert not shared_disk.is_private(file), "another user's"
