"""Compiled programs from StableHLO in the user's cache: with a ``jax.export`` artifact, nothing has to be traced."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import flax
import jax
import optax
from jax import export

from psla_jax.runtime.cache import cached, source_digest


def enabled() -> bool:
    """Returns whether JAX's compilation cache is on; without it, programs are not cached here either."""
    return bool(jax.config.jax_enable_compilation_cache)  # type: ignore[attr-defined]


def compile_cached(
    function: Callable[..., Any],
    arguments: Sequence[Any],
    result: Any,
    key: Any,
    *,
    donate: int = 0,
    on_trace: Callable[[], None] = lambda: None,
    **options: Any,
) -> Callable[..., Any]:
    """Compiles a function for one device, from an artifact in the user's cache if there is one.

    Both the process that makes the artifact and those that find it compile the artifact, so their programs are equal.

    Args:
        function: from trees of arrays to a tree of arrays.
        arguments: arrays or ``jax.ShapeDtypeStruct`` with the shapes and types of its arguments.
        result: a tree with the structure of its result.
        key: everything that determines the function besides this package's source and the machine; its ``repr`` counts.
        donate: number of leading arguments whose memory is reused.
        on_trace: called before the function is traced.
        options: of ``jax.jit``.
    """
    leaves, structure = jax.tree.flatten(tuple(arguments))
    abstract = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]
    donated = range(len(jax.tree.leaves(tuple(arguments[:donate]))))

    def flat(*leaves: jax.Array) -> list[jax.Array]:
        return jax.tree.leaves(function(*jax.tree.unflatten(structure, leaves)))

    def make_artifact() -> bytes:
        on_trace()
        return bytes(export.export(jax.jit(flat))(*abstract).serialize())

    artifact = cached("exported", repr((environment(), abstract, key)), make_artifact)
    program = jax.jit(export.deserialize(bytearray(artifact)).call, donate_argnums=tuple(donated), **options)
    compiled = program.lower(*leaves).compile()
    outputs = jax.tree.structure(result)
    return lambda *given: jax.tree.unflatten(outputs, compiled(*jax.tree.leaves(given)))


def environment() -> tuple[Any, ...]:
    """Returns what determines the results of this package besides its arguments.

    They are its source, the versions of libraries, JAX's settings, and the devices.
    """
    versions = source_digest(), jax.__version__, flax.__version__, optax.__version__
    settings = jax.config.jax_default_matmul_precision, jax.config.jax_enable_x64  # type: ignore[attr-defined]
    device = jax.devices()[0]
    return versions, settings, device.platform, device.device_kind, jax.device_count(), os.cpu_count()
