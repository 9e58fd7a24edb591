"""Convolution layers, batch normalisation, squeeze-excite and drop-connect.

Images are `(batch, height, width, channels)`. Modules are built in their evaluation view;
``nnx.view(module, deterministic=False, use_running_average=False)`` returns the training view.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from psla_jax.models import batch_norm, cpu_kernels
from psla_jax.models.batch_norm import Activation, Statistics, identity
from psla_jax.models.convolution import dense_conv, depthwise_conv, pointwise_conv
from psla_jax.models.cpu_kernels import on_cpu
from psla_jax.models.initializers import fan_in_uniform, kaiming_normal
from psla_jax.models.padding import Pads, symmetric_padding
from psla_jax.models.platforms import num_devices, on_accelerator

Weights = Any
"""Pytree of arrays."""

Affine = tuple[jax.Array, jax.Array]
"""Gain and shift `(channels,)` that normalise an image, see :meth:`BatchNorm.affine`."""


class ModelError(ValueError):
    """A model that cannot be built or called; the message names the setting, its value and the choices."""


class Conv(nnx.Module):
    """A convolution of one of the three kinds in the backbones: 1x1, depthwise, or dense."""

    def __init__(
        self,
        channels: int,
        features: int,
        size: int = 1,
        *,
        stride: int = 1,
        padding: Pads = ((0, 0), (0, 0)),
        depthwise: bool = False,
        bias: bool = False,
        init: Literal["torch", "kaiming"] = "torch",
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        shape = (size, size, 1 if depthwise else channels, features)
        fan_in, fan_out = math.prod(shape[:3]), size * size * (1 if depthwise else features)
        key = rngs.params()
        kernel = fan_in_uniform(key, shape, fan_in) if init == "torch" else kaiming_normal(key, shape, fan_out)
        self.kernel = nnx.Param(kernel)
        self.bias = nnx.Param(fan_in_uniform(rngs.params(), (features,), fan_in)) if bias else None
        self.stride, self.padding, self.depthwise, self.dtype = stride, padding, depthwise, dtype

    def weights(self) -> tuple[jax.Array, jax.Array | None]:
        """Returns the kernel and the bias in the dtype of the computation."""
        bias = None if self.bias is None else self.bias[...].astype(self.dtype)
        return self.kernel[...].astype(self.dtype), bias

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(batch, height, width, channels)` to `(batch, height', width', features)`."""
        x, (kernel, bias) = x.astype(self.dtype), self.weights()
        if self.depthwise:
            y = depthwise_conv(x, kernel, self.stride, self.padding)
        elif kernel.shape[0] == 1:
            y = pointwise_conv(x[:, :: self.stride, :: self.stride] if self.stride > 1 else x, kernel)
        else:
            y = dense_conv(x, kernel, self.stride, self.padding)
        return y if bias is None else y + bias


