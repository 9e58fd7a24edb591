"""Stratified split of clips with one or several labels each."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

TRAIN = "train"


def stratified(
    names: Sequence[str], labels: Sequence[Sequence[int]], shares: Mapping[str, float], *, seed: int
) -> list[str]:
    """Splits clips into a training part and held-out parts with about the same share of every class.

    Returns the part of every clip: a key of `shares`, or ``train``.

    Iterative stratification (Sechidis et al., 2011): the rarest classes are assigned first, because the others leave
    more freedom. A class with at least two clips is in the training part and the first held-out part, one with at least
    four also in the second held-out part, and so on, where co-occurring labels allow it; a class of one clip is in the
    training part.

    Args:
        names: names of the clips. The random order is a function of (seed, name), so that the order of the clips does
            not matter and additional clips change the part of few others.
        labels: class indices of every clip, possibly none.
        shares: share of the clips in each held-out part, each in (0, 1), with a sum below 1.
        seed: random seed.
    """
    parts = [TRAIN, *shares]
    digests = [
        hashlib.blake2b(f"{seed}:{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest() for name in names
    ]
    order = sorted(range(len(names)), key=lambda i: (digests[i], names[i]))
    held_out = list(shares.values())
    sizes = np.bincount([label for clip in labels for label in clip], minlength=1)
    assignment = _Assignment(labels, _quotas(sizes, held_out), held_out)
    members: dict[int, list[int]] = {}
    for clip in order:
        for label in labels[clip]:
            members.setdefault(label, []).append(clip)
    for label in sorted(members, key=lambda c: (len(members[c]), c)):
        for clip in members[label]:
            if assignment.part[clip] < 0:
                assignment.assign(clip, assignment.choose_part(label))
    for clip in order:
        if assignment.part[clip] < 0:
            assignment.assign(clip, int(np.argmax(assignment.deficit)))
    for label in members:
        assignment.fill_empty_parts(label, members[label])
    return [parts[part] for part in assignment.part]


def _quotas(sizes: np.ndarray, shares: list[float]) -> np.ndarray:
    """Returns the intended number of clips of each class in each part, int64 ``(classes, parts)``, training first."""
    held_out = [
        np.where(sizes >= 2 * number, np.maximum(np.rint(sizes * share), 1), 0)
        for number, share in enumerate(shares, 1)
    ]
    return np.stack([sizes - sum(held_out), *held_out], axis=1).astype(np.int64)


class _Assignment:
    """Incremental assignment of clips to parts; part 0 is the training part, -1 stands for a clip without a part."""

    def __init__(self, labels: Sequence[Sequence[int]], quotas: np.ndarray, shares: list[float]) -> None:
        self.labels, self.quotas = labels, quotas
        self.part = np.full(len(labels), -1)
        self.counts = np.zeros_like(quotas)
        """Number of assigned clips of each class in each part."""
        self.deficit = len(labels) * np.array([1 - sum(shares), *shares])
        """Number of clips that each part still needs to reach its share."""

    def assign(self, clip: int, part: int) -> None:
        self.part[clip] = part
        self.deficit[part] -= 1
        for label in self.labels[clip]:
            self.counts[label, part] += 1

    def choose_part(self, label: int) -> int:
        """Returns the part for a clip of a class: one without the class, else the one farthest below its quota."""
        quota, counts = self.quotas[label], self.counts[label]
        empty = np.flatnonzero((quota > 0) & (counts == 0))
        if len(empty):
            return int(empty[0])
        shortfall = np.where(quota > 0, (quota - counts) / np.maximum(quota, 1), -np.inf)
        return int(max(range(len(quota)), key=lambda part: (shortfall[part], self.deficit[part])))

    def fill_empty_parts(self, label: int, clips: list[int]) -> None:
        """Moves a clip of the class into each part that should have the class but has none, if one can move."""
        for part in np.flatnonzero((self.quotas[label] > 0) & (self.counts[label] == 0)):
            clip = next((clip for clip in clips if self._can_move(clip, int(part))), None)
            if clip is not None:
                self.deficit[self.part[clip]] += 1
                for c in self.labels[clip]:
                    self.counts[c, self.part[clip]] -= 1
                self.assign(clip, int(part))

    def _can_move(self, clip: int, part: int) -> bool:
        """Returns whether a clip may move to `part`: each of its classes must remain in its current part.

        Classes of one clip and classes without a quota in the current part are exempt. A move from the second or a
        later held-out part to an earlier part is always allowed.
        """
        source = self.part[clip]
        return (source > 1 and part < source) or all(
            self.counts[c, source] > 1 or self.quotas[c, source] == 0 or self.quotas[c].sum() == 1
            for c in self.labels[clip]
        )
