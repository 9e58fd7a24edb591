"""Mixup of waveforms (PSLA, section III-C): in the time domain, before any feature is taken."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STREAM = 2
"""Sets these draws apart from others keyed by the same seed and epoch."""
ALPHA = 10.0
"""Both parameters of the Beta distribution of the mixing weight."""


@dataclass(frozen=True)
class Mix:
    """A partner clip and the weight of the first clip; the partner has the rest."""

    partner: int
    weight: float


def draw_mix(rate: float, num_clips: int, *, seed: int, epoch: int, sample: int) -> Mix | None:
    """With probability `rate`, a partner drawn uniformly from the whole set and a weight from Beta(10, 10); else None.

    The draw is a function of (seed, epoch, sample), whoever makes it. Uniform partners are the reference's choice:
    balanced ones did worse.
    """
    rng = np.random.default_rng([STREAM, seed, epoch, sample])
    if rng.random() >= rate:
        return None
    return Mix(int(rng.integers(num_clips)), float(rng.beta(ALPHA, ALPHA)))


def mix_waveforms(first: np.ndarray, second: np.ndarray, weight: float) -> np.ndarray:
    """`weight` of the first waveform and the rest of the second, mean-free again.

    Args:
        first: `(samples,)`, mean-free; gives the length.
        second: `(any,)`, mean-free; cut or zero-padded to that length.
        weight: of the first, in [0, 1].
    """
    mixed = np.float32(weight) * first
    common = min(len(first), len(second))
    mixed[:common] += np.float32(1.0 - weight) * second[:common]
    mixed -= mixed.mean()
    return mixed