class BatchNorm(nnx.Module):
    """Batch normalisation over all axes but the last, with PyTorch's running statistics.

    The running variance is unbiased, as in PyTorch. `momentum` is the decay of the running statistics: 0.99 is 0.01 in
    PyTorch. Statistics are computed in at least float32 over the valid clips of the whole (global) batch.

    With `local_statistics`, they are those of the clips of every device, so that devices do not wait for each other.
    The running statistics are then the means of those of the devices, weighted by their numbers of valid clips;
    PyTorch's DataParallel keeps those of the first device instead.
    """

    def __init__(self, channels: int, *, momentum: float = 0.99, epsilon: float = 1e-3) -> None:
        # Made by NumPy: jnp.ones would compile a program for every width.
        self.scale = nnx.Param(jax.device_put(np.ones(channels, np.float32)))
        self.bias = nnx.Param(jax.device_put(np.zeros(channels, np.float32)))
        self.mean = nnx.BatchStat(jax.device_put(np.zeros(channels, np.float32)))
        self.var = nnx.BatchStat(jax.device_put(np.ones(channels, np.float32)))
        self.momentum, self.epsilon = momentum, epsilon
        self.use_running_average = True
        self.local_statistics = False

    def set_view(self, use_running_average: bool | None = None, local_statistics: bool | None = None) -> None:
        """``use_running_average=False`` normalises by the batch and updates the running statistics."""
        if use_running_average is not None:
            self.use_running_average = use_running_average
        if local_statistics is not None:
            self.local_statistics = local_statistics

    def __call__(self, x: jax.Array, valid: jax.Array | None = None, activation: Activation = identity) -> jax.Array:
        """Returns the activation of the normalised `x (batch, ..., channels)`.

        Clips where `valid (batch,)` is 0 do not count.
        """
        if self.use_running_average or not on_accelerator():
            gain, shift = self.affine(x, valid)
            return activation((x * gain + shift).astype(x.dtype))
        scale, bias, centre = self.scale[...], self.bias[...], self.mean[...]

        def normalised(x: jax.Array, valid: jax.Array) -> tuple[jax.Array, Statistics]:
            return batch_norm.normalised(x, scale, bias, valid, centre, self.epsilon, activation)

        weights, parts = _clip_weights(x, valid), self._parts(x)
        y, statistics = batch_norm.by_parts(normalised, parts, x, weights)
        self._update(statistics, parts, weights)
        return y.reshape(x.shape)

    def affine(self, x: jax.Array, valid: jax.Array | None = None) -> Affine:
        """Returns gain and shift, float32 `(channels,)`, such that ``x * gain + shift`` is the normalised `x`.

        With local statistics, they are those of every clip, `(batch, 1, ..., channels)`.
        """
        if self.use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            x, weights, parts = x.astype(cpu_kernels.accumulation_dtype(x)), _clip_weights(x, valid), self._parts(x)
            statistics = batch_norm.by_parts(batch_norm.batch_statistics, parts, x, weights)
            self._update(statistics, parts, weights)
            mean, var = (batch_norm.of_every_clip(value, parts, x) for value in statistics[:2])
        gain = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
        return gain, self.bias[...] - mean * gain

    def _parts(self, x: jax.Array) -> int:
        """Returns the number of parts of the batch with statistics of their own."""
        parts = num_devices() if self.local_statistics else 1
        if x.shape[0] % parts:
            raise ModelError(
                f"a batch has {x.shape[0]} rows: for local batch statistics, use a multiple of {parts}, the number of "
                "devices, with rows that are not valid."
            )
        return parts

    def _update(self, statistics: Statistics, parts: int, weights: jax.Array) -> None:
        """Updates the running statistics."""
        mean, var = batch_norm.of_population(statistics, parts, weights)
        decay = self.momentum
        self.mean.set_value(decay * self.mean[...] + (1 - decay) * jax.lax.stop_gradient(mean))
        self.var.set_value(decay * self.var[...] + (1 - decay) * jax.lax.stop_gradient(var))


def _clip_weights(x: jax.Array, valid: jax.Array | None) -> jax.Array:
    return jnp.ones(x.shape[0]) if valid is None else valid.astype(jnp.float32)


def torchvision_conv(channels: int, features: int, size: int = 1, **settings: Any) -> tuple[Conv, BatchNorm]:
    """Returns a convolution and its batch normalisation with torchvision's padding, initial values and constants."""
    conv = Conv(channels, features, size, padding=symmetric_padding(size), init="kaiming", **settings)
    return conv, BatchNorm(features, momentum=0.9, epsilon=1e-5)


def swish(x: jax.Array) -> jax.Array:
    """Returns ``x * sigmoid(x)``."""
    return cpu_kernels.rational_swish(x) if on_cpu() and x.dtype == jnp.float32 else jax.nn.swish(x)


def swish_affine(x: jax.Array, affine: Affine) -> jax.Array:
    """Returns ``swish(x * gain + shift)``: normalisation and activation between two convolutions."""
    gain, shift = affine
    return swish((x * gain + shift).astype(x.dtype))


def image_means(x: jax.Array) -> jax.Array:
    """Returns the mean of every image of `x (batch, height, width, channels)` as float32 `(batch, channels)`."""
    if on_cpu():
        return cpu_kernels.image_means(x)
    return jnp.mean(x, axis=(1, 2), dtype=cpu_kernels.accumulation_dtype(x))


def row_means(x: jax.Array) -> jax.Array:
    """Returns the mean over the rows of `x (batch, height, width, channels)` as float32 `(batch, width, channels)`."""
    if on_cpu():
        return cpu_kernels.row_means(x)
    return jnp.mean(x, axis=1, dtype=cpu_kernels.accumulation_dtype(x))


