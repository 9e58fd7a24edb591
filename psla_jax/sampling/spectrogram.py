"""Augmentation of spectrograms in the training step: the steps of ``sampling.spectrogram``.

A step is a pure function ``step(batch, keys, ...) -> batch``. The batch is a dictionary with ``spectrogram``, the
normalised log-mel values ``(batch, frames, mels)``, ``labels (batch, classes)``, ``valid (batch,)``, and other device
fields of :mod:`psla_jax.data.loader`; `keys` are ``(batch,)`` typed PRNG keys, one per clip. By their names, a step may
take ``fill``, the normalised value of padding and masks, ``std``, by which log-mel values were divided, and the
settings ``freq_mask`` and ``time_mask`` of the section ``sampling``. All other parameters are options.

Steps that combine clips draw partners among the valid clips of the batch, or of the microbatch with
``optimizer.accumulate``. With several devices, they communicate.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from psla_jax.sampling.specaugment import noise_and_roll, spec_augment

Batch = dict[str, jax.Array]
Augment = Callable[[Batch, jax.Array], Batch]
"""Augmentation of a batch with one key."""
TARGETS = ("labels", "teacher")
"""Fields of a batch that are mixed with its spectrograms."""


def compose(*steps: Callable[[Batch, jax.Array], Batch]) -> Augment:
    """Returns a function that applies steps in this order; each has keys of its own, one per clip."""

    def augment(batch: Batch, key: jax.Array) -> Batch:
        # A longer list of steps, or a larger batch, does not change the first keys.
        for step, step_key in zip(steps, jax.random.split(key, len(steps))):
            batch = step(batch, jax.random.split(step_key, len(batch["spectrogram"])))
        return batch

    return augment


def specaugment(batch: Batch, keys: jax.Array, freq_mask: int, time_mask: int, fill: jax.Array | float = 0.0) -> Batch:
    """Masks one frequency band and one time span of every clip, see :func:`spec_augment`."""
    x = spec_augment(batch["spectrogram"], keys, freq_mask=freq_mask, time_mask=time_mask, fill=fill)
    return {**batch, "spectrogram": x}


def noise(batch: Batch, keys: jax.Array) -> Batch:
    """Adds uniform noise and rolls clips in time, see :func:`noise_and_roll`."""
    return {**batch, "spectrogram": noise_and_roll(batch["spectrogram"], keys)}


def freq_mixstyle(batch: Batch, keys: jax.Array, *, rate: float = 0.5, alpha: float = 0.3) -> Batch:
    """Mixes, with probability `rate`, mean and deviation of every mel bin over time with those of another clip.

    The weights are from Beta(alpha, alpha). Source: Freq-MixStyle of Schmid et al., Knowledge distillation from
    transformers for low-complexity acoustic scene classification (DCASE 2022).
    """
    x = batch["spectrogram"]
    partner, weight = _partners(batch["valid"], keys, rate, alpha)
    mean = jnp.mean(x, axis=1)
    std = jnp.sqrt(jnp.var(x, axis=1) + 1e-6)
    w = weight[:, None]
    new_mean, new_std = w * mean + (1 - w) * mean[partner], w * std + (1 - w) * std[partner]
    mixed = (x - mean[:, None]) * (new_std / std)[:, None] + new_mean[:, None]
    return {**batch, "spectrogram": jnp.where(w[:, None] < 1.0, mixed, x)}


def filter_augment(batch: Batch, keys: jax.Array, std: float, *, decibels: float = 6.0, bands: int = 4) -> Batch:
    """Applies a random smooth filter to every clip: gains at the ends and at `bands - 1` random mel bins between them.

    The gains are uniform in ``[-decibels, decibels]`` and interpolated linearly. Source: Nam et al., FilterAugment: an
    acoustic environmental data augmentation method (ICASSP 2022), in its linear form.
    """
    if bands < 1:
        raise ValueError(f"filter_augment has {bands} bands")
    x = batch["spectrogram"]
    mels = x.shape[-1]

    def draw(key: jax.Array) -> jax.Array:
        for_bins, for_gains = jax.random.split(key)
        inner = jnp.sort(jax.random.uniform(for_bins, (bands - 1,), x.dtype)) * (mels - 1)
        bins = jnp.concatenate([jnp.zeros(1, x.dtype), inner, jnp.full(1, mels - 1, x.dtype)])
        gains = jax.random.uniform(for_gains, (bands + 1,), x.dtype, -decibels, decibels)
        return jnp.interp(jnp.arange(mels, dtype=x.dtype), bins, gains)

    log_power = jax.vmap(draw)(keys) * (math.log(10.0) / 10.0 / std)
    return {**batch, "spectrogram": x + log_power[:, None]}


def mixup(batch: Batch, keys: jax.Array, *, rate: float = 0.5, alpha: float = 10.0) -> Batch:
    """Mixes, with probability `rate`, spectrogram and targets with those of another clip, weighted by Beta draws."""
    partner, weight = _partners(batch["valid"], keys, rate, alpha)
    mixed = {name: batch[name] for name in ("spectrogram", *TARGETS) if name in batch}
    for name, value in mixed.items():
        w = weight.reshape((-1,) + (1,) * (value.ndim - 1))
        mixed[name] = w * value + (1 - w) * value[partner]
    return {**batch, **mixed}


def patchout(batch: Batch, keys: jax.Array, *, share: float = 0.2) -> Batch:
    """Removes a random `share` of the frames of every clip; the others keep their order. Fewer frames are less work.

    Source: Koutini et al., Efficient training of audio transformers with patchout (Interspeech 2022).
    """
    x = batch["spectrogram"]
    kept = x.shape[1] - round(share * x.shape[1])
    if not 0 < kept <= x.shape[1]:
        raise ValueError(f"patchout with the share {share} leaves {kept} of {x.shape[1]} frames")

    def keep(clip: jax.Array, key: jax.Array) -> jax.Array:
        return clip[jnp.sort(jax.random.permutation(key, x.shape[1])[:kept])]

    return {**batch, "spectrogram": jax.vmap(keep)(x, keys)}


def _partners(valid: jax.Array, keys: jax.Array, rate: float, alpha: float) -> tuple[jax.Array, jax.Array]:
    """Draws a partner for every clip, and the weight of the clip itself: 1 if it is not mixed.

    A clip whose draw is a row without a clip is its own partner.
    """

    def draw(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        for_rate, for_partner, for_weight = jax.random.split(key, 3)
        weight = jax.random.beta(for_weight, alpha, alpha)
        mixed = jax.random.uniform(for_rate) < rate
        return jax.random.randint(for_partner, (), 0, len(valid)), jnp.where(mixed, weight, 1.0)

    partner, weight = jax.vmap(draw)(keys)
    return jnp.where(valid[partner] > 0, partner, jnp.arange(len(valid))), weight


SPECTROGRAM_STEPS: dict[str, Callable[..., Batch]] = {
    "specaugment": specaugment,
    "freq_mixstyle": freq_mixstyle,
    "filter_augment": filter_augment,
    "mixup": mixup,
    "noise": noise,
    "patchout": patchout,
}
"""The steps by their names in a config."""
