"""A local web server that can break connections, redirect and return errors, and that records its requests."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import NamedTuple


class Request(NamedTuple):
    """Path of a request and its Range header."""

    path: str
    range: str | None = None


@dataclass
class Page:
    """Content of a path, and how the server sends it.

    Attributes:
        body: the content.
        ranges: whether the server supports range requests.
        breaks: numbers of bytes after which the following connections break, in order.
        length: whether the server sends Content-Length; otherwise it sends chunks.
        status: status code; codes of 300 or more have no body.
        location: target of a redirection.
    """

    body: bytes = b""
    ranges: bool = True
    breaks: Iterable[int] = ()
    length: bool = True
    status: int = 200
    location: str = ""
    lengths: Iterator[int] = field(init=False)

    def __post_init__(self) -> None:
        self.lengths = iter(self.breaks)


class Server(http.server.ThreadingHTTPServer):
    """Serves `pages`, by path with query, and records the requests in `asked`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages: dict[str, Page] = {}
        self.asked: list[Request] = []

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server_port}{path}"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        byte_range = self.headers.get("Range")
        self.server.asked.append(Request(self.path, byte_range))
        page = self.server.pages.get(self.path, Page(status=404))
        self.close_connection = True
        start = int(byte_range.removeprefix("bytes=").removesuffix("-")) if byte_range and page.ranges else 0
        status = page.status
        if status == 200 and start:
            status = (
                HTTPStatus.PARTIAL_CONTENT if start < len(page.body) else HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
            )
        body = page.body[start:] if status < 300 else b""
        self.send_response(status)
        self.send_header("Connection", "close")
        if page.location:
            self.send_header("Location", page.location)
        if status == HTTPStatus.PARTIAL_CONTENT:
            self.send_header("Content-Range", f"bytes {start}-{len(page.body) - 1}/{len(page.body)}")
        if page.length:
            self.send_header("Content-Length", str(len(body)))
        else:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        sent = body[: next(page.lengths, None)] if body else body
        with contextlib.suppress(ConnectionError):  # The client may close the connection early.
            if page.length:
                self.wfile.write(sent)
                return
            for chunk in (sent[i : i + 50_000] for i in range(0, len(sent), 50_000)):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            if len(sent) == len(body):
                self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        """Logs nothing."""


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """Runs a server in a thread."""
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def closed_port() -> int:
    """Returns a port without a listener."""
    with Server() as server:
        return server.server_port


def one_sentence(error: BaseException | str) -> str:
    """Returns the message of an error and asserts that it is one sentence."""
    message = str(error).strip()
    assert message.endswith(".")
    assert ". " not in message
    assert "\n" not in message
    return message
