"""Initial values of weights. Without a key, they are read-only zeros that occupy no memory."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np


class AbstractRngs:
    """Replaces ``nnx.Rngs`` for a model that is built only to receive weights: initializers draw no values."""

    def params(self) -> None:
        """Returns no key."""


def uniform(key: jax.Array | None, shape: tuple[int, ...], bound: float) -> jax.Array | np.ndarray:
    """Returns uniform values in [-bound, bound).

    A network has hundreds of shapes, and compiling a program for each takes longer than the first epoch of a small run.
    So the values are drawn in sizes of powers of four, then cut and scaled, in NumPy unless traced.
    """
    if key is None:
        return _zeros(shape)
    size = math.prod(shape)
    flat = _standard_uniform(key, 4 ** (((size - 1).bit_length() + 1) // 2))
    values = flat if isinstance(flat, jax.core.Tracer) else np.asarray(flat)
    return jax.device_put(values[:size].reshape(shape) * np.float32(bound))


def fan_in_uniform(key: jax.Array | None, shape: tuple[int, ...], fan_in: int) -> jax.Array | np.ndarray:
    """Returns uniform values in +-1/sqrt(fan_in): PyTorch's default for convolutions and their biases."""
    return uniform(key, shape, 1.0 / math.sqrt(fan_in))


def kaiming_normal(key: jax.Array | None, shape: tuple[int, ...], fan_out: int) -> jax.Array | np.ndarray:
    """Returns normal values of standard deviation sqrt(2/fan_out), as torchvision initializes its networks."""
    if key is None:
        return _zeros(shape)
    return jax.random.normal(key, shape, jnp.float32) * math.sqrt(2.0 / fan_out)


@functools.partial(jax.jit, static_argnums=1)
def _standard_uniform(key: jax.Array, size: int) -> jax.Array:
    return jax.random.uniform(key, (size,), jnp.float32, -1.0, 1.0)


def _zeros(shape: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(np.float32(0), shape)
