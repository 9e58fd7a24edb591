"""Traced programs, kept from one process to the next, as JAX keeps compiled ones.

Before JAX can ask its cache for a compiled program it has to trace the Python that describes it, which takes a large
network seconds. What comes out is kept here as StableHLO, under a hash of everything that it depends on: this package's
source, the versions of the libraries, the devices, the shapes, and what the caller names. It is on where
:func:`psla_jax.cache.keep` was called (the ``psla`` command does), off in a library's use, where anything may be
patched.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax
import jax
import jax.export
import jaxlib
import numpy as np
import optax
from jax.extend import backend

from psla_jax import cache
from psla_jax.files import whole

LIBRARIES = (jax, jaxlib, flax, optax, np)
DIGEST_BYTES = 32
KEPT = 64
"""Traces; the oldest ones go."""
SETTINGS = (
    "jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl", "jax_threefry_partitionable",
    "jax_numpy_dtype_promotion", "jax_numpy_rank_promotion", "jax_default_dtype_bits", "jax_debug_nans",
    "jax_disable_jit", "jax_softmax_custom_jvp", "jax_use_shardy_partitioner",
)  # fmt: skip
"""Those of JAX that a trace may depend on; one that this JAX does not have does not count."""


class Traced:
    """A function as a jitted one, traced by an earlier process where that is possible.

    The first call settles the shapes of the arguments.

    Args:
        function: of trees of arrays, to a tree of arrays.
        result: the structure of what it returns, from the arguments: a tree of anything.
        identity: everything that decides what the function computes, besides this package's source; None if that
            cannot be said, and then nothing is kept.
        options: of ``jax.jit``; ``donate_argnums`` and ``static_argnums`` are not among them.
        donate: number of the argument whose memory may be used for the result.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        result: Callable[..., Any],
        identity: Mapping[str, Any] | None,
        donate: int | None = None,
        **options: Any,
    ) -> None:
        self._function, self._result, self._identity = function, result, identity
        self._options = options if donate is None else {**options, "donate_argnums": donate}
        self._program: Callable[..., Any] | None = None
        self._preparing: threading.Thread | None = None

    def __call__(self, *arguments: Any) -> Any:
        """What the function returns."""
        return self._jitted(arguments)(*arguments)

    def lower(self, *arguments: Any) -> jax.stages.Lowered:
        """The function for such arguments (arrays, or their shapes), ready to be compiled."""
        return self._jitted(arguments).lower(*arguments)

    def prepare(self, *arguments: Any) -> None:
        """Compiles the function for such shapes, or loads it, in a thread; the first call waits for the end of that."""

        def work() -> None:
            with contextlib.suppress(Exception):  # The call meets it again, and there it can be said.
                self._make(arguments).lower(*arguments).compile()

        self._preparing = threading.Thread(target=work, name="psla-compiler")
        self._preparing.start()

    def _jitted(self, arguments: Sequence[Any]) -> Any:
        if self._preparing is not None:
            self._preparing.join()
            self._preparing = None
        return self._make(arguments)

    def _make(self, arguments: Sequence[Any]) -> Any:
        if self._program is None:
            self._program = jax.jit(self._found(arguments), **self._options)
        return self._program

    def _found(self, arguments: Sequence[Any]) -> Callable[..., Any]:
        """The function, or the same one from an earlier trace."""
        directory = cache.kept("traces")
        if directory is None or self._identity is None:
            return self._function
        leaves, tree = jax.tree.flatten(tuple(arguments))
        shapes = [_shape(leaf) for leaf in leaves]
        file = directory / f"{_hash(self._identity, shapes, str(tree))}.stablehlo"
        exported = _read(file)
        if exported is None:
            exported = self._export(tree, shapes)
            if exported is None:
                return self._function
            _write(file, exported)
        out = jax.tree.structure(self._result(*arguments))

        def again(*given: Any) -> Any:
            return jax.tree.unflatten(out, exported.call(*jax.tree.leaves(given)))

        return again

    def _export(self, tree: Any, shapes: Sequence[jax.ShapeDtypeStruct]) -> jax.export.Exported | None:
        """The function's trace over flat lists of arrays; None if JAX cannot write it down."""

        def flat(*leaves: Any) -> list[Any]:
            return jax.tree.leaves(self._function(*jax.tree.unflatten(tree, leaves)))

        with contextlib.suppress(RuntimeError, ValueError):  # Called as it is, it raises again what matters.
            return jax.export.export(jax.jit(flat))(*shapes)
        return None


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _hash(identity: Mapping[str, Any], shapes: Sequence[jax.ShapeDtypeStruct], tree: str) -> str:
    """Of everything that a trace depends on."""
    settings = {name: repr(getattr(jax.config, name, None)) for name in SETTINGS}
    known = [_installation(), settings, identity, tree, [f"{x.shape} {x.dtype} {x.sharding}" for x in shapes]]
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=repr).encode()).hexdigest()[:40]


@functools.cache
def _installation() -> list[str]:
    """The source of this package, the versions of what it uses, and the devices."""
    source = hashlib.sha256()
    root = Path(__file__).parent
    for file in sorted(root.rglob("*.py")):
        source.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    devices = [f"{device.platform} {device.device_kind}" for device in jax.devices()]
    compiler = f"{backend.get_backend().platform_version} {os.environ.get('XLA_FLAGS', '')}"
    versions = [f"{library.__name__} {library.__version__}" for library in LIBRARIES]
    return [source.hexdigest(), sys.version, *versions, compiler, f"{os.cpu_count()} cores", *devices]


def _read(file: Path) -> jax.export.Exported | None:
    """The trace in a file; None where there is none, or it is damaged."""
    try:
        content = file.read_bytes()
    except OSError:
        return None
    digest, body = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != digest:
        return None
    return jax.export.deserialize(bytearray(body))


def _write(file: Path, exported: jax.export.Exported) -> None:
    """Keeps a trace; a disk that takes none costs time at the next start, and nothing else."""
    body = bytes(exported.serialize())
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole(file) as aside:
            Path(aside).write_bytes(hashlib.sha256(body).digest() + body)
        for old in sorted(file.parent.glob("*.stablehlo"), key=lambda x: x.stat().st_mtime)[:-KEPT]:
            old.unlink()
