"""Finds the recordings that a command names: files, folders and pipes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import soundfile

from psla_jax.audio.file_kinds import AUDIO_EXTENSIONS
from psla_jax.runtime.streams import STANDARD, is_stream, regular_file
from psla_jax.tagging.share import FolderError

SUFFIXES = frozenset(f".{name.lower()}" for name in soundfile.available_formats()) - {".raw"} | AUDIO_EXTENSIONS
"""File name suffixes that count as audio in a folder; a file given by its own path may have any name."""


@dataclass(frozen=True)
class Recording:
    """An audio file, or a pipe with the content of one."""

    path: str
    """Path as given, or ``-`` for standard input; the name of the recording in all outputs."""
    output_name: str
    """Path of its own outputs inside their folder, without the output's suffix: its path inside the input folder, or
    the whole path without its root where that is ambiguous."""
    content: str = ""
    """File with the content of a pipe; empty for a file."""

    @property
    def file(self) -> str:
        """The file to read."""
        return self.content or self.path


def find_audio(paths: Sequence[str], on_note: Callable[[str], None] = lambda text: None) -> list[Recording]:
    """Returns the given files, and the audio files below each given folder in sorted order; each file once.

    Symbolic links to folders are followed, and a folder that is reached twice is searched once. Hidden files are
    ignored.

    Args:
        paths: files, folders, pipes, and ``-`` for standard input.
        on_note: receives a sentence on the other files in a folder, on pipes and devices with names of audio files, and
            on each folder that cannot be searched.

    Symbolic links to folders are followed, and a folder that is reached twice is searched once. `on_note` receives a
    sentence on the other files in a folder, and on each folder that cannot be read; hidden files are ignored.

    Raises:
        FolderError: no path is given, or a folder contains no audio.
    """
    if not paths:
        raise FolderError("there is nothing to tag: name a file or a folder.")
    recordings: dict[str, Recording] = {}
    for path in paths:
        for recording in _below(path, on_note) if os.path.isdir(path) else [_single(path)]:
            key = path if path == STANDARD else os.path.abspath(recording.path)
            recordings.setdefault(key, recording)
    return _with_unique_outputs(list(recordings.values()))


def _single(path: str) -> Recording:
    return Recording(path, "stdin" if path == STANDARD else os.path.basename(path))


def _below(folder: str, on_note: Callable[[str], None]) -> list[Recording]:
    """Returns the recordings below a folder."""
    names = [name for name in _files(folder, on_note) if not os.path.basename(name).startswith(".")]
    found = sorted(name for name in names if _suffix(name) in SUFFIXES)
    others = Counter(_suffix(name) for name in names if _suffix(name) not in SUFFIXES)
    kinds = ", ".join(f"{count} {suffix or 'without an extension'}" for suffix, count in others.most_common(4))
    listed = kinds + (", ..." if len(others) > 4 else "")
    files = [file for file in found if not is_stream(file)]
    if not files:
        contents = f" (other files: {listed})" if others else ""
        raise FolderError(f"{folder} contains no audio{contents}: name a folder with WAV, FLAC, OGG or MP3 files.")
    if others:
        on_note(f"{folder}: files that are not audio by their names are left out: {listed}")
    if skipped := len(found) - len(files):
        on_note(f"{folder} has {skipped} pipes or devices with names of audio files, which are left out.")
    return [Recording(file, os.path.relpath(file, folder)) for file in files]


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _files(root: str, on_note: Callable[[str], None]) -> Iterator[str]:
    """Yields the paths of the files below a folder, once each: links are followed after all folders below the root."""

    def unreadable(error: OSError) -> None:
        on_note(f"{error.filename} cannot be searched ({error.strerror}): check its permissions")

    visited, roots = set[tuple[int, int]](), [root]
    while roots:
        for folder, subfolders, names in os.walk(roots.pop(0), onerror=unreadable):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in visited:
                subfolders.clear()
                continue
            visited.add((status.st_dev, status.st_ino))
            paths = (os.path.join(folder, name) for name in sorted(subfolders) if not name.startswith("."))
            roots += [path for path in paths if os.path.islink(path)]
            yield from (os.path.join(folder, name) for name in names)


def _with_unique_outputs(recordings: list[Recording]) -> list[Recording]:
    """Returns the recordings with the whole path as output name where the name inside the folder is ambiguous."""
    count = Counter(recording.output_name for recording in recordings)
    absolute = [os.path.join(*Path(os.path.abspath(recording.path)).parts[1:]) for recording in recordings]
    names = [r.output_name if count[r.output_name] == 1 else path for r, path in zip(recordings, absolute)]
    if len(set(names)) < len(names):  # A whole path can be equal to a path inside another folder.
        names = absolute
    return [replace(recording, output_name=name) for recording, name in zip(recordings, names)]


@contextmanager
def readable(recording: Recording) -> Iterator[Recording]:
    """Yields a recording that can be read several times: a pipe with a file of its content, deleted afterwards.

    Raises:
        FolderError: the pipe is empty or cannot be read.
    """
    path = recording.path
    if path != STANDARD and not is_stream(path):
        yield recording
        return
    with ExitStack() as stack:
        try:
            content = stack.enter_context(regular_file(path))
        except OSError as error:
            raise FolderError(
                f"{path} cannot be read ({error.strerror}): name an audio file, or pipe one into psla tag -."
            ) from error
        if os.path.getsize(content) == 0:
            raise FolderError(f"{path} is an empty pipe: check the program that writes to it.")
        yield replace(recording, content=content)
