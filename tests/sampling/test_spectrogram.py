"""Steps on spectrograms: statistics of the result, rows of padding, and one key per clip."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from tolerance import assert_close

from psla_jax.sampling import spectrogram
from psla_jax.sampling.specaugment import noise_and_roll, spec_augment
from psla_jax.sampling.spectrogram import SPECTROGRAM_STEPS, compose

CLIPS, FRAMES, MELS, CLASSES, STD = 8, 30, 24, 5, 4.5
STEPS: dict[str, Callable[..., dict]] = {
    "specaugment": functools.partial(spectrogram.specaugment, freq_mask=12, time_mask=15, fill=1.5),
    "noise": spectrogram.noise,
    "freq_mixstyle": functools.partial(spectrogram.freq_mixstyle, rate=1.0, alpha=1.0),
    "filter_augment": functools.partial(spectrogram.filter_augment, std=STD),
    "mixup": functools.partial(spectrogram.mixup, rate=1.0),
    "patchout": spectrogram.patchout,
}
MIXING = {"freq_mixstyle", "mixup"}
"""Steps that combine clips of a batch."""


def batch(clips: int = CLIPS, seed: int = 0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    scale, offset = rng.uniform(0.5, 2, (2, clips, 1, MELS))
    return {
        "spectrogram": jnp.asarray(rng.normal(0, 1, (clips, FRAMES, MELS)) * scale + 3 * offset, jnp.float32),
        "labels": jnp.asarray(rng.random((clips, CLASSES)) < 0.4, jnp.float32),
        "teacher": jnp.asarray(rng.random((clips, CLASSES)), jnp.float32),
        "valid": jnp.ones(clips),
    }


def keys(clips: int = CLIPS, seed: int = 0) -> jax.Array:
    return jax.random.split(jax.random.key(seed), clips)


def mixes(rate: float, alpha: float, seed: int = 0, valid: jax.Array | None = None, clips: int = CLIPS) -> tuple:
    valid = jnp.ones(clips) if valid is None else valid
    return tuple(map(np.asarray, spectrogram._partners(valid, keys(clips, seed), rate, alpha)))


def test_every_registered_step_is_tested_here():
    assert set(STEPS) == set(SPECTROGRAM_STEPS)


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_a_pure_function_of_its_keys(name: str):
    step, data = STEPS[name], batch()
    one, jitted, other = step(data, keys()), jax.jit(step)(data, keys()), step(data, keys(seed=1))
    assert set(one) == set(data)
    assert_close(jitted["spectrogram"], one["spectrogram"], 1e-5)
    assert np.abs(one["spectrogram"] - other["spectrogram"]).max() > 1e-2
    assert one["spectrogram"].dtype == jnp.float32
    for field in set(data) - {"spectrogram"}:
        if name != "mixup" or field == "valid":
            np.testing.assert_array_equal(one[field], data[field])


@pytest.mark.parametrize("name", sorted(set(STEPS) - MIXING))
def test_a_clip_does_not_depend_on_the_others(name: str):
    """Nor on their number, or on further steps: keys of a longer list begin with those of a shorter one."""
    augment, whole = compose(STEPS[name]), batch()
    part = {field: value[:5] for field, value in whole.items()}
    one, other = augment(whole, jax.random.key(3)), augment(part, jax.random.key(3))
    np.testing.assert_array_equal(one["spectrogram"][:5], other["spectrogram"])


def test_steps_are_applied_in_their_order_each_with_its_own_keys():
    data, key = batch(), jax.random.key(3)
    augment = compose(STEPS["specaugment"], STEPS["noise"], STEPS["noise"])
    first, second, third = (jax.random.split(each, CLIPS) for each in jax.random.split(key, 3))
    x = spec_augment(data["spectrogram"], first, freq_mask=12, time_mask=15, fill=1.5)
    expected = noise_and_roll(noise_and_roll(x, second), third)
    np.testing.assert_array_equal(augment(data, key)["spectrogram"], expected)
    assert compose()(data, key) is data


@pytest.mark.parametrize("name", sorted(MIXING))
def test_rows_without_a_clip_are_no_partners(name: str):
    """With the last five rows invalid, nothing in them reaches the others."""
    for seed in range(10):
        data = batch() | {"valid": jnp.asarray([1, 1, 1, 0, 0, 0, 0, 0], jnp.float32)}
        poisoned = {name: value.at[3:].set(np.nan) for name, value in data.items() if name != "valid"}
        clean = STEPS[name](data, keys(seed=seed))
        other = STEPS[name](poisoned | {"valid": data["valid"]}, keys(seed=seed))
        for field in ("spectrogram", "labels", "teacher"):
            assert np.isfinite(other[field][:3]).all()
            np.testing.assert_array_equal(other[field][:3], clean[field][:3])
    partners, _ = mixes(1.0, 1.0, valid=data["valid"])
    assert set(partners[:3]) <= {0, 1, 2}


def test_partners_weights_and_the_rate_have_their_distributions():
    partners, weights = mixes(0.3, 2.0, clips=4000)
    mixed = weights < 1
    assert stats.binomtest(int(mixed.sum()), 4000, 0.3).pvalue > 1e-3
    assert stats.kstest(weights[mixed], "beta", args=(2, 2)).pvalue > 1e-3
    assert stats.chisquare(np.bincount(partners * 20 // 4000, minlength=20)).pvalue > 1e-3


def test_mixup_mixes_the_spectrogram_and_every_target_with_the_same_weight():
    data = batch()
    partner, weight = mixes(0.6, 10.0)
    assert 0 < (weight < 1).sum() < CLIPS
    result = spectrogram.mixup(data, keys(), rate=0.6)
    for field in ("spectrogram", "labels", "teacher"):
        x = np.float64(data[field])
        w = weight.reshape(-1, *[1] * (x.ndim - 1))
        assert_close(result[field], w * x + (1 - w) * x[partner], 1e-6)
        np.testing.assert_array_equal(result[field][weight == 1], data[field][weight == 1])


def test_freq_mixstyle_gives_every_bin_the_mixed_statistics():
    data = batch()
    partner, weight = mixes(0.6, 1.0)
    assert 0 < (weight < 1).sum() < CLIPS
    result = np.asarray(spectrogram.freq_mixstyle(data, keys(), rate=0.6, alpha=1.0)["spectrogram"])
    x = np.float64(data["spectrogram"])
    w = weight[:, None]
    for statistic in (np.mean, np.std):
        of_clips = statistic(x, axis=1)
        assert_close(statistic(result, axis=1), w * of_clips + (1 - w) * of_clips[partner], 1e-4)
    np.testing.assert_array_equal(result[weight == 1], data["spectrogram"][weight == 1])
    # It is an affine map of every bin: the shape over time stays.
    normalised = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    after = (result - result.mean(1, keepdims=True)) / result.std(1, keepdims=True)
    np.testing.assert_allclose(after, normalised, atol=1e-3)


def test_a_filter_without_bands_is_refused():
    with pytest.raises(ValueError, match="filter_augment has 0 bands"):
        spectrogram.filter_augment(batch(2), keys(2), STD, bands=0)


def test_a_filter_is_the_same_in_every_frame_piecewise_linear_and_bounded_in_decibels():
    data, decibels = batch(200), 9.0
    result = spectrogram.filter_augment(data, keys(200), STD, decibels=decibels, bands=3)
    change = np.float64(result["spectrogram"]) - np.float64(data["spectrogram"])
    np.testing.assert_allclose(change, np.broadcast_to(change[:, :1], change.shape), atol=1e-5)
    gains = change[:, 0] * STD / (np.log(10) / 10)
    assert np.abs(gains).max() < decibels + 1e-4
    assert gains[:, 0].min() < -0.9 * decibels
    assert gains[:, -1].max() > 0.9 * decibels
    for column in (gains[:, 0], gains[:, -1]):
        assert stats.kstest(column, "uniform", args=(-decibels, 2 * decibels)).pvalue > 1e-3
    bends = np.abs(np.diff(gains, 2, axis=1)) > 1e-3
    assert bends.sum(axis=1).max() <= 2 * 2, "two inner bins, each between two mel bins"


def test_patchout_removes_a_share_of_the_frames_and_keeps_their_order():
    data = batch(100)
    numbers = jnp.broadcast_to(jnp.arange(FRAMES, dtype=jnp.float32)[:, None], (100, FRAMES, MELS))
    kept = np.asarray(spectrogram.patchout({**data, "spectrogram": numbers}, keys(100), share=0.4)["spectrogram"])
    assert kept.shape == (100, 18, MELS)
    assert (np.diff(kept[:, :, 0], axis=1) > 0).all()
    assert (kept == kept[:, :, :1]).all()
    counts = np.bincount(kept[:, :, 0].astype(int).ravel(), minlength=FRAMES)
    assert abs(counts - 60).max() < 5 * np.sqrt(100 * 0.6 * 0.4)
    with pytest.raises(ValueError, match=r"share 1\.0 leaves 0 of 30 frames"):
        spectrogram.patchout(data, keys(100), share=1.0)
