"""ResNet-50 (He et al., 2016) on spectrograms, a baseline of PSLA: one input channel, no classifier.

Attributes have the names of torchvision's modules, so that the path of a weight is its name in a checkpoint.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from psla_jax.models.convolution import max_pool
from psla_jax.models.layers import Backbone, torchvision_conv

STAGES = ((3, 64, 1), (4, 128, 2), (6, 256, 2), (3, 512, 2))
"""Number of blocks, inner channels and stride of every stage."""
STEM, EXPANSION = 64, 4
"""Features of the first convolution, and features of a block as a multiple of its inner channels."""


class Bottleneck(nnx.Module):
    """1x1 reduction, 3x3 convolution with the stride, 1x1 expansion, and a residual sum."""

    def __init__(self, channels: int, inner: int, stride: int, dtype: DTypeLike, rngs: nnx.Rngs) -> None:
        features = inner * EXPANSION
        settings: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.conv1, self.bn1 = torchvision_conv(channels, inner, **settings)
        self.conv2, self.bn2 = torchvision_conv(inner, inner, 3, stride=stride, **settings)
        self.conv3, self.bn3 = torchvision_conv(inner, features, **settings)
        self.projects = stride != 1 or channels != features
        if self.projects:
            self.downsample = nnx.List(torchvision_conv(channels, features, stride=stride, **settings))

    def __call__(self, x: jax.Array, valid: jax.Array | None) -> jax.Array:
        """Maps `(batch, height, width, channels)` to `(batch, height', width', 4 x inner)`."""
        y = self.bn1(self.conv1(x), valid, jax.nn.relu)
        y = self.bn2(self.conv2(y), valid, jax.nn.relu)
        y = self.bn3(self.conv3(y), valid)
        if self.projects:
            conv, norm = self.downsample
            x = norm(conv(x), valid)
        return jax.nn.relu(y + x)


class ResNet50(Backbone):
    """Backbone from log-mel spectrograms to features, one output frame per 32 spectrogram frames.

    It accepts any number of frames; the reference only accepts 1056.

    Attributes:
        num_features: channels of the output.
    """

    def __init__(self, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs) -> None:
        self.conv1, self.bn1 = torchvision_conv(1, STEM, 7, stride=2, dtype=dtype, rngs=rngs)
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
        """Maps `(batch, frames, mels)` to `(batch, output frames, features)`, averaged over frequency."""

        def stem_and_large_stages(x: jax.Array) -> jax.Array:
            x = max_pool(self.bn1(self.conv1(x), valid, jax.nn.relu), 3, 2, 1)
            return self.run_blocks([*self.layer1, *self.layer2], x, valid)

        x = self.map_clips(stem_and_large_stages, jnp.swapaxes(spectrograms, 1, 2)[..., None])
        x = self.run_blocks([*self.layer3, *self.layer4], x, valid)
        return jnp.mean(x, axis=1, dtype=jnp.float32)
