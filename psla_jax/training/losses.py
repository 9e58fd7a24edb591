"""Losses of a training step.

A loss is called as ``loss(scores, labels, ...)`` with `scores` and `labels` ``(batch, classes)``, and returns one value
per clip, ``(batch,)``. By their names, it may take further parameters: ``class_weights (classes,)``, ``valid (batch,)``
and in one's own training loop all other fields of a batch. All other parameters are options, as in
``focal(gamma=1.5)``. A loss whose attribute ``exclusive`` is True is for clips with exactly one class each.
"""

from __future__ import annotations

import csv
import functools
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psla_jax import ingredients
from psla_jax.config import ConfigError, OptimizerConfig, is_exclusive
from psla_jax.models.exclusive import EPSILON, normalise
from psla_jax.vocabulary.vocabulary import Vocabulary

Loss = Callable[..., jax.Array]
LOSS_FIELD = "optimizer.loss"


def binary_cross_entropy(scores: jax.Array, labels: jax.Array, class_weights: jax.Array | None = None) -> jax.Array:
    """Returns the binary cross-entropy, averaged over the classes.

    Scores are clipped to [1e-7, 1 - 1e-7] as in the reference.
    """
    scores = jnp.clip(scores, EPSILON, 1.0 - EPSILON)
    return -_mean(labels * jnp.log(scores) + (1.0 - labels) * jnp.log1p(-scores), class_weights)


def cross_entropy(scores: jax.Array, labels: jax.Array, class_weights: jax.Array | None = None) -> jax.Array:
    """Returns the cross-entropy of single-label data sets: scores are normalised over the classes.

    With mixup, `labels` is a distribution over two classes. The reference takes its argmax, which drops the second one.
    """
    terms = labels * jnp.log(normalise(scores))
    return -jnp.sum(terms if class_weights is None else terms * class_weights, axis=1)


cross_entropy.exclusive = True  # type: ignore[attr-defined]


def focal(
    scores: jax.Array, labels: jax.Array, class_weights: jax.Array | None = None, *, gamma: float = 2.0
) -> jax.Array:
    """Returns the binary focal loss, averaged over the classes: easy classes count less.

    The term of a positive label is weighted by ``(1 - score) ** gamma``, that of a negative one by ``score ** gamma``.
    Source: Lin et al., Focal loss for dense object detection (ICCV 2017), without the factor alpha.
    """
    if gamma < 0:
        raise ValueError(f"gamma is {gamma}, which is negative")
    scores = jnp.clip(scores, EPSILON, 1.0 - EPSILON)
    log_likelihood = labels * jnp.log(scores) * (1.0 - scores) ** gamma
    log_likelihood += (1.0 - labels) * jnp.log1p(-scores) * scores**gamma
    return -_mean(log_likelihood, class_weights)


def asymmetric(
    scores: jax.Array,
    labels: jax.Array,
    class_weights: jax.Array | None = None,
    *,
    gamma_positive: float = 0.0,
    gamma_negative: float = 4.0,
    margin: float = 0.05,
) -> jax.Array:
    """Returns the asymmetric loss, averaged over the classes: easy negatives count less than positives.

    Negative scores are reduced by `margin`, and focused by `gamma_negative`; positive ones by `gamma_positive`. Source:
    Ridnik et al., Asymmetric loss for multi-label classification (ICCV 2021), where the factor is differentiated too.
    """
    if min(gamma_positive, gamma_negative) < 0:
        raise ValueError("gamma_positive or gamma_negative is negative")
    scores = jnp.clip(scores, EPSILON, 1.0 - EPSILON)
    shifted = jnp.maximum(scores - margin, EPSILON)
    log_likelihood = labels * jnp.log(scores) * (1.0 - scores) ** gamma_positive
    log_likelihood += (1.0 - labels) * jnp.log1p(-shifted) * shifted**gamma_negative
    return -_mean(log_likelihood, class_weights)


def _mean(terms: jax.Array, class_weights: jax.Array | None) -> jax.Array:
    return jnp.mean(terms if class_weights is None else terms * class_weights, axis=1)


LOSSES: dict[str, Loss] = {
    "auto": binary_cross_entropy,  # A run resolves "auto" to bce or ce, by the training datafile.
    "bce": binary_cross_entropy,
    "ce": cross_entropy,
    "focal": focal,
    "asymmetric": asymmetric,
}
"""The losses by their names in a config."""


