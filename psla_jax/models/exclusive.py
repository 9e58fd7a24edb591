"""Scores of models whose classes are exclusive: every clip has exactly one class."""

from __future__ import annotations

import jax
import jax.numpy as jnp

EPSILON = 1e-7
"""Lower bound of the scores before they are normalised."""


def normalise(scores: jax.Array) -> jax.Array:
    """Returns scores `(..., classes)` divided by their sum over the classes.

    Cross-entropy trains this distribution; it determines only the ratios of the scores that the head returns.
    """
    scores = jnp.clip(scores, EPSILON, None)
    return scores / jnp.sum(scores, axis=-1, keepdims=True)
