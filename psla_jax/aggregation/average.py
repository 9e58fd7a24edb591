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
from psla_jax.evaluation.predict import ShardBatch
from psla_jax.evaluation.scores import Scores
from psla_jax.models import views


class AggregationError(ValueError):
    """Models or scores that cannot be averaged."""


def average(trees: Iterable[Any]) -> Any:
    """Returns the mean of trees of arrays, computed in float64 and converted to the types of the leaves.

    The trees are consumed one by one; memory holds one of them and the sum. Raises AggregationError if there is no
    tree, or two trees differ in structure or shapes.
    """
    total: Any = None
    count = 0
    for tree in trees:
        count += 1
        if total is None:
            total = jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
            dtypes = jax.tree.map(lambda x: np.asarray(x).dtype, tree)
        elif _layout(tree) != _layout(total):
            raise AggregationError("models of different architectures cannot be averaged: name models of one run.")
        else:
            total = jax.tree.map(lambda a, b: a + np.asarray(b, np.float64), total, tree)
    if total is None:
        raise AggregationError("there is no model to average: name at least one.")
    return jax.tree.map(lambda x, dtype: (x / count).astype(dtype), total, dtypes)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _batch_stats(graphdef: Any, frontend: Frontend, params: Any, batch_stats: Any, batch: dict[str, jax.Array]) -> Any:
    """Returns the statistics of a single batch without augmentation."""
    model = views.statistics_view(nnx.merge(graphdef, params, batch_stats))
    spectrograms = frontend(batch["waveform"], batch["num_samples"], zero_mean=False)
    views.apply(model, spectrograms, batch["valid"], nnx.Rngs(drop=0))
    return nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))


def reestimate(
    model: tuple[Any, Any, Any], frontend: Frontend, batches: Iterable[dict[str, np.ndarray]], shard_batch: ShardBatch
) -> Any:
    """Re-estimates the batch statistics of averaged weights, which the average of the statistics does not match.

    Arguments are those of :func:`psla_jax.evaluation.predict.score`; `batches` is one pass over the training set,
    without augmentation. Returns the mean of the statistics of the batches.
    """
    graphdef, params, batch_stats = model
    return average(
        jax.device_get(_batch_stats(graphdef, frontend, params, batch_stats, shard_batch(batch))) for batch in batches
    )


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
