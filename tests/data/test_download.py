"""Downloads from a server on this machine: they go on where they stopped, and are used with the right checksum only."""

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from fixres_poc.config.errors import InputError
from fixres_poc.data import download

CONTENT = bytes(range(256)) * 40  # in pieces of 1,000 bytes
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """What it sends, what goes wrong, and what it was asked for: (range asked for, bytes sent)."""

    content = CONTENT
    asked: list[tuple[str | None, int]]
    cut_bytes: int | None = None
    status = 200
    knows_range = True


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers["Range"]
        start = (
            int(wanted.removeprefix("bytes=").removesuffix("-"))
            if wanted and self.server.knows_range
            else 0
        )
        body = self.server.content[start:]
        status = (
            self.server.status if self.server.status != 200 or not start else 206 if body else 416
        )
        sent = body[: self.server.cut_bytes]
        # before any answer: a client that has one may look at once
        self.server.asked.append((wanted, len(sent)))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """At work, and downloads are in small pieces and without retries."""
    with Server(("127.0.0.1", 0), Handler) as server:
        server.asked = []
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(download, "RETRIES", 0)
        monkeypatch.setattr(download, "CHUNK_BYTES", 1000)
        threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()
        yield server
        server.shutdown()


@pytest.fixture
def part(tmp_path: Path) -> Path:
    """Where what has arrived of a broken download stays."""
    (tmp_path / "archives").mkdir()
    return tmp_path / "archives" / "x.tar.part"


def fetch(server: Server, part: Path, sha256: str = SHA256) -> bytes:
    url = f"http://127.0.0.1:{server.server_port}/files/x.tar"
    return download.fetch(url, part.parent, sha256, "for research only").read_bytes()


def failure(server: Server, part: Path, message: str) -> None:
    """A download fails with one line, and leaves no file that could be taken for a whole one."""
    with pytest.raises(
        InputError, match=f"{message}.* put x.tar into .*archives by hand"
    ) as caught:
        fetch(server, part)
    assert "\n" not in str(caught.value)
    assert not part.with_name("x.tar").exists()


def test_a_file_is_asked_for_once_and_nothing_else_is_left(server: Server, part: Path) -> None:
    assert fetch(server, part) == fetch(server, part) == CONTENT
    assert fetch(server, part, SHA256[:8]) == CONTENT
    assert server.asked == [(None, len(CONTENT))]
    assert {each.name for each in part.parent.iterdir()} == {"x.tar", ".x.tar.lock"}


def test_a_broken_download_goes_on_where_it_stopped(server: Server, part: Path) -> None:
    server.cut_bytes = 4500
    failure(server, part, r"x\.tar: no answer, or the connection broke; run again to go on")
    assert part.stat().st_size == 4000
    server.cut_bytes = None
    assert fetch(server, part) == CONTENT
    assert server.asked[1:] == [("bytes=4000-", len(CONTENT) - 4000)]


def test_a_broken_download_is_retried(
    server: Server, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "RETRIES", 1)
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: setattr(server, "cut_bytes", None))
    server.cut_bytes = 4500
    assert fetch(server, part) == CONTENT
    assert [wanted for wanted, _ in server.asked] == [None, "bytes=4000-"]


@pytest.mark.parametrize(
    ("kept", "knows_range", "asked"),
    [
        (CONTENT[:4000], False, [("bytes=4000-", 10_240)]),  # all is sent again
        (CONTENT, True, [("bytes=10240-", 0)]),
        # of another file, so it is thrown away
        (b"x" * 4000, True, [("bytes=4000-", 6240), (None, 10_240)]),
        (b"x" * 20_000, True, [("bytes=20000-", 0), (None, 10_240)]),
    ],
)
def test_what_has_arrived_is_used_if_it_belongs(
    server: Server,
    part: Path,
    monkeypatch: pytest.MonkeyPatch,
    kept: bytes,
    knows_range: bool,
    asked: list[object],
) -> None:
    monkeypatch.setattr(download, "RETRIES", 1)
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    part.write_bytes(kept)
    server.knows_range = knows_range
    assert fetch(server, part) == CONTENT
    assert server.asked == asked


WRONG = [
    ("content", b"another", r"x\.tar: wrong checksum"),
    ("status", 500, r"500 Server Error.*x\.tar"),
]


@pytest.mark.parametrize(("fault", "value", "message"), WRONG)
def test_what_a_server_does_wrong_is_named(
    server: Server, part: Path, fault: str, value: Any, message: str
) -> None:
    setattr(server, fault, value)
    failure(server, part, message)


def test_a_file_put_there_by_hand_needs_no_server_and_stays_where_it_is_wrong(
    server: Server, part: Path
) -> None:
    part.with_name("x.tar").write_bytes(CONTENT)
    assert fetch(server, part) == CONTENT
    part.with_name("x.tar").write_bytes(b"another")
    with pytest.raises(
        InputError,
        match=r"archives/x\.tar: wrong checksum.* delete .* by hand \(for research only\)",
    ):
        fetch(server, part)
    assert part.with_name("x.tar").read_bytes() == b"another"
    assert not server.asked


def test_without_network_the_message_says_what_to_do(server: Server, part: Path) -> None:
    server.shutdown()
    server.server_close()
    failure(server, part, r"x\.tar: no answer")


def test_a_download_without_end_is_stopped(
    server: Server, part: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "LARGEST_BYTES", 5000)
    failure(server, part, r"x\.tar: more than .* GiB, so not the file wanted")
    assert part.stat().st_size <= 6000


def test_two_at_once_download_once(server: Server, part: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda _: fetch(server, part), range(2))) == [CONTENT] * 2
    assert len(server.asked) == 1
