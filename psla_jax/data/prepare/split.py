"""Stratified split of clips with one or several labels each, which keeps clips of one source together."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

TRAIN = "train"
_MAX_PASSES = 10
"""Number of times that all groups are considered for a move to a better part."""


def stratified(
    names: Sequence[str],
    labels: Sequence[Sequence[int]],
    shares: Mapping[str, float],
    *,
    seed: int,
    groups: Sequence[str] = (),
) -> list[str]:
    """Splits clips into a training part and held-out parts with about the same share of every class.

    Returns the part of every clip: a key of `shares`, or ``train``. All clips of a group are in the same part.

    Iterative stratification (Sechidis et al., 2011) of groups: the rarest classes are assigned first, because the
    others leave more freedom, and of each class the largest groups. A class with at least two groups is in the training
    part and the first held-out part, one with at least four also in the second held-out part, and so on, where
    co-occurring labels allow it; a class of one group is in the training part.

    Args:
        names: names of the clips. The random order is a function of (seed, name), or of (seed, group), so that the
            order of the clips does not matter and additional clips change the part of few others.
        labels: class indices of every clip, possibly none.
        shares: share of the clips in each held-out part, each in (0, 1), with a sum below 1.
        seed: random seed.
        groups: group of every clip; by default, every clip is a group of its own.
    """
    groups = groups or names
    clips_of: dict[str, list[int]] = {}
    for clip, group in enumerate(groups):
        clips_of.setdefault(group, []).append(clip)
    units = sorted(clips_of, key=lambda group: (-len(clips_of[group]), _digest(group, seed), group))
    members = [clips_of[group] for group in units]
    counts = [Counter(label for clip in clips for label in labels[clip]) for clips in members]
    assignment = _Assignment(counts, [len(clips) for clips in members], list(shares.values()))
    assignment.assign_all()
    parts = [TRAIN, *shares]
    part_of = dict(zip(units, (parts[part] for part in assignment.part)))
    return [part_of[group] for group in groups]


def _digest(name: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}:{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _quotas(sizes: np.ndarray, units: np.ndarray, shares: list[float]) -> np.ndarray:
    """Returns the intended number of clips of each class in each part, int64 ``(classes, parts)``, training first.

    `sizes` is the number of clips of each class, `units` the number of groups that have it.
    """
    held_out = [
        np.where(units >= 2 * number, np.maximum(np.rint(sizes * share), 1), 0)
        for number, share in enumerate(shares, 1)
    ]
    return np.stack([sizes - sum(held_out), *held_out], axis=1).astype(np.int64)


class _Assignment:
    """Incremental assignment of groups to parts; part 0 is the training part, -1 stands for a group without a part."""

    def __init__(self, labels: list[Counter[int]], sizes: list[int], shares: list[float]) -> None:
        self.labels, self.sizes = labels, sizes
        """Number of clips of each class in each group, and of all its clips; large groups come first."""
        self.part = np.full(len(labels), -1)
        classes = 1 + max((label for group in labels for label in group), default=0)
        self.units: dict[int, list[int]] = {}
        """Groups that have each class."""
        totals = np.zeros(classes, np.int64)
        for group, counts in enumerate(labels):
            for label, count in counts.items():
                totals[label] += count
                self.units.setdefault(label, []).append(group)
        self.num_units = np.array([len(self.units.get(label, ())) for label in range(classes)])
        self.quotas = _quotas(totals, self.num_units, shares)
        self.counts = np.zeros_like(self.quotas)
        """Number of assigned clips of each class in each part."""
        self.deficit = sum(sizes) * np.array([1 - sum(shares), *shares])
        """Number of clips that each part still needs to reach its share."""

    def assign_all(self) -> None:
        for label in sorted(self.units, key=lambda c: (len(self.units[c]), c)):
            waiting = [group for group in self.units[label] if self.part[group] < 0]
            for number, group in enumerate(waiting):
                self._assign(group, self._choose_part(label, self.labels[group][label], len(waiting) - number))
        for group in np.flatnonzero(self.part < 0).tolist():
            self._assign(group, int(np.argmax(self.deficit)))
        for label in self.units:
            self._fill_empty_parts(label)
        if max(self.sizes, default=1) > 1:
            self._refine()

    def _assign(self, group: int, part: int) -> None:
        self.part[group] = part
        self.deficit[part] -= self.sizes[group]
        for label, count in self.labels[group].items():
            self.counts[label, part] += count

    def _choose_part(self, label: int, clips: int, waiting: int) -> int:
        """Returns the part for a group that has `clips` clips of a class, the first of the `waiting` groups.

        This is a part without the class that it fits into, or that would get no other group; else the one farthest
        below its quota, and of those that it fits into if there are any.
        """
        quota, counts = self.quotas[label], self.counts[label]
        fits = quota - counts >= clips
        empty = (quota > 0) & (counts == 0)
        for part in np.flatnonzero(empty & (fits | (waiting <= empty.sum()))):
            return int(part)
        allowed = fits if fits.any() else quota > 0
        shortfall = np.where(allowed, (quota - counts) / np.maximum(quota, 1), -np.inf)
        return int(max(range(len(quota)), key=lambda part: (shortfall[part], self.deficit[part])))

    def _fill_empty_parts(self, label: int) -> None:
        """Moves a group of the class into each part that should have the class but has none, if one can move."""
        for part in np.flatnonzero((self.quotas[label] > 0) & (self.counts[label] == 0)).tolist():
            smallest_first = sorted(self.units[label], key=lambda group: self.sizes[group])
            group = next((group for group in smallest_first if self._can_move(group, part)), None)
            if group is not None:
                self._move(group, part)

    def _refine(self) -> None:
        """Moves groups between parts while that brings the numbers of clips of their classes closer to the quotas.

        Single clips do not need this: the parts of their classes are filled one by one.
        """
        for _ in range(_MAX_PASSES):
            moved = False
            for group, labels in enumerate(self.labels):
                part = self._best_part(list(labels), np.array([*labels.values()], np.int64), int(self.part[group]))
                if part != self.part[group] and self._can_move(group, part):
                    self._move(group, part)
                    moved = True
            if not moved:
                return

    def _best_part(self, labels: list[int], clips: np.ndarray, source: int) -> int:
        """Returns the part where a group of `source` causes the smallest squared deviation from the quotas."""
        quota, others = self.quotas[labels], self.counts[labels].copy()
        others[:, source] -= clips
        scale = np.maximum(quota, 1)
        cost = (((others + clips[:, None] - quota) ** 2 - (others - quota) ** 2) / scale).sum(axis=0)
        best = int(np.argmin(cost))
        return best if cost[best] < cost[source] - 1e-9 else source

    def _move(self, group: int, part: int) -> None:
        self.deficit[self.part[group]] += self.sizes[group]
        for label, count in self.labels[group].items():
            self.counts[label, self.part[group]] -= count
        self._assign(group, part)

    def _can_move(self, group: int, part: int) -> bool:
        """Returns whether a group may move to `part`: each of its classes must remain in its current part.

        Classes of one group and classes without a quota in the current part are exempt. A move from the second or a
        later held-out part to an earlier part is always allowed.
        """
        source = self.part[group]
        return (source > 1 and part < source) or all(
            self.counts[c, source] > count or self.quotas[c, source] == 0 or self.num_units[c] == 1
            for c, count in self.labels[group].items()
        )
