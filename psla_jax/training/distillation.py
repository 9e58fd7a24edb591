"""Distillation: a loss with the scores of a teacher as targets besides the labels.

The loss of a clip is ``weight * cross_entropy(softened scores, teacher) + (1 - weight) * loss(scores, labels)``. The
cross-entropy is that of all classes for ``bce`` and similar losses, and that of the distribution over the classes for
exclusive classes. With a temperature T, scores are softened as those of the teacher are: their logits are divided by T,
which leaves them as they are for T = 1. There is no factor T ** 2, so that the teacher's gradient shrinks with T. Class
weights apply to both parts.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from psla_jax.config import RunConfig, is_exclusive
from psla_jax.config_distill import DistillConfig
from psla_jax.data import teacher
from psla_jax.data.datasets import DataSets
from psla_jax.data.teacher import TeacherError, TeacherScores
from psla_jax.models.exclusive import EPSILON, normalise
from psla_jax.runtime import distributed
from psla_jax.training import losses
from psla_jax.training.losses import Loss, binary_cross_entropy, cross_entropy


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


def label_loss(config: RunConfig, data: DataSets) -> Loss:
    """Returns the loss of the labels of a run, with the class weights that its training set gives."""
    return losses.from_config(config.optimizer, _class_weights(config, data))


def run_loss(config: RunConfig, data: DataSets) -> Loss:
    """Returns the loss of the training steps of a run: that of the labels, or with a teacher, of both."""
    loss = label_loss(config, data)
    if not config.distill.active:
        return loss
    weights, exclusive = _class_weights(config, data), is_exclusive(config.optimizer.loss)
    array = None if weights is None else jnp.asarray(weights)
    return distilled(loss, config.distill, exclusive=exclusive, weights=array)


def _class_weights(config: RunConfig, data: DataSets) -> np.ndarray | None:
    source, counts = config.optimizer.class_weights, data.train.class_counts()
    return losses.class_weights(source, counts, data.vocabulary) if source else None


def teacher_scores(directory: Path, config: RunConfig, data: DataSets) -> TeacherScores | None:
    """Returns the scores of the teacher of a run, which the primary process writes to the run directory; else None.

    Raises TeacherError if they cannot be used.
    """
    if not config.distill.teacher:
        return None
    exclusive, sha256, target = is_exclusive(config.optimizer.loss), data.teacher["sha256"], directory / ".index"

    def prepare() -> str:
        arguments = config.distill, sha256, data.train, data.vocabulary
        return teacher.prepare(*arguments, exclusive=exclusive, directory=target).directory

    return TeacherScores(distributed.on_primary(prepare, TeacherError))
