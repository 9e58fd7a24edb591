"""A web server on this machine that can break off, redirect and refuse, and that remembers what it was asked."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import NamedTuple


class Request(NamedTuple):
    """What a client asked for, and from which byte on."""

    path: str
    range: str | None = None


@dataclass
class Page:
    """What is at a path.

    Attributes:
        body: its content.
        ranges: whether the server goes on from a byte that the client names.
        breaks: after how many bytes the coming connections break off, one after the other.
        length: whether the server tells the length beforehand, or sends in chunks.
        status: of the answer; from 300 on nothing else is sent.
        location: where a redirection leads.
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
    """Serves `pages`, by path with query; what was asked for is in `asked`, in order."""

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
        wanted = self.headers.get("Range")
        self.server.asked.append(Request(self.path, wanted))
        page = self.server.pages.get(self.path, Page(status=404))
        self.close_connection = True
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and page.ranges else 0
        status = page.status
        if status == 200 and start:
            status = (
                HTTPStatus.PARTIAL_CONTENT if start < len(page.body) else HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
            )
        rest = page.body[start:] if status < 300 else b""
        self.send_response(status)
        self.send_header("Connection", "close")
        if page.location:
            self.send_header("Location", page.location)
        if status == HTTPStatus.PARTIAL_CONTENT:
            self.send_header("Content-Range", f"bytes {start}-{len(page.body) - 1}/{len(page.body)}")
        if page.length:
            self.send_header("Content-Length", str(len(rest)))
        else:
            self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        sent = rest[: next(page.lengths, None)] if rest else rest
        with contextlib.suppress(ConnectionError):  # a client may leave before the end
            if page.length:
                self.wfile.write(sent)
                return
            for chunk in (sent[i : i + 50_000] for i in range(0, len(sent), 50_000)):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            if len(sent) == len(rest):
                self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        """Nothing: the log would be in between the output of the tests."""


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A running server."""
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


def closed_port() -> int:
    """A port at which nobody listens."""
    with Server() as server:
        return server.server_port


def one_sentence(error: BaseException | str) -> str:
    """The message, after a look at whether it is one sentence."""
    message = str(error).strip()
    assert message.endswith(".")
    assert ". " not in message
    assert "\n" not in message
    return message
