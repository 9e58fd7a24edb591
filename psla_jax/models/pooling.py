"""Pooling heads: features of every output frame to one score per class (PSLA, section II-B).

All map `(batch, frames, channels)` to float32 scores `(batch, classes)`; a `mask (batch, frames)` is 1 at frames that
count. Heads with per-frame scores have a method ``frame_outputs``. Attributes have the reference's names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from psla_jax import ingredients
from psla_jax.models.initializers import fan_in_uniform, uniform
from psla_jax.models.layers import Conv, ModelError

EPSILON = 1e-7
"""Attention values are clipped to [EPSILON, 1 - EPSILON]."""


class _Linear(Conv):
    """A 1x1 convolution with bias over `(batch, frames, channels)`, in float32 whatever the dtype of the backbone."""

    def __init__(self, channels: int, classes: int, *, reference_init: bool, rngs: nnx.Rngs) -> None:
        super().__init__(channels, classes, bias=True, rngs=rngs)
        if reference_init:
            self.kernel = nnx.Param(uniform(rngs.params(), (1, 1, channels, classes), math.sqrt(6.0 / channels)))
            self.bias = nnx.Param(jnp.zeros((classes,)))

    def sigmoid(self, x: jax.Array) -> jax.Array:
        """Maps `(batch, frames, channels)` to values in [0, 1], `(batch, frames, classes)`."""
        return jax.nn.sigmoid(self(x))


def attention_weights(attention: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Returns `attention (batch, frames, classes)` scaled so that the weights of a class sum to 1 over the frames."""
    weights = jnp.clip(attention, EPSILON, 1.0 - EPSILON)
    if mask is not None:
        weights = weights * mask[..., None]
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def attention_pooling(attention: jax.Array, scores: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Returns the mean of `scores` over the frames, weighted by `attention`; both are `(batch, frames, classes)`."""
    return jnp.sum(attention_weights(attention, mask) * scores, axis=1)


def mean_over_frames(x: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Maps `(batch, frames, n)` to `(batch, n)`."""
    if mask is None:
        return jnp.mean(x, axis=1)
    return jnp.sum(x * mask[..., None], axis=1) / jnp.maximum(jnp.sum(mask, axis=1), 1.0)[:, None]


def _relative_weights(attention: jax.Array, mask: jax.Array | None) -> jax.Array:
    """Returns :func:`attention_weights` as multiples of an even weight: times the number of frames that count."""
    count = attention.shape[1] if mask is None else jnp.sum(mask, axis=1)[:, None, None]
    return attention_weights(attention, mask) * count


class FrameOutputs(NamedTuple):
    """Outputs of a head for every frame; each `(batch, frames, classes)`."""

    scores: jax.Array
    """Classification scores of the frame, summed over the heads with their weights."""
    attention: jax.Array | None = None
    """Weight of the frame in the clip's score of the class, as a multiple of an even weight; mean over the heads. None
    if the head has no weights of frames."""


class MeanPooling(nnx.Module):
    """Scores of every frame, averaged over the frames."""

    def __init__(self, channels: int, classes: int, *, rngs: nnx.Rngs) -> None:
        self.cla = _Linear(channels, classes, reference_init=True, rngs=rngs)

    def __call__(self, features: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        return mean_over_frames(self.cla.sigmoid(features), mask)

    def frame_outputs(self, features: jax.Array, mask: jax.Array | None = None) -> FrameOutputs:
        """Returns the scores of every frame; all frames that count have the same weight."""
        scores = self.cla.sigmoid(features)
        return FrameOutputs(scores, _relative_weights(jnp.ones_like(scores), mask))


class LinearPooling(nnx.Module):
    """Linear layer and sigmoid on the mean of the features over the frames: the head of the reference's MobileNetV2."""

    def __init__(self, channels: int, classes: int, *, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(fan_in_uniform(rngs.params(), (channels, classes), channels))
        self.bias = nnx.Param(fan_in_uniform(rngs.params(), (classes,), channels))

    def __call__(self, features: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        return jax.nn.sigmoid(mean_over_frames(features, mask) @ self.kernel[...] + self.bias[...])


class Attention(nnx.Module):
    """One attention head: the mean of the frames' scores, weighted by the attention of each class to each frame."""

    has_attention = True

    def __init__(self, channels: int, classes: int, *, rngs: nnx.Rngs) -> None:
        self.att = _Linear(channels, classes, reference_init=True, rngs=rngs)
        self.cla = _Linear(channels, classes, reference_init=True, rngs=rngs)

    def __call__(self, features: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        return attention_pooling(self.att.sigmoid(features), self.cla.sigmoid(features), mask)

    def frame_outputs(self, features: jax.Array, mask: jax.Array | None = None) -> FrameOutputs:
        """Returns scores and attention of every frame."""
        return FrameOutputs(self.cla.sigmoid(features), _relative_weights(self.att.sigmoid(features), mask))


class MultiHeadAttention(nnx.Module):
    """Several attention heads, summed with learned weights.

    The weights are unconstrained, so scores may lie slightly outside [0, 1].
    """

    has_attention = True

    def __init__(self, channels: int, classes: int, heads: int, *, rngs: nnx.Rngs) -> None:
        self.att = nnx.List([_Linear(channels, classes, reference_init=False, rngs=rngs) for _ in range(heads)])
        self.cla = nnx.List([_Linear(channels, classes, reference_init=False, rngs=rngs) for _ in range(heads)])
        self.head_weight = nnx.Param(jax.device_put(np.full(heads, 1.0 / heads, np.float32)))

    def __call__(self, features: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        outputs = [
            attention_pooling(att.sigmoid(features), cla.sigmoid(features), mask)
            for att, cla in zip(self.att, self.cla)
        ]
        return jnp.tensordot(self.head_weight[...], jnp.stack(outputs), axes=1)

    def frame_outputs(self, features: jax.Array, mask: jax.Array | None = None) -> FrameOutputs:
        """Returns the weighted sum of the heads' scores and the mean of their attention for every frame."""
        scores = [cla.sigmoid(features) for cla in self.cla]
        attention = jnp.mean(jnp.stack([_relative_weights(att.sigmoid(features), mask) for att in self.att]), axis=0)
        return FrameOutputs(jnp.tensordot(self.head_weight[...], jnp.stack(scores), axes=1), attention)


def attention_heads(channels: int, classes: int, heads: int, *, rngs: nnx.Rngs) -> nnx.Module:
    """Returns attention pooling. Raises ModelError if `heads` is less than one."""
    if heads < 1:
        raise ModelError(f"heads is {heads}: use at least one, or pooling 'mean' for none.")
    if heads == 1:
        return Attention(channels, classes, rngs=rngs)
    return MultiHeadAttention(channels, classes, heads, rngs=rngs)


POOLINGS: dict[str, Callable[..., nnx.Module]] = {
    "mean": MeanPooling,
    "linear": LinearPooling,
    "attention": attention_heads,
}
"""Pooling heads by name."""


def build_pooling(pooling: str, channels: int, classes: int, heads: int, *, rngs: Any) -> nnx.Module:
    """Returns a pooling head: a name in :data:`POOLINGS` or ``module:callable``, optionally with options.

    The callable is called with those of ``channels``, ``classes``, ``heads`` and ``rngs`` that its parameters name.

    Raises:
        IngredientError: the name is unknown, or the callable cannot be imported or called.
        ModelError: `heads` is less than one.
    """
    field = "model.pooling"
    build = ingredients.find(pooling, POOLINGS, field)
    return ingredients.call(build, field=field, channels=channels, classes=classes, heads=heads, rngs=rngs)
