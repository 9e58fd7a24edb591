"""Forms of the layers that XLA compiles to fast code on a CPU.

They compute the same values as the plain forms, up to rounding. Images are `(batch, height, width, channels)`.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from psla_jax.models.padding import Pads, pad_images, tap_slices
from psla_jax.models.platforms import num_devices, platform

FEW_CORES = 4
"""Largest number of cores on which large images are computed clip by clip."""

FEW_CHANNELS = 16
"""Largest number of input channels for which a 1x1 convolution of one clip is a sum over channels."""

MAX_ROWS = 8
"""Largest number of output rows that are multiplied at a time for the gradient of a depthwise kernel."""


def on_cpu() -> bool:
    """Returns whether layers are traced for a CPU (:func:`psla_jax.models.platforms.layers_for`).

    Evaluated when a program is traced: :func:`jax.lax.platform_dependent` would trace both forms of every layer, which
    is a quarter of the time that tracing the training step of B2 takes.
    """
    return platform() == "cpu"


def per_clip_is_faster() -> bool:
    """Returns whether large images are computed clip by clip, so that activations stay in the CPU's cache.

    With many cores a single clip does not occupy them all, and a batch sharded over several devices is not divided.
    """
    return on_cpu() and num_devices() == 1 and (os.cpu_count() or 1) <= FEW_CORES


def per_clip(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Returns ``function(x)`` computed clip by clip; clips (the first axis of `x`) must not influence each other."""
    return jax.lax.map(lambda clip: function(clip[None])[0], x)


SATURATION = 17.0
"""Input above which the sigmoid is 1 in float32."""

NUMERATOR = (
    1.1613337467166959e-11,
    7.641467212214383e-08,
    5.363158792774256e-05,
    0.008330047411645218,
    0.25000002959919,
)
DENOMINATOR = (2.80487067673392e-09, 4.971843947346292e-06, 0.00160233294917918, 0.11665353536564398, 1.0)
"""Polynomials in x^2, highest power first: ``sigmoid(x) - 0.5 = x N(x^2) / D(x^2)`` within 6.9e-8 up to SATURATION.

Of all quotients of these degrees, it minimises the largest error divided by sqrt(max(1, x)).
"""


@jax.custom_vjp
def rational_swish(x: jax.Array) -> jax.Array:
    """Returns ``x * sigmoid(x)`` within 3.1e-6 (5e-7 below 3), in half the operations of XLA's tanh."""
    low, _, sigmoid = _rational_sigmoid(x)
    return low * sigmoid


