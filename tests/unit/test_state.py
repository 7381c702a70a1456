"""The token that makes the summary stale."""

import json

from synthseg_native.cohort import state


def test_token_is_renewed_only_when_something_is_amiss(tmp_path):
    token, result = tmp_path / "state/token", tmp_path / "result"
    assert state.renew_token(token, [str(result)]) == [str(result)]
    first = token.read_text()
    state.renew_token(token, [str(result)])
    second = token.read_text()
    assert first != second
    result.touch()
    assert state.renew_token(token, [str(result)]) == []
    assert token.read_text() == second
    state.write_text(state.failed_mark(token.parent), "failed\n")
    state.renew_token(token, [str(result)])
    assert token.read_text() != second


def test_write_if_changed_leaves_an_equal_file_alone(tmp_path):
    path = tmp_path / "a/b.txt"
    state.write_if_changed(path, "x")
    before = path.stat()
    state.write_if_changed(path, "x")
    assert path.stat().st_mtime_ns == before.st_mtime_ns and path.stat().st_ino == before.st_ino
    state.write_if_changed(path, "y")
    assert path.read_text() == "y" and list(path.parent.iterdir()) == [path]


def test_changed_settings_say_how_many_and_why(tmp_path):
    for name, threads, code, crop in (
        ("a", 1, "x", None), ("b", 1, "x", None), ("c", 2, "x", None), ("d", 2, "y", None), ("e", 2, "x", [96, 96, 96])
    ):  # fmt: skip
        (tmp_path / name).write_text(json.dumps({"key": {"threads": threads, "code": code, "crop": crop}}))
    today = json.dumps({"threads": 2, "code": "x", "crop": None})
    counts = state.changed_settings({str(tmp_path / name): today for name in "abcdef"})
    assert counts == {"threads: 1 to 2": 2, "the engine's code changed": 1, "crop: [96, 96, 96] to none": 1}
