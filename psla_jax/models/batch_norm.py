"""Statistics of a batch, and batch normalisation with its activation as one function for accelerators.

Images are `(batch, ..., channels)`; clips where `valid (batch,)` is 0 do not count. Statistics are computed in at least
float32. The plain form of :func:`normalised` is an activation of ``x * gain + shift`` with :func:`batch_statistics`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from psla_jax.models import cpu_kernels
from psla_jax.models.platforms import PLAIN, platform

Activation = Callable[[jax.Array], jax.Array]
"""A function of every value by itself."""


class Statistics(NamedTuple):
    """Mean and biased variance `(channels,)`, and the number of values."""

    mean: jax.Array
    var: jax.Array
    num_values: jax.Array

    def affine(self, scale: jax.Array, bias: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
        """Returns gain and shift `(channels,)` such that ``x * gain + shift`` is the normalised `x`."""
        gain = scale * jax.lax.rsqrt(self.var + epsilon)
        return gain, bias - self.mean * gain


def identity(x: jax.Array) -> jax.Array:
    """Returns `x`: no activation."""
    return x


def batch_statistics(x: jax.Array, valid: jax.Array) -> Statistics:
    """Returns mean and biased variance of `x` over all axes but the last, and the count."""
    return Statistics(*(_statistics(x, valid) if platform() == PLAIN else _statistics_of_one_pass(x, valid)))


def by_parts(function: Callable[[jax.Array, jax.Array], Any], parts: int, x: jax.Array, valid: jax.Array) -> Any:
    """Returns ``function(x, valid)``, of every one of successive `parts` of the batch with a further first axis.

    Where every device has one of them, the devices do not communicate.
    """
    if parts == 1:
        return function(x, valid)
    return jax.vmap(function)(x.reshape(parts, -1, *x.shape[1:]), valid.reshape(parts, -1))


def of_every_clip(values: jax.Array, parts: int, x: jax.Array) -> jax.Array:
    """Returns values `(parts, channels)` of :func:`by_parts` for all clips of `x`, `(batch, 1, ..., channels)`."""
    if parts == 1:
        return values
    repeated = jnp.broadcast_to(values[:, None], (parts, x.shape[0] // parts, values.shape[1]))
    return repeated.reshape(x.shape[0], *(1,) * (x.ndim - 2), values.shape[1])


def of_population(statistics: Statistics, parts: int, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean and unbiased variance `(channels,)`: means over the parts, by valid clips."""
    if parts == 1:
        return _unbiased(statistics)
    clips = valid.reshape(parts, -1).sum(1)
    # Divided last, so that nothing before the sums over devices depends on another such sum.
    mean, var = (jnp.sum(clips[:, None] * value, 0) for value in jax.vmap(_unbiased)(statistics))
    total = jnp.maximum(clips.sum(), 1.0)
    return mean / total, var / total


def _unbiased(statistics: Statistics) -> tuple[jax.Array, jax.Array]:
    mean, var, count = statistics
    return mean, var * (count / jnp.maximum(count - 1.0, 1.0))


