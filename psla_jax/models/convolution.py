"""Convolutions as functions: 1x1, dense and depthwise, each in the form that its platform compiles to fast code.

Images are `(batch, height, width, channels)`, kernels `(height, width, in / groups, out)`.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

Pads = tuple[tuple[int, int], tuple[int, int]]
"""Zeros (above, below) and (left, right) of an image."""

STEM_CHANNELS = 4
"""Up to so many input channels, a dense convolution is a product over patches."""

FEW_CHANNELS = 16
"""Of one clip on a CPU, a 1x1 convolution of up to so many channels to more is a sum over them."""

ROWS = 8
"""At most so many output rows are multiplied at a time for a kernel's gradient on a CPU."""


def symmetric_padding(kernel: int) -> Pads:
    """``kernel // 2`` zeros on every side, whatever the stride: efficientnet_pytorch 0.7.0."""
    return ((kernel // 2, kernel // 2), (kernel // 2, kernel // 2))


def static_padding(kernel: int, stride: int, image_size: int) -> Pads:
    """The padding that TensorFlow's SAME has on a square image of `image_size`: efficientnet_pytorch 0.7.1.

    It is a property of the layer and stays the same for inputs of any other size.
    """
    total = max((math.ceil(image_size / stride) - 1) * stride + kernel - image_size, 0)
    return ((total // 2, total - total // 2), (total // 2, total - total // 2))


def _output_size(size: int, kernel: int, stride: int, pads: tuple[int, int]) -> int:
    return max((size + sum(pads) - kernel) // stride + 1, 0)


def _shifted(x: jax.Array, row: int, column: int, height: int, width: int, stride: int) -> jax.Array:
    """The values that one kernel tap meets: every `stride`-th row and column of `x` from (row, column) on."""
    start = (0, row, column, 0)
    stop = (x.shape[0], row + stride * (height - 1) + 1, column + stride * (width - 1) + 1, x.shape[3])
    return jax.lax.slice(x, start, stop, (1, stride, stride, 1))


def pointwise_conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """1x1 convolution of `x (batch, ..., channels)`, as a product of matrices or as a sum over its channels."""
    channels, features = kernel.shape[2:]
    if on_cpu() and x.shape[0] == 1 and channels <= FEW_CHANNELS and 2 * channels <= features:
        return _sum_over_channels(x, kernel)
    return _product(x, kernel)


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    # Of two matrices, so that its gradients are products of two matrices too.
    return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], kernel.shape[-1])


@jax.custom_vjp
def _sum_over_channels(x: jax.Array, kernel: jax.Array) -> jax.Array:
    # XLA computes it where it is used: a large image of the outputs is neither written out nor read.
    taps = kernel[0, 0].astype(jnp.promote_types(kernel.dtype, jnp.float32))
    parts = (x[..., channel : channel + 1] * taps[channel] for channel in range(taps.shape[0]))
    return functools.reduce(jnp.add, parts).astype(jnp.result_type(x, kernel))


def _sum_over_channels_forward(x: jax.Array, kernel: jax.Array):
    return _sum_over_channels(x, kernel), (x, kernel)


def _sum_over_channels_backward(residuals: tuple[jax.Array, jax.Array], dy: jax.Array):
    return jax.vjp(_product, *residuals)[1](dy)


_sum_over_channels.defvjp(_sum_over_channels_forward, _sum_over_channels_backward)


def patches_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: Pads) -> jax.Array:
    """Dense convolution as one matrix product over gathered patches; good where there are few input channels."""
    size = kernel.shape[0]
    height = _output_size(x.shape[1], size, stride, padding[0])
    width = _output_size(x.shape[2], size, stride, padding[1])
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    taps = [_shifted(padded, i, j, height, width, stride) for i in range(size) for j in range(size)]
    return pointwise_conv(jnp.concatenate(taps, axis=-1), kernel.reshape(1, 1, -1, kernel.shape[3]))


def dense_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: Pads) -> jax.Array:
    """Dense convolution; a stem with its one or three input channels is a product over patches."""
    if kernel.shape[2] <= STEM_CHANNELS:
        return patches_conv(x, kernel, stride, padding)
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def max_pool(x: jax.Array, size: int, stride: int, padding: int) -> jax.Array:
    """The largest value of every window; what lies outside the image is no value."""
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    lowest = jnp.asarray(-jnp.inf, x.dtype)
    return jax.lax.reduce_window(x, lowest, jax.lax.max, (1, size, size, 1), (1, stride, stride, 1), pads)


def depthwise_conv_plain(x: jax.Array, kernel: jax.Array, stride: int, padding: Pads) -> jax.Array:
    """Depthwise convolution as XLA's grouped convolution: what accelerators have fast kernels for.

    Args:
        x: `(batch, height, width, channels)`.
        kernel: `(size, size, 1, channels)`.
        stride: the same in both directions.
        padding: zeros around the image.
    """
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        feature_group_count=x.shape[3],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _depthwise_slices(x: jax.Array, kernel: jax.Array, stride: int, padding: Pads) -> jax.Array:
    """The same as a sum of shifted slices, which XLA fuses into one loop: several times faster on a CPU."""
    size = kernel.shape[0]
    height = _output_size(x.shape[1], size, stride, padding[0])
    width = _output_size(x.shape[2], size, stride, padding[1])
    # Without the barrier, XLA reads the middle tap from what was padded instead, and so computes and writes that, the
    # activation before the convolution, a second time.
    padded = jax.lax.optimization_barrier(jnp.pad(x, ((0, 0), *padding, (0, 0))))
    taps = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    total = jnp.zeros((x.shape[0], height, width, x.shape[3]), taps.dtype)
    for i in range(size):
        for j in range(size):
            total = total + _shifted(padded, i, j, height, width, stride) * taps[i, j, 0]
    return total.astype(x.dtype)


Taps = list[tuple[int, int]]
"""Of one phase, along one axis: places in the kernel, and how far behind input `t` lies the output they lead to."""


def _input_gradient_slices(dy: jax.Array, kernel: jax.Array, stride: int, padding: Pads, shape: tuple) -> jax.Array:
    """Gradient for the input. With a stride, each phase of the input meets its own share of the taps."""
    rows, columns = math.ceil(shape[1] / stride), math.ceil(shape[2] / stride)
    high, wide = (_phases(kernel.shape[axis], stride, padding[axis][0]) for axis in (0, 1))
    above, below = _margins(high, rows, dy.shape[1])
    before, after = _margins(wide, columns, dy.shape[2])
    padded = jnp.pad(dy, ((0, 0), (above, below), (before, after), (0, 0)))
    exact = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))

    def phase(ups: Taps, lefts: Taps) -> jax.Array:
        total = jnp.zeros((dy.shape[0], rows, columns, dy.shape[3]), exact.dtype)
        for i, up in ups:
            for j, left in lefts:
                total = total + _shifted(padded, above + up, before + left, rows, columns, 1) * exact[i, j, 0]
        return total.astype(dy.dtype)

    stacked = jnp.stack([jnp.stack([phase(ups, lefts) for lefts in wide], axis=3) for ups in high], axis=2)
    whole = stacked.reshape(shape[0], rows * stride, columns * stride, shape[3])
    return whole[:, : shape[1], : shape[2]]


