"""Folders of recordings: class folders with or without a split, ESC-50 and Speech Commands."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace

from psla_jax.data.prepare import table
from psla_jax.data.prepare.collection import PARTS, Clip, Collection, CollectionError, ExcludedClip
from psla_jax.data.prepare.walk import Listing, printable_path, walk

_ESC50 = os.path.join("meta", "esc50.csv")
_SPEECH_COMMANDS = {"validation": "validation_list.txt", "evaluation": "testing_list.txt"}
"""Files in which Speech Commands lists the clips of each held-out part."""
_BACKGROUND = "_background_noise_"
"""Folder of Speech Commands that is not a class."""


def read(directory: str, *, fold: str = "", progress: bool = True) -> Collection:
    """Returns the clips of a folder in one of these layouts, which are tried in this order.

    - ESC-50: ``meta/esc50.csv`` and ``audio/``; one fold is for evaluation, the others for training.
    - Speech Commands: ``validation_list.txt`` and ``testing_list.txt`` beside the class folders;
      ``_background_noise_`` is ignored.
    - Class folders inside ``train``, ``validation`` and ``test`` folders (or other common names).
    - Class folders: the class is the name of the folder directly below `directory`, at whatever depth a file is.

    `fold` is the evaluation fold of ESC-50, empty for the last one. With `progress`, stderr shows a file counter.

    Raises:
        CollectionError: there is no audio, or none in class folders, or `fold` does not fit the layout.
        PathError: the folder or a subfolder cannot be listed.
    """
    root = os.path.abspath(directory)
    esc50 = os.path.join(root, _ESC50)
    if os.path.isfile(esc50):
        columns, audio = table.Columns("filename", "category", "fold"), os.path.join(root, "audio")
        return table.read(esc50, audio, columns=columns, separator="", fold=fold, layout="ESC-50", progress=progress)
    if fold:
        raise CollectionError(f"{printable_path(root)} has no folds, but --fold is {fold}: omit it.")
    contents = _Contents(root, walk([root], progress=progress))
    if all(os.path.isfile(os.path.join(root, name)) for name in _SPEECH_COMMANDS.values()):
        return _speech_commands(root, contents)
    top_folders = {name.lower() for name in contents.top_folders}
    if len(top_folders) > 1 and top_folders <= set(PARTS):
        return contents.collection("class folders in folders of a split", 2, lambda path: PARTS[path[0].lower()])
    return contents.collection("class folders", 1, lambda _: "")


def _speech_commands(root: str, contents: _Contents) -> Collection:
    parts = {}
    for part, name in _SPEECH_COMMANDS.items():
        with open(os.path.join(root, name), encoding="utf-8", errors="replace") as file:
            parts.update(dict.fromkeys(map(str.strip, file), part))
    contents.remove(_BACKGROUND)
    available = {"/".join(path) for path in contents.audio}
    missing = sorted(name for name in parts if name and name not in available)
    collection = contents.collection("Speech Commands", 1, lambda path: parts.get("/".join(path), "train"))
    note = f"listed clips that are missing: {len(missing):,}, such as {missing[0]}" if missing else ""
    return replace(collection, notes=(*collection.notes, note)) if note else collection


class _Contents:
    """The files and folders below a root folder."""

    def __init__(self, root: str, listings: Iterable[Listing]) -> None:
        self.root = root
        self.audio: list[tuple[str, ...]] = []
        """Audio files as path components relative to the root."""
        self.top_folders: list[str] = []
        """Names of the folders directly below the root, without hidden ones."""
        self.unsupported: list[str] = []
        self.excluded: list[ExcludedClip] = []
        reason = "has a name that is not UTF-8, which a datafile cannot contain: rename the file or its folder."
        for listing in listings:
            relative = os.path.relpath(listing.folder, root)
            folders = () if relative == os.curdir else tuple(relative.split(os.sep))
            if len(folders) == 1:
                self.top_folders.append(folders[0])
            self.audio += [(*folders, name) for name in listing.audio]
            self.unsupported += [os.path.join(listing.folder, name) for name in listing.unsupported]
            self.excluded += [ExcludedClip(os.path.join(listing.folder, name), reason) for name in listing.not_utf8]

    def remove(self, top_folder: str) -> None:
        self.audio = [path for path in self.audio if path[0] != top_folder]
        self.top_folders = [name for name in self.top_folders if name != top_folder]

    def collection(self, layout: str, depth: int, part: Callable[[tuple[str, ...]], str]) -> Collection:
        """Returns the clips; the class is the name of the folder at `depth` below the root, counted from 1."""
        clips, excluded = [], list(self.excluded)
        for path in sorted(self.audio):
            file = os.path.join(self.root, *path)
            if len(path) <= depth:
                excluded.append(ExcludedClip(file, "is not in a class folder: move it into one."))
            else:
                clips.append(Clip(file, (path[depth - 1].strip(),), part(path)))
        reason = "is in an unsupported format: convert it to FLAC or WAV."
        excluded += [ExcludedClip(file, reason) for file in self.unsupported]
        if not clips:
            root, first = printable_path(self.root), next(iter(excluded), None)
            if first is None:
                raise CollectionError(
                    f"there is no audio file under {root}: name a folder that has a folder of recordings per class."
                )
            raise CollectionError(f"no recording under {root} can be used: {printable_path(first.path)} {first.reason}")
        used = {path[0] for path in self.audio if len(path) > depth}
        unused = [name for name in sorted(self.top_folders) if name not in used]
        notes = tuple(f"the folder {printable_path(name)} has no usable audio, so it is not a class" for name in unused)
        return Collection(layout, tuple(clips), True, tuple(excluded), notes)
