"""The A of PSLA: averages of weights and ensembles of scores (section III-E)."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np
from flax import nnx

from psla_jax.evaluation import Put
from psla_jax.frontend import Frontend
from psla_jax.models import tagger
from psla_jax.scores import Scores


class AggregationError(ValueError):
    """Models that cannot be averaged."""


def average(trees: Iterable[Any]) -> Any:
    """The plain mean of trees of arrays, leaf by leaf, in float64; the result has the leaves' own types.

    Trees are taken one after the other: memory holds one of them and the sum.

    Raises:
        AggregationError: if there is none, or two differ in structure or shape.
    """
    total: Any = None
    count = 0
    for tree in trees:
        count += 1
        if total is None:
            first, total = jax.tree.map(np.asarray, tree), jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
            continue
        if _layout(tree) != _layout(total):
            raise AggregationError("models of different architectures cannot be averaged: name models of one run.")
        total = jax.tree.map(lambda a, b: a + np.asarray(b, np.float64), total, tree)
    if total is None:
        raise AggregationError("there is no model to average: name at least one.")
    return jax.tree.map(lambda x, like: (x / count).astype(like.dtype), total, first)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _statistics(graphdef: Any, frontend: Frontend, params: Any, rest: Any, batch: dict[str, jax.Array]) -> Any:
    """The batch statistics of one batch alone, unaugmented."""
    model = tagger.statistics_view(nnx.merge(graphdef, params, rest))
    tagger.apply(model, frontend(batch["waveform"], batch["num_samples"]), batch["valid"], nnx.Rngs(drop=0))
    return nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))


def reestimate(
    model: tuple[Any, Any, Any], frontend: Frontend, batches: Iterable[dict[str, np.ndarray]], put: Put
) -> Any:
    """Fresh batch statistics for averaged weights: those of the weights averaged do not fit them.

    Args:
        model: graphdef, parameters and other variables, in evaluation view.
        frontend: waveforms to spectrograms.
        batches: one pass over the training set, without augmentation.
        put: moves a batch to the devices.

    Returns:
        The mean of the batches' statistics, in place of the other variables.
    """
    return average(jax.device_get(_statistics(model[0], frontend, model[1], model[2], put(b))) for b in batches)


def _layout(tree: Any) -> tuple[Any, list[tuple[int, ...]]]:
    leaves, structure = jax.tree.flatten(tree)
    return structure, [np.shape(leaf) for leaf in leaves]


class RunningEnsemble:
    """The mean of the probabilities of models added one after the other; memory holds the sum alone."""

    def __init__(self) -> None:
        self._first: Scores | None = None
        self._total = np.zeros(())
        self._count = 0

    def add(self, member: Scores) -> None:
        """Raises AggregationError if `member` was not scored on the same clips and classes as those before."""
        if self._first is None:
            self._first, self._total = member, member.scores.astype(np.float64)
        elif member.scores.shape != self._total.shape or not np.array_equal(self._first.clips, member.clips):
            raise AggregationError("the members of an ensemble were scored on different clips: score them again.")
        else:
            self._total = self._total + member.scores
        self._count += 1

    def mean(self) -> Scores:
        """The ensemble so far. Raises AggregationError if nothing was added."""
        if self._first is None:
            raise AggregationError("an ensemble needs at least one member.")
        mean = (self._total / self._count).astype(np.float32)
        return dataclasses.replace(self._first, scores=mean)


def ensemble(members: Iterable[Scores]) -> Scores:
    """The mean of the members' probabilities, clip by clip. Raises AggregationError as :class:`RunningEnsemble`."""
    running = RunningEnsemble()
    for member in members:
        running.add(member)
    return running.mean()