def _phases(size: int, stride: int, zeros: int) -> list[Taps]:
    """The taps that inputs `0, 1, ..., stride - 1` (and every `stride`-th from there on) meet; `zeros` come before."""
    return [[(i, (q + zeros - i) // stride) for i in range((q + zeros) % stride, size, stride)] for q in range(stride)]


def _margins(phases: list[Taps], inputs: int, outputs: int) -> tuple[int, int]:
    """Zeros before and after the outputs, so that every tap of every input of a phase meets a value."""
    shifts = [shift for taps in phases for _, shift in taps]
    return max(-min(shifts), 0), max(inputs + max(shifts) - outputs, 0)


def _kernel_gradient_rows(x: jax.Array, dy: jax.Array, kernel: jax.Array, stride: int, padding: Pads) -> jax.Array:
    """Gradient for the kernel, a few output rows and one tap at a time: what is multiplied stays in the cache.

    The sum over columns is a product with ones, which is vectorised where XLA's own reduction is not. One device takes
    its clips one by one too; several have to keep theirs together, or they would send them around.
    """
    size, (batch, height, width, channels) = kernel.shape[0], dy.shape
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    exact = jnp.promote_types(kernel.dtype, jnp.float32)
    clips = 1 if jax.device_count() == 1 else batch
    rows = next(n for n in range(ROWS, 0, -1) if height % n == 0)
    ones = jnp.ones((clips * width,), exact)

    def add_rows(total: jax.Array, item: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        clip, tops, i, j = item

        def product(n: int) -> jax.Array:
            # Each row in a slice of its own: one of all rows, used row by row, would be code without vectors.
            def row(image: jax.Array, top: jax.Array, left: jax.Array | int, columns: int) -> jax.Array:
                start, sizes = (clip, top, left, 0), (clips, 1, columns, channels)
                return jax.lax.dynamic_slice(image, start, sizes, allow_negative_indices=False).astype(exact)

            met = row(padded, tops[n] * stride + i, j, stride * (width - 1) + 1)
            return met[:, :, ::stride] * row(dy, tops[n], 0, width)

        products = functools.reduce(jnp.add, map(product, range(rows)))
        return total.at[i, j].add(ones @ products.reshape(-1, channels)), None

    taps = np.arange(size)
    items = np.meshgrid(np.arange(batch // clips), np.arange(0, height, rows), taps, taps, indexing="ij")
    clip, top, i, j = (jnp.asarray(item.ravel()) for item in items)
    tops = top[:, None] + jnp.arange(rows)
    total, _ = jax.lax.scan(add_rows, jnp.zeros((size, size, channels), exact), (clip, tops, i, j))
    return total.reshape(kernel.shape).astype(kernel.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: Pads) -> jax.Array:
    """:func:`depthwise_conv_plain`, in the form that suits the platform that JAX computes on."""
    return (_depthwise_slices if on_cpu() else depthwise_conv_plain)(x, kernel, stride, padding)


def on_cpu() -> bool:
    """Whether layers take the forms that are fast on a CPU; the values are the same.

    Asked while a program is traced: :func:`jax.lax.platform_dependent` would trace both forms of every layer, a quarter
    of the time that the step of B2 takes to trace.
    """
    return jax.default_backend() == "cpu"


def _depthwise_forward(x: jax.Array, kernel: jax.Array, stride: int, padding: Pads):
    return depthwise_conv(x, kernel, stride, padding), (x, kernel)


def _depthwise_backward(stride: int, padding: Pads, residuals: tuple[jax.Array, jax.Array], dy: jax.Array):
    x, kernel = residuals
    if on_cpu():
        dx = _input_gradient_slices(dy, kernel, stride, padding, x.shape)
        return dx, _kernel_gradient_rows(x, dy, kernel, stride, padding)
    return jax.vjp(lambda x, kernel: depthwise_conv_plain(x, kernel, stride, padding), x, kernel)[1](dy)


depthwise_conv.defvjp(_depthwise_forward, _depthwise_backward)
