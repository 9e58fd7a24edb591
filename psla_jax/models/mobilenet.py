"""MobileNetV2 over spectrograms (Sandler et al., 2018), as PSLA compares with it: one input channel, no classifier.

Attributes carry the names of torchvision's modules, so that a weight's name follows from its place.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from psla_jax.models.convolution import symmetric_padding
from psla_jax.models.layers import Backbone, BatchNorm, Conv

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, features, blocks and stride of every stage."""
LARGE = 6
"""So many blocks have large images, up to the third halving of their size."""
STEM, HEAD = 32, 1280


def _pair(
    channels: int,
    features: int,
    size: int = 1,
    *,
    stride: int = 1,
    depthwise: bool = False,
    dtype: DTypeLike,
    rngs: nnx.Rngs,
) -> nnx.List:
    """A convolution and its batch normalisation, with torchvision's constants."""
    pads = symmetric_padding(size)
    conv = Conv(
        channels, features, size, stride=stride, padding=pads, depthwise=depthwise, init="kaiming", dtype=dtype,
        rngs=rngs,
    )  # fmt: skip
    return nnx.List([conv, BatchNorm(features, momentum=0.9, epsilon=1e-5)])


def _normed(pair: Any, x: jax.Array, valid: jax.Array | None) -> jax.Array:
    conv, norm = pair
    return norm(conv(x), valid)


class InvertedResidual(nnx.Module):
    """Expand, depthwise convolution, project, and the input added back where the shapes agree."""

    def __init__(
        self, channels: int, features: int, expand: int, stride: int, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        inner = channels * expand
        layers: list[nnx.Module] = [_pair(channels, inner, dtype=dtype, rngs=rngs)] if expand != 1 else []
        layers.append(_pair(inner, inner, 3, stride=stride, depthwise=True, dtype=dtype, rngs=rngs))
        # torchvision has the last two layers side by side, not as a pair.
        self.conv = nnx.List([*layers, *_pair(inner, features, dtype=dtype, rngs=rngs)])
        self.residual = stride == 1 and channels == features

    def __call__(self, x: jax.Array, valid: jax.Array | None) -> jax.Array:
        """`(batch, height, width, channels)` to `(batch, height', width', features)`."""
        *pairs, project, norm = self.conv
        y = x
        for pair in pairs:
            y = jax.nn.relu6(_normed(pair, y, valid))
        y = norm(project(y), valid)
        return x + y if self.residual else y


class MobileNetV2(Backbone):
    """The backbone: log-mel spectrograms to features, 32 frames a step.

    Attributes:
        num_features: channels of the output.
    """

    def __init__(self, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> None:
        layers: list[Any] = [_pair(1, STEM, 3, stride=2, dtype=dtype, rngs=rngs)]
        channels = STEM
        for expand, features, blocks, stride in STAGES:
            for block in range(blocks):
                layers.append(InvertedResidual(channels, features, expand, stride if block == 0 else 1, dtype, rngs))
                channels = features
        layers.append(_pair(channels, HEAD, dtype=dtype, rngs=rngs))
        self.features = nnx.List(layers)
        self.num_features = HEAD

    def __call__(
        self, spectrograms: jax.Array, valid: jax.Array | None = None, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """`(batch, frames, mels)` to `(batch, steps, 1280)`, the mean over the remaining frequency rows."""
        stem, *blocks, head = self.features

        def large(x: jax.Array) -> jax.Array:
            return self.run(blocks[:LARGE], jax.nn.relu6(_normed(stem, x, valid)), valid)

        x = self.clip_by_clip(large, jnp.swapaxes(spectrograms, 1, 2)[..., None])
        x = self.run(blocks[LARGE:], x, valid)
        x = jax.nn.relu6(_normed(head, x, valid))
        return jnp.mean(x, axis=1, dtype=jnp.float32)
