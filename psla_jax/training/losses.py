"""Losses of a training step: from scores and labels `(batch, classes)` to one value per clip, `(batch,)`."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from psla_jax.models.exclusive import EPSILON, normalise


def binary_cross_entropy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the binary cross-entropy, averaged over the classes.

    Scores are clipped to [1e-7, 1 - 1e-7] as in the reference.
    """
    scores = jnp.clip(scores, EPSILON, 1.0 - EPSILON)
    return -jnp.mean(labels * jnp.log(scores) + (1.0 - labels) * jnp.log1p(-scores), axis=1)


def cross_entropy(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the cross-entropy of single-label data sets: scores are normalised over the classes.

    With mixup, `labels` is a distribution over two classes. The reference takes its argmax, which drops the second one.
    """
    return -jnp.sum(labels * jnp.log(normalise(scores)), axis=1)


LOSSES: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "auto": binary_cross_entropy,  # A run replaces "auto" by what the training datafile says of its classes.
    "bce": binary_cross_entropy,
    "ce": cross_entropy,
}
