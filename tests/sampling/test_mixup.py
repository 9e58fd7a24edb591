"""Mixup: dependence on (seed, epoch, sample), distribution of the draws, and sums against float64."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from psla_jax.sampling.mixup import Mix, draw_mix, mix_waveforms

SAMPLES, CLIPS = 4000, 20


def draw(rate: float, *, seed: int = 3, epoch: int = 1, samples: range = range(SAMPLES)) -> list[Mix | None]:
    return [draw_mix(rate, CLIPS, seed=seed, epoch=epoch, sample=sample) for sample in samples]


@pytest.fixture(scope="module")
def always() -> list[Mix]:
    mixes = draw(1.0)
    assert None not in mixes
    return mixes


def test_a_draw_is_a_function_of_seed_epoch_and_sample(always):
    np.random.seed(0)
    samples = range(39, -1, -3)
    assert draw(1.0, samples=samples) == [always[sample] for sample in samples]
    mix = always[7]
    assert mix == draw_mix(1.0, CLIPS, seed=3, epoch=1, sample=7)
    for seed, epoch, sample in [(4, 1, 7), (3, 2, 7), (3, 1, 8), (1, 3, 7), (3, 7, 1)]:
        assert draw_mix(1.0, CLIPS, seed=seed, epoch=epoch, sample=sample).weight != mix.weight


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_the_rate_is_the_share_of_mixed_clips(rate):
    mixed = np.array([mix is not None for mix in draw(rate)])
    assert stats.binomtest(int(mixed.sum()), SAMPLES, rate).pvalue > 1e-3
    after_one, after_none = mixed[1:][mixed[:-1]].mean(), mixed[1:][~mixed[:-1]].mean()
    assert abs(after_one - after_none) < 0.08


def test_a_rate_of_zero_mixes_nothing():
    assert set(draw(0.0)) == {None}


def test_the_weight_is_beta_of_ten_and_ten(always):
    weights = np.array([mix.weight for mix in always])
    # Mean 1/2, variance a*b / ((a+b)^2 (a+b+1)) = 1/84.
    assert abs(weights.mean() - 0.5) < 5 * np.sqrt(1 / 84 / SAMPLES)
    assert abs(weights.var() * 84 - 1) < 0.12
    assert stats.kstest(weights, "beta", args=(10, 10)).pvalue > 1e-3


def test_the_partner_is_any_clip_of_the_set_with_equal_chance(always):
    counts = np.bincount([mix.partner for mix in always], minlength=CLIPS)
    assert len(counts) == CLIPS
    assert stats.chisquare(counts).pvalue > 1e-3


def test_partner_weight_and_the_next_sample_are_independent(always):
    partners = np.array([mix.partner for mix in always])
    weights = np.array([mix.weight for mix in always])
    for one, other in [(partners, weights), (partners[1:], partners[:-1]), (weights[1:], weights[:-1])]:
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(SAMPLES)


def test_the_partner_is_independent_of_the_decision_to_mix():
    mixes = [mix for mix in draw(0.1) if mix is not None]
    counts = np.bincount([mix.partner for mix in mixes], minlength=CLIPS)
    assert stats.chisquare(counts).pvalue > 1e-3
    assert stats.kstest([mix.weight for mix in mixes], "beta", args=(10, 10)).pvalue > 1e-3


def wave(samples: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32)
    values[: samples // 2] += 0.25  # so that the mean of a part is not the mean of the whole
    return values - values.mean()


@pytest.mark.parametrize("partner", [1000, 400, 1700, 1], ids=["equal", "shorter", "longer", "one sample"])
@pytest.mark.parametrize("weight", [0.3, 0.5, 0.9])
def test_a_mix_is_the_weighted_sum_with_the_partner_fitted_and_the_mean_removed(partner, weight):
    first, second = wave(1000, 1), wave(partner, 2)
    fitted = np.zeros(1000)
    fitted[: min(1000, partner)] = second[:1000]
    expected = weight * first.astype(np.float64) + (1 - weight) * fitted
    mixed = mix_waveforms(first, second, weight)
    assert mixed.dtype == np.float32
    np.testing.assert_allclose(mixed, expected - expected.mean(), atol=1e-6)


def test_the_mean_of_a_cut_partner_is_removed():
    first, second = np.zeros(500, np.float32), wave(1000, 2)
    assert abs(second[:500].mean()) > 0.1
    assert abs(mix_waveforms(first, second, 0.5).mean()) < 1e-7


def test_weights_of_zero_and_one_select_one_waveform():
    first, second = wave(1000, 1), wave(1000, 2)
    np.testing.assert_allclose(mix_waveforms(first, second, 1.0), first, atol=1e-6)
    np.testing.assert_allclose(mix_waveforms(first, second, 0.0), second, atol=1e-6)


def test_mixing_does_not_modify_its_arguments():
    first, second = wave(1000, 1), wave(400, 2)
    first.flags.writeable = second.flags.writeable = False
    mix_waveforms(first, second, 0.4)
    np.testing.assert_array_equal(first, wave(1000, 1))
    np.testing.assert_array_equal(second, wave(400, 2))