def _statistics(x: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    count = _count(x, valid)
    mean = _sum_of_valid(x, valid) / count
    return mean, _sum_of_valid(jnp.square(x - mean), valid) / count, count


def _count(x: jax.Array, valid: jax.Array) -> jax.Array:
    return jnp.maximum(valid.sum() * math.prod(x.shape[1:-1]), 1.0)


def _sum_of_valid(x: jax.Array, valid: jax.Array) -> jax.Array:
    # Each clip is summed first: XLA's CPU compiler would write `valid` in the size of `x` to multiply them.
    return jnp.sum(jnp.sum(x, tuple(range(1, x.ndim - 1))) * valid[:, None], 0)


_statistics_of_one_pass = jax.custom_vjp(_statistics)
"""The same with a hand-written gradient of one pass over `x`: JAX traces a third less for a training step of B2."""


def _statistics_forward(x: jax.Array, valid: jax.Array):
    mean, var, count = _statistics_of_one_pass(x, valid)
    return (mean, var, count), (x, valid, mean, count)


def _statistics_backward(residuals: tuple[jax.Array, ...], gradients: tuple[jax.Array, ...]):
    x, valid, mean, count = residuals
    mean_gradient, var_gradient, _ = gradients
    # The mean inside the variance has no gradient: deviations from it sum to zero.
    slope = 2.0 * var_gradient / count
    # `x - mean` is not used: XLA would store it in the forward pass, in the size of `x`.
    x_gradient = slope * x + (mean_gradient / count - slope * mean)
    return _per_clip(valid, x) * x_gradient, jnp.zeros_like(valid)


_statistics_of_one_pass.defvjp(_statistics_forward, _statistics_backward)


def _per_clip(valid: jax.Array, x: jax.Array) -> jax.Array:
    return valid.reshape((-1,) + (1,) * (x.ndim - 1))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def normalised(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    valid: jax.Array,
    centre: jax.Array,
    epsilon: float,
    activation: Activation,
) -> tuple[jax.Array, Statistics]:
    """Returns ``activation(scale * (x - mean) / sqrt(var + epsilon) + bias)`` and the statistics of the batch.

    Accelerators are bound by the memory traffic of this function: it reads `x` twice, once for both sums of the
    statistics, and its gradient reads `x` and the incoming gradient twice, stores only `x`, and writes once.

    Args:
        x: `(batch, ..., channels)`.
        scale: `(channels,)`.
        bias: `(channels,)`.
        valid: `(batch,)`.
        centre: `(channels,)` of the type of `bias`, subtracted from `x` before it is squared, such as the running mean.
            The variance loses precision where the mean is further from it than a hundred standard deviations.
        epsilon: added to the variance.
        activation: applied in at least float32.

    The statistics have no gradient; they are for the running ones.
    """
    return _normalised_forward(x, scale, bias, valid, centre, epsilon, activation)[0]


def _normalised_forward(x, scale, bias, valid, centre, epsilon: float, activation: Activation):
    deviations = x.astype(cpu_kernels.accumulation_dtype(x)) - centre
    weighted, axes, count = _per_clip(valid, x) * deviations, tuple(range(x.ndim - 1)), _count(x, valid)
    offset = jnp.sum(weighted, axes) / count
    var = jnp.maximum(jnp.sum(weighted * deviations, axes) / count - offset * offset, 0.0)
    statistics = Statistics(centre + offset, var, count)
    gain, shift = statistics.affine(scale, bias, epsilon)
    return (activation(x * gain + shift).astype(x.dtype), statistics), (x, scale, bias, valid, statistics)


def _normalised_backward(epsilon: float, activation: Activation, residuals, gradients):
    x, scale, bias, valid, statistics = residuals
    gain, shift = statistics.affine(scale, bias, epsilon)
    inverse = jax.lax.rsqrt(statistics.var + epsilon)

    def before_activation(x: jax.Array, gradient: jax.Array) -> jax.Array:
        y, pull_back = jax.vjp(activation, x * gain + shift)
        return pull_back(gradient.astype(y.dtype))[0]

    def standardised(x: jax.Array) -> jax.Array:
        return (x - statistics.mean) * inverse

    gradient, axes = gradients[0], tuple(range(x.ndim - 1))
    first = before_activation(x, gradient)
    bias_gradient, scale_gradient = jnp.sum(first, axes), jnp.sum(first * standardised(x), axes)
    # The barrier keeps XLA from writing `first`, in the size of `x`, for the second pass, which computes it again.
    x, slope, slope_of_scale = jax.lax.optimization_barrier((x, bias_gradient, scale_gradient))
    through_statistics = (slope + standardised(x) * slope_of_scale) / statistics.num_values
    x_gradient = gain * (before_activation(x, gradient) - _per_clip(valid, x) * through_statistics)
    of_variables = scale_gradient.astype(scale.dtype), bias_gradient.astype(bias.dtype)
    return x_gradient.astype(x.dtype), *of_variables, jnp.zeros_like(valid), jnp.zeros_like(bias)


normalised.defvjp(_normalised_forward, _normalised_backward)
