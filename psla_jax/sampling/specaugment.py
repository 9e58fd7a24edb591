"""Masks and noise on spectrograms, drawn from one key per clip (PSLA, section III-C)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

_FREQUENCY, _TIME = 0, 1


def spec_augment(
    x: jax.Array, keys: jax.Array, *, freq_mask: int, time_mask: int, fill: jax.Array | float = 0.0
) -> jax.Array:
    """Sets one frequency band and one time span per clip to `fill`.

    The width of a mask is ``floor(U * mask)``, so at most ``mask - 1``, and its start ``floor(U * (size - width))``,
    where each ``U`` is uniform in [0, 1). A mask may cover padding, as in the reference.

    Args:
        x: ``(batch, frames, mels)`` log-mel values.
        keys: ``(batch,)`` typed PRNG keys, one per clip.
        freq_mask: upper bound on the width in mel bins; 0 disables the mask.
        time_mask: upper bound on the width in frames; 0 disables the mask.
        fill: value of masked bins. The reference masks with 0 before normalisation, which is ``-mean / std`` after it.
    """
    frames, mels = x.shape[1:]
    masked = jnp.zeros((), bool)
    if freq_mask:
        masked = masked | _masks(keys, _FREQUENCY, mels, freq_mask)[:, None, :]
    if time_mask:
        masked = masked | _masks(keys, _TIME, frames, time_mask)[:, :, None]
    return jnp.where(masked, jnp.asarray(fill, x.dtype), x)


def noise_and_roll(x: jax.Array, keys: jax.Array) -> jax.Array:
    """Adds uniform noise to normalised spectrograms ``(batch, frames, mels)`` and rolls each clip in time.

    The noise is ``U * V / 10`` with ``U`` drawn per value and ``V`` per clip, both uniform in [0, 1). The shift is
    circular, by -10 to 9 frames. `keys` are ``(batch,)`` typed PRNG keys, one per clip.
    """

    def augment_clip(clip: jax.Array, key: jax.Array) -> jax.Array:
        values, level, shift = jax.random.split(key, 3)
        noise = jax.random.uniform(values, clip.shape, clip.dtype) * jax.random.uniform(level, (), clip.dtype) / 10
        return jnp.roll(clip + noise, jax.random.randint(shift, (), -10, 10), axis=0)

    return jax.vmap(augment_clip)(x, keys)


def _masks(keys: jax.Array, stream: int, size: int, bound: int) -> jax.Array:
    """Draws masks ``(batch, size)``, true where masked, for an axis of ``size`` values."""

    def draw(key: jax.Array) -> jax.Array:
        for_width, for_start = jax.random.uniform(jax.random.fold_in(key, stream), (2,))
        width = jnp.floor(for_width * bound).astype(jnp.int32)
        start = jnp.floor(for_start * (size - width)).astype(jnp.int32)
        position = jnp.arange(size)
        return (position >= start) & (position < start + width)

    return jax.vmap(draw)(keys)
