"""ResNet-50 over spectrograms (He et al., 2016), as PSLA compares with it: one input channel, no classifier.

Attributes carry the names of torchvision's modules, so that a weight's name follows from its place.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from psla_jax.models.convolution import max_pool, symmetric_padding
from psla_jax.models.layers import Backbone, BatchNorm, Conv

STAGES = ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2))
"""Blocks, inner channels and stride of every stage."""
STEM, EXPANSION = 64, 4


def _conv(channels: int, features: int, size: int, stride: int, dtype: DTypeLike, rngs: nnx.Rngs) -> Conv:
    pads = symmetric_padding(size)
    return Conv(channels, features, size, stride=stride, padding=pads, init="kaiming", dtype=dtype, rngs=rngs)


def _norm(channels: int) -> BatchNorm:
    """With torchvision's constants, which are not EfficientNet's."""
    return BatchNorm(channels, momentum=0.9, epsilon=1e-5)


class Bottleneck(nnx.Module):
    """Reduce, convolve, expand, and the input added back; the stride is that of the 3x3 convolution."""

    def __init__(self, channels: int, inner: int, stride: int, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        features = inner * EXPANSION
        self.conv1, self.bn1 = _conv(channels, inner, 1, 1, dtype, rngs), _norm(inner)
        self.conv2, self.bn2 = _conv(inner, inner, 3, stride, dtype, rngs), _norm(inner)
        self.conv3, self.bn3 = _conv(inner, features, 1, 1, dtype, rngs), _norm(features)
        self.projects = stride != 1 or channels != features
        if self.projects:
            self.downsample = nnx.List([_conv(channels, features, 1, stride, dtype, rngs), _norm(features)])

    def __call__(self, x: jax.Array, valid: jax.Array | None) -> jax.Array:
        """`(batch, height, width, channels)` to `(batch, height', width', 4 x inner)`."""
        y = jax.nn.relu(self.bn1(self.conv1(x), valid))
        y = jax.nn.relu(self.bn2(self.conv2(y), valid))
        y = self.bn3(self.conv3(y), valid)
        if self.projects:
            conv, norm = self.downsample
            x = norm(conv(x), valid)
        return jax.nn.relu(y + x)


class ResNet50(Backbone):
    """The backbone: log-mel spectrograms to features, 32 frames a step.

    The reference works for 1056 frames alone; here any number will do.

    Attributes:
        num_features: channels of the output.
    """

    def __init__(self, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> None:
        self.conv1, self.bn1 = _conv(1, STEM, 7, 2, dtype, rngs), _norm(STEM)
        channels, stages = STEM, []
        for blocks, inner, stride in STAGES:
            stage = []
            for block in range(blocks):
                stage.append(Bottleneck(channels, inner, stride if block == 0 else 1, dtype, rngs))
                channels = inner * EXPANSION
            stages.append(nnx.List(stage))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.num_features = channels

    def __call__(
        self, spectrograms: jax.Array, valid: jax.Array | None = None, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """`(batch, frames, mels)` to `(batch, steps, features)`, the mean over the remaining frequency rows."""

        def large(x: jax.Array) -> jax.Array:
            x = max_pool(jax.nn.relu(self.bn1(self.conv1(x), valid)), 3, 2, 1)
            return self.run([*self.layer1, *self.layer2], x, valid)

        x = self.clip_by_clip(large, jnp.swapaxes(spectrograms, 1, 2)[..., None])
        x = self.run([*self.layer3, *self.layer4], x, valid)
        return jnp.mean(x, axis=1, dtype=jnp.float32)
