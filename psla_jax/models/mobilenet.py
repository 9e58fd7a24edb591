"""MobileNetV2 (Sandler et al., 2018) on spectrograms, a baseline of PSLA: one input channel, no classifier.

Attributes have the names of torchvision's modules, so that the path of a weight is its name in a checkpoint.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from psla_jax.models.layers import Backbone, torchvision_conv

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, features, number of blocks and stride of every stage."""
LARGE_BLOCKS = 6
"""Number of leading blocks, whose images are large: their size is halved at most three times."""
STEM, HEAD = 32, 1280
"""Features of the first and the last convolution."""


def _conv_norm_relu(layers: Any, x: jax.Array, valid: jax.Array | None) -> jax.Array:
    conv, norm = layers
    return norm(conv(x), valid, jax.nn.relu6)


class InvertedResidual(nnx.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection, and a residual sum where the shapes agree."""

    def __init__(
        self, channels: int, features: int, expand: int, stride: int, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        inner = channels * expand
        settings: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        layers = [torchvision_conv(channels, inner, **settings)] if expand != 1 else []
        layers.append(torchvision_conv(inner, inner, 3, stride=stride, depthwise=True, **settings))
        # In torchvision, the last convolution and its normalisation are not nested.
        self.conv = nnx.List([*map(nnx.List, layers), *torchvision_conv(inner, features, **settings)])
        self.residual = stride == 1 and channels == features

    def __call__(self, x: jax.Array, valid: jax.Array | None) -> jax.Array:
        """Maps `(batch, height, width, channels)` to `(batch, height', width', features)`."""
        *hidden, project, norm = self.conv
        y = x
        for layers in hidden:
            y = _conv_norm_relu(layers, y, valid)
        y = norm(project(y), valid)
        return x + y if self.residual else y


class MobileNetV2(Backbone):
    """Backbone from log-mel spectrograms to features, one output frame per 32 spectrogram frames.

    Attributes:
        num_features: channels of the output.
    """

    def __init__(self, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> None:
        layers: list[Any] = [nnx.List(torchvision_conv(1, STEM, 3, stride=2, dtype=dtype, rngs=rngs))]
        channels = STEM
        for expand, features, blocks, stride in STAGES:
            for block in range(blocks):
                layers.append(InvertedResidual(channels, features, expand, stride if block == 0 else 1, dtype, rngs))
                channels = features
        layers.append(nnx.List(torchvision_conv(channels, HEAD, dtype=dtype, rngs=rngs)))
        self.features = nnx.List(layers)
        self.num_features = HEAD

    def __call__(
        self, spectrograms: jax.Array, valid: jax.Array | None = None, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Maps `(batch, frames, mels)` to `(batch, output frames, 1280)`, averaged over frequency."""
        stem, *blocks, head = self.features

        def stem_and_large_blocks(x: jax.Array) -> jax.Array:
            return self.run_blocks(blocks[:LARGE_BLOCKS], _conv_norm_relu(stem, x, valid), valid)

        x = self.map_clips(stem_and_large_blocks, jnp.swapaxes(spectrograms, 1, 2)[..., None])
        x = self.run_blocks(blocks[LARGE_BLOCKS:], x, valid)
        x = _conv_norm_relu(head, x, valid)
        return jnp.mean(x, axis=1, dtype=jnp.float32)
