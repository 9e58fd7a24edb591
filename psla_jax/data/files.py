"""The audio files under some folders, and what stands in the way of using or writing one."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

AUDIO = frozenset(
    {".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".rf64", ".w64", ".wav"}
)
"""Endings of files that libsndfile reads, in small letters."""
FOREIGN = frozenset({".3gp", ".aac", ".ac3", ".amr", ".avi", ".m4a", ".mkv", ".mov", ".mp4", ".webm", ".wma"})
"""Endings of sound that it does not read."""
_AT_ONCE = 256
"""Folders that are listed before what is in them is handed on."""


class FilesError(ValueError):
    """A folder that cannot be listed, or a file that would be replaced."""


@dataclass(frozen=True)
class Listing:
    """What is directly in a folder, by name and in its order; hidden files are left out."""

    folder: str
    """Absolute."""
    audio: list[str]
    foreign: list[str]
    """Sound in formats that are not read."""
    unnameable: list[str]
    """Audio whose path is not UTF-8, so that no datafile can name it."""


def walk(folders: Sequence[str], *, workers: int = 16, progress: bool = True) -> Iterator[Listing]:
    """Lists folders and everything below them, several at a time: network disks answer slowly, but many at once.

    Links are followed, and a folder that is reached twice is listed once. The order depends on names alone. Memory
    holds 256 folders, or the largest one.

    Args:
        folders: where to start.
        workers: folders that are listed at the same time.
        progress: whether to count the files on stderr.

    Raises:
        FilesError: a folder is missing, or cannot be listed.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [os.path.abspath(folder) for folder in folders]
    with ThreadPoolExecutor(workers) as pool, _Counter(progress) as counter:
        while waiting:
            now, waiting = _unseen(waiting[:_AT_ONCE], seen), waiting[_AT_ONCE:]
            for listing, inner in pool.map(_list, now):
                waiting += inner
                counter.add(len(listing.audio))
                yield listing


def _unseen(folders: list[str], seen: set[tuple[int, int]]) -> list[str]:
    fresh = []
    for folder in folders:
        try:
            found = os.stat(folder)
        except OSError as error:
            raise FilesError(
                f"the folder {shown(folder)} cannot be read ({error.strerror}): check the path."
            ) from error
        if (found.st_dev, found.st_ino) not in seen:
            seen.add((found.st_dev, found.st_ino))
            fresh.append(folder)
    return fresh


def _list(folder: str) -> tuple[Listing, list[str]]:
    """What is in a folder, and the folders in it."""
    listing, inner = Listing(folder, [], [], []), []
    nameable = _is_text(folder)
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    continue
                ending = name[name.rfind(".") :].lower()
                if ending in AUDIO and entry.is_file():
                    (listing.audio if nameable and _is_text(name) else listing.unnameable).append(name)
                elif ending in FOREIGN and entry.is_file():
                    listing.foreign.append(name)
                elif entry.is_dir():
                    inner.append(os.path.join(folder, name))
    except OSError as error:
        raise FilesError(
            f"the folder {shown(folder)} cannot be listed ({error.strerror}): name a folder that you may read."
        ) from error
    for names in (listing.audio, listing.foreign, listing.unnameable, inner):
        names.sort()
    return listing, inner


def _is_text(name: str) -> bool:
    if name.isascii():
        return True
    try:
        return bool(name.encode())
    except UnicodeEncodeError:
        return False


def shown(path: str) -> str:
    r"""A path for the screen: bytes of it that are not UTF-8 as ``\xff``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def require_new(paths: Iterable[str], *, force: bool) -> None:
    """Raises FilesError if one of the files to write is there already, and may not be replaced."""
    for path in paths:
        if os.path.isdir(path) or (os.path.lexists(path) and not force):
            remedy = "name another folder with --out" + ("" if force else ", or replace what is there with --force")
            raise FilesError(f"{shown(path)} is there already: {remedy}.")


class _Counter:
    """Counts files on standard error, where that is a screen."""

    def __init__(self, wanted: bool) -> None:
        screen = Console(stderr=True)
        columns = (SpinnerColumn(), TextColumn("Listing audio: {task.completed:,.0f} files"), TimeElapsedColumn())
        self._progress = Progress(*columns, console=screen, transient=True, disable=not (wanted and screen.is_terminal))
        self._task = self._progress.add_task("", total=None)

    def __enter__(self) -> _Counter:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def add(self, files: int) -> None:
        self._progress.advance(self._task, files)
