"""Distillation: a loss with the scores of a teacher as targets besides the labels.

The loss of a clip is ``weight * cross_entropy(softened scores, teacher) + (1 - weight) * loss(scores, labels)``. The
cross-entropy is that of all classes for ``bce`` and similar losses, and that of the distribution over the classes for
exclusive classes. With a temperature T, scores are softened as those of the teacher are: their logits are divided by T,
which leaves them as they are for T = 1. There is no factor T ** 2, so that the teacher's gradient shrinks with T. Class
weights apply to both parts.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from psla_jax.config_distill import DistillConfig
from psla_jax.models.exclusive import EPSILON, normalise
from psla_jax.training import losses
from psla_jax.training.losses import Loss, binary_cross_entropy, cross_entropy
from psla_jax.training.objective import Consistency


def soften(scores: jax.Array, temperature: float, *, exclusive: bool) -> jax.Array:
    """Returns scores ``(batch, classes)`` whose logits are divided by a temperature, as for teachers.

    With exclusive classes, it is the softmax of the logarithms of the scores, divided by the temperature.
    """
    if exclusive:
        return jax.nn.softmax(jnp.log(normalise(scores)) / temperature, axis=-1)
    if temperature == 1.0:
        return scores
    scores = jnp.clip(scores, EPSILON, 1.0 - EPSILON)
    return jax.nn.sigmoid((jnp.log(scores) - jnp.log1p(-scores)) / temperature)


def distilled(loss: Loss, config: DistillConfig, *, exclusive: bool, weights: jax.Array | None = None) -> Loss:
    """Returns the loss with a teacher, ``loss(scores, labels, teacher, **fields)``, as this module defines it.

    Args:
        loss: the loss of the labels.
        config: weight and temperature.
        exclusive: whether every clip has exactly one class.
        weights: ``(classes,)`` weights of the classes; None for equal ones.
    """
    imitation = cross_entropy if exclusive else binary_cross_entropy

    def combined(scores: jax.Array, labels: jax.Array, teacher: jax.Array, **fields: jax.Array) -> jax.Array:
        soft = soften(scores, config.temperature, exclusive=exclusive)
        of_labels = losses.call(loss, scores, labels, fields)
        return config.weight * imitation(soft, teacher, weights) + (1.0 - config.weight) * of_labels

    return combined


def agreement(config: DistillConfig, *, exclusive: bool) -> Consistency | None:
    """Returns the term of ``distill.consistency`` for two views, a symmetric cross-entropy; None if it is 0.

    Each view learns from the scores of the other, which are constants for the gradient.
    """
    if not config.consistency:
        return None

    def term(scores: jax.Array, others: jax.Array) -> jax.Array:
        if exclusive:
            scores, others = normalise(scores), normalise(others)
        loss = cross_entropy if exclusive else binary_cross_entropy
        one, other = (loss(a, jax.lax.stop_gradient(b)) for a, b in ((scores, others), (others, scores)))
        return config.consistency * (one + other) / 2

    return term
