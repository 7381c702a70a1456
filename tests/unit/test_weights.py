"""weights.py against a server on loopback that cuts connections, ignores Range, sends wrong bytes or nothing."""

import contextlib
import errno
import hashlib
import multiprocessing
import os
import socket
import tempfile
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from synthseg_native.errors import SynthSegError
from synthseg_native.networks import download, weights

BODY = bytes(range(256)) * 4096  # 1 MiB
WRONG = b"x" * len(BODY)


class Server:
    """Serves BODY at every path; the path's parts say what goes wrong. `requests` keeps (path, Range header, bytes)."""

    def __init__(self):
        self.requests = []
        self.cuts = {}  # path -> number of bytes after which the next answer breaks off, used up one by one
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.answer(self)

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()

    def answer(self, handler):
        path, asked = handler.path, handler.headers.get("Range")
        if "missing" in path:
            self.requests.append((path, asked, 0))
            handler.send_error(404)
            return
        if "busy" in path and len(self.requests) < 2:
            self.requests.append((path, asked, 0))
            handler.send_error(503)
            return
        if "redirect" in path:
            self.requests.append((path, asked, 0))
            handler.send_response(302)
            handler.send_header("Location", path.partition("?")[2] or path)
            handler.end_headers()
            return
        if "rude" in path:
            self.requests.append((path, asked, 0))
            handler.send_response_only(404, "\x1b[2Jgone")
            handler.end_headers()
            return
        if "endless" in path:
            handler.send_response(200)
            handler.end_headers()
            sent = 0
            with contextlib.suppress(OSError):
                while sent < 64 * len(BODY):
                    handler.wfile.write(WRONG)
                    sent += len(WRONG)
            self.requests.append((path, asked, sent))
            return
        body = WRONG if "wrong" in path else BODY
        body = b"<html>not found</html>" if "page" in path else body
        first = int(asked.removeprefix("bytes=").rstrip("-")) if asked and "norange" not in path else 0
        if first:
            if first >= len(body):
                self.requests.append((path, asked, 0))
                handler.send_error(416)
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        else:
            handler.send_response(200)
        send = body[first:]
        if "nolength" not in path:
            handler.send_header("Content-Length", str(len(send)))
        handler.end_headers()
        cuts = self.cuts.get(path, [])
        if cuts:
            send = send[: cuts.pop(0)]
        self.requests.append((path, asked, len(send)))
        handler.wfile.write(send)
        handler.close_connection = True

    def stop(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def plain_http(monkeypatch):
    """Addresses of http, so that a server here needs no certificate."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "SCHEMES", ("http",))


@pytest.fixture
def server(plain_http):
    server = Server()
    yield server
    server.stop()


def card(*urls):
    return weights.WeightsFile(
        file="fake.h5",
        size=len(BODY),
        sha256=hashlib.sha256(BODY).hexdigest(),
        git_blob=hashlib.sha1(f"blob {len(BODY)}\0".encode() + BODY).hexdigest(),
        urls=urls,
    )


def fetch(tmp_path, *urls, lines=None, **options):
    options = {"pause": 0.01, "timeout": 5.0, **options}
    log = (lambda line: None) if lines is None else lines.append
    return weights.fetch(card(*urls), tmp_path / "cache" / "fake.h5", log=log, **options)


def leftovers(tmp_path):
    return sorted(path.name for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock")


def test_whole_file(server, tmp_path):
    lines = []
    path = fetch(tmp_path, server.address + "/a", lines=lines)
    assert path.read_bytes() == BODY
    assert leftovers(tmp_path) == ["fake.h5"]
    assert server.requests == [("/a", None, len(BODY))]
    assert len(lines) == 2 and server.address in lines[0] and "hash as expected" in lines[1]


@pytest.mark.parametrize("path", ["/a", "/nolength"])
def test_a_cut_connection_is_resumed_with_the_rest_only(server, tmp_path, path):
    server.cuts[path] = [300_000, 200_000]
    assert fetch(tmp_path, server.address + path).read_bytes() == BODY
    assert server.requests == [
        (path, None, 300_000),
        (path, "bytes=300000-", 200_000),
        (path, "bytes=500000-", len(BODY) - 500_000),
    ]


def test_a_server_without_range_starts_again(server, tmp_path):
    server.cuts["/norange"] = [300_000]
    assert fetch(tmp_path, server.address + "/norange").read_bytes() == BODY
    assert [sent for _, _, sent in server.requests] == [300_000, len(BODY)]


def test_what_an_earlier_run_left_is_completed(server, tmp_path):
    server.cuts["/a"] = [300_000]
    with pytest.raises(SynthSegError, match="300000 of 1048576"):
        fetch(tmp_path, server.address + "/a", attempts=1)
    assert leftovers(tmp_path) == ["fake.h5.part"]
    assert fetch(tmp_path, server.address + "/a").read_bytes() == BODY
    assert server.requests[-1] == ("/a", "bytes=300000-", len(BODY) - 300_000)


def test_a_whole_part_needs_no_request(server, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "fake.h5.part").write_bytes(BODY)
    assert fetch(tmp_path, server.address + "/a").read_bytes() == BODY
    assert server.requests == []


@pytest.mark.parametrize("left", [BODY + b"more", WRONG[:300_000]], ids=["too long", "other bytes"])
def test_a_bad_part_starts_again(server, tmp_path, left):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "fake.h5.part").write_bytes(left)
    assert fetch(tmp_path, server.address + "/a").read_bytes() == BODY
    assert server.requests[-1] == ("/a", None, len(BODY))


def test_wrong_bytes_are_refused_and_removed(server, tmp_path):
    with pytest.raises(SynthSegError) as caught:
        fetch(tmp_path, server.address + "/wrong")
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "fake.h5",
        hashlib.sha256(WRONG).hexdigest(),
        hashlib.sha256(BODY).hexdigest(),
        server.address + "/wrong",
        "weights: PATH",
    ):
        assert part in message
    assert leftovers(tmp_path) == []
    assert len(server.requests) == 1  # asking again would give the same


def test_a_wrong_git_blob_id_is_refused(server, tmp_path):
    wrong = card(server.address + "/a")
    wrong = replace(wrong, git_blob="0" * 40)
    with pytest.raises(SynthSegError, match="git blob id"):
        weights.fetch(wrong, tmp_path / "fake.h5", log=lambda line: None)
    assert not (tmp_path / "fake.h5").exists()


@pytest.mark.parametrize("first", ["/missing", "/page", "/nolength-page", "/wrong"])
def test_the_second_address_is_tried(server, tmp_path, first):
    lines = []
    path = fetch(tmp_path, server.address + first, server.address + "/b", lines=lines, attempts=2)
    assert path.read_bytes() == BODY
    assert server.requests[-1] == ("/b", None, len(BODY))
    assert any(first not in line and ("404" in line or "expected" in line or "broke" in line) for line in lines)


def test_not_found_is_one_line_and_one_request(server, tmp_path):
    with pytest.raises(SynthSegError, match=r"HTTP 404.*weights: PATH"):
        fetch(tmp_path, server.address + "/missing")
    assert len(server.requests) == 1


def test_a_busy_server_is_asked_again(server, tmp_path):
    assert fetch(tmp_path, server.address + "/busy").read_bytes() == BODY
    assert len(server.requests) == 3


def closed_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.mark.parametrize(
    ("path", "says", "requests"),
    [
        ("/redirect?ftp://127.0.0.1/a", "ftp://127.0.0.1/a is not https", 1),
        ("/redirect?file:///etc/passwd", "Redirection to url 'file:///etc/passwd' is not allowed", 1),
        ("/redirect", "HTTP 302 The HTTP server returned a redirect error", 5),
        ("/rude", "HTTP 404 [2Jgone", 1),
        ("/endless", f"{len(BODY) + download.CHUNK} bytes found, {len(BODY)} expected", 1),
    ],
)
def test_what_a_hostile_server_may_do_is_bounded(server, tmp_path, path, says, requests):
    with pytest.raises(SynthSegError) as caught:
        fetch(tmp_path, server.address + path)
    message = caught.value.message
    assert says in message and message.isprintable() and leftovers(tmp_path) == []
    assert len(server.requests) <= requests


def test_a_redirect_is_followed(server, tmp_path):
    assert fetch(tmp_path, f"{server.address}/redirect?{server.address}/a").read_bytes() == BODY


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/a", "file:///etc/passwd", "ftp://127.0.0.1/a", "data:,x", "a"])
def test_nothing_is_fetched_but_by_https(tmp_path, address):
    with pytest.raises(SynthSegError, match=f"{address} is not https"):
        fetch(tmp_path, address)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("unknown", ["size", "sha256"])
def test_nothing_is_fetched_that_could_not_be_checked(server, tmp_path, unknown):
    with pytest.raises(SynthSegError, match="not fetched: its card must give size and sha256"):
        weights.fetch(replace(card(server.address + "/a"), **{unknown: None}), tmp_path / "a.h5")
    assert not server.requests and not list(tmp_path.iterdir())


def test_no_network(tmp_path, plain_http):
    with pytest.raises(SynthSegError) as caught:
        fetch(tmp_path, f"http://127.0.0.1:{closed_port()}/a", f"http://127.0.0.1:{closed_port()}/b", attempts=2)
    message = str(caught.value)
    assert message.count("no connection") == 2 and "\n" not in message and "weights: PATH" in message
    assert leftovers(tmp_path) == []


def test_a_right_file_is_not_fetched_again_and_a_damaged_one_is(server, tmp_path):
    fetch(tmp_path, server.address + "/a")
    fetch(tmp_path, server.address + "/a")
    assert len(server.requests) == 1
    (tmp_path / "cache" / "fake.h5").write_bytes(WRONG)
    lines = []
    assert fetch(tmp_path, server.address + "/a", lines=lines).read_bytes() == BODY
    assert any("damaged" in line for line in lines)


def test_a_folder_that_cannot_be_written_is_one_line(server, tmp_path):
    (tmp_path / "cache").write_text("a file, not a folder")
    with pytest.raises(SynthSegError, match="cannot be written"):
        fetch(tmp_path, server.address + "/a")


def _fetch_in_a_process(address, path):
    weights.fetch(card(address), path, log=lambda line: None, pause=0.01)


def test_two_processes_fetch_it_once(server, tmp_path):
    path = tmp_path / "fake.h5"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_fetch_in_a_process, args=(server.address + "/a", path)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0]
    assert path.read_bytes() == BODY
    assert len(server.requests) == 1


def test_a_held_lock_ends_in_one_line(server, tmp_path):
    with (
        weights._lock(tmp_path / "cache.h5", 1, lambda line: None),
        pytest.raises(SynthSegError, match=rf"process {os.getpid()} on \S+ has held it for 0 s: end it"),
    ):
        weights.fetch(card(server.address + "/a"), tmp_path / "cache.h5", log=lambda line: None, lock_wait=0.3)


def test_a_right_file_in_a_folder_that_cannot_be_written_is_taken(server, tmp_path, monkeypatch):
    path = fetch(tmp_path, server.address + "/a")

    def refuse(*arguments, **options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(weights.shared_disk, "hold", refuse)
    assert fetch(tmp_path, server.address + "/a") == path and len(server.requests) == 1
    path.write_bytes(b"damaged")
    with pytest.raises(SynthSegError, match="cannot be written"):
        fetch(tmp_path, server.address + "/a")


def test_resolve_prefers_the_users_file_then_the_one_beside_the_card_then_the_cache(server, tmp_path):
    model, cache, own = tmp_path / "model", tmp_path / "cache", tmp_path / "own.h5"
    model.mkdir()
    fake = card(server.address + "/a")

    def resolve(path=None):
        return weights.resolve(fake, "fake", model, path, cache, log=lambda line: None)

    assert resolve() == cache / "fake.h5"
    assert len(server.requests) == 1
    (model / "fake.h5").write_bytes(BODY)
    assert resolve() == model / "fake.h5"
    own.write_bytes(BODY)
    assert resolve(own) == own
    assert len(server.requests) == 1


def test_resolve_refuses_files_that_are_not_the_models(tmp_path):
    fake, own = card(), tmp_path / "own.h5"
    with pytest.raises(SynthSegError, match="no such weights file"):
        weights.resolve(fake, "fake", tmp_path, own)
    own.write_bytes(WRONG)
    with pytest.raises(SynthSegError) as caught:
        weights.resolve(fake, "fake", tmp_path, own)
    for digest in (hashlib.sha256(WRONG).hexdigest(), hashlib.sha256(BODY).hexdigest()):
        assert digest in str(caught.value)
    (tmp_path / "fake.h5").write_bytes(BODY[:-1])
    with pytest.raises(SynthSegError, match="damaged"):
        weights.resolve(fake, "fake", tmp_path)
    (tmp_path / "fake.h5").unlink()
    with pytest.raises(SynthSegError, match="no address"):
        weights.resolve(fake, "fake", tmp_path)


def test_a_card_without_hashes_takes_any_file(tmp_path):
    own = tmp_path / "own.h5"
    own.write_bytes(WRONG)
    assert weights.resolve(weights.WeightsFile("mine.h5"), "mine", tmp_path, own) == own


def test_without_a_home_there_is_a_cache_all_the_same(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(weights.Path, "home", nobody)
    home = Path(tempfile.gettempdir(), f"synthseg-native-{os.getuid()}")
    assert weights.default_cache() == home / ".cache/synthseg-native"


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights.default_cache() == tmp_path / "synthseg-native"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights.default_cache() == tmp_path / ".cache" / "synthseg-native"


def test_all_files_that_are_nowhere_are_named_at_once(tmp_path, monkeypatch):
    """Whoever fetches them by other means does so once."""

    def resolve(expected, *_):
        raise SynthSegError("timeout", f"{expected.file}: could not be fetched: try again later")

    monkeypatch.setattr(weights, "resolve", resolve)
    (tmp_path / "cached.h5").touch()
    wanted = [(weights.WeightsFile(name), tmp_path / "model", None) for name in ("a.h5", "b.h5", "cached.h5", "c.h5")]
    with pytest.raises(SynthSegError) as error:
        weights.resolve_all(wanted, "any", tmp_path)
    lacking = "not here either: b.h5, c.h5: name the folder of all of them"
    assert error.value.message == f"a.h5: could not be fetched: try again later; {lacking}"
