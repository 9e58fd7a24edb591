"""Masks and noise: their distributions, and that a draw depends on the clip's key alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psla_jax.sampling.specaugment import noise_and_roll, spec_augment

CLIPS, FRAMES, MELS = 2000, 30, 24


@pytest.fixture(scope="module")
def keys() -> jax.Array:
    return jax.random.split(jax.random.key(7), CLIPS)


def masked(keys: jax.Array, *, freq_mask: int, time_mask: int) -> np.ndarray:
    """True where ``spec_augment`` put a 0 into an array of ones."""
    ones = jnp.ones((len(keys), FRAMES, MELS))
    return np.asarray(spec_augment(ones, keys, freq_mask=freq_mask, time_mask=time_mask)) == 0


def spans(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Start and width of the one run of true values in each row; fails when there are two runs."""
    edges = np.diff(np.pad(mask.astype(int), ((0, 0), (1, 1))), axis=1)
    assert (edges == 1).sum(1).max() == 1
    return edges.argmax(1), mask.sum(1)


def assert_uniform(values: np.ndarray, choices: int) -> None:
    """Counts of each of ``choices`` values stay within five standard deviations of those of a uniform draw."""
    counts = np.bincount(values, minlength=choices)
    expected = len(values) / choices
    assert len(counts) == choices
    assert np.abs(counts - expected).max() < 5 * np.sqrt(expected)


@pytest.mark.parametrize("axis", ["time", "frequency"])
def test_widths_are_uniform_below_the_bound_and_starts_fill_the_rest(keys: jax.Array, axis: str) -> None:
    size, bound = (FRAMES, 20) if axis == "time" else (MELS, 10)
    if axis == "time":
        mask = masked(keys, freq_mask=0, time_mask=bound)
        assert (mask.all(2) == mask.any(2)).all()
        rows = mask[:, :, 0]
    else:
        mask = masked(keys, freq_mask=bound, time_mask=0)
        assert (mask.all(1) == mask.any(1)).all()
        rows = mask[:, 0, :]
    starts, widths = spans(rows)
    assert_uniform(widths, bound)
    some = widths > 0
    place = starts[some] / (size - widths[some])
    assert 0 <= place.min() <= place.max() < 1
    assert abs(widths.mean() - (bound - 1) / 2) < 5 * bound / np.sqrt(12 * CLIPS)
    for width in (1, bound - 1):
        assert_uniform(starts[widths == width], size - width)


def test_the_two_masks_of_a_clip_are_drawn_apart(keys: jax.Array) -> None:
    both = masked(keys, freq_mask=MELS, time_mask=FRAMES)
    in_time, in_frequency = both.all(2), both.all(1)
    np.testing.assert_array_equal(both, in_time[:, :, None] | in_frequency[:, None, :])
    np.testing.assert_array_equal(in_time, masked(keys, freq_mask=0, time_mask=FRAMES).all(2))
    np.testing.assert_array_equal(in_frequency, masked(keys, freq_mask=MELS, time_mask=0).all(1))
    correlation = np.corrcoef(in_time.sum(1), in_frequency.sum(1))[0, 1]
    assert abs(correlation) < 5 / np.sqrt(CLIPS)


def test_a_mask_may_cover_the_whole_axis_but_one(keys: jax.Array) -> None:
    assert masked(keys, freq_mask=0, time_mask=FRAMES)[:, :, 0].sum(1).max() == FRAMES - 1


def test_the_mask_does_not_look_at_the_values(keys: jax.Array) -> None:
    x = jnp.ones((50, FRAMES, MELS)).at[:, 10:].set(0)
    out = spec_augment(x, keys[:50], freq_mask=10, time_mask=20)
    np.testing.assert_array_equal(out, jnp.where(masked(keys[:50], freq_mask=10, time_mask=20), 0, x))


@pytest.mark.parametrize("function", [lambda x, k: spec_augment(x, k, freq_mask=10, time_mask=20), noise_and_roll])
def test_a_draw_depends_on_the_key_of_its_clip_alone(keys: jax.Array, function) -> None:
    x = jnp.asarray(np.random.default_rng(0).standard_normal((6, FRAMES, MELS)), jnp.float32)
    together = jax.jit(function)(x, keys[:6])
    order = np.array([4, 0, 5, 2])
    np.testing.assert_allclose(function(x[order], keys[order]), together[order], atol=1e-6)
    np.testing.assert_allclose(function(x, keys[:6]), together, atol=1e-6)
    assert np.abs(function(x, keys[6:12]) - together).max() > 1e-3


def test_zero_switches_a_mask_off(keys: jax.Array) -> None:
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, FRAMES, MELS)), jnp.bfloat16)
    out = spec_augment(x, keys[:4], freq_mask=0, time_mask=0)
    assert out.dtype == x.dtype
    np.testing.assert_array_equal(out.astype(np.float32), x.astype(np.float32))


def test_noise_is_uniform_with_a_level_per_clip_and_rolls_by_ten_back_to_nine_on(keys: jax.Array) -> None:
    frames = jnp.broadcast_to(jnp.arange(FRAMES, dtype=jnp.float32)[:, None], (CLIPS, FRAMES, MELS))
    out = np.asarray(noise_and_roll(frames, keys))
    whole = np.rint(out - 0.05)
    shifts = whole.argmin(1)[:, 0]
    np.testing.assert_array_equal(whole, [np.roll(frames[0], s, axis=0) for s in shifts])
    assert_uniform((shifts + 10) % FRAMES, 20)
    noise = out - whole
    assert -1e-5 < noise.min() <= noise.max() < 0.1 + 1e-5
    levels = noise.max((1, 2)) * 10
    assert abs(levels.mean() - 0.5) < 5 / np.sqrt(12 * CLIPS)
    assert abs(levels.std() - np.sqrt(1 / 12)) < 0.02
    np.testing.assert_allclose(noise.mean((1, 2)) * 10, levels / 2, atol=0.06)