def squeeze_excite(x: jax.Array, reduce: Weights, expand: Weights) -> jax.Array:
    """Returns the gate of each clip and channel, `(batch, 1, 1, channels)`, computed from the mean of its image.

    `x` is `(batch, height, width, channels)`; `reduce` and `expand` are the float32 kernels and biases of the two 1x1
    convolutions.
    """
    # Not rational_swish, which would be a thirteenth of the training step's program, for a few numbers.
    hidden = jax.nn.swish(pointwise_conv(image_means(x)[:, None, None], reduce[0]) + reduce[1])
    return jax.nn.sigmoid(pointwise_conv(hidden, expand[0]) + expand[1]).astype(x.dtype)


def gated_conv(x: jax.Array, gate: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns the 1x1 convolution of `x * gate`; `gate` is ``(batch, 1, 1, channels)``."""
    batch, height, width, channels = x.shape
    # Scaling the kernel is cheaper than scaling an image that is larger, if there is one clip, or if memory traffic is
    # the bound.
    scales_kernel = height * width > kernel.shape[3]
    if scales_kernel and batch == 1:
        return pointwise_conv(x, gate.reshape(1, 1, -1, 1) * kernel)
    if scales_kernel and on_accelerator():
        return (x.reshape(batch, -1, channels) @ (gate.reshape(batch, -1, 1) * kernel[0])).reshape(
            batch, height, width, -1
        )
    return pointwise_conv(x * gate, kernel)


def recomputed(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Returns ``function(x, affine, weights)`` that stores only its arguments on a CPU, and is evaluated again there.

    Values between two convolutions are cheap to compute and large to store: recomputing them reduces the working memory
    of a training step of B2 from 3.0 to 1.1 GB. `function` has to apply `affine` to `x` before anything else.
    """
    return cpu_kernels.checkpoint(function) if on_cpu() else function


class Backbone(nnx.Module):
    """Base class of the backbones: rematerialisation of blocks, and evaluation clip by clip."""

    remat: bool = False
    use_running_average: bool = True

    def set_view(self, remat: bool | None = None, use_running_average: bool | None = None) -> None:
        """``remat=True`` stores only each block's input for the backward pass: a quarter of the memory.

        With ``use_running_average=False``, clips influence each other and are always computed together.
        """
        if remat is not None:
            self.remat = remat
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def map_clips(self, function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
        """Returns ``function(x)``; used for layers with large images, which some CPUs evaluate clip by clip.

        Later layers have small images and many weights, so they always process all clips together.
        """
        if self.use_running_average and x.shape[0] > 1 and cpu_kernels.per_clip_is_faster():
            return cpu_kernels.per_clip(function, x)
        return function(x)

    def run_blocks(
        self, blocks: Iterable[nnx.Module], x: jax.Array, valid: jax.Array | None, *inputs: Iterable[jax.Array | None]
    ) -> jax.Array:
        """Applies `blocks` in sequence; each of `inputs` yields one additional argument per block."""
        for block, *arguments in zip(blocks, *inputs, strict=False):
            x = _remat_block(block, x, valid, *arguments) if self.remat else block(x, valid, *arguments)
        return x


@nnx.remat
def _remat_block(block: nnx.Module, x: jax.Array, valid: jax.Array | None, *arguments: jax.Array | None) -> jax.Array:
    return block(x, valid, *arguments)


class DropConnect(nnx.Module):
    """Drops the residual branch of whole clips in training and scales those of the others by `1 / keep`.

    As in the reference, a clip keeps its branch when `floor(keep + U[0, 1))` is one. The uniform numbers are drawn for
    all blocks at once, because XLA compiles every draw of random numbers separately.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.deterministic = True

    def set_view(self, deterministic: bool | None = None) -> None:
        """``deterministic=False`` enables dropping."""
        if deterministic is not None:
            self.deterministic = deterministic

    def __call__(self, x: jax.Array, uniform: jax.Array | None) -> jax.Array:
        """Returns `x (batch, height, width, channels)` with the clips dropped that `uniform (batch,)` selects.

        In the evaluation view and at rate 0, `x` is returned unchanged and `uniform` may be None.
        """
        if self.deterministic or self.rate == 0.0:
            return x
        if uniform is None:
            raise ValueError(
                "drop-connect draws random numbers in training: call the model with rngs=nnx.Rngs(drop=key)."
            )
        keep = 1.0 - self.rate
        mask = jnp.floor(keep + uniform)[:, None, None, None]
        return x * (mask / keep).astype(x.dtype)
