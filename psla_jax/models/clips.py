"""Clip by clip, or all together: what is faster on this machine. The values are the same to rounding."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

import jax

FEW_CORES = 4
"""CPUs with up to so many cores take large images clip by clip."""


@functools.cache
def one_by_one() -> bool:
    """Whether clips are better computed one by one: what lies between two layers then stays in a CPU's cache.

    With many cores a single clip does not keep them busy, and a batch that is divided among devices stays as it is.
    """
    return jax.default_backend() == "cpu" and jax.device_count() == 1 and (os.cpu_count() or 1) <= FEW_CORES


def by_clip(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """``function(x)`` for an array whose first axis are clips that do not influence each other."""
    if not one_by_one() or x.shape[0] == 1:
        return function(x)
    return jax.lax.map(lambda clip: function(clip[None])[0], x)
