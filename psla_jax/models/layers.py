"""Convolutions with the reference's paddings, batch normalisation, squeeze-excite and drop-connect.

Images are `(batch, height, width, channels)`, kernels `(height, width, in / groups, out)`. Modules are built as their
evaluation view; ``nnx.view(module, deterministic=False, use_running_average=False)`` gives the training view.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

Pads = tuple[tuple[int, int], tuple[int, int]]
"""Zeros (above, below) and (left, right) of an image."""

Weights = Any
"""Arrays in a tree."""

STEM_CHANNELS = 4
"""Up to so many input channels, a dense convolution is a product over patches."""


class ModelError(ValueError):
    """A model that cannot be built or called; the message names the setting, its value and the choices."""


@functools.partial(jax.jit, static_argnums=1)
def _draw(key: jax.Array, size: int) -> jax.Array:
    return jax.random.uniform(key, (size,), jnp.float32, -1.0, 1.0)


class NoDraws:
    """Takes the place of ``nnx.Rngs`` where a model is built only to be given weights: nothing is drawn."""

    def params(self) -> None:
        """No key."""


def uniform(key: jax.Array | None, shape: tuple[int, ...], bound: float) -> jax.Array | np.ndarray:
    """Uniform values in +-`bound`; without a key, zeros that take no room.

    Drawn in sizes of powers of two and cut, outside XLA where possible: a network has hundreds of shapes, and compiling
    a program for each would take longer than the first epoch of a small run.
    """
    if key is None:
        return np.broadcast_to(np.float32(0), shape)
    size = math.prod(shape)
    flat = _draw(key, 1 << (size - 1).bit_length())
    values = flat if isinstance(flat, jax.core.Tracer) else np.asarray(flat)
    return jax.device_put(values[:size].reshape(shape) * np.float32(bound))


def torch_uniform(key: jax.Array | None, shape: tuple[int, ...], fan_in: int) -> jax.Array | np.ndarray:
    """PyTorch's default for convolutions and their biases: uniform in +-1/sqrt(fan_in)."""
    return uniform(key, shape, 1.0 / math.sqrt(fan_in))


def kaiming_normal(key: jax.Array | None, shape: tuple[int, ...], fan_out: int) -> jax.Array | np.ndarray:
    """What torchvision's networks start from: normal values of standard deviation sqrt(2/fan_out)."""
    if key is None:
        return np.broadcast_to(np.float32(0), shape)
    return jax.random.normal(key, shape, jnp.float32) * math.sqrt(2.0 / fan_out)


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
    """1x1 convolution as a product of two matrices, so that its gradients are products of two matrices too."""
    return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], kernel.shape[-1])


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
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    taps = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    total = jnp.zeros((x.shape[0], height, width, x.shape[3]), taps.dtype)
    for i in range(size):
        for j in range(size):
            total = total + _shifted(padded, i, j, height, width, stride) * taps[i, j, 0]
    return total.astype(x.dtype)


def _input_gradient_slices(dy: jax.Array, kernel: jax.Array, stride: int, padding: Pads, shape: tuple) -> jax.Array:
    """Gradient for the input. With a stride, each phase of the input meets its own share of the taps."""
    rows = math.ceil((shape[1] + sum(padding[0])) / stride)
    columns = math.ceil((shape[2] + sum(padding[1])) / stride)
    phases = [
        [_phase_gradient(dy, kernel[r::stride, c::stride], rows, columns) for c in range(stride)] for r in range(stride)
    ]
    stacked = jnp.stack([jnp.stack(row, axis=3) for row in phases], axis=2)
    padded = stacked.reshape(shape[0], rows * stride, columns * stride, shape[3])
    top, left = padding[0][0], padding[1][0]
    return padded[:, top : top + shape[1], left : left + shape[2]]


