"""Masks and noise on spectrograms: a draw depends on the key of its clip and on nothing else (PSLA, section III-C)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

_FREQUENCY, _TIME = 0, 1


def spec_augment(x: jax.Array, keys: jax.Array, *, freq_mask: int, time_mask: int) -> jax.Array:
    """One frequency mask and one time mask per clip, set to 0; to be applied before normalisation.

    A mask is ``floor(U * mask)`` wide, so at most ``mask - 1``, and starts at ``floor(U * (size - width))``, where each
    ``U`` is uniform in [0, 1). It may cover padding, as in the reference.

    Args:
        x: ``(batch, frames, mels)`` log-mel values before normalisation.
        keys: ``(batch,)`` typed PRNG keys, one per clip.
        freq_mask: bound on the width in mel bins; 0 for no mask.
        time_mask: bound on the width in frames; 0 for no mask.

    Returns:
        ``x`` with masked values 0.
    """
    frames, mels = x.shape[1:]
    masked = jnp.zeros((), bool)
    if freq_mask:
        masked = masked | _masks(keys, _FREQUENCY, mels, freq_mask)[:, None, :]
    if time_mask:
        masked = masked | _masks(keys, _TIME, frames, time_mask)[:, :, None]
    return jnp.where(masked, jnp.zeros((), x.dtype), x)


def noise_and_roll(x: jax.Array, keys: jax.Array) -> jax.Array:
    """Uniform noise, then a roll in time; to be applied after normalisation.

    Each clip gets ``U * V / 10`` added, ``U`` drawn per value and ``V`` per clip, both uniform in [0, 1), and is rolled
    by -10 to 9 frames; what leaves at one end enters at the other.

    Args:
        x: ``(batch, frames, mels)`` normalised spectrograms.
        keys: ``(batch,)`` typed PRNG keys, one per clip.

    Returns:
        An array of the shape and type of ``x``.
    """

    def one(clip: jax.Array, key: jax.Array) -> jax.Array:
        values, level, shift = jax.random.split(key, 3)
        noise = jax.random.uniform(values, clip.shape, clip.dtype) * jax.random.uniform(level, (), clip.dtype) / 10
        return jnp.roll(clip + noise, jax.random.randint(shift, (), -10, 10), axis=0)

    return jax.vmap(one)(x, keys)


def _masks(keys: jax.Array, stream: int, size: int, bound: int) -> jax.Array:
    """Masks ``(batch, size)``, true where masked, for an axis of ``size`` values."""

    def one(key: jax.Array) -> jax.Array:
        for_width, for_start = jax.random.uniform(jax.random.fold_in(key, stream), (2,))
        width = jnp.floor(for_width * bound).astype(jnp.int32)
        start = jnp.floor(for_start * (size - width)).astype(jnp.int32)
        position = jnp.arange(size)
        return (position >= start) & (position < start + width)

    return jax.vmap(one)(keys)
