"""Folds for cross-validation: those of the data set itself, or stratified ones; each is written as a datafile."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from psla_jax.data import datafile
from psla_jax.data.clip_ids import match
from psla_jax.data.folds import FOLDER, assign_folds, fold_files
from psla_jax.data.prepare import table
from psla_jax.data.prepare.collection import CollectionError, Prepared
from psla_jax.data.prepare.walk import printable_path

_TABLES = (os.path.join("meta", "esc50.csv"), os.path.join("metadata", "UrbanSound8K.csv"))
"""Tables of ESC-50 and UrbanSound8K, which have a column of folds."""
_FOLDER = re.compile(r"(?:fold|split)[ _-]?(\d+)", re.IGNORECASE)
Record = tuple[str, tuple[str, ...]]
"""Path and mids of a clip."""


@dataclass(frozen=True)
class Folding:
    """Division of a data set into folds."""

    own: Mapping[str, str]
    """Fold of each clip in the data set itself, by absolute path; empty if it has no folds."""
    number: int
    """Number of folds to make; 0 for the folds in `own`."""
    seed: int

    def assign(self, clips: Sequence[Record], groups: Mapping[str, str]) -> list[str]:
        """Returns the name of the fold of every clip; made folds keep the clips of a group together.

        `groups` holds the group of each clip by absolute path, where it has one.

        Raises:
            CollectionError: the data set does not specify the fold of a clip.
            FoldError: there cannot be that number of folds.
        """
        if not self.number:
            unknown = [path for path, _ in clips if path not in self.own]
            if unknown:
                raise CollectionError(
                    f"the fold of {len(unknown):,} clips is unknown, such as {printable_path(unknown[0])}: complete "
                    "the column of folds, or make folds with --folds 5."
                )
            return [self.own[path] for path, _ in clips]
        index = {mid: i for i, mid in enumerate(sorted({mid for _, mids in clips for mid in mids}))}
        labels = [[index[mid] for mid in mids] for _, mids in clips]
        names = [groups.get(path, "") for path, _ in clips]
        assigned = assign_folds(labels, self.number, num_classes=len(index), seed=self.seed, groups=names)
        return [str(1 + fold) for fold in assigned]

    def notes(self, clips: Sequence[Record], groups: Mapping[str, str], folds: Sequence[str]) -> list[str]:
        """Returns sentences about properties of the folds that limit what their results mean."""
        notes = []
        if self.own and self.number:
            notes.append(
                "the data set has folds of its own, which published results are for and which may keep the parts of a "
                "recording together; these are other ones: --folds without a number uses its own"
            )
        group_of = ((groups.get(path, ""), fold) for (path, _), fold in zip(clips, folds))
        divided = [group for group, among in _folds_of(group_of).items() if group and len(among) > 1]
        if divided:
            inflation = "so that models are evaluated on what they were trained on"
            notes.append(f"{len(divided):,} groups, such as {divided[0]}, are in several folds, {inflation}")
        classes = _folds_of((mid, fold) for (_, mids), fold in zip(clips, folds) for mid in mids)
        absent = [mid for mid, among in classes.items() if len(among) < len(set(folds))]
        if absent:
            notes.append(f"{len(absent):,} classes, such as {absent[0]}, have no clip in at least one fold")
        return notes


def _folds_of(pairs: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """Returns the folds of each name, from pairs of a name and a fold."""
    folds: dict[str, set[str]] = {}
    for name, fold in pairs:
        folds.setdefault(name, set()).add(fold)
    return folds


def of_folders(paths: Sequence[str]) -> dict[str, str]:
    """Returns the fold of each clip by path: from the table of ESC-50 or UrbanSound8K, or from folders named by folds.

    Empty for any other data set.
    """
    common = Path(os.path.commonpath([os.path.dirname(path) for path in paths]))
    tables = (str(folder / name) for folder in (common, *common.parents[:2]) for name in _TABLES)
    if path := next(filter(os.path.isfile, tables), ""):
        return of_table(path, table.Columns(), paths)
    folders = {path: _FOLDER.fullmatch(Path(path).relative_to(common).parts[0]) for path in paths}
    folds = {path: number[1] for path, number in folders.items() if number}
    return folds if len(folds) == len(paths) else {}


def of_table(path: str, columns: table.Columns, paths: Sequence[str]) -> dict[str, str]:
    """Returns the fold of each clip by path, from a table's column of folds; empty if it has none."""
    folds = table.fold_of_file(path, columns)
    base, numbers = os.path.dirname(os.path.abspath(path)), list(folds.values())
    positions = match(paths, [os.path.join(base, name) for name in folds]).positions
    return {clip: numbers[position] for clip, position in zip(paths, positions) if position >= 0}


def choose(requested: Sequence[int], own: Mapping[str, str], *, seed: int, name: str) -> Folding:
    """Returns the folds that ``--folds`` requests: its numbers are empty for the data set's own folds, or one number.

    Raises:
        CollectionError: there are several numbers, the number is below 2, or the data set has no folds.
    """
    if len(requested) > 1 or any(number < 2 for number in requested):
        numbers = " ".join(map(str, requested))
        raise CollectionError(f"--folds is {numbers}: use one number from 2 on, or none for the folds of the data set.")
    if not requested and not own:
        raise CollectionError(
            f"{printable_path(name)} has no folds of its own: give the number of folds to make, as in --folds 5."
        )
    return Folding(own, sum(requested), seed)


def write(prepared: Prepared, folding: Folding, *, exclusive: bool) -> str:
    """Writes a datafile per fold with the clips of all parts; returns lines for the screen.

    With `exclusive`, the datafiles declare that every clip has exactly one class. Errors are those of
    :meth:`Folding.assign`.
    """
    clips = sorted(record for path in prepared.datafiles.values() for record in datafile.records(path))
    names = folding.assign(clips, prepared.groups)
    remove(os.path.dirname(prepared.config))
    folder = Path(prepared.config).parent / FOLDER
    folder.mkdir(exist_ok=True)
    counts = {}
    for name in sorted(set(names), key=int):
        path = folder / f"fold_{name}.json"
        counts[name] = datafile.write(path, [c for c, n in zip(clips, names) if n == name], exclusive=exclusive)
    lines = [f"{folder}: {len(counts)} folds of {' + '.join(f'{count:,}' for count in counts.values())} clips"]
    lines += [f"note: {note}" for note in folding.notes(clips, prepared.groups, names)]
    return "\n".join([*lines, f"to cross-validate: psla crossval {shlex.quote(prepared.config)}"])


def remove(out: str) -> None:
    """Deletes the folds of a previous data set in an output folder."""
    for path in fold_files(Path(out) / FOLDER):
        path.unlink()