def _phase_gradient(dy: jax.Array, kernel: jax.Array, rows: int, columns: int) -> jax.Array:
    """One phase on the padded grid: `out[t] = sum_m dy[t - m] kernel[m]`, for `rows x columns` values of t."""
    high, wide = kernel.shape[:2]
    pads = ((high - 1, rows - dy.shape[1]), (wide - 1, columns - dy.shape[2]))
    padded = jnp.pad(dy, ((0, 0), *((a, max(b, 0)) for a, b in pads), (0, 0)))
    taps = kernel.astype(jnp.promote_types(kernel.dtype, jnp.float32))
    total = jnp.zeros((dy.shape[0], rows, columns, dy.shape[3]), taps.dtype)
    for i in range(high):
        for j in range(wide):
            total = total + _shifted(padded, high - 1 - i, wide - 1 - j, rows, columns, 1) * taps[i, j, 0]
    return total.astype(dy.dtype)


def _kernel_gradient_rows(x: jax.Array, dy: jax.Array, kernel: jax.Array, stride: int, padding: Pads) -> jax.Array:
    """Gradient for the kernel, one output row and one kernel row at a time: what is multiplied stays in the cache.

    The sum over clips and columns is a product with ones, which is vectorised where XLA's own reduction is not.
    """
    size, (batch, height, width, channels) = kernel.shape[0], dy.shape
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    exact = jnp.promote_types(kernel.dtype, jnp.float32)
    ones = jnp.ones((batch * width,), exact)

    def add_row(total: jax.Array, item: jax.Array) -> tuple[jax.Array, None]:
        row, i = item // size, item % size
        window = jax.lax.dynamic_slice_in_dim(padded, row * stride + i, 1, axis=1).astype(exact)
        gradient = jax.lax.dynamic_slice_in_dim(dy, row, 1, axis=1).astype(exact)
        products = [_shifted(window, 0, j, 1, width, stride) * gradient for j in range(size)]
        return total.at[i].add(jnp.stack([ones @ p.reshape(-1, channels) for p in products])), None

    total, _ = jax.lax.scan(add_row, jnp.zeros((size, size, channels), exact), jnp.arange(height * size))
    return total.reshape(kernel.shape).astype(kernel.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: Pads) -> jax.Array:
    """:func:`depthwise_conv_plain`, in the form that suits the platform it is compiled for."""
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=lambda x, kernel: _depthwise_slices(x, kernel, stride, padding),
        default=lambda x, kernel: depthwise_conv_plain(x, kernel, stride, padding),
    )


def _depthwise_forward(x: jax.Array, kernel: jax.Array, stride: int, padding: Pads):
    return depthwise_conv(x, kernel, stride, padding), (x, kernel)


