"""Mixup of waveforms, before feature extraction (PSLA, section III-C)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ALPHA = 10.0
"""Both parameters of the Beta distribution of the mixing weight."""


@dataclass(frozen=True)
class Mix:
    """Indices of the clips that are mixed with a first one, and the weights of all, which add up to 1."""

    partners: tuple[int, ...]
    weights: tuple[float, ...]
    """Weight of the first clip, then those of the partners."""


def draw_mix(
    rng: np.random.Generator, rate: float, num_clips: int, *, alpha: float = ALPHA, most: int = 2
) -> Mix | None:
    """Draws, with probability `rate`, partners uniformly from all clips, and the weights; else returns None.

    Two clips have weights from Beta(alpha, alpha). With `most` above 2, the number of clips is uniform from 2 to
    `most`, and their weights are from a symmetric Dirichlet distribution with parameter `alpha`. As in the reference,
    partners are uniform, because balanced ones performed worse.
    """
    if rng.random() >= rate:
        return None
    count = 2 if most == 2 else int(rng.integers(2, most + 1))
    partners = tuple(int(rng.integers(num_clips)) for _ in range(count - 1))
    if most == 2:
        weight = float(rng.beta(alpha, alpha))
        return Mix(partners, (weight, 1.0 - weight))
    return Mix(partners, tuple(map(float, rng.dirichlet([alpha] * count))))


def mix_waveforms(waveforms: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Returns the weighted sum of zero-mean waveforms, minus its mean.

    The result has the length of the first one, ``(samples,)``; the others are cut or zero-padded to it.
    """
    mixed = np.float32(weights[0]) * waveforms[0]
    for waveform, weight in zip(waveforms[1:], weights[1:], strict=True):
        common = min(len(mixed), len(waveform))
        mixed[:common] += np.float32(weight) * waveform[:common]
    mixed -= mixed.mean()
    return mixed
