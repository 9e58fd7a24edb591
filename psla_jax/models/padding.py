"""Padding of images `(batch, height, width, channels)`, and the pixels of a padded image that a kernel meets."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

Pads = tuple[tuple[int, int], tuple[int, int]]
"""Numbers of zeros (above, below) and (left, right) of an image."""


def symmetric_padding(kernel: int) -> Pads:
    """Returns ``kernel // 2`` zeros on every side, whatever the stride, as efficientnet_pytorch 0.7.0 does."""
    return ((kernel // 2, kernel // 2), (kernel // 2, kernel // 2))


def static_padding(kernel: int, stride: int, image_size: int) -> Pads:
    """Returns TensorFlow's SAME padding for a square image of `image_size`, as efficientnet_pytorch 0.7.1 does.

    The padding is a property of the layer: it does not depend on the size of the actual input.
    """
    total = max((math.ceil(image_size / stride) - 1) * stride + kernel - image_size, 0)
    return ((total // 2, total - total // 2), (total // 2, total - total // 2))


def pad_images(x: jax.Array, padding: Pads) -> jax.Array:
    """Returns `x (batch, height, width, channels)` with zeros around every image."""
    return jnp.pad(x, ((0, 0), *padding, (0, 0)))


def tap_slices(padded: jax.Array, size: int, stride: int) -> list[jax.Array]:
    """Returns the pixels that each tap of a `size` x `size` kernel multiplies, taps in row-major order.

    `padded` is `(batch, height, width, channels)`, each slice `(batch, height', width', channels)` with the height and
    width of the convolution's output.
    """
    batch, height, width, channels = padded.shape
    rows, columns = (stride * ((length - size) // stride) + 1 for length in (height, width))
    return [
        jax.lax.slice(padded, (0, i, j, 0), (batch, i + rows, j + columns, channels), (1, stride, stride, 1))
        for i in range(size)
        for j in range(size)
    ]
