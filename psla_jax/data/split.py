"""A stratified split of clips with one label or several."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

TRAIN = "train"


def stratified(
    names: Sequence[str], labels: Sequence[Sequence[int]], shares: Mapping[str, float], *, seed: int
) -> list[str]:
    """Divides clips into training and held-out parts, so that every class has its share in each of them.

    Every class with at least two clips is in training and in the first held-out part, one with at least four in the
    second, and so on, where labels that occur together allow it; a class of one clip is in training. The rarest classes
    are dealt out first (Sechidis et al., 2011), as the others have the choice.

    Args:
        names: of the clips. What is drawn is a function of (seed, name), so neither order nor new clips change much.
        labels: class indices of every clip, possibly none.
        shares: the share of clips in each held-out part, in (0, 1) and less than 1 together.
        seed: of the draws.

    Returns:
        The part of every clip: a key of `shares`, or ``train``.
    """
    parts = [TRAIN, *shares]
    drawn = [
        hashlib.blake2b(f"{seed}:{name}".encode("utf-8", "surrogatepass"), digest_size=8).digest() for name in names
    ]
    order = sorted(range(len(names)), key=lambda i: (drawn[i], names[i]))
    deal = _Deal(labels, _quotas(_class_sizes(labels), list(shares.values())), list(shares.values()))
    members: dict[int, list[int]] = {}
    for clip in order:
        for label in labels[clip]:
            members.setdefault(label, []).append(clip)
    for label in sorted(members, key=lambda c: (len(members[c]), c)):
        for clip in members[label]:
            if deal.part[clip] < 0:
                deal.put(clip, deal.choice(label))
    for clip in order:
        if deal.part[clip] < 0:
            deal.put(clip, deal.neediest())
    for label in members:
        deal.mend(label, members[label])
    return [parts[part] for part in deal.part]


def _class_sizes(labels: Sequence[Sequence[int]]) -> np.ndarray:
    flat = [label for clip in labels for label in clip]
    return np.bincount(flat, minlength=1)


def _quotas(sizes: np.ndarray, shares: list[float]) -> np.ndarray:
    """How many clips of each class each part is to have: int64 ``(classes, parts)``, training first."""
    held_out = [
        np.where(sizes >= 2 * number, np.maximum(np.rint(sizes * share), 1), 0)
        for number, share in enumerate(shares, 1)
    ]
    return np.stack([sizes - sum(held_out), *held_out], axis=1).astype(np.int64)


class _Deal:
    """Clips on their way into parts; part 0 is training."""

    def __init__(self, labels: Sequence[Sequence[int]], quotas: np.ndarray, shares: list[float]) -> None:
        self.labels, self.quotas = labels, quotas
        self.part = np.full(len(labels), -1)
        self.dealt = np.zeros_like(quotas)
        """Clips of each class in each part so far."""
        self.wanted = len(labels) * np.array([1 - sum(shares), *shares])
        """Clips that each part still lacks."""

    def put(self, clip: int, part: int) -> None:
        self.part[clip] = part
        self.wanted[part] -= 1
        for label in self.labels[clip]:
            self.dealt[label, part] += 1

    def neediest(self) -> int:
        return int(np.argmax(self.wanted))

    def choice(self, label: int) -> int:
        """Where the next clip of a class goes: to a part without any, else to the one that lacks the largest share."""
        quota, dealt = self.quotas[label], self.dealt[label]
        empty = np.flatnonzero((quota > 0) & (dealt == 0))
        if len(empty):
            return int(empty[0])
        lack = np.where(quota > 0, (quota - dealt) / np.maximum(quota, 1), -np.inf)
        return int(max(range(len(quota)), key=lambda part: (lack[part], self.wanted[part])))

    def mend(self, label: int, clips: list[int]) -> None:
        """Moves a clip into each part that should have the class and has none, if no other class is lost by that."""
        for part in np.flatnonzero((self.quotas[label] > 0) & (self.dealt[label] == 0)):
            clip = next((clip for clip in clips if self._may_leave(clip, int(part))), None)
            if clip is not None:
                self.wanted[self.part[clip]] += 1
                for c in self.labels[clip]:
                    self.dealt[c, self.part[clip]] -= 1
                self.put(clip, int(part))

    def _may_leave(self, clip: int, part: int) -> bool:
        """Whether every class of a clip that is in two parts or more stays in the clip's part when it goes to another.

        Training and the first held-out part go before the others.
        """
        source = self.part[clip]
        return (source > 1 and part < source) or all(
            self.dealt[c, source] > 1 or self.quotas[c, source] == 0 or self.quotas[c].sum() == 1
            for c in self.labels[clip]
        )