def _depthwise_backward(stride: int, padding: Pads, residuals: tuple[jax.Array, jax.Array], dy: jax.Array):
    def slices(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
        dx = _input_gradient_slices(dy, kernel, stride, padding, x.shape)
        return dx, _kernel_gradient_rows(x, dy, kernel, stride, padding)

    def plain(x: jax.Array, kernel: jax.Array, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
        return jax.vjp(lambda x, kernel: depthwise_conv_plain(x, kernel, stride, padding), x, kernel)[1](dy)

    return jax.lax.platform_dependent(*residuals, dy, cpu=slices, default=plain)


depthwise_conv.defvjp(_depthwise_forward, _depthwise_backward)


class Conv(nnx.Module):
    """A convolution of one of the three kinds that the backbones have: 1x1, depthwise, or dense."""

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
        group = 1 if depthwise else channels
        fan_in, shape = group * size * size, (size, size, group, features)
        if init == "torch":
            self.kernel = nnx.Param(torch_uniform(rngs.params(), shape, fan_in))
        else:
            fan_out = size * size * (1 if depthwise else features)
            self.kernel = nnx.Param(kaiming_normal(rngs.params(), shape, fan_out))
        self.bias = nnx.Param(torch_uniform(rngs.params(), (features,), fan_in)) if bias else None
        self.stride, self.padding, self.depthwise, self.dtype = stride, padding, depthwise, dtype

    def weights(self) -> tuple[jax.Array, jax.Array | None]:
        """Kernel and bias, in the type it computes in."""
        bias = None if self.bias is None else self.bias[...].astype(self.dtype)
        return self.kernel[...].astype(self.dtype), bias

    def __call__(self, x: jax.Array) -> jax.Array:
        """`(batch, height, width, channels)` to `(batch, height', width', features)`."""
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

    The running variance is the unbiased one (PyTorch's), `momentum` the decay of the running values (0.99 here is 0.01
    there). Statistics are computed in float32, over the whole (global) batch, and over the valid clips alone.
    """

    def __init__(self, channels: int, *, momentum: float = 0.99, epsilon: float = 1e-3) -> None:
        # Put there as they are: jnp.ones would compile a program for every width.
        self.scale = nnx.Param(jax.device_put(np.ones(channels, np.float32)))
        self.bias = nnx.Param(jax.device_put(np.zeros(channels, np.float32)))
        self.mean = nnx.BatchStat(jax.device_put(np.zeros(channels, np.float32)))
        self.var = nnx.BatchStat(jax.device_put(np.ones(channels, np.float32)))
        self.momentum, self.epsilon = momentum, epsilon
        self.use_running_average = True

    def set_view(self, use_running_average: bool | None = None) -> None:
        """``use_running_average=False``: normalise by the batch and update the running statistics."""
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def __call__(self, x: jax.Array, valid: jax.Array | None = None) -> jax.Array:
        """Normalises `x (batch, ..., channels)`; clips where `valid (batch,)` is 0 do not count."""
        gain, shift = self.affine(x, valid)
        return (x * gain + shift).astype(x.dtype)

    def affine(self, x: jax.Array, valid: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """What normalising `x` comes to, `x * gain + shift`: two float32 vectors `(channels,)`."""
        if self.use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            mean, var = self._batch_statistics(x.astype(jnp.float32), valid)
        gain = self.scale[...] * jax.lax.rsqrt(var + self.epsilon)
        return gain, self.bias[...] - mean * gain

    def _batch_statistics(self, x: jax.Array, valid: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        rows = jnp.ones(x.shape[0]) if valid is None else valid.astype(jnp.float32)
        mean, var, count = batch_statistics(x, rows)
        unbiased = var * (count / jnp.maximum(count - 1.0, 1.0))
        keep = self.momentum
        self.mean.set_value(keep * self.mean[...] + (1 - keep) * jax.lax.stop_gradient(mean))
        self.var.set_value(keep * self.var[...] + (1 - keep) * jax.lax.stop_gradient(unbiased))
        return mean, var


@jax.custom_vjp
def batch_statistics(x: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Mean and (biased) variance of `x (batch, ..., channels)` over all axes but the last, and the number of values.

    Clips where `valid (batch,)` is 0 do not count. The gradient is written by hand: it is one pass over `x`, and a
    third less for JAX to trace in a step of B2.
    """
    axes, weight = tuple(range(x.ndim - 1)), _per_row(valid, x)
    count = jnp.maximum(valid.sum() * math.prod(x.shape[1:-1]), 1.0)
    mean = jnp.sum(x * weight, axes) / count
    return mean, jnp.sum(jnp.square(x - mean) * weight, axes) / count, count


def _per_row(valid: jax.Array, x: jax.Array) -> jax.Array:
    return valid.reshape((-1,) + (1,) * (x.ndim - 1))


def _statistics_forward(x: jax.Array, valid: jax.Array):
    mean, var, count = batch_statistics(x, valid)
    return (mean, var, count), (x, valid, mean, count)


def _statistics_backward(residuals: tuple[jax.Array, ...], gradients: tuple[jax.Array, ...]):
    x, valid, mean, count = residuals
    of_mean, of_var, _ = gradients
    # The mean inside the variance has no gradient: deviations from it sum to zero.
    return _per_row(valid, x) * (of_mean + 2.0 * of_var * (x - mean)) / count, jnp.zeros_like(valid)


batch_statistics.defvjp(_statistics_forward, _statistics_backward)


def swish_affine(x: jax.Array, affine: tuple[jax.Array, jax.Array]) -> jax.Array:
    """``swish(x * gain + shift)``: what stands between two convolutions, see :meth:`BatchNorm.affine`."""
    gain, shift = affine
    return jax.nn.swish((x * gain + shift).astype(x.dtype))


def squeeze_excite(x: jax.Array, reduce: Weights, expand: Weights) -> jax.Array:
    """`x (batch, height, width, channels)` times a gate per clip and channel, computed from its mean over the image.

    `reduce` and `expand` are kernel and bias of the two 1x1 convolutions of the gate, which are in float32.
    """
    squeezed = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=jnp.float32)
    hidden = jax.nn.swish(pointwise_conv(squeezed, reduce[0]) + reduce[1])
    return x * jax.nn.sigmoid(pointwise_conv(hidden, expand[0]) + expand[1]).astype(x.dtype)


def recomputed(function: Callable[[jax.Array, Weights], jax.Array]) -> Callable[[jax.Array, Weights], jax.Array]:
    """``function(x, weights)`` that keeps nothing but its arguments for the backward pass, and is called again there.

    What lies between two convolutions is cheap to compute and large to keep: recomputing it takes a train step of B2
    from 3.0 to 1.1 GB of working memory. :func:`jax.checkpoint` says the same to an accelerator, but XLA's CPU compiler
    merges the second call with the first one, and then keeps all. So `x` of the second call is made to depend on the
    gradient that arrives: each clip's on its own, so that nothing travels between devices.
    """

    @jax.custom_vjp
    def call(x: jax.Array, weights: Weights) -> jax.Array:
        return function(x, weights)

    def forward(x: jax.Array, weights: Weights) -> tuple[jax.Array, tuple[jax.Array, Weights]]:
        return function(x, weights), (x, weights)

    def backward(arguments: tuple[jax.Array, Weights], gradient: jax.Array) -> tuple[jax.Array, Weights]:
        x, weights = arguments
        zero = 0.0 * gradient[:, :1, :1, :1].astype(x.dtype)
        return jax.vjp(function, x + zero, weights)[1](gradient)

    call.defvjp(forward, backward)
    return call


class Backbone(nnx.Module):
    """What the backbones share: blocks that can be computed again in the backward pass instead of being kept."""

    remat: bool = False

    def set_view(self, remat: bool | None = None) -> None:
        """``remat=True`` keeps only each block's input for the backward pass: less memory, a third more work."""
        if remat is not None:
            self.remat = remat

    def run(
        self, blocks: Iterable[nnx.Module], x: jax.Array, valid: jax.Array | None, rngs: nnx.Rngs | None
    ) -> jax.Array:
        """One block after the other."""
        for block in blocks:
            x = _call_again(block, x, valid, rngs) if self.remat else block(x, valid, rngs)
        return x


@nnx.remat
def _call_again(block: nnx.Module, x: jax.Array, valid: jax.Array | None, rngs: nnx.Rngs | None) -> jax.Array:
    return block(x, valid, rngs)


class DropConnect(nnx.Module):
    """Drops the residual branch of whole clips while training and scales the others by `1 / keep`.

    As the reference: a clip keeps its branch when `floor(keep + U[0, 1))` is one.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.deterministic = True

    def set_view(self, deterministic: bool | None = None) -> None:
        """``deterministic=False`` switches it on."""
        if deterministic is not None:
            self.deterministic = deterministic

    def __call__(self, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        """`x (batch, height, width, channels)`; draws from ``rngs.drop`` unless deterministic or of rate 0."""
        if self.deterministic or self.rate == 0.0:
            return x
        if rngs is None:
            raise ValueError(
                "drop-connect draws random numbers in training: call the model with rngs=nnx.Rngs(drop=key)."
            )
        keep = 1.0 - self.rate
        kept = jnp.floor(keep + jax.random.uniform(rngs.drop(), (x.shape[0], 1, 1, 1)))
        return x * (kept / keep).astype(x.dtype)
