"""Order of an epoch: dependence on (seed, epoch), and distribution of the draws."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from psla_jax.sampling.balance import epoch_order

WEIGHTS = np.random.default_rng(5).uniform(0.1, 10, 400)
EPOCHS = 50


def orders(weights: np.ndarray | None, num_clips: int = len(WEIGHTS), epochs: int = EPOCHS) -> np.ndarray:
    """Returns the orders of several epochs with one seed, ``(epochs, num_clips)``."""
    return np.stack([epoch_order(num_clips, weights, seed=3, epoch=epoch) for epoch in range(epochs)])


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["shuffled", "weighted"])
def test_an_order_is_a_function_of_seed_and_epoch(weights):
    first = epoch_order(400, weights, seed=1, epoch=2)
    np.random.seed(0)
    np.testing.assert_array_equal(epoch_order(400, weights, seed=1, epoch=2), first)
    others = [epoch_order(400, weights, seed=s, epoch=e) for s, e in [(1, 3), (2, 2), (2, 1), (0, 0)]]
    for other in others:
        assert (other == first).mean() < 0.1
    assert not np.array_equal(others[0], others[1])


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["shuffled", "weighted"])
def test_an_order_has_as_many_draws_as_there_are_clips(weights):
    order = epoch_order(400, weights, seed=1, epoch=2)
    assert order.shape == (400,)
    assert order.dtype == np.int64
    assert 0 <= order.min() <= order.max() < 400


def test_without_weights_every_clip_comes_once():
    np.testing.assert_array_equal(np.sort(orders(None), axis=1), np.tile(np.arange(400), (EPOCHS, 1)))


def test_without_weights_all_orders_are_equally_likely():
    shuffled = orders(None, num_clips=4, epochs=2400)
    counts = np.unique(shuffled, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts).pvalue > 1e-3


def test_draws_follow_the_weights():
    counts = np.bincount(orders(WEIGHTS).ravel(), minlength=len(WEIGHTS))
    expected = WEIGHTS / WEIGHTS.sum() * EPOCHS * len(WEIGHTS)
    assert stats.chisquare(counts, expected).pvalue > 1e-3
    assert stats.chisquare(counts).pvalue < 1e-9


def test_draws_are_with_replacement_and_independent_of_the_ones_before():
    drawn = orders(np.array([1.0, 1.0, 2.0]), num_clips=3, epochs=3000)
    pairs = np.bincount(drawn[:, 0] * 3 + drawn[:, 1], minlength=9)
    chances = np.array([0.25, 0.25, 0.5])
    assert stats.chisquare(pairs, np.outer(chances, chances).ravel() * 3000).pvalue > 1e-3


def test_only_the_proportions_of_the_weights_count():
    np.testing.assert_array_equal(
        epoch_order(400, WEIGHTS * 1024, seed=1, epoch=2), epoch_order(400, WEIGHTS, seed=1, epoch=2)
    )


def test_a_clip_without_weight_is_never_drawn():
    weights = WEIGHTS.copy()
    weights[::2] = 0
    assert (orders(weights) % 2 == 1).all()
