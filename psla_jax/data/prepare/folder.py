"""Folders of recordings: class folders with or without a split, and the layouts of public data sets."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Collection as CollectionOf
from dataclasses import dataclass, replace

from psla_jax.data.prepare import label_files, layouts, table
from psla_jax.data.prepare.collection import Clip, Collection, CollectionError, ExcludedClip
from psla_jax.data.prepare.names import class_name, examples, nfc
from psla_jax.data.prepare.walk import Listing, printable_path, walk
from psla_jax.data.validate.findings import format_count

_SPEECH_COMMANDS = {"validation": "validation_list.txt", "evaluation": "testing_list.txt"}
"""Files in which Speech Commands lists the clips of each held-out part."""
_BACKGROUND = "_background_noise_"
"""Folder of Speech Commands that is not a class; its recordings are minutes long."""
_LOOSE = "is not in a class folder: move it into one, or list the recordings in a table for psla prepare csv."
_TABLE_EXTENSIONS = (".csv", ".tsv", ".xlsx", ".json", ".jsonl", ".parquet")
_Path = tuple[str, ...]
"""Components of a path relative to a root folder."""


def read(directory: str, *, fold: str = "", progress: bool = True) -> Collection:
    """Returns the clips of a folder in one of these layouts, which are tried in this order.

    - ESC-50 and UrbanSound8K, by their tables; one fold is for evaluation, the others for training.
    - Label files of Audacity beside at least half of the recordings; clips are the labelled segments.
    - Speech Commands: ``validation_list.txt`` and ``testing_list.txt`` beside the class folders or beside their folder.
    - Class folders inside ``fold1``, ``fold2`` and so on; one fold is for evaluation.
    - Class folders inside ``train``, ``validation`` and ``test`` folders (or other common names).
    - Class folders that each contain ``train``, ``test`` and so on, or ``fold1`` and so on.
    - Class folders: the class is the name of the folder directly below `directory`, at whatever depth a file is.

    If all recordings are in one folder, which has only folders, the layout is that of this folder.
    ``_background_noise_`` is never a class.

    `fold` is the evaluation fold, empty for the last one. With `progress`, stderr shows a file counter.

    Raises:
        CollectionError: there is no audio, or none in class folders; the folder has several data sets, one with
            another command, or one with a split beside other folders; or `fold` does not fit the layout.
        PathError: the folder or a subfolder cannot be listed.
    """
    root = os.path.abspath(directory)
    if known := layouts.find_table(root):
        return _read_table(*known, fold, progress)
    contents = _scan(root, walk([root], progress=progress))
    if labelled := _label_files(contents, fold, progress):
        return labelled
    while True:
        _require_one_data_set(contents)
        if known := layouts.find_table(contents.root):
            return _read_table(*known, fold, progress)
        if (below := contents.only_folder()) is None:
            break
        contents = below
    collection = _class_folders(contents, fold)
    if contents.root == root:
        return collection
    note = f"the class folders are those in {printable_path(contents.root)}, which has all recordings"
    return replace(collection, notes=(note, *collection.notes))


def _read_table(known: layouts.KnownTable, folder: str, fold: str, progress: bool) -> Collection:
    path, audio = known.paths(folder)
    columns, layout = known.columns, known.name
    return table.read(path, audio, columns=columns, separator="", fold=fold, layout=layout, progress=progress)


def _label_files(contents: _Contents, fold: str, progress: bool) -> Collection | None:
    """Returns the segments with labels of Audacity; None if most recordings have no label file beside them."""
    recordings = sorted(map(contents.path, contents.audio))
    labels = label_files.find(recordings)
    if not labels or 2 * len(labels) < len(recordings):
        return None
    if fold:
        raise CollectionError(f"{printable_path(contents.root)} has no folds, but --fold is {fold}: omit it.")
    return label_files.collect(labels, recordings, contents.excluded, progress=progress)


def _require_one_data_set(contents: _Contents) -> None:
    """Raises CollectionError for FSD50K, and for public data sets beside other recordings."""
    root, folders = printable_path(contents.root), contents.folders_with_audio()
    if layouts.is_fsd50k(folders):
        raise CollectionError(f"{root} is FSD50K, whose labels are in its tables: use psla prepare fsd50k {root}.")
    paths = [os.path.join(contents.root, name) for name in folders]
    if len(paths) > 1 and (known := [path for path in paths if layouts.find_table(path)]):
        raise CollectionError(
            f"{root} has a data set in {printable_path(known[0])} beside other folders of recordings: name one of the "
            "folders."
        )


def _class_folders(contents: _Contents, fold: str) -> Collection:
    folders, root = contents.folders_with_audio(), printable_path(contents.root)
    if outer := _split_in(folders):
        return _divided(contents, outer, fold)
    if speech_commands := _speech_commands(contents):
        _require_no_fold(root, fold)
        return speech_commands
    if inner := _split_in_classes(contents):
        return _divided(contents, inner, fold, level=1)
    _require_no_fold(root, fold)
    if contents.audio and len(folders) < 2 and (table_hint := _table_hint(contents)):
        raise CollectionError(f"{root} has no two folders of recordings that could be classes: {table_hint}.")
    return _collect(contents, "class folders", 1, lambda path: "", notes=_ambiguity_notes(contents))


def _table_hint(contents: _Contents) -> str:
    """Returns advice to use a table in the folder or beside the recordings; empty if there is none."""
    tables = contents.tables() or contents.tables(contents.folders_with_audio())
    return f"use psla prepare csv with {printable_path(tables[0])} if that has the classes" if tables else ""


def _require_no_fold(root: str, fold: str) -> None:
    if fold:
        raise CollectionError(f"{root} has no folds, but --fold is {fold}: omit it.")


@dataclass(frozen=True)
class _Split:
    """Folders that are folds or the parts of a split."""

    folds: Mapping[str, str]
    """Number of each folder that is a fold; empty for the parts of a split."""
    parts: Mapping[str, str]
    """Part of each folder that is one; empty for folds."""

    @property
    def kind(self) -> str:
        return "folds" if self.folds else "parts of a split"

    @property
    def names(self) -> list[str]:
        return sorted(self.folds or self.parts)


def _split_in(names: CollectionOf[str]) -> _Split | None:
    """Returns the folds, or else the parts of a split, among the names of folders; None if there are none."""
    folds = layouts.fold_folders(names)
    parts = {} if folds else layouts.split_folders(names)
    return _Split(folds, parts) if folds or parts else None


def _split_in_classes(contents: _Contents) -> _Split | None:
    """Returns the folds or parts that are folders inside every class folder, as in DCASE's ``fan/train``.

    Raises:
        CollectionError: only some folders have such folders, or these have class folders themselves, so that a folder
            is a data set beside others.
    """
    below = {name: contents.folder_names((name,)) for name in contents.folders_with_audio()}
    divided = [name for name, names in below.items() if (found := _split_in(names)) and len(found.names) > 1]
    split = _split_in(set().union(*below.values()))
    if not divided or split is None:
        return None
    first = next(name for name in divided if below[name] & set(split.names))
    data_set = printable_path(contents.path((first,)))
    names = examples([name for name in split.names if name in below[first]])
    if whole := [name for name, inside in below.items() if not inside & set(split.names)]:
        raise CollectionError(
            f"{data_set} has the folders {names}, which are {split.kind}, and {printable_path(whole[0])} beside it has "
            f"none: use psla prepare folder {data_set} if that is the data set, or give every class such folders."
        )
    classes = [contents.folder_names((first, name)) for name in split.names if name in below[first]]
    if len(set.intersection(*classes)) > 1:
        raise CollectionError(
            f"{data_set} has the folders {names}, which are {split.kind} with class folders, and is beside other "
            f"folders of recordings: use psla prepare folder {data_set}."
        )
    return split


def _divided(contents: _Contents, split: _Split, fold: str, level: int = 0) -> Collection:
    """Returns the clips of class folders with a split; recordings that are in none of its folders are excluded.

    The folders of the split contain the class folders, or with `level` 1, every class folder contains those.
    """
    root, names = printable_path(contents.root), set(split.names)
    layout = "class folders in folders of a split" if level == 0 else "class folders with the parts of a split"
    parts = split.parts
    if split.folds:
        chosen, description = table.choose_fold(root, split.folds.values(), fold)
        layout = f"class folders {'in' if level == 0 else 'with'} fold folders; {description}"
        parts = {name: "evaluation" if number == chosen else "train" for name, number in split.folds.items()}
    else:
        _require_no_fold(root, fold)
    inside = {path for path in contents.audio if len(path) > level + 1 and path[level] in names}
    depth = 1 if level else _class_depth(sorted(inside), 2)
    if not any(len(path) > depth for path in inside):
        advice = "list the recordings and their classes in a table, and use psla prepare csv"
        raise CollectionError(
            f"the folders {examples(split.names)} of {root} are {split.kind} and have no class folders: "
            f"{_table_hint(contents) or advice}."
        )
    reason = f"is in a folder beside {split.kind}: move or rename the folder."
    beside = [path for path in contents.audio if len(path) > 1 and path not in inside]
    excluded = [*contents.excluded, *(ExcludedClip(contents.path(path), reason) for path in beside)]
    contents = replace(contents, audio=sorted(set(contents.audio) - set(beside)), excluded=excluded)
    return _collect(
        contents, layout, depth, lambda path: parts[path[level]], lambda path: split.folds.get(path[level], "")
    )


def _class_depth(paths: list[_Path], depth: int) -> int:
    """Returns the depth of the class folders: `depth`, or more if there is only one folder, such as ``audio``."""
    while len({path[depth - 1] for path in paths}) == 1 and len({p[depth] for p in paths if len(p) > depth + 1}) > 1:
        depth += 1
    return depth


def _speech_commands(contents: _Contents) -> Collection | None:
    """Returns the clips of Speech Commands, with the split in its lists; None for another data set."""
    for folder in (contents.root, os.path.dirname(contents.root)):
        lists = {part: os.path.join(folder, name) for part, name in _SPEECH_COMMANDS.items()}
        if all(map(os.path.isfile, lists.values())):
            break
    else:
        return None
    parts: dict[str, str] = {}
    for part, path in lists.items():
        with open(path, encoding="utf-8", errors="replace") as file:
            parts.update(dict.fromkeys((name for line in file if (name := line.strip())), part))
    available = {"/".join(path) for path in contents.audio}
    missing = sorted(set(parts) - available)
    if folder != contents.root and len(missing) == len(parts):
        return None
    notes = [f"listed clips that are missing: {len(missing):,}, such as {missing[0]}"] if missing else []
    return _collect(contents, "Speech Commands", 1, lambda path: parts.get("/".join(path), "train"), notes=notes)


def _collect(
    contents: _Contents,
    layout: str,
    depth: int,
    part: Callable[[_Path], str],
    fold: Callable[[_Path], str] = lambda path: "",
    notes: Iterable[str] = (),
) -> Collection:
    """Returns the clips; the class is the name of the folder at `depth` below the root, counted from 1."""
    clips, excluded = [], list(contents.excluded)
    background = 0
    for path in sorted(contents.audio):
        if len(path) <= depth:
            excluded.append(ExcludedClip(contents.path(path), _LOOSE))
        elif path[depth - 1] == _BACKGROUND:
            background += 1
        else:
            clips.append(Clip(contents.path(path), (class_name(path[depth - 1]),), part(path), fold=fold(path)))
    reason = "is in an unsupported format: convert it to FLAC or WAV."
    excluded += [ExcludedClip(contents.path(path), reason) for path in contents.unsupported]
    if not clips:
        root, first = printable_path(contents.root), next(iter(excluded), None)
        if first is None:
            raise CollectionError(
                f"there is no audio file under {root}: name a folder that has a folder of recordings per class."
            )
        raise CollectionError(f"no recording under {root} can be used: {printable_path(first.path)} {first.reason}")
    used = {path[0] for path in contents.audio if len(path) > depth}
    unused = [name for name in sorted(contents.top_folders) if name not in used]
    all_notes = [f"the folder {printable_path(name)} has no usable audio, so it is not a class" for name in unused]
    if background and layout != "Speech Commands":
        count = format_count(background, "recording")
        all_notes.append(f"the folder {_BACKGROUND}, with {count}, is not a class, as in Speech Commands")
    return Collection(layout, tuple(clips), True, tuple(excluded), (*all_notes, *notes))


def _ambiguity_notes(contents: _Contents) -> Iterable[str]:
    """Yields notes on signs that the folders below the root are not the classes."""
    folders = contents.folders_with_audio()
    below = {name: {nfc(path[1]) for path in contents.audio if path[0] == name and len(path) > 2} for name in folders}
    first = next(iter(below.values()), set())
    if len(below) > 1 and len(first) > 1 and all(names == first for names in below.values()):
        yield (
            f"each of the folders {examples(folders)} has the folders {examples(sorted(first))}: if these are the "
            "classes, rename the outer ones to train, validation and test"
        )
    if tables := contents.tables():
        yield f"the table {printable_path(tables[0])} is not used: if it has the classes, use psla prepare csv"


@dataclass(frozen=True)
class _Contents:
    """The files and folders below a root folder."""

    root: str
    audio: list[_Path]
    unsupported: list[_Path]
    """Files in formats that cannot be read."""
    folders: list[_Path]
    excluded: list[ExcludedClip]

    def path(self, path: _Path) -> str:
        return os.path.join(self.root, *path)

    def _child(self, name: str) -> str:
        return os.path.join(self.root, name)

    @property
    def top_folders(self) -> list[str]:
        """Names of the folders directly below the root, without hidden ones."""
        return [path[0] for path in self.folders if len(path) == 1]

    def folders_with_audio(self) -> list[str]:
        """Returns the names of the folders directly below the root that have audio at any depth."""
        return sorted(self.folder_names(()))

    def folder_names(self, above: _Path) -> set[str]:
        """Returns the names of the folders with audio at any depth that are directly in a folder."""
        depth = len(above)
        return {
            path[depth] for path in (*self.audio, *self.unsupported) if path[:depth] == above and len(path) > depth + 1
        }

    def only_folder(self) -> _Contents | None:
        """Returns the contents of the only folder with audio; None for several, or if there is audio directly in it."""
        names = self.folders_with_audio()
        if len(names) != 1 or layouts.fold_folders(names):
            return None
        (name,) = names

        def inside(paths: list[_Path]) -> list[_Path]:
            return [path[1:] for path in paths if path[0] == name and len(path) > 1]

        loose = [ExcludedClip(self.path(path), _LOOSE) for path in self.audio if len(path) == 1]
        below = _Contents(
            self.path((name,)),
            inside(self.audio),
            inside(self.unsupported),
            inside(self.folders),
            [*self.excluded, *loose],
        )
        return below if all(len(path) > 1 for path in below.audio) else None

    def tables(self, names: Iterable[str] | None = None) -> list[str]:
        """Returns the tables in the folders of the given names; by default in the root and those without audio."""
        silent = sorted(set(self.top_folders) - set(self.folders_with_audio()))
        folders = [self.root, *map(self._child, silent)] if names is None else map(self._child, names)
        return [
            os.path.join(folder, name)
            for folder in folders
            for name in sorted(os.listdir(folder))
            if name.lower().endswith(_TABLE_EXTENSIONS) and not name.startswith(".")
        ]


def _scan(root: str, listings: Iterable[Listing]) -> _Contents:
    contents = _Contents(root, [], [], [], [])
    reason = "has a name that is not UTF-8, which a datafile cannot contain: rename the file or its folder."
    not_a_file = "is a pipe, a device or a broken link, not a file: replace it by the recording."
    for listing in listings:
        relative = os.path.relpath(listing.folder, root)
        folders = () if relative == os.curdir else tuple(relative.split(os.sep))
        if folders:
            contents.folders.append(folders)
        contents.audio.extend((*folders, name) for name in listing.audio)
        contents.unsupported.extend((*folders, name) for name in listing.unsupported)
        contents.excluded.extend(ExcludedClip(os.path.join(listing.folder, name), reason) for name in listing.not_utf8)
        contents.excluded.extend(
            ExcludedClip(os.path.join(listing.folder, name), not_a_file) for name in listing.not_files
        )
    return contents
