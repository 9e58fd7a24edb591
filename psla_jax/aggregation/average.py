"""Weight averaging and score ensembles: the A of PSLA (section III-E)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from flax import nnx

from psla_jax.audio.frontend import Frontend
from psla_jax.evaluation.predict import ShardRows
from psla_jax.evaluation.scores import Scores
from psla_jax.models import views
from psla_jax.models.platforms import layers_where
from psla_jax.models.state import split_model


class AggregationError(ValueError):
    """Models or scores that cannot be averaged."""


def average(trees: Iterable[Any]) -> Any:
    """Returns the mean of trees of arrays: :func:`weighted_average` with equal weights."""
    return weighted_average((1.0, tree) for tree in trees)


def weighted_average(weighted_trees: Iterable[tuple[float, Any]]) -> Any:
    """Returns the mean of trees of arrays with their weights, computed in float64 and converted back to their types.

    The trees are consumed one by one; memory holds one of them and the sum. Raises AggregationError if there is no
    tree with a positive weight, or two trees differ in structure or shapes.
    """
    total: Any = None
    weights = 0.0
    for weight, tree in weighted_trees:
        if total is None:
            total = jax.tree.map(lambda x: np.zeros(np.shape(x), np.float64), tree)
            dtypes = jax.tree.map(lambda x: np.asarray(x).dtype, tree)
        elif _layout(tree) != _layout(total):
            raise AggregationError("models of different architectures cannot be averaged: name models of one run.")
        weights += weight
        total = jax.tree.map(lambda a, b, w=weight: a + w * np.asarray(b, np.float64), total, tree)
    if not weights:
        raise AggregationError("there is nothing to average: name at least one model, or data with readable clips.")
    return jax.tree.map(lambda x, dtype: (x / weights).astype(dtype), total, dtypes)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _batch_stats(
    graphdef: Any, frontend: Frontend, params: Any, batch_stats: Any, batch: dict[str, jax.Array]
) -> tuple[jax.Array, Any]:
    """Returns the number of clips and the statistics of a single batch without augmentation."""
    model = views.statistics_view(nnx.merge(graphdef, params, batch_stats))
    spectrograms = frontend(batch["waveform"], batch["num_samples"], zero_mean=False)
    views.apply(model, spectrograms, batch["valid"], nnx.Rngs(drop=0))
    return batch["valid"].sum(), split_model(model)[1]


def reestimate(
    model: tuple[Any, Any, Any], frontend: Frontend, batches: Iterable[dict[str, np.ndarray]], shard_rows: ShardRows
) -> Any:
    """Re-estimates the batch statistics of averaged weights, which the average of the statistics does not match.

    Arguments are those of :func:`psla_jax.evaluation.predict.score`; `batches` is one pass over the training set,
    without augmentation. Returns the mean of the statistics of the batches, each weighted by its number of clips.
    """
    graphdef, params, batch_stats = model
    fields = ("waveform", "num_samples", "valid")

    def weighted_statistics(batch: dict[str, np.ndarray]) -> tuple[float, Any]:
        rows = shard_rows({name: batch[name] for name in fields})
        with layers_where(rows["waveform"]):
            return jax.device_get(_batch_stats(graphdef, frontend, params, batch_stats, rows))

    return weighted_average(map(weighted_statistics, batches))


def _layout(tree: Any) -> tuple[Any, list[tuple[int, ...]]]:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [np.shape(leaf) for leaf in leaves]


class RunningEnsemble:
    """Running mean of the scores of several models; memory holds only their sum."""

    def __init__(self) -> None:
        self._first: Scores | None = None
        self._total = np.zeros(())
        self._count = 0

    def add(self, member: Scores) -> None:
        """Adds the scores of a model; raises AggregationError if clips or classes differ from those of earlier ones."""
        if self._first is None:
            self._first, self._total = member, member.scores.astype(np.float64)
        elif member.scores.shape != self._total.shape or not np.array_equal(self._first.clips, member.clips):
            raise AggregationError("the members of an ensemble were scored on different clips: score them again.")
        else:
            self._total += member.scores
        self._count += 1

    def mean(self) -> Scores:
        """Returns the mean of the scores added so far; raises AggregationError if there are none."""
        if self._first is None:
            raise AggregationError("an ensemble needs at least one member.")
        return dataclasses.replace(self._first, scores=(self._total / self._count).astype(np.float32))


def ensemble(members: Iterable[Scores]) -> Scores:
    """Returns the mean of the members' scores; raises AggregationError as :class:`RunningEnsemble` does."""
    running = RunningEnsemble()
    for member in members:
        running.add(member)
    return running.mean()
