"""Folds for cross-validation: those of the data set itself, or stratified ones; each is written as a datafile."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from psla_jax.data import datafile
from psla_jax.data.datafile import Record
from psla_jax.data.folds import FOLDER, assign_folds, fold_files
from psla_jax.data.prepare.collection import Clip, CollectionError, Prepared
from psla_jax.data.prepare.walk import printable_path
from psla_jax.data.validate.findings import format_count


@dataclass(frozen=True)
class Folding:
    """Division of a data set into folds."""

    has_own: bool
    """Whether the data set itself has folds."""
    number: int
    """Number of folds to make; 0 for the data set's own."""
    seed: int

    def assign(self, clips: Sequence[Clip]) -> list[str]:
        """Returns the name of the fold of every clip; made folds keep the clips of a source together.

        Raises:
            CollectionError: the data set does not specify the fold of a clip.
            FoldError: there cannot be that number of folds.
        """
        if not self.number:
            if unknown := [clip.path for clip in clips if not clip.fold]:
                raise CollectionError(
                    f"the fold of {format_count(len(unknown), 'clip')} is unknown, such as "
                    f"{printable_path(unknown[0])}: complete the column of folds, or make folds with --folds 5."
                )
            return [clip.fold for clip in clips]
        index = {name: i for i, name in enumerate(sorted({name for clip in clips for name in clip.labels}))}
        labels = [[index[name] for name in clip.labels] for clip in clips]
        sources = [clip.source for clip in clips]
        assigned = assign_folds(labels, self.number, num_classes=len(index), seed=self.seed, groups=sources)
        return [str(1 + fold) for fold in assigned]

    def notes(self, clips: Sequence[Clip]) -> list[str]:
        """Returns sentences about properties of the folds that limit what their results mean."""
        notes = []
        if self.has_own and self.number:
            notes.append(
                "the data set has folds of its own, which published results are for and which may keep the parts of a "
                "recording together; these are other ones: --folds without a number uses its own"
            )
        sources = _folds_of((clip.source, clip.fold) for clip in clips)
        if divided := [source for source, among in sources.items() if source and len(among) > 1]:
            count = format_count(len(divided), "group")
            verb = "is" if len(divided) == 1 else "are"
            inflation = "so that models are evaluated on what they were trained on"
            notes.append(f"{count}, such as {divided[0]}, {verb} in several folds, {inflation}")
        classes = _folds_of((name, clip.fold) for clip in clips for name in clip.labels)
        if absent := [name for name, among in classes.items() if len(among) < len({clip.fold for clip in clips})]:
            count, verb = format_count(len(absent), "class"), "has" if len(absent) == 1 else "have"
            notes.append(f"{count}, such as {absent[0]}, {verb} no clip in at least one fold")
        return notes


def _folds_of(pairs: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    """Returns the folds of each name, from pairs of a name and a fold."""
    folds: dict[str, set[str]] = {}
    for name, fold in pairs:
        folds.setdefault(name, set()).add(fold)
    return folds


def choose(requested: Sequence[int], clips: Sequence[Clip], *, seed: int, name: str) -> Folding:
    """Returns the folds that ``--folds`` requests: its numbers are empty for the data set's own folds, or one number.

    Raises:
        CollectionError: there are several numbers, the number is below 2, or the data set has no folds.
    """
    if len(requested) > 1 or any(number < 2 for number in requested):
        numbers = " ".join(map(str, requested))
        raise CollectionError(f"--folds is {numbers}: use one number from 2 on, or none for the folds of the data set.")
    has_own = any(clip.fold for clip in clips)
    if not requested and not has_own:
        raise CollectionError(
            f"{printable_path(name)} has no folds of its own: give the number of folds to make, as in --folds 5."
        )
    return Folding(has_own, sum(requested), seed)


def write(prepared: Prepared, folding: Folding, *, exclusive: bool) -> str:
    """Writes a datafile per fold with the clips of all parts; returns lines for the screen.

    With `exclusive`, the datafiles declare that every clip has exactly one class.
    """
    fold_of = {(clip.path, clip.start, clip.end): clip.fold for clip in prepared.members}
    clips_of: dict[str, list[Record]] = {fold: [] for fold in sorted(set(fold_of.values()), key=int)}
    for clip in sorted(record for path in prepared.datafiles.values() for record in datafile.records(path)):
        clips_of[fold_of[clip.wav, clip.start, clip.end]].append(clip)
    remove(os.path.dirname(prepared.config))
    folder = Path(prepared.config).parent / FOLDER
    folder.mkdir(exist_ok=True)
    for fold, clips in clips_of.items():
        datafile.write(folder / f"fold_{fold}.json", clips, exclusive=exclusive)
    lines = [f"{folder}: {len(clips_of)} folds of {' + '.join(f'{len(clips):,}' for clips in clips_of.values())} clips"]
    lines += [f"note: {note}" for note in folding.notes(prepared.members)]
    return "\n".join([*lines, f"to cross-validate: psla crossval {shlex.quote(prepared.config)}"])


def remove(out: str) -> None:
    """Deletes the folds of a previous data set in an output folder."""
    for path in fold_files(Path(out) / FOLDER):
        path.unlink()
