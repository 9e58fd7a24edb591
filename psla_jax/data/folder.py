"""A folder of recordings -> clips: class folders, with or without a split, ESC-50 and Speech Commands."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace

from psla_jax.data import table
from psla_jax.data.collection import PARTS, Clip, Collection, CollectionError, LeftOut
from psla_jax.data.files import Listing, shown, walk

_ESC50 = os.path.join("meta", "esc50.csv")
_LISTS = {"validation": "validation_list.txt", "evaluation": "testing_list.txt"}
"""How Speech Commands says which of its clips are for what."""
_NOT_A_CLASS = "_background_noise_"


def read(directory: str, *, fold: str = "", progress: bool = True) -> Collection:
    """The clips of a folder whose layout is one of these, looked for in this order.

    - ESC-50: ``meta/esc50.csv`` and ``audio/``; one fold evaluates, the others train.
    - Speech Commands: ``validation_list.txt`` and ``testing_list.txt`` beside the class folders;
      ``_background_noise_`` is left out.
    - ``train``, ``validation`` and ``test`` (or other usual names) with class folders in them.
    - Class folders: the class is the name of the folder directly below `directory`, at whatever depth a file is.

    Args:
        directory: the folder.
        fold: which fold of ESC-50 evaluates; empty for the last one.
        progress: whether to count files on stderr.

    Raises:
        CollectionError: there is no audio, or not in class folders, or a layout contradicts itself.
        FilesError: the folder or one below it cannot be listed.
    """
    root = os.path.abspath(directory)
    if os.path.isfile(os.path.join(root, _ESC50)):
        listed, columns = os.path.join(root, _ESC50), table.Columns("filename", "category", "fold")
        recordings = os.path.join(root, "audio")
        return table.read(
            listed, recordings, columns=columns, separator="", fold=fold, layout="ESC-50", progress=progress
        )
    if fold:
        raise CollectionError(f"{shown(root)} has no folds, but --fold is {fold}: leave it out.")
    files = _Files(root)
    for listing in walk([root], progress=progress):
        files.add(listing)
    if all(os.path.isfile(os.path.join(root, name)) for name in _LISTS.values()):
        return _speech_commands(root, files)
    tops = {top.lower() for top in files.tops}
    if len(tops) > 1 and tops <= set(PARTS):
        return files.collection("class folders in folders of a split", 2, lambda path: PARTS[path[0].lower()])
    return files.collection("class folders", 1, lambda _: "")


def _speech_commands(root: str, files: _Files) -> Collection:
    parts = {}
    for part, name in _LISTS.items():
        with open(os.path.join(root, name), encoding="utf-8", errors="replace") as file:
            parts.update(dict.fromkeys(map(str.strip, file), part))
    files.drop(_NOT_A_CLASS)
    there = {"/".join(path) for path in files.audio}
    lacking = sorted(name for name in parts if name and name not in there)
    found = files.collection("Speech Commands", 1, lambda path: parts.get("/".join(path), "train"))
    note = f"clips of the lists that are not there: {len(lacking):,}, such as {lacking[0]}" if lacking else ""
    return replace(found, notes=(*found.notes, note)) if note else found


class _Files:
    """What is in a folder, by path relative to it."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.audio: list[tuple[str, ...]] = []
        """Every audio file as the names of the folders that lead to it, and its own."""
        self.tops: list[str] = []
        """Folders directly in it that are not hidden."""
        self.foreign: list[str] = []
        self.left_out: list[LeftOut] = []

    def add(self, listing: Listing) -> None:
        relative = os.path.relpath(listing.folder, self.root)
        folders = () if relative == os.curdir else tuple(relative.split(os.sep))
        if len(folders) == 1:
            self.tops.append(folders[0])
        self.audio += [(*folders, name) for name in listing.audio]
        self.foreign += [os.path.join(listing.folder, name) for name in listing.foreign]
        reason = "has a name that is not UTF-8, which no datafile can hold: rename the file or its folder."
        self.left_out += [LeftOut(os.path.join(listing.folder, name), reason) for name in listing.unnameable]

    def drop(self, top: str) -> None:
        """Leaves a folder out."""
        self.audio = [path for path in self.audio if path[0] != top]
        self.tops = [name for name in self.tops if name != top]

    def collection(self, layout: str, depth: int, part: Callable[[tuple[str, ...]], str]) -> Collection:
        """The clips, whose class is the name of their folder at `depth`, counted from 1."""
        clips, left_out = [], list(self.left_out)
        for path in sorted(self.audio):
            file = os.path.join(self.root, *path)
            if len(path) <= depth:
                left_out.append(LeftOut(file, "lies in no class folder: move it into one."))
            else:
                clips.append(Clip(file, (path[depth - 1].strip(),), part(path)))
        left_out += [
            LeftOut(file, "is of a kind that is not read: convert it to FLAC or WAV.") for file in self.foreign
        ]
        if not clips:
            raise CollectionError(self._nothing(left_out))
        used = {path[0] for path in self.audio if len(path) > depth}
        empty = [name for name in sorted(self.tops) if name not in used]
        notes = tuple(f"the folder {shown(name)} has no audio that can be used, so it is no class" for name in empty)
        return Collection(layout, tuple(clips), True, tuple(left_out), notes)

    def _nothing(self, left_out: list[LeftOut]) -> str:
        if left_out:
            return f"no recording under {shown(self.root)} can be used: {shown(left_out[0].path)} {left_out[0].reason}"
        return (
            f"there is no audio file under {shown(self.root)}: name a folder that has a folder of recordings per class."
        )
