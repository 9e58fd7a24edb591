"""Selection and order of the training clips of an epoch (PSLA, section III-C)."""

from __future__ import annotations

import numpy as np

STREAM = 1
"""Key that separates these random draws from others with the same seed and epoch."""


def epoch_order(num_clips: int, weights: np.ndarray | None, *, seed: int, epoch: int) -> np.ndarray:
    """Draws the clips of one epoch, counted from 0, as a function of (seed, epoch) alone.

    With sampling weights `(num_clips,)`, clips are drawn with replacement (the reference's WeightedRandomSampler);
    with None, every clip occurs once, in a random order. Returns `(num_clips,)` int64 clip indices.
    """
    rng = np.random.default_rng([STREAM, seed, epoch])
    if weights is None:
        return rng.permutation(num_clips)
    return rng.choice(num_clips, num_clips, p=weights / weights.sum())
