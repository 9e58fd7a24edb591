"""Finds recordings, and writes the results of many recordings so that an interrupted run can be resumed."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import soundfile

from psla_jax.audio.file_kinds import AUDIO_EXTENSIONS
from psla_jax.tagging.share import ALL, FolderError, Share, read_progress

SUFFIXES = frozenset(f".{name.lower()}" for name in soundfile.available_formats()) - {".raw"} | AUDIO_EXTENSIONS
"""File name suffixes that count as audio in a folder; a file given by its own path may have any name."""


@dataclass(frozen=True)
class Recording:
    """An audio file."""

    path: str
    output_name: str
    """Path of its own outputs inside their folder, without the output's suffix: its path inside the input folder, or
    the whole path without its root where that is ambiguous."""


def find_audio(paths: Sequence[str], on_note: Callable[[str], None] = lambda note: None) -> list[Recording]:
    """Returns the given files, and the audio files below each given folder in sorted order.

    Symbolic links to folders are followed, and a folder that is reached twice is searched once. `on_note` receives a
    sentence on the other files in a folder, and on each folder that cannot be read; hidden files are ignored.

    Raises:
        FolderError: no path is given, or a folder contains no audio.
    """
    if not paths:
        raise FolderError("there is nothing to tag: name a file or a folder.")
    recordings: dict[str, Recording] = {}
    for path in paths:
        if not os.path.isdir(path):
            recordings.setdefault(path, Recording(path, os.path.basename(path)))
            continue
        names = [name for name in _files(path, on_note) if not os.path.basename(name).startswith(".")]
        files = sorted(name for name in names if _suffix(name) in SUFFIXES)
        others = Counter(_suffix(name) for name in names if _suffix(name) not in SUFFIXES)
        kinds = ", ".join(f"{count} {suffix or 'without an extension'}" for suffix, count in others.most_common(4))
        listed = kinds + (", ..." if len(others) > 4 else "")
        if not files:
            contents = f" (other files: {listed})" if others else ""
            raise FolderError(f"{path} contains no audio{contents}: name a folder with WAV, FLAC, OGG or MP3 files.")
        if others:
            on_note(f"{path} also contains {others.total()} files that are not audio by their names: {listed}")
        for file in files:
            recordings.setdefault(file, Recording(file, os.path.relpath(file, path)))
    count = Counter(recording.output_name for recording in recordings.values())
    return [
        recording if count[recording.output_name] == 1
        else replace(recording, output_name=os.path.join(*Path(os.path.abspath(recording.path)).parts[1:]))
        for recording in recordings.values()
    ]  # fmt: skip


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


class ResultWriter:
    """Appends results to files, recording by recording, and keeps a progress file until all are written.

    The same command resumes an interrupted run: incomplete lines are cut off, and finished recordings are skipped.

    Attributes:
        done: paths of the recordings that an interrupted run has finished.
        failed: paths of the finished recordings that could not be tagged.
    """

    def __init__(
        self,
        files: Mapping[str, str],
        folders: Sequence[str],
        settings: Any,
        *,
        overwrite: bool,
        share: Share = ALL,
        own: Sequence[Path] = (),
    ) -> None:
        """Opens the outputs.

        Args:
            files: output files, each with the header of a new one; with several processes only the first part has it.
            folders: folders for outputs of single recordings.
            settings: any JSON value; a run is resumed only with equal settings.
            overwrite: start over and replace existing outputs.
            share: the share of this process; unless it is the only one, it writes parts of the files.
            own: outputs of this process's recordings in the folders, to which other processes write as well.

        Raises:
            FolderError: an output exists that this run has not started, or that was started with other settings.
        """
        self.done, self.failed = set[str](), set[str]()
        self._files: dict[str, IO[bytes]] = {}
        self._progress: IO[bytes] | None = None
        outputs = [*files, *folders]
        if not outputs:
            return
        self._progress_path = share.progress_path(outputs[0])
        share.require_same_count(outputs[0])
        lines = [] if overwrite else read_progress(self._progress_path)
        if lines and lines[0] != {"settings": json.loads(json.dumps(settings))}:
            raise FolderError(
                f"{outputs[0]} was started with other settings: repeat those to resume, name another path, or start "
                "over with --overwrite."
            )
        if not lines and not overwrite:
            for name in [*map(share.part_path, files), *(folders if share.count == 1 else map(str, own))]:
                path = Path(name)
                if path.is_file() or (path.is_dir() and any(path.iterdir())):
                    raise FolderError(f"{name} already exists: name another path, or replace it with --overwrite.")
        self.done |= {line["clip"] for line in lines[1:]}
        self.failed |= {line["clip"] for line in lines[1:] if line["failed"]}
        sizes = lines[-1].get("sizes", {}) if lines else {}
        for folder in (*map(os.path.dirname, files), *folders):
            Path(folder).mkdir(parents=True, exist_ok=True)
        for name, header in files.items():
            size = sizes.get(name, 0)
            file = open(share.part_path(name), "r+b" if size else "wb")  # noqa: SIM115 - closed by close()
            self._files[name] = file
            file.truncate(size)
            file.seek(size)
            if size == 0 and share.index == 0:
                file.write(header.encode())
        lines = lines or [{"settings": settings}]
        self._progress_path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        self._progress = open(self._progress_path, "ab")  # noqa: SIM115 - closed by close()

    def append(self, clip: str, texts: Mapping[str, str], *, failed: bool = False) -> None:
        """Appends the lines of a recording to the files and records it as done, or as failed."""
        if failed:
            self.failed.add(clip)
        for path, text in texts.items():
            self._files[path].write(text.encode("utf-8", "surrogateescape"))
            self._files[path].flush()
        if self._progress is not None:
            sizes = {path: file.tell() for path, file in self._files.items()}
            self._progress.write((json.dumps({"clip": clip, "failed": failed, "sizes": sizes}) + "\n").encode())
            self._progress.flush()

    def finish(self) -> None:
        """Closes the files and removes the progress file, after all recordings of this process are done."""
        self.close()
        if self._progress is not None:
            self._progress_path.unlink(missing_ok=True)

    def close(self) -> None:
        """Closes the files, so that the run can be resumed."""
        for file in [*self._files.values(), *([self._progress] if self._progress else [])]:
            file.close()
