"""Downloads that are resumed after an interruption and verified.

pooch manages the destination; the transfer with its retries is implemented here.
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
"""Number of connections to try before the download fails."""
CHUNK = 1 << 14
"""Bytes that are read at a time; an interruption loses less than this."""
TIMEOUT = 30.0
"""Seconds without data after which a connection is considered broken."""


class DownloadError(ValueError):
    """A failed download; the message has its URL and the path to which the file can be copied by hand."""


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(url: str, path: Path, *, sha256_prefix: str = "", check: Callable[[Path], object] | None = None) -> Path:
    """Returns `path`, after downloading the file from `url` if it does not exist.

    An incomplete download is saved as ``path.part`` and resumed by later calls; `path` is written atomically. Raises
    DownloadError if the file cannot be downloaded, or its SHA-256 differs.

    Args:
        url: HTTP or HTTPS address; redirections are followed.
        path: destination.
        sha256_prefix: first hexadecimal digits of the SHA-256, if known. An existing file is verified too.
        check: raises ValueError for invalid content; the download is then removed.
    """
    if not path.is_file():
        _retrieve(url, path, sha256_prefix, check)
    elif sha256_prefix and not sha256_of(path).startswith(sha256_prefix):
        raise DownloadError(
            f"{path} is damaged (its SHA-256 starts with {sha256_of(path)[:8]} instead of {sha256_prefix}): delete it "
            "and start again."
        )
    return path


def _retrieve(url: str, path: Path, prefix: str, check: Callable[[Path], object] | None) -> None:
    import pooch

    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)

    def download(address: str, output: Any, _: Any) -> None:
        _complete(address, part, path)
        _verify(address, part, path, prefix, check)
        os.replace(part, output)

    pooch.get_logger().setLevel("WARNING")  # Its own handler reports every file on standard error.
    pooch.retrieve(url, known_hash=None, fname=path.name, path=path.parent, downloader=download)


def _verify(url: str, part: Path, path: Path, prefix: str, check: Callable[[Path], object] | None) -> None:
    """Removes a complete download and raises if its hash or content is wrong."""
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
    """Downloads the file to `part`, resuming after broken connections."""
    import requests

    # Other OSErrors concern the disk, not the server.
    failure: Exception | None = None
    for _ in range(ATTEMPTS):
        try:
            return _transfer(url, part)
        except requests.HTTPError as error:
            status = "" if error.response is None else f" {error.response.status_code} {error.response.reason}".rstrip()
            raise DownloadError(_advice(url, path, f"the server answers{status}")) from error
        except (requests.RequestException, EOFError) as error:
            failure = error
    if isinstance(failure, EOFError | requests.exceptions.ChunkedEncodingError):
        reason = "the connection broke off"
    else:
        reason = "no connection" if type(failure) is requests.ConnectionError else type(failure).__name__
    raise DownloadError(_advice(url, path, f"{reason}; {ATTEMPTS} attempts")) from failure


def _advice(url: str, path: Path, reason: str) -> str:
    return f"{url} cannot be downloaded ({reason}): try again, or put the file at {path} yourself."


def _transfer(url: str, part: Path) -> None:
    """Appends the missing bytes to `part` in one connection; raises EOFError if it ends early."""
    import requests

    offset = part.stat().st_size if part.is_file() else 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={offset}-"} if offset else {})
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        if offset and response.status_code == 416:  # `part` is complete, or longer than the file: start again.
            part.unlink()
            raise EOFError(url)
        response.raise_for_status()
        offset = offset if response.status_code == 206 else 0
        length = response.headers.get("Content-Length")
        total = offset + int(length) if length is not None else None
        with open(part, "ab" if offset else "wb") as file, _progress_bar() as bar:
            task = bar.add_task(part.stem, completed=offset, total=total)
            for chunk in response.iter_content(CHUNK):
                file.write(chunk)
                bar.advance(task, len(chunk))
        if total is not None and part.stat().st_size != total:
            raise EOFError(url)


def _progress_bar() -> Progress:
    """Returns a progress bar on standard error, which is hidden unless that is a terminal."""
    console, text = Console(emoji=False, stderr=True), TextColumn("{task.description}")
    columns = (text, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