def _rational_sigmoid(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns `x` clipped from below at -SATURATION, `x` clipped at both ends, and the sigmoid."""
    low = jnp.maximum(x, -SATURATION)
    clipped = jnp.minimum(low, SATURATION)
    square = clipped * clipped
    return low, clipped, 0.5 + clipped * (_polynomial(NUMERATOR, square) / _polynomial(DENOMINATOR, square))


def _polynomial(coefficients: tuple[float, ...], x: jax.Array) -> jax.Array:
    return functools.reduce(lambda total, c: total * x + c, coefficients[1:], jnp.asarray(coefficients[0], x.dtype))


def _rational_swish_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return rational_swish(x), x


def _rational_swish_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    # Adding zero times the gradient keeps XLA from reusing the sigmoid of the forward pass: it would be written to
    # memory, and reading it takes longer than computing it again.
    _, clipped, sigmoid = _rational_sigmoid(x + 0.0 * gradient)
    return (gradient * sigmoid * (1.0 + clipped * (1.0 - sigmoid)),)


rational_swish.defvjp(_rational_swish_forward, _rational_swish_backward)


def image_means(x: jax.Array) -> jax.Array:
    """Returns the mean of every image as `(batch, channels)`, in at least float32.

    It is a product with ones, which is vector code; XLA compiles a sum over two axes to a slow loop.
    """
    dtype = accumulation_dtype(x)
    flat = x.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[3]).astype(dtype)
    ones = jnp.ones((x.shape[0], 1, flat.shape[1]), dtype)
    return jax.lax.dot_general(ones, flat, (((2,), (1,)), ((0,), (0,))))[:, 0] / flat.shape[1]


def row_means(x: jax.Array) -> jax.Array:
    """Returns the mean over the rows of every image as `(batch, width, channels)`, in at least float32.

    Rows are added one by one; a sum over the axis takes part of the operations before it out of XLA's fast loops.
    """
    rows = (x[:, row].astype(accumulation_dtype(x)) for row in range(x.shape[1]))
    return functools.reduce(jnp.add, rows) / x.shape[1]


def accumulation_dtype(x: jax.Array) -> np.dtype:
    """Returns the type in which values of `x` are summed: float32 or wider."""
    return jnp.promote_types(x.dtype, jnp.float32)


def prefers_sum_over_channels(x: jax.Array, kernel: jax.Array) -> bool:
    """Returns whether :func:`sum_over_channels` is faster: for one clip with few channels and more features."""
    channels, features = kernel.shape[2:]
    return x.shape[0] == 1 and channels <= FEW_CHANNELS and 2 * channels <= features


@jax.custom_vjp
def sum_over_channels(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns the 1x1 convolution of `x (batch, ..., channels)` as a sum over its channels.

    XLA fuses it into the operation that uses it, so that a large output is neither written to memory nor read.
    """
    taps = kernel[0, 0].astype(accumulation_dtype(kernel))
    products = (x[..., channel : channel + 1] * taps[channel] for channel in range(taps.shape[0]))
    return functools.reduce(jnp.add, products).astype(jnp.result_type(x, kernel))


def _sum_over_channels_forward(x: jax.Array, kernel: jax.Array):
    return sum_over_channels(x, kernel), (x, kernel)


def _sum_over_channels_backward(residuals: tuple[jax.Array, jax.Array], gradient: jax.Array):
    def matrix_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(gradient.shape)

    return jax.vjp(matrix_product, *residuals)[1](gradient)


sum_over_channels.defvjp(_sum_over_channels_forward, _sum_over_channels_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: Pads) -> jax.Array:
    """Returns the depthwise convolution of `x` with `kernel (size, size, 1, channels)`.

    It is a sum of shifted slices, which XLA fuses into one loop: several times faster than a grouped convolution.
    """
    # Without the barrier, XLA reads the middle tap from the array before padding, and so computes and writes the
    # activation before the convolution a second time.
    padded = jax.lax.optimization_barrier(pad_images(x, padding))
    taps = kernel.astype(accumulation_dtype(kernel))
    slices = tap_slices(padded, kernel.shape[0], stride)
    total = jnp.zeros(slices[0].shape, taps.dtype)
    for index, pixels in enumerate(slices):
        row, column = divmod(index, kernel.shape[0])
        total = total + pixels * taps[row, column, 0]
    return total.astype(x.dtype)


def _depthwise_forward(x: jax.Array, kernel: jax.Array, stride: int, padding: Pads):
    return depthwise_conv(x, kernel, stride, padding), (x, kernel)


def _depthwise_backward(stride: int, padding: Pads, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array):
    x, kernel = residuals
    return (
        depthwise_input_gradient(gradient, kernel, stride, padding, x.shape),
        _depthwise_kernel_gradient(x, gradient, kernel, stride, padding),
    )


depthwise_conv.defvjp(_depthwise_forward, _depthwise_backward)

Taps = list[tuple[int, int]]
"""Kernel taps of one input phase along one axis, as pairs (kernel index, output offset).

Phase `q` is every `stride`-th input from `q` on; its input `t` contributes through a tap to output `t + offset`.
"""


def depthwise_input_gradient(
    gradient: jax.Array, kernel: jax.Array, stride: int, padding: Pads, shape: tuple[int, ...]
) -> jax.Array:
    """Returns the gradient for an input of `shape`: one sum of shifted slices per input phase, interleaved."""
    rows, columns = math.ceil(shape[1] / stride), math.ceil(shape[2] / stride)
    row_phases, column_phases = (_phases(kernel.shape[axis], stride, padding[axis][0]) for axis in (0, 1))
    above, below = _margins(row_phases, rows, gradient.shape[1])
    left, right = _margins(column_phases, columns, gradient.shape[2])
    padded = pad_images(gradient, ((above, below), (left, right)))
    taps = kernel.astype(accumulation_dtype(kernel))

    def phase(row_taps: Taps, column_taps: Taps) -> jax.Array:
        batch, _, _, channels = shape
        total = jnp.zeros((batch, rows, columns, channels), taps.dtype)
        for i, down in row_taps:
            for j, across in column_taps:
                start = (0, above + down, left + across, 0)
                stop = (batch, start[1] + rows, start[2] + columns, channels)
                total = total + jax.lax.slice(padded, start, stop) * taps[i, j, 0]
        return total.astype(gradient.dtype)

    phases = [jnp.stack([phase(down, across) for across in column_phases], axis=3) for down in row_phases]
    interleaved = jnp.stack(phases, axis=2).reshape(shape[0], rows * stride, columns * stride, shape[3])
    return interleaved[:, : shape[1], : shape[2]]


def _phases(size: int, stride: int, zeros: int) -> list[Taps]:
    """Returns the taps of each of the `stride` input phases along an axis with `zeros` zeros before the input."""
    return [[(i, (q + zeros - i) // stride) for i in range((q + zeros) % stride, size, stride)] for q in range(stride)]


def _margins(phases: list[Taps], inputs: int, outputs: int) -> tuple[int, int]:
    """Returns the zeros to add before and after `outputs` values so that all taps of `inputs` inputs read a value."""
    offsets = [offset for taps in phases for _, offset in taps]
    return max(-min(offsets), 0), max(inputs + max(offsets) - outputs, 0)


def _depthwise_kernel_gradient(
    x: jax.Array, gradient: jax.Array, kernel: jax.Array, stride: int, padding: Pads
) -> jax.Array:
    """Returns the gradient for the kernel, computed one tap and a few output rows at a time to stay in the cache.

    The sum over columns is a product with ones, which is vectorised where XLA's own reduction is not. A single device
    computes clip by clip; several devices take all clips together, because dividing them would cause communication.
    """
    size, (batch, height, width, channels) = kernel.shape[0], gradient.shape
    padded = pad_images(x, padding)
    dtype = accumulation_dtype(kernel)
    clips = 1 if num_devices() == 1 else batch
    rows = next(n for n in range(MAX_ROWS, 0, -1) if height % n == 0)
    ones = jnp.ones((clips * width,), dtype)

    def add_rows(total: jax.Array, item: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        clip, tops, i, j = item

        def product(n: int) -> jax.Array:
            # One slice per row: code that takes single rows out of one slice of all rows is not vectorised.
            def row(image: jax.Array, top: jax.Array, left: jax.Array | int, columns: int) -> jax.Array:
                start, sizes = (clip, top, left, 0), (clips, 1, columns, channels)
                return jax.lax.dynamic_slice(image, start, sizes, allow_negative_indices=False).astype(dtype)

            pixels = row(padded, tops[n] * stride + i, j, stride * (width - 1) + 1)
            return pixels[:, :, ::stride] * row(gradient, tops[n], 0, width)

        products = functools.reduce(jnp.add, map(product, range(rows)))
        return total.at[i, j].add(ones @ products.reshape(-1, channels)), None

    taps = np.arange(size)
    items = np.meshgrid(np.arange(batch // clips), np.arange(0, height, rows), taps, taps, indexing="ij")
    clip, top, i, j = (jnp.asarray(item.ravel()) for item in items)
    tops = top[:, None] + jnp.arange(rows)
    total, _ = jax.lax.scan(add_rows, jnp.zeros((size, size, channels), dtype), (clip, tops, i, j))
    return total.reshape(kernel.shape).astype(kernel.dtype)


def checkpoint(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Returns ``function(x, (gain, shift), weights)`` that is evaluated again in the backward pass.

    XLA's CPU compiler merges the second evaluation of :func:`jax.checkpoint` with the first one, and so stores all
    intermediate values. Here the gain of the second evaluation, which `function` applies to `x` before anything else,
    depends on the incoming gradient: that of the clip itself, so that devices do not communicate. If `x` is converted
    first (bfloat16), `x` depends on it instead.
    """

    @jax.custom_vjp
    def call(x: jax.Array, affine: Any, weights: Any) -> jax.Array:
        return function(x, affine, weights)

    def forward(*arguments: Any) -> tuple[jax.Array, tuple[Any, ...]]:
        return function(*arguments), arguments

    def backward(arguments: tuple[Any, ...], gradient: jax.Array) -> tuple[Any, ...]:
        zero = 0.0 * gradient[:, :1, :1, :1].astype(jnp.float32)

        def delayed(x: jax.Array, affine: Any, weights: Any) -> jax.Array:
            gain, shift = affine
            if x.dtype == gain.dtype:
                return function(x, (gain + zero, shift), weights)
            return function(x + zero.astype(x.dtype), affine, weights)

        return jax.vjp(delayed, *arguments)[1](gradient)

    call.defvjp(forward, backward)
    return call
