"""The same audio or the same file more than once: in a set, or in two sets."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np

from psla_jax.data.findings import Examined, Finding, many


def overlap(examined: Examined) -> Iterator[Finding]:
    """Audio that is in this set and in one it is to be evaluated on."""
    rows = _audible(examined)
    own = examined.table["digest"]
    for name, other in examined.against.items():
        theirs = _audible(other)
        first = {digest: row for digest, row in zip(other.table["digest"][theirs[::-1]].tolist(), theirs[::-1])}
        shared = [int(row) for row in rows[np.isin(own[rows], other.table["digest"][theirs])]]
        clips = examined.measurements.clips[shared]
        twins = other.measurements.clips[[first[own[row].item()] for row in shared]]
        if shared:
            yield Finding(
                "overlap",
                "error",
                f"Also in {name}, by content: {many(len(shared), 'clip', len(examined.table))}",
                "Figures on that set would be too good: a part of it was in training.",
                "Take them out of one of the two sets.",
                len(shared),
                [f"{a} = {b}" for a, b in zip(examined.ids(clips), other.ids(twins))],
            )
        yield from _same_names(examined, other, name, set(clips.tolist()))
        problems = other.measurements.problems
        if problems:
            yield Finding(
                "against-unreadable",
                "warning",
                f"Clips of {name} that cannot be read: {many(len(problems), 'clip', len(other.data))}",
                "Whether they are in both sets is not known; evaluation leaves them out.",
                "Check that set by itself.",
                len(problems),
                [f"{problem.path} {problem.reason}" for problem in problems],
            )


def _same_names(examined: Examined, other: Examined, name: str, known: set[int]) -> Iterator[Finding]:
    theirs = {stem for clip in other.ids(range(len(other.data))) if not _is_number(stem := _stem(clip))}
    alike = [i for i, clip in enumerate(examined.ids(range(len(examined.data)))) if _stem(clip) in theirs]
    yield from examined.of_clips(
        [i for i in alike if i not in known],
        "overlap-by-name",
        "note",
        f"File names that are also in {name}",
        "Their audio differs or was not read: perhaps one recording in two formats, perhaps nothing.",
        "Listen to one or two of them.",
    )


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _is_number(stem: str) -> bool:
    """Whether a name only counts, as 0017; the numbers of Freesound have five digits and more."""
    return stem.isdigit() and len(stem) < 5


def listed_twice(examined: Examined) -> Iterator[Finding]:
    """One file in several records, as where each of its labels has a line of its own."""
    data = examined.data
    hashes = np.fromiter((hash(clip) for clip in examined.ids(range(len(data)))), np.int64, len(data))
    alike: list[str] = []
    different: list[str] = []
    for group in _groups(hashes):
        labels = {tuple(sorted(data.labels(int(i)))) for i in group}
        (alike if len(labels) == 1 else different).append(f"{data.clip_id(int(group[0]))}  {len(group)} times")
    if different:
        yield Finding(
            "listed-with-other-labels",
            "error",
            f"Listed several times with different labels: {many(len(different), 'file')}",
            "Each record says that the labels of the others are absent.",
            "Join the labels of a file in one record.",
            len(different),
            different,
        )
    if alike:
        yield Finding(
            "listed-twice",
            "warning",
            f"Listed several times: {many(len(alike), 'file')}",
            "They count several times in training and in figures, and their scores have one and the same id.",
            "Keep one record of each.",
            len(alike),
            alike,
        )


def duplicates(examined: Examined) -> Iterator[Finding]:
    """Files with exactly the same audio."""
    data, rows = examined.data, _audible(examined)
    clips = examined.measurements.clips[rows]
    groups = []
    for group in _groups(examined.table["digest"][rows]):
        files = {data.clip_id(int(i)): int(i) for i in clips[group]}
        if len(files) > 1:
            groups.append(files)
    if groups:
        differ = sum(len({tuple(sorted(data.labels(i))) for i in files.values()}) > 1 for files in groups)
        extra = sum(len(files) - 1 for files in groups)
        contradict = f" In {many(differ, 'group')} the labels differ too: they contradict." if differ else ""
        yield Finding(
            "duplicates",
            "warning",
            f"Copies of other clips: {many(extra, 'clip', len(examined.table))}",
            f"{many(len(groups), 'group')} of files with exactly the same audio.{contradict} Copies count twice, and "
            "a random split puts them on both sides.",
            "Keep one of each.",
            extra,
            [" = ".join(files) for files in groups],
        )


def _audible(examined: Examined) -> np.ndarray:
    """Rows whose content says which recording it is: all silence is alike."""
    return np.flatnonzero(examined.table["finite"] & (examined.table["heard"] > 0))


def _groups(values: np.ndarray) -> list[np.ndarray]:
    """Positions of the values that occur more than once, an array for each, in the order of their first."""
    order = np.argsort(values, kind="stable")
    new = np.flatnonzero(values[order][1:] != values[order][:-1]) + 1
    groups = [group for group in np.split(order, new) if len(group) > 1]
    return sorted(groups, key=lambda group: int(group[0]))
