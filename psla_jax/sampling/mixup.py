"""Mixup of waveforms, before feature extraction (PSLA, section III-C)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STREAM = 2
"""Key that separates these random draws from others with the same seed and epoch."""
ALPHA = 10.0
"""Both parameters of the Beta distribution of the mixing weight."""


@dataclass(frozen=True)
class Mix:
    """Index of the partner clip, and the weight of the first clip; that of the partner is `1 - weight`."""

    partner: int
    weight: float


def draw_mix(rate: float, num_clips: int, *, seed: int, epoch: int, sample: int) -> Mix | None:
    """Draws, with probability `rate`, a partner uniformly from all clips and a weight from Beta(10, 10); else None.

    The draw is a function of (seed, epoch, sample) alone. As in the reference, partners are uniform, because balanced
    ones performed worse.
    """
    rng = np.random.default_rng([STREAM, seed, epoch, sample])
    if rng.random() >= rate:
        return None
    return Mix(int(rng.integers(num_clips)), float(rng.beta(ALPHA, ALPHA)))


def mix_waveforms(first: np.ndarray, second: np.ndarray, weight: float) -> np.ndarray:
    """Returns the sum of two zero-mean waveforms, weighted by `weight` in [0, 1] and `1 - weight`, minus its mean.

    The result has the length of `first`, `(samples,)`; `second` is cut or zero-padded to it.
    """
    mixed = np.float32(weight) * first
    common = min(len(first), len(second))
    mixed[:common] += np.float32(1.0 - weight) * second[:common]
    mixed -= mixed.mean()
    return mixed
