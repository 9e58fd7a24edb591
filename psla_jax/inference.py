"""How evaluation programs are fed, where that makes them faster; the values are the same to rounding."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable

import jax

FEW_CORES = 4
"""CPUs with up to so many cores take clips one by one."""


@functools.cache
def one_by_one() -> bool:
    """Whether a batch is better computed clip by clip: what lies between two layers then stays in a CPU's cache.

    With many cores a single clip does not keep them busy, and a batch that is divided among devices stays as it is.
    """
    return jax.default_backend() == "cpu" and jax.device_count() == 1 and (os.cpu_count() or 1) <= FEW_CORES


def by_clip(function: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """``function(*arrays)`` for arrays whose first axis are clips that do not influence each other."""
    if not one_by_one() or arrays[0].shape[0] == 1:
        return function(*arrays)
    return jax.lax.map(lambda clip: function(*(x[None] for x in clip))[0], arrays)
