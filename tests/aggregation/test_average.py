"""Weight averages, re-estimated batch statistics and score ensembles."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny import build
from tolerance import assert_close, assert_trees_close

from psla_jax.aggregation.average import AggregationError, RunningEnsemble, average, ensemble, reestimate
from psla_jax.audio.frontend import Frontend
from psla_jax.evaluation.predict import Scores
from psla_jax.models.state import split_model
from psla_jax.runtime.sharding import Placement


def tree(seed: int) -> dict:
    rng = np.random.default_rng(seed)
    return {"a": rng.normal(size=(3, 4)).astype(np.float32), "b": {"c": rng.normal(size=5).astype(np.float32)}}


def scores(seed: int, clips: int = 6) -> Scores:
    rng = np.random.default_rng(seed)
    names = np.array([f"{i}.wav" for i in range(clips)])
    return Scores(names, rng.random((clips, 3)).astype(np.float32), np.eye(3, dtype=np.float32)[np.arange(clips) % 3])


def test_average_is_the_plain_mean_and_counts_each_model_once():
    trees = [tree(i) for i in range(4)]
    mean = average(iter(trees))
    assert_trees_close(mean, jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *trees), 1e-6)
    assert mean["a"].dtype == np.float32


def test_average_of_one_model_is_that_model():
    np.testing.assert_array_equal(average([tree(0)])["a"], tree(0)["a"])


def test_average_sums_in_double_precision():
    big = {"w": np.float32([1e8])}
    small = {"w": np.float32([1.0])}
    assert average([big, *[small] * 9])["w"][0] == np.float32((1e8 + 9) / 10)


def test_average_refuses_different_architectures_and_an_empty_list():
    with pytest.raises(AggregationError, match="different architectures"):
        average([tree(0), {"a": np.zeros((3, 4), np.float32)}])
    with pytest.raises(AggregationError, match="different architectures"):
        average([{"a": np.zeros(3)}, {"a": np.zeros((3, 1))}])
    with pytest.raises(AggregationError, match="nothing to average"):
        average([])


def test_a_running_ensemble_is_the_mean_of_the_scores_so_far():
    running = RunningEnsemble()
    for count in range(1, 5):
        running.add(scores(count - 1))
        expected = np.mean([scores(i).scores for i in range(count)], axis=0)
        np.testing.assert_allclose(running.mean().scores, expected, atol=1e-6)
        np.testing.assert_array_equal(running.mean().scores, ensemble(scores(i) for i in range(count)).scores)


def test_ensemble_refuses_different_clips_and_an_empty_list():
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


def test_reestimated_statistics_are_the_means_over_the_batches_and_the_model_is_unchanged():
    frontend, model = Frontend(40), build(5, nnx.Rngs(0))
    placement = Placement.over(jax.devices()[:1])
    batches = [batch(seed, frontend) for seed in range(3)]
    stats = reestimate((nnx.graphdef(model), *split_model(model)), frontend, batches, placement.shard_rows)
    means, variances = [], []
    for fields in batches:
        spectrograms = frontend(fields["waveform"], fields["num_samples"], zero_mean=False)
        features = np.asarray(model.stem(jnp.swapaxes(spectrograms, 1, 2)[..., None]), np.float64)
        means.append(features.mean((0, 1, 2)))
        variances.append(features.var((0, 1, 2), ddof=1))
    assert_close(stats["norm"]["mean"], np.mean(means, axis=0), 1e-5)
    assert_close(stats["norm"]["var"], np.mean(variances, axis=0), 1e-5)
    assert float(np.abs(model.norm.mean[...]).max()) == 0.0


def test_reestimation_weights_batches_by_their_clips():
    """A last batch with two clips of eight counts a quarter, and one without any not at all."""
    frontend, model = Frontend(40), build(5, nnx.Rngs(0))
    placement = Placement.over(jax.devices()[:1])
    batches = [batch(seed, frontend) for seed in range(3)]
    batches[1]["valid"][2:] = 0
    batches[2]["valid"][:] = 0
    stats = reestimate((nnx.graphdef(model), *split_model(model)), frontend, batches, placement.shard_rows)
    means = []
    for fields in batches:
        spectrograms = frontend(fields["waveform"], fields["num_samples"], zero_mean=False)
        features = np.asarray(model.stem(jnp.swapaxes(spectrograms, 1, 2)[..., None]), np.float64)
        means.append(features.mean((1, 2)))
    expected = np.concatenate([means[0], means[1][:2]]).mean(axis=0)
    assert_close(stats["norm"]["mean"], expected, 1e-5)
    with pytest.raises(AggregationError, match="nothing to average"):
        reestimate((nnx.graphdef(model), *split_model(model)), frontend, batches[2:], placement.shard_rows)
