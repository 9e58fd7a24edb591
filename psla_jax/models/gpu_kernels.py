"""Depthwise convolution with a hand-written gradient that XLA compiles to fast calls of cuDNN.

Values are those of the plain form, up to rounding. Images are `(batch, height, width, channels)`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from psla_jax.models.cpu_kernels import depthwise_input_gradient
from psla_jax.models.padding import Pads

LAYOUT = ("NHWC", "HWIO", "NHWC")


def plain_depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: Pads) -> jax.Array:
    """Returns the depthwise convolution of `x` with `kernel (size, size, 1, channels)`, a single operation of XLA."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=LAYOUT, feature_group_count=x.shape[3]
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: Pads) -> jax.Array:
    """Returns the same as :func:`plain_depthwise_conv`."""
    return plain_depthwise_conv(x, kernel, stride, padding)


def _forward(x: jax.Array, kernel: jax.Array, stride: int, padding: Pads):
    return depthwise_conv(x, kernel, stride, padding), (x, kernel)


def _backward(stride: int, padding: Pads, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array):
    x, kernel = residuals
    return (
        _input_gradient(x, kernel, stride, padding, gradient),
        _kernel_gradient(x, kernel, stride, padding, gradient),
    )


depthwise_conv.defvjp(_forward, _backward)


def _input_gradient(x: jax.Array, kernel: jax.Array, stride: int, padding: Pads, gradient: jax.Array) -> jax.Array:
    if stride > 1:
        # As a convolution, XLA would write the gradient with zeros between its pixels first, in the size of `x`.
        # The barrier keeps XLA from writing a function of the interleaved phases once more.
        return jax.lax.optimization_barrier(depthwise_input_gradient(gradient, kernel, stride, padding, x.shape))
    _, pull_back = jax.vjp(lambda x: plain_depthwise_conv(x, kernel, stride, padding), x)
    return pull_back(gradient)[0]


def _kernel_gradient(x: jax.Array, kernel: jax.Array, stride: int, padding: Pads, gradient: jax.Array) -> jax.Array:
    """Returns the gradient for the kernel, for which XLA calls cuDNN's filter gradient only if it is the smaller image.

    For the others it calls a forward convolution with a channel for every clip, for which cuDNN has only slow kernels.
    So rows and columns of zeros are added to a small image.
    """
    rows, columns = (max(kernel.shape[axis] + 1 - gradient.shape[axis + 1], 0) for axis in (0, 1))
    if rows or columns:
        x = jnp.pad(x, ((0, 0), (0, rows * stride), (0, columns * stride), (0, 0)))
        gradient = jnp.pad(gradient, ((0, 0), (0, rows), (0, columns), (0, 0)))
    _, pull_back = jax.vjp(lambda kernel: plain_depthwise_conv(x, kernel, stride, padding), kernel)
    return pull_back(gradient)[0]
