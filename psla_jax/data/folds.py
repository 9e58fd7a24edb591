"""Folds of a data set, for cross-validation and cross-fitting."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from psla_jax.audio.decode import StrPath
from psla_jax.data import datafile
from psla_jax.data.datafile import Datafile, Record
from psla_jax.vocabulary.vocabulary import Vocabulary

FOLDER = "folds"
"""Folder of the datafiles of the folds, beside the training datafile."""
_FILE = re.compile(r"fold_(\d+)\.json")


class FoldError(ValueError):
    """Folds that cannot be made or used; the message names the remedy."""


def assign_folds(
    labels: Sequence[Sequence[int]],
    folds: int,
    *,
    num_classes: int,
    seed: int,
    groups: Sequence[str] | None = None,
) -> np.ndarray:
    """Returns the fold of every clip, ``(clips,)``; folds are similar in size and in the number of each class.

    Iterative stratification (Sechidis, Tsoumakas and Vlahavas, 2011): starting with the rarest class, each clip of a
    class is assigned to the fold with the fewest clips of the class. Groups are assigned as a whole, large ones first,
    to the fold that has the smallest share of their classes.

    Args:
        labels: class indices of every clip, possibly none.
        folds: number of folds.
        num_classes: number of classes.
        seed: random seed.
        groups: group of every clip, such as the recording that it was cut from; empty strings and None for no group.

    Raises:
        FoldError: there are fewer than two folds, or fewer clips (groups, if there are any) than folds.
    """
    units = _units(len(labels), groups)
    if not 2 <= folds <= len(units):
        kind = "clips" if len(units) == len(labels) else "groups of clips"
        raise FoldError(f"the number of folds is {folds}: use 2 or more, up to the {len(units):,} {kind}.")
    # The last index stands for clips without labels.
    unit_labels = [[i for clip in unit for i in (list(labels[clip]) or [num_classes])] for unit in units]
    members: list[list[int]] = [[] for _ in range(num_classes + 1)]
    shuffled = np.random.default_rng([seed, folds]).permutation(len(units)).tolist()
    for unit in sorted(shuffled, key=lambda unit: -len(units[unit])):
        for index in dict.fromkeys(unit_labels[unit]):
            members[index].append(unit)
    fold_of_clip = np.full(len(labels), -1)
    counts, sizes = np.zeros((folds, num_classes + 1), np.int64), np.zeros(folds, np.int64)
    totals = np.bincount([i for clip in unit_labels for i in clip], minlength=num_classes + 1)
    for index in [*np.argsort(totals[:num_classes], kind="stable"), num_classes]:
        for unit in members[index]:
            clips = units[unit]
            if fold_of_clip[clips[0]] < 0:
                compared = unit_labels[unit] if len(clips) > 1 else [index]
                shares = (counts[:, compared] / totals[compared] ** 2).sum(axis=1)
                fold_of_clip[clips] = fold = int(np.lexsort((sizes, shares))[0])
                np.add.at(counts[fold], unit_labels[unit], 1)
                sizes[fold] += len(clips)
    return fold_of_clip


def _units(clips: int, groups: Sequence[str] | None) -> list[list[int]]:
    """Returns the clips that are assigned together: those of a group, or a single one."""
    if groups is None:
        return [[clip] for clip in range(clips)]
    units: dict[str | int, list[int]] = {}
    for clip, group in enumerate(groups):
        units.setdefault(group or clip, []).append(clip)
    return list(units.values())


def records(data: Datafile, vocabulary: Vocabulary, clips: Iterable[int]) -> Iterator[Record]:
    """Yields clips of a datafile with absolute paths, for :func:`psla_jax.data.datafile.write`."""
    for clip in clips:
        yield Record(data.wav(clip), [vocabulary.mids[i] for i in data.labels(clip)], *data.time(clip))


def write_folds(
    data: Datafile,
    vocabulary: Vocabulary,
    folder: StrPath,
    folds: int = 5,
    *,
    seed: int = 0,
    groups: Sequence[str] | None = None,
) -> list[str]:
    """Divides a data set into stratified folds, writes them to ``fold_1.json`` and so on, and returns their paths.

    Args:
        data: the data set.
        vocabulary: its classes.
        folder: folder of the files, which is created; files of these names are replaced.
        folds: number of folds.
        seed: random seed.
        groups: as for :func:`assign_folds`.

    Raises:
        FoldError: as :func:`assign_folds`.
    """
    labels = [data.labels(clip).tolist() for clip in range(len(data))]
    fold_of_clip = assign_folds(labels, folds, num_classes=data.num_classes, seed=seed, groups=groups)
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = [str(Path(folder) / f"fold_{fold + 1}.json") for fold in range(folds)]
    for fold, path in enumerate(paths):
        clips = records(data, vocabulary, np.flatnonzero(fold_of_clip == fold).tolist())
        datafile.write(path, clips, exclusive=data.exclusive)
    return paths


def fold_files(folder: Path) -> list[Path]:
    """Returns the datafiles of the folds in a folder, ``fold_1.json`` and so on, in the order of their numbers."""
    numbers = {path: number[1] for path in folder.glob("*.json") if (number := _FILE.fullmatch(path.name))}
    return sorted(numbers, key=lambda path: int(numbers[path]))
