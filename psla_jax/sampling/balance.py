"""Which clips an epoch visits, and in which order (PSLA, section III-C)."""

from __future__ import annotations

import numpy as np

STREAM = 1
"""Sets these draws apart from others keyed by the same seed and epoch."""


def epoch_order(num_clips: int, weights: np.ndarray | None, *, seed: int, epoch: int) -> np.ndarray:
    """The clips of one epoch, a function of (seed, epoch) alone.

    Args:
        num_clips: size of the training set; also the number of draws.
        weights: `(num_clips,)` sampling weights for draws with replacement (the reference's
            WeightedRandomSampler), or None for every clip once in a random order.
        seed: key of the draw, of the run,
        epoch: and of the epoch, counted from 0.

    Returns:
        `(num_clips,)` int64 clip indices.
    """
    rng = np.random.default_rng([STREAM, seed, epoch])
    if weights is None:
        return rng.permutation(num_clips)
    return rng.choice(num_clips, num_clips, p=weights / weights.sum())
