"""From features at every step to one score per class (PSLA, section II-B).

All map `(batch, steps, channels)` to `(batch, classes)` in float32; a `mask (batch, steps)` is 1 at steps that count.
Those that score every step have ``frames``. Attribute names are the reference's.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from psla_jax.models.layers import Conv, ModelError, torch_uniform, uniform

EPSILON = 1e-7


class _Linear(Conv):
    """A 1x1 convolution with bias over `(batch, steps, channels)`, in float32 whatever the backbone computes in."""

    def __init__(self, channels: int, classes: int, *, reference_init: bool, rngs: nnx.Rngs) -> None:
        super().__init__(channels, classes, bias=True, rngs=rngs)
        if reference_init:
            self.kernel = nnx.Param(uniform(rngs.params(), (1, 1, channels, classes), math.sqrt(6.0 / channels)))
            self.bias = nnx.Param(jnp.zeros((classes,)))

    def sigmoid(self, x: jax.Array) -> jax.Array:
        """`(batch, steps, channels)` to scores `(batch, steps, classes)` in [0, 1]."""
        return jax.nn.sigmoid(self(x))


def shares(attention: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """The part of a class's weight that each step has, `(batch, steps, classes)`: of all steps together it is 1."""
    weights = jnp.clip(attention, EPSILON, 1.0 - EPSILON)
    if mask is not None:
        weights = weights * mask[..., None]
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def attend(attention: jax.Array, scores: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Mean of `scores` over the steps, weighted by `attention`; both `(batch, steps, classes)`."""
    return jnp.sum(shares(attention, mask) * scores, axis=1)


def mean_over_steps(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """`(batch, steps, n)` to `(batch, n)`."""
    if mask is None:
        return jnp.mean(x, axis=1)
    return jnp.sum(x * mask[..., None], axis=1) / jnp.maximum(jnp.sum(mask, axis=1), 1.0)[:, None]


def _multiples(attention: jax.Array, mask: jax.Array | None) -> jax.Array:
    """:func:`shares` times the number of steps that count."""
    count = attention.shape[1] if mask is None else jnp.sum(mask, axis=1)[:, None, None]
    return shares(attention, mask) * count


class FrameScores(NamedTuple):
    """What a head says of every step; each `(batch, steps, classes)`."""

    scores: jax.Array
    """How much the step sounds like the class: classification scores, summed over the heads with their weights."""
    attention: jax.Array
    """How much the step weighs in the class's score of the whole window, as a multiple of what it would if all steps
    weighed the same; the mean over the heads."""


class MeanPooling(nnx.Module):
    """The mean over the steps of every class's score."""

    def __init__(self, channels: int, classes: int, *, rngs: nnx.Rngs) -> None:
        self.cla = _Linear(channels, classes, reference_init=True, rngs=rngs)

    def __call__(self, features: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        return mean_over_steps(self.cla.sigmoid(features), mask)

    def frames(self, features: jax.Array, mask: jax.Array | None = None) -> FrameScores:
        """The score of every step; all steps that count weigh the same."""
        scores = self.cla.sigmoid(features)
        return FrameScores(scores, _multiples(jnp.ones_like(scores), mask))


class LinearPooling(nnx.Module):
    """One linear layer on the mean of the features over the steps: the head of the reference's MobileNetV2."""

    def __init__(self, channels: int, classes: int, *, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(torch_uniform(rngs.params(), (channels, classes), channels))
        self.bias = nnx.Param(torch_uniform(rngs.params(), (classes,), channels))

    def __call__(self, features: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        return jax.nn.sigmoid(mean_over_steps(features, mask) @ self.kernel[...] + self.bias[...])


class Attention(nnx.Module):
    """One head: a class's score at each step, weighted by how much that class attends to the step."""

    def __init__(self, channels: int, classes: int, *, rngs: nnx.Rngs) -> None:
        self.att = _Linear(channels, classes, reference_init=True, rngs=rngs)
        self.cla = _Linear(channels, classes, reference_init=True, rngs=rngs)

    def __call__(self, features: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        return attend(self.att.sigmoid(features), self.cla.sigmoid(features), mask)

    def frames(self, features: jax.Array, mask: jax.Array | None = None) -> FrameScores:
        """Score and attention of every step, as the head uses them."""
        return FrameScores(self.cla.sigmoid(features), _multiples(self.att.sigmoid(features), mask))


class MultiHeadAttention(nnx.Module):
    """Several heads, summed with learned weights. The weights are unconstrained: sums may leave [0, 1] by a little."""

    def __init__(self, channels: int, classes: int, heads: int, *, rngs: nnx.Rngs) -> None:
        self.att = nnx.List([_Linear(channels, classes, reference_init=False, rngs=rngs) for _ in range(heads)])
        self.cla = nnx.List([_Linear(channels, classes, reference_init=False, rngs=rngs) for _ in range(heads)])
        self.head_weight = nnx.Param(jax.device_put(np.full(heads, 1.0 / heads, np.float32)))

    def __call__(self, features: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        outputs = [attend(att.sigmoid(features), cla.sigmoid(features), mask) for att, cla in zip(self.att, self.cla)]
        return jnp.tensordot(self.head_weight[...], jnp.stack(outputs), axes=1)

    def frames(self, features: jax.Array, mask: jax.Array | None = None) -> FrameScores:
        """Score and attention of every step, over the heads."""
        scores = [cla.sigmoid(features) for cla in self.cla]
        attention = jnp.mean(jnp.stack([_multiples(att.sigmoid(features), mask) for att in self.att]), axis=0)
        return FrameScores(jnp.tensordot(self.head_weight[...], jnp.stack(scores), axes=1), attention)


Pooling = MeanPooling | LinearPooling | Attention | MultiHeadAttention


def build_pooling(pooling: str, channels: int, classes: int, heads: int, *, rngs: nnx.Rngs) -> Pooling:
    """The head of that name: ``mean``, ``linear``, or ``attention`` with any number of heads.

    Raises:
        ModelError: for another name, or for fewer than one head.
    """
    if pooling == "mean":
        return MeanPooling(channels, classes, rngs=rngs)
    if pooling == "linear":
        return LinearPooling(channels, classes, rngs=rngs)
    if pooling != "attention":
        raise ModelError(f"pooling is {pooling!r}: choose mean, linear or attention.")
    if heads < 1:
        raise ModelError(f"heads is {heads}: use at least one, or pooling 'mean' for none.")
    if heads == 1:
        return Attention(channels, classes, rngs=rngs)
    return MultiHeadAttention(channels, classes, heads, rngs=rngs)
