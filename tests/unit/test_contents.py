"""Hashes of contents: remembered, and never on the strength of size and time alone."""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from small_scans import patch, save

from synthseg_native.errors import SynthSegError
from synthseg_native.identity import contents as contents_of
from synthseg_native.identity.contents import Contents
from synthseg_native.scan import reading

TICK_S = 0.05  # times of files are those of the kernel's last tick


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture
def memory(tmp_path):
    return tmp_path / "state/contents.json"


@pytest.fixture
def read(monkeypatch):
    """The files that were really read."""
    found, read_file = [], Contents._read
    monkeypatch.setattr(
        Contents, "_read", lambda self, path, size: (found.append(path), read_file(self, path, size))[1]
    )
    return found


def test_a_file_is_read_once(tmp_path, memory, read):
    file = tmp_path / "a.nii"
    file.write_text("one")
    for _ in range(2):
        contents = Contents(memory)
        assert contents.sha256(str(file)) == sha("one") and contents.digest(file) == sha("one")[:12]
        contents.save()
    assert read == [str(file)]


@pytest.mark.parametrize("what", ["pipe", "device", "folder"])
def test_what_is_no_file_has_no_contents(tmp_path, memory, what):
    """To read a pipe or a device may never end."""
    path = {"pipe": tmp_path / "p.nii", "device": Path("/dev/zero"), "folder": tmp_path}[what]
    if what == "pipe":
        os.mkfifo(path)
    assert Contents(memory).sha256(path) is None
    with pytest.raises(SynthSegError, match=r"not an (ordinary|image) file"):
        reading.extent(path)


def test_sizes_that_are_no_numbers_are_no_extent(tmp_path):
    patch(save(tmp_path / "a.nii"), index=1, pixdim=np.nan)
    with pytest.raises(SynthSegError, match="sizes that are no numbers"):
        reading.extent(tmp_path / "a.nii")


def test_the_same_size_and_time_do_not_hide_other_contents(tmp_path, memory, read):
    """As from cp -p, touch -r, tar or a container's layers, over the old file or in its place."""
    file, other = tmp_path / "a.nii", tmp_path / "b.nii"
    file.write_text("one")
    other.write_text("two")
    os.utime(file, (0, 0))
    shutil.copystat(file, other)
    contents = Contents(memory)
    assert contents.sha256(file) == sha("one")
    shutil.copy2(other, file)
    assert file.stat().st_mtime == 0 and contents.sha256(file) == sha("two")
    file.write_text("one")
    os.utime(file, (0, 0))
    assert contents.sha256(file) == sha("one")
    other.replace(file)
    assert contents.sha256(file) == sha("two")


def test_of_a_file_that_vanished_the_last_hash_stands(tmp_path, memory):
    file = tmp_path / "a.nii"
    contents = Contents(memory)
    assert contents.sha256(file) is None and contents.digest(file) is None
    assert contents.sha256("zero\0byte") is None
    file.write_text("one")
    contents.sha256(file)
    contents.save()
    file.unlink()
    assert Contents(memory).sha256(file) == sha("one")


@pytest.mark.parametrize("text", ["", "[]", '{"a.nii": [3, 4, "abc"]}', '{"a.nii": null}', "no json"])
def test_a_memory_of_an_earlier_version_or_a_damaged_one_is_no_memory(tmp_path, memory, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    memory.parent.mkdir()
    memory.write_text(text)
    assert Contents(memory).sha256("a.nii") is None
    (tmp_path / "a.nii").write_text("one")
    assert Contents(memory).sha256("a.nii") == sha("one")


def test_nothing_is_written_unless_asked(tmp_path, memory, monkeypatch):
    monkeypatch.setattr(contents_of, "SAVE_EVERY_S", 0)
    (tmp_path / "a.nii").write_text("one")
    contents = Contents(memory)
    contents.sha256(tmp_path / "a.nii")
    assert not memory.exists()
    contents.begin_saving()
    (tmp_path / "b.nii").write_text("two")
    contents.sha256(tmp_path / "b.nii")
    assert len(json.loads(memory.read_text())) == 2, "what is killed now has lost nothing"
    before = memory.stat().st_ino
    contents.save()
    assert memory.stat().st_ino == before
    assert list(memory.parent.iterdir()) == [memory]


def test_reading_for_long_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(contents_of, "SAY_AFTER_S", -1)
    said = []
    contents = Contents(None, say=said.append)
    for name in "abc":
        (tmp_path / name).write_text(name)
        contents.sha256(tmp_path / name)
    assert said == ["reading files to know them by their content: 1 so far, 0.0 GB; each is read once"]


def test_results_that_nobody_touched_since_their_record_are_not_read(tmp_path, read):
    file, record = tmp_path / "dseg.nii.gz", tmp_path / "run.json"
    file.write_text("labels")
    record.write_text("{}")
    contents = Contents()
    assert contents.is_as_made(file, sha("labels"), record.stat()) and read == []
    time.sleep(TICK_S)
    os.utime(file)
    assert contents.is_as_made(file, sha("labels"), record.stat()) and read == [str(file)]
    file.write_text("by hand")
    assert not contents.is_as_made(file, sha("labels"), record.stat())
    os.utime(file, (0, 0))
    assert not contents.is_as_made(file, sha("labels"), record.stat()), "the change time tells"
    file.unlink()
    assert not contents.is_as_made(file, sha("labels"), record.stat())


def test_results_that_were_exchanged_are_seen(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    (tmp_path / "run.json").write_text("{}")
    time.sleep(TICK_S)
    (tmp_path / "a").rename(tmp_path / "c")
    (tmp_path / "b").rename(tmp_path / "a")
    assert not Contents().is_as_made(tmp_path / "a", sha("a"), (tmp_path / "run.json").stat())


def test_kept_values(memory):
    contents = Contents(memory)
    assert contents.kept("maps", None) is None
    assert contents.kept("maps", "one") == "one" == contents.kept("maps", None)
    contents.save()
    assert Contents(memory).kept("maps", None) == "one"
