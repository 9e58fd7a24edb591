"""1x1, dense and depthwise convolutions, and max pooling.

Images are `(batch, height, width, channels)`, kernels `(height, width, channels / groups, features)`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from psla_jax.models import cpu_kernels, gpu_kernels
from psla_jax.models.cpu_kernels import on_cpu
from psla_jax.models.gpu_kernels import LAYOUT
from psla_jax.models.padding import Pads, pad_images, tap_slices
from psla_jax.models.platforms import platform

MAX_PATCH_CHANNELS = 4
"""Largest number of input channels for which a dense convolution is a matrix product over patches."""


def pointwise_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns the 1x1 convolution of `x (batch, ..., channels)` with `kernel (1, 1, channels, features)`."""
    if on_cpu() and cpu_kernels.prefers_sum_over_channels(x, kernel):
        return cpu_kernels.sum_over_channels(x, kernel)
    # A product of two matrices has gradients that are products of two matrices.
    return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], kernel.shape[-1])


def dense_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: Pads) -> jax.Array:
    """Returns the convolution of `x` with `kernel (size, size, channels, features)`."""
    if kernel.shape[2] <= MAX_PATCH_CHANNELS:
        return patches_conv(x, kernel, stride, padding)
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT)


def patches_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: Pads) -> jax.Array:
    """Returns a dense convolution as one matrix product over patches, which is fast for few input channels."""
    patches = jnp.concatenate(tap_slices(pad_images(x, padding), kernel.shape[0], stride), axis=-1)
    return pointwise_conv(patches, kernel.reshape(1, 1, -1, kernel.shape[3]))


def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: Pads) -> jax.Array:
    """Returns the depthwise convolution of `x` with `kernel (size, size, 1, channels)`."""
    forms = {"cpu": cpu_kernels.depthwise_conv, "gpu": gpu_kernels.depthwise_conv}
    return forms.get(platform(), gpu_kernels.plain_depthwise_conv)(x, kernel, stride, padding)


def max_pool(x: jax.Array, size: int, stride: int, padding: int) -> jax.Array:
    """Returns the maximum of every `size` x `size` window; pixels outside the image do not count."""
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    # A Python number: with an array, which is traced inside jit, reduce_window has no gradient.
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, size, size, 1), (1, stride, stride, 1), pads)