def call(loss: Loss, scores: jax.Array, labels: jax.Array, fields: Mapping[str, jax.Array]) -> jax.Array:
    """Returns ``loss(scores, labels)`` with those of further `fields` of a batch that it takes by name."""
    if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(loss).parameters.values()):
        return loss(scores, labels, **fields)
    return ingredients.call(loss, scores, labels, field=LOSS_FIELD, **fields)


def from_config(config: OptimizerConfig, weights: np.ndarray | None = None) -> Loss:
    """Returns the loss of a run, with class weights and label smoothing; it has the parameters of the named one.

    Args:
        config: its loss and label smoothing.
        weights: ``(classes,)`` weights of the classes, see :func:`class_weights`; None for equal ones.

    Raises:
        ConfigError, IngredientError: there is no such loss, or it takes no class weights.
    """
    function = ingredients.find(config.loss, LOSSES, LOSS_FIELD)
    if weights is not None:
        if not ingredients.accepts(function, "class_weights"):
            raise ConfigError(
                f"optimizer.class_weights is {config.class_weights!r}, but the loss {config.loss} takes no parameter "
                "class_weights: use another loss, or leave class_weights empty."
            )
        function = functools.partial(function, class_weights=weights)
    smoothing, exclusive = config.label_smoothing, is_exclusive(config.loss)

    @functools.wraps(function)
    def smoothed(scores: jax.Array, labels: jax.Array, **fields: jax.Array) -> jax.Array:
        chance = 1.0 / labels.shape[1] if exclusive else 0.5
        return function(scores, labels * (1.0 - smoothing) + chance * smoothing, **fields)

    return smoothed if smoothing else function


def require_usable(loss: Loss, num_classes: int, fields: Mapping[str, Any], name: str) -> None:
    """Raises IngredientError unless a loss maps scores and labels to one value per clip.

    `fields` are the other device fields of a batch by name, as arrays or ``jax.ShapeDtypeStruct`` with two clips.
    """
    ingredients.bound(loss, 2, field=LOSS_FIELD, **fields)
    scores = jax.ShapeDtypeStruct((2, num_classes), jnp.float32)
    try:
        result = jax.eval_shape(lambda x, fields: call(loss, x, x, fields), scores, dict(fields))
    except Exception as error:
        raise ingredients.IngredientError(
            f"{LOSS_FIELD} is {name!r}, which cannot be computed ({ingredients.reason(error)}): correct the function."
        ) from error
    if getattr(result, "shape", None) != (2,):
        shape = getattr(result, "shape", type(result).__name__)
        raise ingredients.IngredientError(
            f"{LOSS_FIELD} is {name!r}, which returns {shape} for two clips: return one value per clip, (2,)."
        )


def class_weights(source: str, class_counts: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Returns float32 weights ``(classes,)`` with a mean of 1.

    Args:
        source: ``inverse`` or ``sqrt``, by the (square root of the) inverse of `class_counts`, where a class without a
            clip counts as one; or the path of a CSV file with the header ``mid,weight``.
        class_counts: ``(classes,)`` training clips of every class.
        vocabulary: the classes.

    Raises:
        ConfigError: the file cannot be read, or lacks a class.
    """
    if source in ("inverse", "sqrt"):
        weights = np.maximum(class_counts, 1.0) ** (-1.0 if source == "inverse" else -0.5)
    else:
        weights = np.array(_read_weights(source, vocabulary))
    return (weights / weights.mean()).astype(np.float32)


def _read_weights(source: str, vocabulary: Vocabulary) -> list[float]:
    field = f"optimizer.class_weights is {source!r}"
    if not Path(source).is_file():
        raise ConfigError(f"{field}: choose inverse or sqrt, or name a CSV file with the header mid,weight.")
    try:
        with open(source, newline="", encoding="utf-8") as file:
            by_mid = {row["mid"]: float(row["weight"]) for row in csv.DictReader(file)}
        weights = [by_mid[mid] for mid in vocabulary.mids]
    except KeyError as error:
        raise ConfigError(
            f"{field}, which lacks {error}: give every class a row below the header mid,weight."
        ) from error
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{field}, which cannot be read ({error}): give every class a number as its weight."
        ) from error
    if not (np.isfinite(weights).all() and min(weights) >= 0 < max(weights)):
        raise ConfigError(f"{field}, with weights from {min(weights)} to {max(weights)}: use finite ones of 0 or more.")
    return weights
