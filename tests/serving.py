"""A server on this machine for tests of downloads."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from fixres_poc import download


class Server(ThreadingHTTPServer):
    """What it holds, what goes wrong, and what it was asked for: (file, range asked for, bytes sent)."""

    files: dict[str, bytes]
    asked: list[tuple[str, str | None, int]]
    cut_bytes: int | None = None
    status = 200
    knows_range = True

    @property
    def url(self) -> str:
        """Address of its files' folder."""
        return f"http://127.0.0.1:{self.server_port}/files/"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name, wanted = self.path.rsplit("/", 1)[-1], self.headers["Range"]
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.knows_range else 0
        body = self.server.files[name][start:]
        status = self.server.status if self.server.status != 200 or not start else 206 if body else 416
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        sent = body[: self.server.cut_bytes]
        self.server.asked.append((name, wanted, len(sent)))
        self.wfile.write(sent)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server at work without files, and downloads in small pieces and without retries."""
    with Server(("127.0.0.1", 0), Handler) as server:
        server.files, server.asked = {}, []
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(download, "RETRIES", 0)
        monkeypatch.setattr(download, "CHUNK_BYTES", 1000)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()
