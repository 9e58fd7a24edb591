"""Masks and noise: distributions, and dependence on the clip's key alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tolerance import assert_close

from psla_jax.sampling.specaugment import noise_and_roll, spec_augment

CLIPS, FRAMES, MELS = 2000, 30, 24


@pytest.fixture(scope="module")
def keys() -> jax.Array:
    return jax.random.split(jax.random.key(7), CLIPS)


def masked(keys: jax.Array, *, freq_mask: int, time_mask: int) -> np.ndarray:
    """Returns True where ``spec_augment`` sets an array of ones to 0."""
    ones = jnp.ones((len(keys), FRAMES, MELS))
    return np.asarray(spec_augment(ones, keys, freq_mask=freq_mask, time_mask=time_mask)) == 0


def spans(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns start and width of the run of true values in each row; fails if a row has two runs."""
    edges = np.diff(np.pad(mask.astype(int), ((0, 0), (1, 1))), axis=1)
    assert (edges == 1).sum(1).max() == 1
    return edges.argmax(1), mask.sum(1)


def assert_uniform(values: np.ndarray, choices: int) -> None:
    """Asserts that the count of every value is within five standard deviations of that of a uniform draw."""
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
    nonempty = widths > 0
    position = starts[nonempty] / (size - widths[nonempty])
    assert 0 <= position.min() <= position.max() < 1
    assert abs(widths.mean() - (bound - 1) / 2) < 5 * bound / np.sqrt(12 * CLIPS)
    for width in (1, bound - 1):
        assert_uniform(starts[widths == width], size - width)


def test_the_two_masks_of_a_clip_are_independent(keys: jax.Array) -> None:
    both = masked(keys, freq_mask=MELS, time_mask=FRAMES)
    in_time, in_frequency = both.all(2), both.all(1)
    np.testing.assert_array_equal(both, in_time[:, :, None] | in_frequency[:, None, :])
    np.testing.assert_array_equal(in_time, masked(keys, freq_mask=0, time_mask=FRAMES).all(2))
    np.testing.assert_array_equal(in_frequency, masked(keys, freq_mask=MELS, time_mask=0).all(1))
    correlation = np.corrcoef(in_time.sum(1), in_frequency.sum(1))[0, 1]
    assert abs(correlation) < 5 / np.sqrt(CLIPS)


def test_the_widest_mask_leaves_one_value_of_the_axis(keys: jax.Array) -> None:
    assert masked(keys, freq_mask=0, time_mask=FRAMES)[:, :, 0].sum(1).max() == FRAMES - 1


def test_the_mask_does_not_depend_on_the_values(keys: jax.Array) -> None:
    x = jnp.ones((50, FRAMES, MELS)).at[:, 10:].set(0)
    out = spec_augment(x, keys[:50], freq_mask=10, time_mask=20)
    np.testing.assert_array_equal(out, jnp.where(masked(keys[:50], freq_mask=10, time_mask=20), 0, x))


@pytest.mark.parametrize("function", [lambda x, k: spec_augment(x, k, freq_mask=10, time_mask=20), noise_and_roll])
def test_a_draw_depends_on_the_key_of_its_clip_alone(keys: jax.Array, function) -> None:
    x = jnp.asarray(np.random.default_rng(0).standard_normal((6, FRAMES, MELS)), jnp.float32)
    together = jax.jit(function)(x, keys[:6])
    order = np.array([4, 0, 5, 2])
    assert_close(function(x[order], keys[order]), together[order], 1e-6)
    assert_close(function(x, keys[:6]), together, 1e-6)
    assert np.abs(function(x, keys[6:12]) - together).max() > 1e-3


def test_a_bound_of_zero_disables_a_mask(keys: jax.Array) -> None:
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, FRAMES, MELS)), jnp.bfloat16)
    out = spec_augment(x, keys[:4], freq_mask=0, time_mask=0)
    assert out.dtype == x.dtype
    np.testing.assert_array_equal(out.astype(np.float32), x.astype(np.float32))


def test_noise_is_uniform_with_a_level_per_clip_and_the_shift_is_minus_ten_to_nine(keys: jax.Array) -> None:
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
