"""Downloads that go on where they broke off, and are what they should be.

pooch asks for the file and puts it in its place; how the bytes come, and come again after a break, is here.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

ATTEMPTS = 5
"""How often a broken connection is taken up again before the user is told."""
CHUNK = 1 << 14
"""Bytes that are read at a time: less than this is lost with a connection."""
TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as broken."""


class DownloadError(ValueError):
    """A file that cannot be fetched; the message has its address, and where a copy of it can be put by hand."""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(url: str, path: Path, *, sha256_prefix: str = "", check: Callable[[Path], None] | None = None) -> Path:
    """The file at `path`, downloaded from `url` if it is not there.

    What arrived before a break is kept in ``path.part``, and a later call goes on from there.

    Args:
        url: http or https; redirections are followed.
        path: where the file goes, whole or not at all.
        sha256_prefix: the first hex digits of its SHA-256, where they are known; a file that is there is checked too.
        check: raises ValueError for a download of the wrong kind; it is then removed.

    Raises:
        DownloadError: the file cannot be fetched, or is another one.
    """
    if not path.is_file():
        _retrieve(url, path, sha256_prefix, check)
    elif sha256_prefix and not sha256_of(path).startswith(sha256_prefix):
        raise DownloadError(
            f"{path} is damaged (its SHA-256 starts with {sha256_of(path)[:8]} instead of {sha256_prefix}): delete it "
            "and start again."
        )
    return path


def _retrieve(url: str, path: Path, prefix: str, check: Callable[[Path], None] | None) -> None:
    import pooch

    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)

    def download(address: str, output: Any, _: Any) -> None:
        _complete(address, part, path)
        _verify(address, part, path, prefix, check)
        os.replace(part, output)

    pooch.get_logger().setLevel("WARNING")  # It has a handler of its own that tells standard error about every file.
    pooch.retrieve(url, known_hash=None, fname=path.name, path=path.parent, downloader=download)


def _verify(url: str, part: Path, path: Path, prefix: str, check: Callable[[Path], None] | None) -> None:
    """Removes a complete download that is not what was asked for, and raises."""
    try:
        if prefix and not (digest := sha256_of(part)).startswith(prefix):
            raise DownloadError(
                f"{url} gave another file (its SHA-256 starts with {digest[:8]} instead of {prefix}): try again later, "
                f"or put the right one at {path} yourself."
            )
        if check is not None:
            check(part)
    except ValueError:
        part.unlink()
        raise


def _complete(url: str, part: Path, path: Path) -> None:
    """Downloads until everything is there, taking up broken connections."""
    import requests

    # Other errors of the system are those of the disk, and not the server's fault.
    failure: Exception | None = None
    for _ in range(ATTEMPTS):
        try:
            return _transfer(url, part)
        except requests.HTTPError as error:
            raise DownloadError(_advice(url, path, f"the server answers {_status(error)}")) from error
        except (requests.RequestException, EOFError) as error:
            failure = error
    raise DownloadError(_advice(url, path, f"{_words(failure)}; {ATTEMPTS} attempts")) from failure


def _words(failure: Exception | None) -> str:
    import requests

    if isinstance(failure, EOFError | requests.exceptions.ChunkedEncodingError):
        return "the connection broke off"
    return "no connection" if type(failure) is requests.ConnectionError else type(failure).__name__


def _status(error: Any) -> str:
    return f"{error.response.status_code} {error.response.reason}".strip()


def _advice(url: str, path: Path, reason: str) -> str:
    return f"{url} cannot be downloaded ({reason}): try again, or put the file at {path} yourself."


def _transfer(url: str, part: Path) -> None:
    """One connection: appends what is missing to `part`. Raises EOFError if it ends early."""
    import requests

    have = part.stat().st_size if part.is_file() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
        if have and answer.status_code == 416:  # Nothing is left to send, or the file has changed: start over.
            part.unlink()
            raise EOFError(url)
        answer.raise_for_status()
        have = have if answer.status_code == 206 else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        with open(part, "ab" if have else "wb") as file, _Bar(part.stem, have, total) as advance:
            for chunk in answer.iter_content(CHUNK):
                file.write(chunk)
                advance(len(chunk))
        if total is not None and part.stat().st_size != total:
            raise EOFError(url)


class _Bar:
    """A progress bar on standard error, where that is a screen."""

    def __init__(self, name: str, done: int, total: int | None) -> None:
        screen = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
            TimeRemainingColumn(),
        )  # fmt: skip
        self.progress = Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal)
        self.task = self.progress.add_task(name, completed=done, total=total)

    def __enter__(self) -> Callable[[int], None]:
        self.progress.start()
        return lambda size: self.progress.advance(self.task, size)

    def __exit__(self, *_: object) -> None:
        self.progress.stop()
