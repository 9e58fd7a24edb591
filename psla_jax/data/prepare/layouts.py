"""Layouts of public data sets: tables of their recordings, and names of folders that are folds or parts of a split."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from psla_jax.data.prepare.collection import PARTS, part_names
from psla_jax.data.prepare.table import Columns

_FOLD = re.compile(r"(?:fold|split)[ _-]?(\d+)", re.IGNORECASE)
_WORDS = re.compile(r"[^\W\d_]+")
_GENERIC = {
    *("audio", "balanced", "clean", "clips", "curated", "data", "dataset", "files", "folder", "noisy", "other", "part"),
    *("recordings", "segments", "set", "sounds", "soundscapes", "split", "subset", "unbalanced", "wav", "wavs"),
    *("source", "target"),  # domains of DCASE's task 2, as in source_test
}
"""Words in names of parts, such as ``train_audio``, that do not distinguish them from names of classes."""


@dataclass(frozen=True)
class KnownTable:
    """A public data set that has a table of its recordings."""

    name: str
    table: str
    """Path of the table below the folder of the data set."""
    audio: str
    """Folder of the recordings below that of the data set."""
    columns: Columns

    def paths(self, folder: str) -> tuple[str, str]:
        """Returns the table and the folder of the recordings of a copy of the data set."""
        return os.path.join(folder, *self.table.split("/")), os.path.join(folder, self.audio)


# The times in UrbanSound8K's table are those of a slice in the recording that it was cut from.
_TABLES = (
    KnownTable("ESC-50", "meta/esc50.csv", "audio", Columns("filename", "category", "fold")),
    KnownTable("UrbanSound8K", "metadata/UrbanSound8K.csv", "audio", Columns("slice_file_name", "class", "fold")),
)


def find_table(folder: str) -> tuple[KnownTable, str] | None:
    """Returns the data set in a folder, or whose recordings are in a folder, and the folder of the data set."""
    above = os.path.dirname(folder)
    for known in _TABLES:
        if os.path.isfile(known.paths(folder)[0]):
            return known, folder
        table, audio = known.paths(above)
        if audio == folder and os.path.isfile(table):
            return known, above
    return None


def is_fsd50k(folders: Iterable[str]) -> bool:
    """Returns whether these are names of folders of FSD50K as downloaded, or resampled by ``psla prepare fsd50k``."""
    return any(name.startswith(("FSD50K.dev_audio", "FSD50K.eval_audio")) for name in folders)


def fold_folders(names: Iterable[str]) -> dict[str, str]:
    """Returns the number of each folder that is a fold, such as ``fold1``."""
    return {name: number[1] for name in names if (number := _FOLD.fullmatch(name.strip()))}


def split_folders(names: Collection[str]) -> dict[str, str]:
    """Returns the part of each folder that is a part of a split; none unless there are at least two parts.

    Besides the usual names, these are names with additional words, such as ``train_audio``, or with the same word, such
    as ``nsynth-train`` and ``nsynth-test``. A single folder with such a name may be a class: a train is a vehicle.
    """
    words = {name: {word.lower() for word in _WORDS.findall(name)} for name in names}
    distinct = {name: frozenset(each - _GENERIC - set(PARTS)) for name, each in words.items()}
    for shared in sorted(set(distinct.values()), key=sorted):
        alike = {name: words[name] & set(PARTS) for name in names if distinct[name] == shared}
        known = part_names({word for each in alike.values() for word in each})
        parts = {name: known[word] for name, each in alike.items() if len(each) == 1 for word in each}
        if len(set(parts.values())) > 1:
            return parts
    return {}
