"""EfficientNet B0 to B7 over spectrograms (Tan and Le, 2019), as PSLA uses it: one input channel, no classifier.

Attributes carry the names of the PyTorch modules, so that a weight's name follows from its place.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from psla_jax.models.convolution import Pads, depthwise_conv, static_padding, symmetric_padding
from psla_jax.models.layers import (
    Affine,
    Backbone,
    BatchNorm,
    Conv,
    DropConnect,
    ModelError,
    Weights,
    gated_conv,
    recomputed,
    row_means,
    squeeze_excite,
    swish,
    swish_affine,
)


@dataclass(frozen=True)
class Stage:
    """A row of the architecture's table, at B0."""

    repeats: int
    kernel: int
    stride: int
    expand: int
    channels: int
    features: int


STAGES = (
    Stage(1, 3, 1, 1, 32, 16),
    Stage(2, 3, 2, 6, 16, 24),
    Stage(2, 5, 2, 6, 24, 40),
    Stage(3, 3, 2, 6, 40, 80),
    Stage(3, 5, 1, 6, 80, 112),
    Stage(4, 5, 2, 6, 112, 192),
    Stage(1, 3, 1, 6, 192, 320),
)
LARGE = 3
"""So many stages have large images, up to the third halving of their size."""
STEM, HEAD = 32, 1280
STATIC_MINIMUM = 32
"""Frames that static padding needs: it was made for larger images, and a shorter one vanishes on the way."""


@dataclass(frozen=True)
class Scale:
    """How a member of the family differs from B0. `image_size` only decides the static padding."""

    width: float
    depth: float
    image_size: int
    statistics_decay: float = 0.99
    """Of the running batch statistics, per step."""


SCALES = {
    # Not a member of the published family: a fraction of B0's work, for small data sets and quick tests. Where a run
    # has some hundred steps, statistics over the last hundred would lag behind the weights by epochs.
    "efficientnet-tiny": Scale(0.25, 0.4, 224, statistics_decay=0.9),
    "efficientnet-b0": Scale(1.0, 1.0, 224),
    "efficientnet-b1": Scale(1.0, 1.1, 240),
    "efficientnet-b2": Scale(1.1, 1.2, 260),
    "efficientnet-b3": Scale(1.2, 1.4, 300),
    "efficientnet-b4": Scale(1.4, 1.8, 380),
    "efficientnet-b5": Scale(1.6, 2.2, 456),
    "efficientnet-b6": Scale(1.8, 2.6, 528),
    "efficientnet-b7": Scale(2.0, 3.1, 600),
}


def round_channels(channels: int, width: float) -> int:
    """`channels` times `width` in steps of 8, never less than 90% of the product."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return int(rounded + 8 if rounded < 0.9 * scaled else rounded)


class Padder:
    """Hands out each layer's padding while the network is built from input to output."""

    def __init__(self, scheme: Literal["symmetric", "static"], image_size: int) -> None:
        self.scheme, self.image_size = scheme, image_size

    def __call__(self, kernel: int, stride: int) -> Pads:
        """The padding of the next convolution; follows the image size that the static scheme assumes."""
        pads = (
            symmetric_padding(kernel) if self.scheme == "symmetric" else static_padding(kernel, stride, self.image_size)
        )
        self.image_size = math.ceil(self.image_size / stride)
        return pads


