"""Recursive listing of audio files, and checks of the paths to read and write."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from psla_jax.audio.file_kinds import AUDIO_EXTENSIONS

UNSUPPORTED_EXTENSIONS = frozenset({".aa", ".aax", ".m4p", ".mid", ".midi", ".ra", ".ram", ".rm"})
"""Extensions of audio formats that are not read: encrypted, without samples, or without a free decoder."""
_FOLDERS_PER_BATCH = 256


class PathError(ValueError):
    """A folder that cannot be listed, or an output file that already exists."""


@dataclass(frozen=True)
class Listing:
    """The audio files directly in one folder, as sorted names; hidden files are ignored."""

    folder: str
    """Absolute path."""
    audio: list[str]
    unsupported: list[str]
    """Files with one of :data:`UNSUPPORTED_EXTENSIONS`."""
    not_utf8: list[str]
    """Audio files whose path is not valid UTF-8; a datafile cannot contain them."""
    not_files: list[str] = field(default_factory=list)
    """Pipes, devices and broken links with the name of an audio file."""


def walk(folders: Sequence[str], *, workers: int = 16, progress: bool = True) -> Iterator[Listing]:
    """Lists folders recursively, `workers` at a time to hide the latency of network file systems.

    Symbolic links are followed, and a folder that is reached twice is listed once. The order depends only on names.
    At most 256 folders, or the largest one, are in memory at a time. With `progress`, stderr shows a file counter.

    Raises:
        PathError: a folder does not exist or cannot be listed.
    """
    visited: set[tuple[int, int]] = set()
    queue = [os.path.abspath(folder) for folder in folders]
    console = Console(emoji=False, stderr=True)
    columns = (SpinnerColumn(), TextColumn("Listing audio: {task.completed:,.0f} files"), TimeElapsedColumn())
    counter = Progress(*columns, console=console, transient=True, disable=not (progress and console.is_terminal))
    task = counter.add_task("", total=None)
    with ThreadPoolExecutor(workers) as pool, counter:
        while queue:
            batch, queue = _not_visited(queue[:_FOLDERS_PER_BATCH], visited), queue[_FOLDERS_PER_BATCH:]
            for listing, subfolders in pool.map(_list, batch):
                queue += subfolders
                counter.advance(task, len(listing.audio))
                yield listing


def _not_visited(folders: list[str], visited: set[tuple[int, int]]) -> list[str]:
    new = []
    for folder in folders:
        try:
            status = os.stat(folder)
        except OSError as error:
            raise PathError(
                f"the folder {printable_path(folder)} cannot be read ({error.strerror}): check the path."
            ) from error
        if (status.st_dev, status.st_ino) not in visited:
            visited.add((status.st_dev, status.st_ino))
            new.append(folder)
    return new


def _list(folder: str) -> tuple[Listing, list[str]]:
    listing, subfolders = Listing(folder, [], [], [], []), []
    folder_is_utf8 = _is_utf8(folder)
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    continue
                extension = name[name.rfind(".") :].lower()
                if extension in AUDIO_EXTENSIONS and entry.is_file():
                    (listing.audio if folder_is_utf8 and _is_utf8(name) else listing.not_utf8).append(name)
                elif extension in UNSUPPORTED_EXTENSIONS and entry.is_file():
                    listing.unsupported.append(name)
                elif entry.is_dir():
                    subfolders.append(os.path.join(folder, name))
                elif extension in AUDIO_EXTENSIONS:
                    listing.not_files.append(name)
    except OSError as error:
        raise PathError(
            f"the folder {printable_path(folder)} cannot be listed ({error.strerror}): choose a readable folder."
        ) from error
    for names in (listing.audio, listing.unsupported, listing.not_utf8, listing.not_files, subfolders):
        names.sort()
    return listing, subfolders


def _is_utf8(name: str) -> bool:
    return name.isascii() or not any("\ud800" <= char <= "\udfff" for char in name)  # undecodable bytes are surrogates


def printable_path(path: str) -> str:
    r"""Returns a path as printable text, with bytes that are not UTF-8 as ``\xff``."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def check_overwrite(paths: Iterable[str], *, force: bool) -> None:
    """Raises PathError if an output file already exists and `force` is false, or if it is a folder."""
    for path in paths:
        if os.path.isdir(path) or (os.path.lexists(path) and not force):
            remedy = "choose another folder with --out" + ("" if force else ", or replace the files with --force")
            raise PathError(f"{printable_path(path)} already exists: {remedy}.")
