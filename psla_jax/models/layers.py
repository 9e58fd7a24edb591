"""Convolution layers, batch normalisation, squeeze-excite and drop-connect.

Images are `(batch, height, width, channels)`. Modules are built as their
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

from psla_jax.models.clips import by_clip
from psla_jax.models.convolution import Pads, dense_conv, depthwise_conv, on_cpu, pointwise_conv

Weights = Any
"""Arrays in a tree."""

Affine = tuple[jax.Array, jax.Array]
"""Gain and shift of every channel, see :meth:`BatchNorm.affine`."""


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

    Drawn in sizes of powers of four and cut, outside XLA where possible. A network has hundreds of shapes: to compile a
    program for each would take longer than the first epoch of a small run.
    """
    if key is None:
        return np.broadcast_to(np.float32(0), shape)
    size = math.prod(shape)
    flat = _draw(key, 4 ** (((size - 1).bit_length() + 1) // 2))
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

    def affine(self, x: jax.Array, valid: jax.Array | None = None) -> Affine:
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
    count = jnp.maximum(valid.sum() * math.prod(x.shape[1:-1]), 1.0)
    mean = _sum_of_valid(x, valid) / count
    return mean, _sum_of_valid(jnp.square(x - mean), valid) / count, count


def _sum_of_valid(x: jax.Array, valid: jax.Array) -> jax.Array:
    # First each clip by itself: XLA's CPU compiler would write out `valid` in the size of `x` to multiply them.
    return jnp.sum(jnp.sum(x, tuple(range(1, x.ndim - 1))) * valid[:, None], 0)


def _per_row(valid: jax.Array, x: jax.Array) -> jax.Array:
    return valid.reshape((-1,) + (1,) * (x.ndim - 1))


def _statistics_forward(x: jax.Array, valid: jax.Array):
    mean, var, count = batch_statistics(x, valid)
    return (mean, var, count), (x, valid, mean, count)


def _statistics_backward(residuals: tuple[jax.Array, ...], gradients: tuple[jax.Array, ...]):
    x, valid, mean, count = residuals
    of_mean, of_var, _ = gradients
    # The mean inside the variance has no gradient: deviations from it sum to zero.
    slope = 2.0 * of_var / count
    # Not by way of `x - mean`, which XLA would keep from the forward pass, in the size of `x`.
    return _per_row(valid, x) * (slope * x + (of_mean / count - slope * mean)), jnp.zeros_like(valid)


batch_statistics.defvjp(_statistics_forward, _statistics_backward)


def swish(x: jax.Array) -> jax.Array:
    """``x * sigmoid(x)``; in float32 on a CPU as :func:`rational_swish`."""
    return rational_swish(x) if on_cpu() and x.dtype == jnp.float32 else jax.nn.swish(x)


SATURATED = 17.0
"""From here on, the sigmoid is one to float32."""

NUMERATOR = (
    1.1613337467166959e-11,
    7.641467212214383e-08,
    5.363158792774256e-05,
    0.008330047411645218,
    0.25000002959919,
)
DENOMINATOR = (2.80487067673392e-09, 4.971843947346292e-06, 0.00160233294917918, 0.11665353536564398, 1.0)
"""Polynomials in x^2, highest power first: ``sigmoid(x) - 0.5 = x N(x^2) / D(x^2)`` within 6.9e-8 up to SATURATED.

Of all quotients of these degrees it is the one whose largest error, divided by sqrt(max(1, x)), is the least.
"""


@jax.custom_vjp
def rational_swish(x: jax.Array) -> jax.Array:
    """``x * sigmoid(x)``, within 3.1e-6 (5e-7 below 3), in half the operations of XLA's tanh."""
    low, _, sigmoid = _sigmoid(x)
    return low * sigmoid


def _sigmoid(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`x` not below the saturated range, `x` within it, and the sigmoid."""
    low = jnp.maximum(x, -SATURATED)
    z = jnp.minimum(low, SATURATED)
    square = z * z
    return low, z, 0.5 + z * (_polynomial(NUMERATOR, square) / _polynomial(DENOMINATOR, square))


def _polynomial(coefficients: tuple[float, ...], x: jax.Array) -> jax.Array:
    return functools.reduce(lambda total, c: total * x + c, coefficients[1:], jnp.asarray(coefficients[0], x.dtype))


def _rational_swish_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return rational_swish(x), x


def _rational_swish_backward(x: jax.Array, gradient: jax.Array) -> tuple[jax.Array]:
    # The zero keeps XLA from taking the sigmoid over from where the value is computed: it would be written out, and
    # reading it takes longer than computing it.
    _, z, sigmoid = _sigmoid(x + 0.0 * gradient)
    return (gradient * sigmoid * (1.0 + z * (1.0 - sigmoid)),)


rational_swish.defvjp(_rational_swish_forward, _rational_swish_backward)


def swish_affine(x: jax.Array, affine: Affine) -> jax.Array:
    """``swish(x * gain + shift)``: what stands between two convolutions, see :meth:`BatchNorm.affine`."""
    gain, shift = affine
    return swish((x * gain + shift).astype(x.dtype))


def image_means(x: jax.Array) -> jax.Array:
    """The mean of every image of `x (batch, height, width, channels)`: float32 `(batch, channels)`.

    On a CPU as a product with ones, which is vector code; of a sum over two axes XLA makes a slow loop there.
    """
    exact = jnp.promote_types(x.dtype, jnp.float32)
    if not on_cpu():
        return jnp.mean(x, axis=(1, 2), dtype=exact)
    flat = x.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[3]).astype(exact)
    ones = jnp.ones((x.shape[0], 1, flat.shape[1]), exact)
    return jax.lax.dot_general(ones, flat, (((2,), (1,)), ((0,), (0,))))[:, 0] / flat.shape[1]


def row_means(x: jax.Array) -> jax.Array:
    """The mean of all rows of every image of `x (batch, height, width, channels)`: float32 `(batch, width, channels)`.

    On a CPU row by row: a sum over an axis takes part of what comes before it out of XLA's fast loops.
    """
    exact = jnp.promote_types(x.dtype, jnp.float32)
    if not on_cpu():
        return jnp.mean(x, axis=1, dtype=exact)
    return functools.reduce(jnp.add, (x[:, row].astype(exact) for row in range(x.shape[1]))) / x.shape[1]


def squeeze_excite(x: jax.Array, reduce: Weights, expand: Weights) -> jax.Array:
    """The factor of each clip and channel, `(batch, 1, 1, channels)`, from the mean of its image.

    `x` is `(batch, height, width, channels)`; `reduce` and `expand` are kernel and bias of the two 1x1 convolutions,
    which are in float32.
    """
    # JAX's swish: the quotient would be a thirteenth of the step's program, for a few numbers.
    hidden = jax.nn.swish(pointwise_conv(image_means(x)[:, None, None], reduce[0]) + reduce[1])
    return jax.nn.sigmoid(pointwise_conv(hidden, expand[0]) + expand[1]).astype(x.dtype)


def gated_conv(x: jax.Array, gate: jax.Array, kernel: jax.Array) -> jax.Array:
    """1x1 convolution of `x * gate`; `gate` is ``(batch, 1, 1, channels)``.

    Of one clip, the gate is applied to the kernel where that is smaller than the image.
    """
    if x.shape[0] == 1 and x.shape[1] * x.shape[2] > kernel.shape[3]:
        return pointwise_conv(x, gate.reshape(1, 1, -1, 1) * kernel)
    return pointwise_conv(x * gate, kernel)


def recomputed(
    function: Callable[[jax.Array, Affine, Weights], jax.Array],
) -> Callable[[jax.Array, Affine, Weights], jax.Array]:
    """``function(x, affine, weights)`` that keeps nothing but its arguments, and is called again for the gradient.

    What lies between two convolutions is cheap to compute and large to keep: recomputing it takes a train step of B2
    from 3.0 to 1.1 GB of working memory. :func:`jax.checkpoint` says the same to an accelerator, but XLA's CPU compiler
    merges the second call with the first one, and then keeps all. So the gain of the second call, which `function`
    applies to `x` before all else, is made to depend on the gradient that arrives: each clip's on its own, so that
    nothing travels between devices. An `x` that is converted before (bfloat16) has to depend on it itself.
    """

    @jax.custom_vjp
    def call(x: jax.Array, affine: Affine, weights: Weights) -> jax.Array:
        return function(x, affine, weights)

    def forward(x: jax.Array, affine: Affine, weights: Weights) -> tuple[jax.Array, tuple[jax.Array, Affine, Weights]]:
        return function(x, affine, weights), (x, affine, weights)

    def backward(
        arguments: tuple[jax.Array, Affine, Weights], gradient: jax.Array
    ) -> tuple[jax.Array, Affine, Weights]:
        zero = 0.0 * gradient[:, :1, :1, :1].astype(jnp.float32)

        def again(x: jax.Array, affine: Affine, weights: Weights) -> jax.Array:
            if x.dtype == affine[0].dtype:
                return function(x, (affine[0] + zero, affine[1]), weights)
            return function(x + zero.astype(x.dtype), affine, weights)

        return jax.vjp(again, *arguments)[1](gradient)

    call.defvjp(forward, backward)
    return call


class Backbone(nnx.Module):
    """What the backbones share: how their blocks are run, in training and in evaluation."""

    remat: bool = False
    use_running_average: bool = True

    def set_view(self, remat: bool | None = None, use_running_average: bool | None = None) -> None:
        """``remat=True`` keeps only each block's input for the backward pass: less memory, a third more work.

        With ``use_running_average=False`` clips influence each other, and are never taken one by one.
        """
        if remat is not None:
            self.remat = remat
        if use_running_average is not None:
            self.use_running_average = use_running_average

    def clip_by_clip(self, function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
        """``function(x)``, for layers with large images: in evaluation clip by clip where :func:`one_by_one` says so.

        The layers after them have small images and many weights, and take all clips at once.
        """
        return by_clip(function, x) if self.use_running_average else function(x)

    def run(
        self, blocks: Iterable[nnx.Module], x: jax.Array, valid: jax.Array | None, *others: Iterable[jax.Array | None]
    ) -> jax.Array:
        """One block after the other; of `others`, each has an argument of its own."""
        for block, *own in zip(blocks, *others, strict=False):
            x = _call_again(block, x, valid, *own) if self.remat else block(x, valid, *own)
        return x


@nnx.remat
def _call_again(block: nnx.Module, x: jax.Array, valid: jax.Array | None, *own: jax.Array | None) -> jax.Array:
    return block(x, valid, *own)


class DropConnect(nnx.Module):
    """Drops the residual branch of whole clips while training and scales the others by `1 / keep`.

    As the reference: a clip keeps its branch when `floor(keep + U[0, 1))` is one. The uniform numbers are drawn for all
    blocks at once: XLA compiles a random stream anew for each that is drawn.
    """

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.deterministic = True

    def set_view(self, deterministic: bool | None = None) -> None:
        """``deterministic=False`` switches it on."""
        if deterministic is not None:
            self.deterministic = deterministic

    def __call__(self, x: jax.Array, uniform: jax.Array | None) -> jax.Array:
        """`x (batch, height, width, channels)`, `uniform (batch,)`; as it is if deterministic or of rate 0."""
        if self.deterministic or self.rate == 0.0:
            return x
        if uniform is None:
            raise ValueError(
                "drop-connect draws random numbers in training: call the model with rngs=nnx.Rngs(drop=key)."
            )
        keep = 1.0 - self.rate
        kept = jnp.floor(keep + uniform)[:, None, None, None]
        return x * (kept / keep).astype(x.dtype)