class MBConv(nnx.Module):
    """Inverted bottleneck: expand, depthwise convolution, squeeze-excite, project, and the input added back."""

    def __init__(
        self, stage: Stage, padding: Pads, drop_rate: float, decay: float, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> None:
        channels, inner = stage.channels, stage.channels * stage.expand
        squeezed = max(1, channels // 4)
        if stage.expand != 1:
            self._expand_conv = Conv(channels, inner, dtype=dtype, rngs=rngs)
            self._bn0 = BatchNorm(inner, momentum=decay)
        self._depthwise_conv = Conv(
            inner, inner, stage.kernel, stride=stage.stride, padding=padding, depthwise=True, dtype=dtype, rngs=rngs
        )
        self._bn1 = BatchNorm(inner, momentum=decay)
        self._se_reduce = Conv(inner, squeezed, bias=True, rngs=rngs)
        self._se_expand = Conv(squeezed, inner, bias=True, rngs=rngs)
        self._project_conv = Conv(inner, stage.features, dtype=dtype, rngs=rngs)
        self._bn2 = BatchNorm(stage.features, momentum=decay)
        self.expands = stage.expand != 1
        self.residual = stage.stride == 1 and channels == stage.features
        self.drop_connect = DropConnect(drop_rate)

    def __call__(self, x: jax.Array, valid: jax.Array | None, uniform: jax.Array | None) -> jax.Array:
        """`(batch, height, width, channels)` to `(batch, height', width', features)`; see `DropConnect`."""
        y = x
        if self.expands:
            y = self._expand_conv(y)
            y = recomputed(self._filter)(y, self._bn0.affine(y, valid), self._depthwise_conv.weights())
        else:
            y = self._depthwise_conv(y)
        gate = self._se_reduce.weights(), self._se_expand.weights()
        y = recomputed(_project)(y, self._bn1.affine(y, valid), (gate, self._project_conv.weights()))
        y = self._bn2(y, valid)
        return self.drop_connect(y, uniform) + x if self.residual else y

    def _filter(self, x: jax.Array, affine: Affine, weights: Weights) -> jax.Array:
        """From the 1x1 convolution to the end of the depthwise one."""
        kernel, conv = weights[0], self._depthwise_conv
        return depthwise_conv(swish_affine(x, affine), kernel, conv.stride, conv.padding)


def _project(x: jax.Array, affine: Affine, weights: Weights) -> jax.Array:
    """From the depthwise convolution to the end of the next 1x1 one."""
    (reduce, expand), (kernel, _) = weights
    y = swish_affine(x, affine)
    return gated_conv(y, squeeze_excite(y, reduce, expand), kernel)


class EfficientNet(Backbone):
    """The backbone: log-mel spectrograms to features, 32 frames a step.

    Args:
        name: ``efficientnet-b0`` to ``efficientnet-b7``, or the small ``efficientnet-tiny``.
        padding: ``symmetric`` (efficientnet_pytorch 0.7.0) or ``static`` (0.7.1).
        drop_connect: rate at the end of the network; block `i` of `n` has `i / n` of it.
        dtype: of the activations; parameters and batch statistics are float32.

    Attributes:
        num_features: channels of the output, 1408 for B2.
    """

    def __init__(
        self,
        name: str,
        *,
        padding: Literal["symmetric", "static"] = "symmetric",
        drop_connect: float = 0.2,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        scale = SCALES[name]
        decay = scale.statistics_decay
        self.padding = padding
        stem, self.num_features = round_channels(STEM, scale.width), round_channels(HEAD, scale.width)
        pads = Padder(padding, scale.image_size)
        self._conv_stem = Conv(1, stem, 3, stride=2, padding=pads(3, 2), dtype=dtype, rngs=rngs)
        self._bn0 = BatchNorm(stem, momentum=decay)
        blocks = blocks_of(scale)
        self._blocks = nnx.List(
            [
                MBConv(block, pads(block.kernel, block.stride), drop_connect * i / len(blocks), decay, dtype, rngs)
                for i, block in enumerate(blocks)
            ]
        )
        self._num_large = sum(math.ceil(stage.repeats * scale.depth) for stage in STAGES[:LARGE])
        self._conv_head = Conv(blocks[-1].features, self.num_features, dtype=dtype, rngs=rngs)
        self._bn1 = BatchNorm(self.num_features, momentum=decay)

    def __call__(
        self, spectrograms: jax.Array, valid: jax.Array | None = None, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """`(batch, frames, mels)` to `(batch, steps, features)`, the mean over the remaining frequency rows.

        Frequency is the image's height and time its width, as in the reference.
        """
        if self.padding == "static" and spectrograms.shape[1] < STATIC_MINIMUM:
            raise ModelError(
                f"spectrograms have {spectrograms.shape[1]} frames: static padding needs at least {STATIC_MINIMUM}."
            )
        # The draws are handed out in the order of the blocks, to both parts from one iterator.
        blocks, uniforms = list(self._blocks), iter(self._uniforms(spectrograms.shape[0], rngs))

        def large(x: jax.Array) -> jax.Array:
            x = swish(self._bn0(self._conv_stem(x), valid))
            return self.run(blocks[: self._num_large], x, valid, uniforms)

        x = self.clip_by_clip(large, jnp.swapaxes(spectrograms, 1, 2)[..., None])
        x = self.run(blocks[self._num_large :], x, valid, uniforms)
        x = swish(self._bn1(self._conv_head(x), valid))
        return row_means(x)

    def _uniforms(self, clips: int, rngs: nnx.Rngs | None) -> Iterable[jax.Array | None]:
        """For each block's drop-connect, `(blocks, clips)`; nothing where none is on."""
        if rngs is None or self._blocks[0].drop_connect.deterministic:
            return itertools.repeat(None)
        return jax.random.uniform(rngs.drop(), (len(self._blocks), clips))


def blocks_of(scale: Scale) -> list[Stage]:
    """The table's rows, scaled and repeated: one row a block."""
    blocks = []
    for stage in STAGES:
        channels, features = round_channels(stage.channels, scale.width), round_channels(stage.features, scale.width)
        for repeat in range(math.ceil(stage.repeats * scale.depth)):
            first = repeat == 0
            blocks.append(
                Stage(
                    1,
                    stage.kernel,
                    stage.stride if first else 1,
                    stage.expand,
                    channels if first else features,
                    features,
                )
            )
    return blocks
