"""Downloads from a server that interrupts, redirects, refuses or sends other content."""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from servers import Page, Request, Server, closed_port, one_sentence, serving

from psla_jax.runtime.download import ATTEMPTS, CHUNK, DownloadError, fetch

BODY = np.random.default_rng(0).bytes(700_001)
"""Random, so that bytes at a wrong position are detected."""
DIGEST = hashlib.sha256(BODY).hexdigest()
BREAK = 300_000
PATH = "/files/weights.pth"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as running:
        running.pages[PATH] = Page(BODY)
        yield running


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Destination of the download, in a folder that does not exist yet."""
    return tmp_path / "cache" / "weights.pth"


def part_of(path: Path) -> Path:
    return path.with_name("weights.pth.part")


def names_beside(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir())


def starts(server: Server) -> list[int]:
    """Returns the first byte requested in each connection."""
    assert {request.path for request in server.asked} == {PATH}
    return [int((request.range or "bytes=0-").removeprefix("bytes=").removesuffix("-")) for request in server.asked]


def refused(url: str, path: Path, **options) -> str:
    """Runs a download that fails and returns its message, which is one sentence."""
    with pytest.raises(DownloadError) as caught:
        fetch(url, path, **options)
    assert not path.exists()
    return one_sentence(caught.value)


@pytest.mark.parametrize("length", [True, False], ids=["length", "chunked"])
def test_a_file_is_downloaded_once(server: Server, path: Path, length: bool) -> None:
    server.pages[PATH] = Page(BODY, length=length)
    assert fetch(server.url(PATH), path, sha256_prefix=DIGEST[:8]) == path
    assert path.read_bytes() == BODY
    assert names_beside(path) == [path.name]
    assert server.asked == [Request(PATH)]
    assert fetch(server.url(PATH), path, sha256_prefix=DIGEST[:8]) == path
    assert len(server.asked) == 1


@pytest.mark.parametrize("length", [True, False], ids=["length", "chunked"])
def test_an_interrupted_transfer_is_resumed_within_one_call(server: Server, path: Path, length: bool) -> None:
    server.pages[PATH] = Page(BODY, breaks=[BREAK, BREAK], length=length)
    fetch(server.url(PATH), path)
    assert path.read_bytes() == BODY
    assert names_beside(path) == [path.name]
    first, second, third = starts(server)
    assert first == 0
    assert BREAK - CHUNK < second <= BREAK
    assert second + BREAK - CHUNK < third <= second + BREAK


def test_a_short_connection_makes_progress(server: Server, path: Path) -> None:
    """The bytes of a connection are saved even if they are a small part of the file."""
    server.pages[PATH] = Page(BODY[:100_000], breaks=[30_000] * (ATTEMPTS - 1))
    fetch(server.url(PATH), path)
    assert path.read_bytes() == BODY[:100_000]
    asked = starts(server)
    assert asked == sorted(set(asked))
    assert len(asked) > 1


def test_a_server_without_range_requests_sends_the_whole_file_again(server: Server, path: Path) -> None:
    server.pages[PATH] = Page(BODY, ranges=False, breaks=[BREAK])
    fetch(server.url(PATH), path)
    assert path.read_bytes() == BODY
    first, second = starts(server)
    assert first == 0 < second  # resumption was requested, but everything was sent


def test_repeated_interruptions_are_an_error_and_a_later_call_resumes(server: Server, path: Path) -> None:
    server.pages[PATH] = Page(BODY, breaks=itertools.repeat(100_000))
    message = refused(server.url(PATH), path)
    assert message.startswith(f"{server.url(PATH)} cannot be downloaded")
    assert f"broke off; {ATTEMPTS} attempts" in message
    assert message.endswith(f"put the file at {path} yourself.")
    assert names_beside(path) == [part_of(path).name]
    arrived = part_of(path).read_bytes()
    assert BODY.startswith(arrived)
    assert len(arrived) > ATTEMPTS * (100_000 - CHUNK)
    assert len(starts(server)) == ATTEMPTS

    server.pages[PATH] = Page(BODY)
    fetch(server.url(PATH), path)
    assert path.read_bytes() == BODY
    assert names_beside(path) == [path.name]
    assert starts(server)[ATTEMPTS:] == [len(arrived)]


@pytest.mark.parametrize("left", [BODY, BODY + b"of a longer file"], ids=["whole", "longer"])
def test_a_complete_or_longer_partial_file_is_handled(server: Server, path: Path, left: bytes) -> None:
    path.parent.mkdir()
    part_of(path).write_bytes(left)
    fetch(server.url(PATH), path, sha256_prefix=DIGEST[:8])
    assert path.read_bytes() == BODY
    assert names_beside(path) == [path.name]


def test_a_partial_file_with_other_content_is_discarded(server: Server, path: Path) -> None:
    path.parent.mkdir()
    part_of(path).write_bytes(b"<html>" * 100)
    assert "gave another file" in refused(server.url(PATH), path, sha256_prefix=DIGEST[:8])
    fetch(server.url(PATH), path, sha256_prefix=DIGEST[:8])
    assert path.read_bytes() == BODY
    assert starts(server) == [600, 0]


def test_redirections_are_followed_also_after_an_interruption(server: Server, path: Path) -> None:
    server.pages["/s/link?dl=1"] = Page(status=302, location="/s/raw/link")
    server.pages["/s/raw/link"] = Page(status=301, location=server.url(PATH))
    server.pages[PATH] = Page(BODY, breaks=[BREAK])
    fetch(server.url("/s/link?dl=1"), path)
    assert path.read_bytes() == BODY
    assert [request.path for request in server.asked] == ["/s/link?dl=1", "/s/raw/link", PATH] * 2
    assert server.asked[2].range is None
    assert server.asked[5].range is not None


@pytest.mark.parametrize(("status", "reason"), [(404, "404 Not Found"), (500, "500 Internal Server Error")])
def test_a_refusal_is_one_sentence_with_the_status(server: Server, path: Path, status: int, reason: str) -> None:
    server.pages[PATH] = Page(status=status)
    assert refused(server.url(PATH), path) == (
        f"{server.url(PATH)} cannot be downloaded (the server answers {reason}): try again, or put the file at {path} "
        "yourself."
    )
    assert names_beside(path) == []
    assert len(server.asked) == 1


def test_a_refusal_preserves_the_partial_file(server: Server, path: Path) -> None:
    path.parent.mkdir()
    part_of(path).write_bytes(BODY[:1000])
    server.pages[PATH] = Page(status=503)
    refused(server.url(PATH), path)
    assert part_of(path).read_bytes() == BODY[:1000]


def test_a_server_that_redirects_to_itself_is_one_sentence(server: Server, path: Path) -> None:
    server.pages[PATH] = Page(status=302, location=PATH)
    assert "TooManyRedirects" in refused(server.url(PATH), path)


def test_a_file_with_another_hash_is_refused_and_removed(server: Server, path: Path) -> None:
    server.pages[PATH] = Page(b"another file")
    found = hashlib.sha256(b"another file").hexdigest()[:8]
    assert refused(server.url(PATH), path, sha256_prefix=DIGEST[:8]) == (
        f"{server.url(PATH)} gave another file (its SHA-256 starts with {found} instead of {DIGEST[:8]}): try again "
        f"later, or put the right one at {path} yourself."
    )
    assert names_beside(path) == []


def test_a_file_that_does_not_pass_the_check_is_removed(server: Server, path: Path) -> None:
    seen: list[bytes] = []

    def check(file: Path) -> None:
        seen.append(file.read_bytes())
        raise ValueError("not what it should be.")

    with pytest.raises(ValueError, match=r"^not what it should be\.$"):
        fetch(server.url(PATH), path, check=check)
    assert seen == [BODY]
    assert names_beside(path) == []


def test_an_existing_file_with_another_hash_is_refused(server: Server, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(BODY[:-1])
    found = hashlib.sha256(BODY[:-1]).hexdigest()[:8]
    with pytest.raises(DownloadError) as caught:
        fetch(server.url(PATH), path, sha256_prefix=DIGEST[:8])
    assert one_sentence(caught.value) == (
        f"{path} is damaged (its SHA-256 starts with {found} instead of {DIGEST[:8]}): delete it and start again."
    )
    assert path.read_bytes() == BODY[:-1]
    assert server.asked == []


def test_a_refused_connection_is_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    url = f"http://127.0.0.1:{closed_port()}{PATH}"
    assert refused(url, path) == (
        f"{url} cannot be downloaded (no connection; {ATTEMPTS} attempts): try again, or put the file at {path} "
        "yourself."
    )
    assert names_beside(path) == []


def test_a_disk_that_cannot_be_written_is_not_blamed_on_the_server(server: Server, path: Path) -> None:
    part_of(path).mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        fetch(server.url(PATH), path)
    assert len(server.asked) == 1


def fetch_in_subprocess(url: str, path: Path, stderr: int) -> subprocess.CompletedProcess[str]:
    """Downloads in a subprocess, because output that libraries write directly evades capture by pytest."""
    code = "import sys, pathlib; from psla_jax.runtime.download import fetch; "
    command = [sys.executable, "-c", code + "fetch(sys.argv[1], pathlib.Path(sys.argv[2]))", url, str(path)]
    forced = ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    environment = {name: value for name, value in os.environ.items() if name not in forced} | {"TERM": "xterm"}
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True, check=True)


def test_nothing_is_printed_without_a_terminal(server: Server, path: Path) -> None:
    server.pages[PATH] = Page(BODY, breaks=[BREAK])
    ended = fetch_in_subprocess(server.url(PATH), path, subprocess.PIPE)
    assert (ended.stdout, ended.stderr) == ("", "")
    assert path.read_bytes() == BODY


def until_closed(terminal: io.FileIO) -> Iterator[bytes]:
    """Yields the output written to a pseudo-terminal until its other end is closed, which Linux reports as an error."""
    with contextlib.suppress(OSError):
        while data := terminal.read(1 << 12):
            yield data


def test_in_a_terminal_a_progress_bar_shows_the_name_of_the_file_and_is_removed(server: Server, path: Path) -> None:
    screen, end = os.openpty()
    ended = fetch_in_subprocess(server.url(PATH), path, end)
    os.close(end)
    with open(screen, "rb", buffering=0) as file:
        shown = b"".join(until_closed(file)).decode()
    assert ended.stdout == ""
    assert path.name in shown
    assert "0.7/0.7 MB" in shown or "700.0/700.0 kB" in shown
    assert shown.rstrip().endswith("\x1b[2K")  # the line is cleared
    assert "pooch" not in shown
    assert "SHA256" not in shown
