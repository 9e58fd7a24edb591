"""Averages of weights, ensembles of scores."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import build

from psla_jax.aggregation import AggregationError, RunningEnsemble, average, ensemble, reestimate
from psla_jax.evaluation import Scores
from psla_jax.frontend import Frontend
from psla_jax.training import Placement, split_model


def tree(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return {"a": rng.normal(size=(3, 4)).astype(np.float32), "b": {"c": rng.normal(size=5).astype(np.float32)}}


def scores(seed: int, clips: int = 6) -> Scores:
    rng = np.random.default_rng(seed)
    names = np.array([f"{i}.wav" for i in range(clips)])
    return Scores(names, rng.random((clips, 3)).astype(np.float32), np.eye(3, dtype=np.float32)[np.arange(clips) % 3])


def test_average_is_the_plain_mean_and_counts_each_model_once():
    found = average(tree(i) for i in range(4))
    np.testing.assert_allclose(found["a"], np.mean([tree(i)["a"] for i in range(4)], axis=0), rtol=1e-6)
    np.testing.assert_allclose(found["b"]["c"], np.mean([tree(i)["b"]["c"] for i in range(4)], axis=0), rtol=1e-6)
    assert found["a"].dtype == np.float32


def test_average_of_one_model_is_that_model():
    np.testing.assert_array_equal(average([tree(0)])["a"], tree(0)["a"])


def test_average_sums_in_double_precision():
    big = {"w": np.float32([1e8])}
    small = {"w": np.float32([1.0])}
    assert average([big, *[small] * 9])["w"][0] == np.float32((1e8 + 9) / 10)


def test_average_refuses_other_architectures_and_nothing():
    with pytest.raises(AggregationError, match="different architectures"):
        average([tree(0), {"a": np.zeros((3, 4), np.float32)}])
    with pytest.raises(AggregationError, match="different architectures"):
        average([{"a": np.zeros(3)}, {"a": np.zeros((3, 1))}])
    with pytest.raises(AggregationError, match="no model to average"):
        average([])


def test_ensemble_is_the_mean_of_probabilities_at_every_point_of_the_run():
    running = RunningEnsemble()
    for count in range(1, 5):
        running.add(scores(count - 1))
        wanted = np.mean([scores(i).scores for i in range(count)], axis=0)
        np.testing.assert_allclose(running.mean().scores, wanted, rtol=1e-6)
        np.testing.assert_array_equal(running.mean().scores, ensemble(scores(i) for i in range(count)).scores)


def test_ensemble_refuses_other_clips_and_nothing():
    with pytest.raises(AggregationError, match="different clips"):
        ensemble([scores(0), scores(1, clips=5)])
    shuffled = scores(1)
    with pytest.raises(AggregationError, match="different clips"):
        ensemble([scores(0), Scores(shuffled.clips[::-1], shuffled.scores, shuffled.labels)])
    with pytest.raises(AggregationError, match="at least one"):
        ensemble([])


def batch(seed: int, frontend: Frontend) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "waveform": rng.normal(size=(8, frontend.num_samples)).astype(np.float32) * 0.1 * (1 + seed),
        "num_samples": np.full(8, frontend.num_samples, np.int32),
        "labels": np.zeros((8, 5), np.float32),
        "valid": np.ones(8, np.float32),
    }


def test_reestimated_statistics_are_the_mean_of_the_batches_own_and_leave_the_model_alone():
    frontend, model = Frontend(40), build(5, nnx.Rngs(0))
    params, rest = split_model(model)
    placement = Placement.over(jax.devices()[:1])
    given = [batch(seed, frontend) for seed in range(3)]
    found = reestimate((nnx.graphdef(model), params, rest), frontend, given, placement.put)
    wanted = []
    for one in given:
        spectrograms = frontend(one["waveform"], one["num_samples"])
        first = np.asarray(model.stem(jnp.swapaxes(spectrograms, 1, 2)[..., None]))
        wanted.append((first.mean((0, 1, 2)), first.var((0, 1, 2), ddof=1)))
    np.testing.assert_allclose(found["norm"]["mean"], np.mean([w[0] for w in wanted], axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["norm"]["var"], np.mean([w[1] for w in wanted], axis=0), rtol=1e-4)
    assert float(np.abs(model.norm.mean[...]).max()) == 0.0
