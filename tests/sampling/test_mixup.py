"""Mixup: dependence on the generator alone, distribution of the draws, and sums against float64."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from psla_jax.sampling.mixup import Mix, draw_mix, mix_waveforms

SAMPLES, CLIPS = 4000, 20


def draw(rate: float, **options: float) -> list[Mix | None]:
    return [draw_mix(np.random.default_rng([2, 3, 1, sample]), rate, CLIPS, **options) for sample in range(SAMPLES)]


@pytest.fixture(scope="module")
def always() -> list[Mix]:
    mixes = draw(1.0)
    assert None not in mixes
    return mixes


def first_weights(mixes: list[Mix]) -> np.ndarray:
    np.testing.assert_allclose([sum(mix.weights) for mix in mixes], 1, rtol=1e-12)
    return np.array([mix.weights[0] for mix in mixes])


def test_a_draw_is_a_function_of_the_generator(always):
    np.random.seed(0)
    assert draw(1.0)[39::-3] == always[39::-3]
    assert len({mix.weights for mix in always}) == SAMPLES


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_the_rate_is_the_share_of_mixed_clips(rate):
    mixed = np.array([mix is not None for mix in draw(rate)])
    assert stats.binomtest(int(mixed.sum()), SAMPLES, rate).pvalue > 1e-3
    after_one, after_none = mixed[1:][mixed[:-1]].mean(), mixed[1:][~mixed[:-1]].mean()
    assert abs(after_one - after_none) < 0.08


def test_a_rate_of_zero_mixes_nothing():
    assert set(draw(0.0)) == {None}


def test_the_weight_is_beta_of_ten_and_ten(always):
    weights = first_weights(always)
    # Mean 1/2, variance a*b / ((a+b)^2 (a+b+1)) = 1/84.
    assert abs(weights.mean() - 0.5) < 5 * np.sqrt(1 / 84 / SAMPLES)
    assert abs(weights.var() * 84 - 1) < 0.12
    assert stats.kstest(weights, "beta", args=(10, 10)).pvalue > 1e-3


def test_the_partner_is_any_clip_of_the_set_with_equal_chance(always):
    counts = np.bincount([mix.partners[0] for mix in always], minlength=CLIPS)
    assert len(counts) == CLIPS
    assert stats.chisquare(counts).pvalue > 1e-3


def test_partner_weight_and_the_next_sample_are_independent(always):
    partners = np.array([mix.partners[0] for mix in always])
    weights = first_weights(always)
    for one, other in [(partners, weights), (partners[1:], partners[:-1]), (weights[1:], weights[:-1])]:
        assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(SAMPLES)


def test_the_partner_is_independent_of_the_decision_to_mix():
    mixes = [mix for mix in draw(0.1) if mix is not None]
    counts = np.bincount([mix.partners[0] for mix in mixes], minlength=CLIPS)
    assert stats.chisquare(counts).pvalue > 1e-3
    assert stats.kstest(first_weights(mixes), "beta", args=(10, 10)).pvalue > 1e-3


def test_up_to_five_clips_have_dirichlet_weights():
    """Numbers of clips are uniform; of a symmetric Dirichlet distribution, every weight is Beta((count - 1) alpha)."""
    mixes = draw(1.0, most=5, alpha=2.0)
    counts = np.array([len(mix.weights) for mix in mixes])
    assert [len(mix.partners) + 1 for mix in mixes] == counts.tolist()
    assert stats.chisquare(np.bincount(counts, minlength=6)[2:]).pvalue > 1e-3
    assert counts.max() == 5
    for count in range(2, 6):
        weights = np.array([mix.weights for mix in mixes if len(mix.weights) == count])
        np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-12)
        for column in weights.T:
            assert stats.kstest(column, "beta", args=(2.0, 2.0 * (count - 1))).pvalue > 1e-4
    partners = np.bincount([partner for mix in mixes for partner in mix.partners], minlength=CLIPS)
    assert stats.chisquare(partners).pvalue > 1e-3


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
    mixed = mix_waveforms([first, second], [weight, 1 - weight])
    assert mixed.dtype == np.float32
    np.testing.assert_allclose(mixed, expected - expected.mean(), atol=1e-6)


def test_five_waveforms_of_any_length_are_added_up():
    waves, weights = [wave(length, length) for length in (500, 300, 700, 500, 1)], [0.3, 0.1, 0.25, 0.15, 0.2]
    fitted = [np.pad(np.float64(each[:500]), (0, max(500 - len(each), 0))) for each in waves]
    expected = np.average(fitted, axis=0, weights=weights)
    np.testing.assert_allclose(mix_waveforms(waves, weights), expected - expected.mean(), atol=1e-6)


def test_the_mean_of_a_cut_partner_is_removed():
    first, second = np.zeros(500, np.float32), wave(1000, 2)
    assert abs(second[:500].mean()) > 0.1
    assert abs(mix_waveforms([first, second], [0.5, 0.5]).mean()) < 1e-7


def test_weights_of_zero_and_one_select_one_waveform():
    first, second = wave(1000, 1), wave(1000, 2)
    np.testing.assert_allclose(mix_waveforms([first, second], [1.0, 0.0]), first, atol=1e-6)
    np.testing.assert_allclose(mix_waveforms([first, second], [0.0, 1.0]), second, atol=1e-6)


def test_mixing_does_not_modify_its_arguments():
    first, second = wave(1000, 1), wave(400, 2)
    first.flags.writeable = second.flags.writeable = False
    mix_waveforms([first, second], [0.4, 0.6])
    np.testing.assert_array_equal(first, wave(1000, 1))
    np.testing.assert_array_equal(second, wave(400, 2))
