"""EfficientNet B0 to B7 (Tan and Le, 2019) on spectrograms as in PSLA: one input channel, no classifier.

Attributes have the names of efficientnet_pytorch's modules, so that the path of a weight is its name in a checkpoint.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from psla_jax.models.convolution import depthwise_conv
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
from psla_jax.models.padding import Pads, static_padding, symmetric_padding
from psla_jax.models.platforms import on_accelerator


@dataclass(frozen=True)
class Stage:
    """A row of the architecture table of B0: a first block from `channels` to `features` channels, with the stride.

    The other `repeats - 1` blocks keep the shape. `expand` is the width inside a block as a multiple of its input's.
    """

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
LARGE_STAGES = 3
"""Number of leading stages, whose images are large: their size is halved at most three times."""
STEM, HEAD = 32, 1280
"""Features of the first and the last convolution of B0."""
MIN_STATIC_FRAMES = 32
"""Smallest number of spectrogram frames with static padding; shorter images would shrink to nothing."""


@dataclass(frozen=True)
class Scale:
    """Scaling of a member of the family relative to B0. `image_size` only determines the static padding."""

    width: float
    depth: float
    image_size: int
    statistics_decay: float = 0.99
    """Decay of the running batch statistics per training step."""


SCALES = {
    # Not a published member: a fraction of B0's work, for small data sets and quick tests. Such runs have some hundred
    # steps, in which statistics over the last hundred would lag behind the weights by epochs.
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
    """Returns `channels` times `width`, rounded to a multiple of 8 that is at least 90% of the product."""
    scaled = channels * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return int(rounded + 8 if rounded < 0.9 * scaled else rounded)


def scaled_blocks(scale: Scale) -> list[Stage]:
    """Returns the architecture table with scaled channels and repeats, one row per block."""
    blocks = []
    for stage in STAGES:
        channels, features = round_channels(stage.channels, scale.width), round_channels(stage.features, scale.width)
        first = dataclasses.replace(stage, repeats=1, channels=channels, features=features)
        others = dataclasses.replace(first, stride=1, channels=features)
        blocks += [first] + [others] * (math.ceil(stage.repeats * scale.depth) - 1)
    return blocks


class PaddingScheme:
    """Padding of the convolutions of a network, called for each of them in order from input to output."""

    def __init__(self, scheme: Literal["symmetric", "static"], image_size: int) -> None:
        self.scheme, self.image_size = scheme, image_size

    def __call__(self, kernel: int, stride: int) -> Pads:
        """Returns the padding of the next convolution and updates the image size that the static scheme assumes."""
        symmetric = self.scheme == "symmetric"
        pads = symmetric_padding(kernel) if symmetric else static_padding(kernel, stride, self.image_size)
        self.image_size = math.ceil(self.image_size / stride)
        return pads


class MBConv(nnx.Module):
    """Inverted bottleneck: 1x1 expansion, depthwise convolution, squeeze-excite, 1x1 projection, residual sum."""

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
        """Maps `(batch, height, width, channels)` to `(batch, height', width', features)`.

        `valid` and `uniform`, both `(batch,)`, are passed to :class:`BatchNorm` and :class:`DropConnect`.
        """
        y = self._with_stored_activations(x, valid) if on_accelerator() else self._with_recomputed_activations(x, valid)
        y = self._bn2(y, valid)
        return self.drop_connect(y, uniform) + x if self.residual else y

    def _with_stored_activations(self, x: jax.Array, valid: jax.Array | None) -> jax.Array:
        """Returns the projected image; the gradient reads the inputs of the convolutions from memory."""
        if self.expands:
            x = self._bn0(self._expand_conv(x), valid, swish)
        y = self._bn1(self._depthwise_conv(x), valid, swish)
        gate = squeeze_excite(y, self._se_reduce.weights(), self._se_expand.weights())
        return gated_conv(y, gate, self._project_conv.weights()[0])

    def _with_recomputed_activations(self, x: jax.Array, valid: jax.Array | None) -> jax.Array:
        """Returns the projected image; on a CPU, the gradient computes the inputs of the convolutions again."""
        if self.expands:
            x = self._expand_conv(x)
            x = recomputed(self._activate_and_filter)(x, self._bn0.affine(x, valid), self._depthwise_conv.weights())
        else:
            x = self._depthwise_conv(x)
        squeeze_excite_weights = self._se_reduce.weights(), self._se_expand.weights()
        weights = squeeze_excite_weights, self._project_conv.weights()
        return recomputed(_activate_and_project)(x, self._bn1.affine(x, valid), weights)

    def _activate_and_filter(self, x: jax.Array, affine: Affine, weights: Weights) -> jax.Array:
        """Normalises and activates the expanded image and applies the depthwise convolution."""
        kernel, conv = weights[0], self._depthwise_conv
        return depthwise_conv(swish_affine(x, affine), kernel, conv.stride, conv.padding)


def _activate_and_project(x: jax.Array, affine: Affine, weights: Weights) -> jax.Array:
    """Normalises and activates the filtered image and applies squeeze-excite and the 1x1 projection."""
    (reduce, expand), (kernel, _) = weights
    y = swish_affine(x, affine)
    return gated_conv(y, squeeze_excite(y, reduce, expand), kernel)


class EfficientNet(Backbone):
    """Backbone from log-mel spectrograms to features, one output frame per 32 spectrogram frames.

    Args:
        name: ``efficientnet-b0`` to ``efficientnet-b7``, or the small ``efficientnet-tiny``.
        padding: ``symmetric`` (efficientnet_pytorch 0.7.0) or ``static`` (0.7.1).
        drop_connect: drop rate at the end of the network; block `i` of `n` has `i / n` of it.
        dtype: dtype of the activations; parameters and batch statistics are float32.
        rngs: ``rngs.params`` draws the weights.

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
        pads = PaddingScheme(padding, scale.image_size)
        self._conv_stem = Conv(1, stem, 3, stride=2, padding=pads(3, 2), dtype=dtype, rngs=rngs)
        self._bn0 = BatchNorm(stem, momentum=decay)
        blocks = scaled_blocks(scale)
        self._blocks = nnx.List(
            [
                MBConv(block, pads(block.kernel, block.stride), drop_connect * i / len(blocks), decay, dtype, rngs)
                for i, block in enumerate(blocks)
            ]
        )
        self._num_large = sum(math.ceil(stage.repeats * scale.depth) for stage in STAGES[:LARGE_STAGES])
        self._conv_head = Conv(blocks[-1].features, self.num_features, dtype=dtype, rngs=rngs)
        self._bn1 = BatchNorm(self.num_features, momentum=decay)

    def __call__(
        self, spectrograms: jax.Array, valid: jax.Array | None = None, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Maps `(batch, frames, mels)` to `(batch, output frames, features)`, averaged over frequency.

        Frequency is the image's height and time its width, as in the reference.
        """
        if self.padding == "static" and spectrograms.shape[1] < MIN_STATIC_FRAMES:
            raise ModelError(
                f"spectrograms have {spectrograms.shape[1]} frames: static padding needs at least {MIN_STATIC_FRAMES}."
            )
        # One iterator for both parts, which consume it in the order of the blocks.
        blocks, uniforms = list(self._blocks), iter(self._uniforms(spectrograms.shape[0], rngs))

        def stem_and_large_stages(x: jax.Array) -> jax.Array:
            x = self._bn0(self._conv_stem(x), valid, swish)
            return self.run_blocks(blocks[: self._num_large], x, valid, uniforms)

        x = self.map_clips(stem_and_large_stages, jnp.swapaxes(spectrograms, 1, 2)[..., None])
        x = self.run_blocks(blocks[self._num_large :], x, valid, uniforms)
        x = self._bn1(self._conv_head(x), valid, swish)
        return row_means(x)

    def _uniforms(self, clips: int, rngs: nnx.Rngs | None) -> Iterable[jax.Array | None]:
        """Returns the uniform numbers of each block's drop-connect, `(blocks, clips)`; None for each if it is off."""
        if rngs is None or self._blocks[0].drop_connect.deterministic:
            return itertools.repeat(None)
        # In this order, the numbers of a clip do not depend on the number of rows of padding behind it.
        return jax.random.uniform(rngs.drop(), (clips, len(self._blocks))).T
