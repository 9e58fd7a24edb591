"""Many recordings: finding them, and writing their results so that an interrupted run goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import soundfile

from psla_jax.tagging.share import WHOLE, FolderError, Share, noted

SUFFIXES = frozenset(f".{name.lower()}" for name in soundfile.available_formats()) - {".raw"} | {
    ".aif", ".aifc", ".mp1", ".mp2", ".oga", ".opus",
}  # fmt: skip
"""What is taken for audio in a folder; a file that is named itself may have any name."""


@dataclass(frozen=True)
class Item:
    """A recording."""

    path: str
    name: str
    """What its own outputs are called, without their suffix: its path inside the folder that was named."""


def find_audio(paths: Sequence[str]) -> list[Item]:
    """The recordings meant by paths: files as they are, folders with all that is below them, sorted.

    Raises:
        FolderError: there is nothing, or a folder without audio.
    """
    if not paths:
        raise FolderError("there is nothing to tag: name a file or a folder.")
    found: dict[str, Item] = {}
    for path in paths:
        if not os.path.isdir(path):
            found.setdefault(path, Item(path, os.path.basename(path)))
            continue
        inside = [
            os.path.join(folder, name)
            for folder, _, names in os.walk(path)
            for name in names
            if os.path.splitext(name)[1].lower() in SUFFIXES and not name.startswith(".")
        ]
        if not inside:
            raise FolderError(f"{path} has no audio in it: name a folder with WAV, FLAC, OGG or MP3 files.")
        for file in sorted(inside):
            found.setdefault(file, Item(file, os.path.relpath(file, path)))
    return _named_apart(list(found.values()))


def _named_apart(items: list[Item]) -> list[Item]:
    """Items of which no two have the same name: where names repeat, the whole path takes their place."""
    seen: dict[str, int] = {}
    for item in items:
        seen[item.name] = seen.get(item.name, 0) + 1
    return [item if seen[item.name] == 1 else Item(item.path, _inner(item.path)) for item in items]


def _inner(path: str) -> str:
    """A path as one below any folder."""
    parts = Path(os.path.abspath(path)).parts[1:]
    return os.path.join(*parts)


class Results:
    """Files that results are appended to, clip after clip, and a note of what is in them.

    Attributes:
        done: clips that an interrupted run had been through.
        failed: those among all clips so far that could not be tagged.

    A run that was interrupted is gone on with by the same command: what had been half written is cut off, and clips
    that are done are left out. Nothing that is there is overwritten, unless that was asked for.
    """

    def __init__(
        self,
        files: Mapping[str, str],
        folders: Sequence[str],
        settings: Any,
        *,
        overwrite: bool,
        share: Share = WHOLE,
        own: Sequence[Path] = (),
    ) -> None:
        """Opens the outputs.

        Args:
            files: paths to append to, each with the header of a new one.
            folders: where outputs of single clips go.
            settings: anything JSON can hold; a run goes on only with the same.
            overwrite: begin anew, whatever is there.
            share: which of the clips; if it is not all, its files are parts, see :mod:`psla_jax.tagging.share`.
            own: the outputs of these clips in the folders, where other processes write theirs.

        Raises:
            FolderError: something is there that is not the beginning of this run.
        """
        self.done: set[str] = set()
        self.failed: set[str] = set()
        self._files: dict[str, IO[bytes]] = {}
        self._progress: IO[bytes] | None = None
        names = [*files, *folders]
        if not names:
            return
        self._share = share
        self._note = share.note(names[0])
        share.require_alone(names[0])
        begun = [] if overwrite else [line for line in noted(self._note) if "finished" not in line]
        if begun and begun[0] != {"settings": json.loads(json.dumps(settings))}:
            raise FolderError(
                f"{names[0]} was begun with other settings: type the same again to go on, name another place, or begin "
                "anew with --overwrite True."
            )
        if not begun and not overwrite:
            _require_new([*files, *(map(str, own) if share.count > 1 else folders)])
        self.done = {line["clip"] for line in begun[1:]}
        self.failed = {line["clip"] for line in begun[1:] if line["failed"]}
        sizes = begun[-1].get("sizes", {}) if begun else {}
        for path, header in files.items():
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._files[path] = _opened(share.part(path), header, sizes.get(path, 0))
        for folder in folders:
            Path(folder).mkdir(parents=True, exist_ok=True)
        self._note.parent.mkdir(parents=True, exist_ok=True)
        whole = "".join(json.dumps(line) + "\n" for line in begun) or json.dumps({"settings": settings}) + "\n"
        self._note.write_text(whole, encoding="utf-8")
        self._progress = open(self._note, "ab")  # noqa: SIM115 - closed by close()

    def add(self, clip: str, texts: Mapping[str, str], *, failed: bool = False) -> None:
        """Appends a clip's lines to the files; then it is done, or has failed for good."""
        self.failed |= {clip} if failed else set()
        for path, text in texts.items():
            self._files[path].write(text.encode("utf-8", "surrogateescape"))
            self._files[path].flush()
        if self._progress is not None:
            sizes = {path: file.tell() for path, file in self._files.items()}
            self._progress.write((json.dumps({"clip": clip, "failed": failed, "sizes": sizes}) + "\n").encode())
            self._progress.flush()

    def finish(self) -> None:
        """All clips are done: of a part, this stays noted until all parts are joined."""
        self.close()
        if self._progress is None:
            return
        if self._share.count > 1:
            with open(self._note, "a", encoding="utf-8") as note:
                note.write(json.dumps({"finished": True}) + "\n")
        else:
            self._note.unlink(missing_ok=True)

    def close(self) -> None:
        """Lets go of the files."""
        for file in [*self._files.values(), *([self._progress] if self._progress else [])]:
            file.close()


def _require_new(names: Sequence[str]) -> None:
    for name in names:
        path = Path(name)
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise FolderError(f"{name} is there already: name another place, or replace it with --overwrite True.")


def _opened(path: str, header: str, size: int) -> IO[bytes]:
    """A file to append to, cut to what is known to be whole; a new one has its header."""
    file = open(path, "r+b" if size else "wb")  # noqa: SIM115 - closed by Results.close()
    file.truncate(size)
    file.seek(size)
    if size == 0:
        file.write(header.encode())
    return file
