"""Compiled programs, kept from one process to the next.

JAX keeps compiled programs itself, but finds them by what has to be traced and lowered first, which takes a large
network seconds. Here they are found by what decides them: this package's source, the versions of the libraries, the
devices, the shapes, and what the caller names. It is on where :func:`psla_jax.cache.keep` was called (the ``psla``
command does), off in a library's use, where anything may be patched, and with several processes, which have to compile
together. As in JAX's own cache, what is kept is machine code: whoever can write there can run code as the user.
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
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable
from jax.extend import backend
from jaxlib import xla_client

from psla_jax import cache

KIND = "programs"
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")
DIGEST_BYTES = 32
SETTINGS = (
    "jax_enable_x64", "jax_default_matmul_precision", "jax_default_prng_impl", "jax_threefry_partitionable",
    "jax_numpy_dtype_promotion", "jax_numpy_rank_promotion", "jax_default_dtype_bits", "jax_debug_nans",
    "jax_disable_jit", "jax_softmax_custom_jvp", "jax_use_shardy_partitioner",
)  # fmt: skip
"""Those of JAX that a program may depend on; one that this JAX does not have does not count."""


class Program:
    """A function as a jitted one, compiled by an earlier process where that is possible.

    Where it is kept, the first call settles the shapes of the arguments.

    Args:
        function: of trees of arrays, to a tree of arrays.
        result: the structure of what it returns, from the arguments: a tree of anything.
        identity: everything that decides what the function computes, besides this package's source; None if that
            cannot be said, and then nothing is kept.
        options: of ``jax.jit``, but ``static_argnums``.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        result: Callable[..., Any],
        identity: Mapping[str, Any] | None,
        **options: Any,
    ) -> None:
        self._jitted = jax.jit(function, **options)
        self._result, self._identity, self._options = result, identity, options
        self._ready: Callable[..., Any] | None = None
        self._preparing: threading.Thread | None = None

    def __call__(self, *arguments: Any) -> Any:
        """What the function returns."""
        if self._preparing is not None:
            self._preparing.join()
            self._preparing = None
        if self._ready is None:
            self._ready = self._jitted if self._name(arguments) is None else self.compiled(*arguments)
        return self._ready(*arguments)

    def lower(self, *arguments: Any) -> jax.stages.Lowered:
        """The function for such arguments (arrays, or their shapes), ready to be compiled."""
        return self._jitted.lower(*arguments)

    def compiled(self, *arguments: Any) -> Callable[..., Any]:
        """The function compiled for such arguments (arrays, or their shapes), by an earlier process or now."""
        name = self._name(arguments)
        out = jax.tree.structure(self._result(*arguments))
        loaded = None if name is None else _find(name)
        if loaded is None:
            compiled = self.lower(*arguments).compile()
            if name is not None:
                _store(name, compiled)
            return compiled
        return lambda *given: jax.tree.unflatten(out, loaded(*jax.tree.leaves(given)))

    def prepare(self, *arguments: Any) -> None:
        """Compiles the function for such shapes, or loads it, in a thread; the first call waits for the end of that."""

        def work() -> None:
            with contextlib.suppress(Exception):  # The call meets it again, and there it can be said.
                compiled = self.compiled(*arguments)
                # Otherwise the jitted function finds it, and takes other shapes too.
                self._ready = None if self._name(arguments) is None else compiled

        self._preparing = threading.Thread(target=work, name="psla-compiler")
        self._preparing.start()

    def _name(self, arguments: Sequence[Any]) -> str | None:
        """What the program is kept under; None where it is not."""
        if self._identity is None or not _kept():
            return None
        leaves, tree = jax.tree.flatten(tuple(arguments))
        shapes = [f"{leaf.shape} {leaf.dtype} {getattr(leaf, 'sharding', None)}" for leaf in leaves]
        options = {name: repr(option) for name, option in self._options.items()}
        return _hash(self._identity, options, shapes, str(tree))


@dataclass
class _Use:
    """What this process is after, what it loads ahead for that, and what it has asked for."""

    file: str = ""
    known: list[str] = field(default_factory=list)
    loading: dict[str, Future] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


_use = _Use()


def expect(use: Mapping[str, Any]) -> None:
    """Begins to load, in a thread, the programs that the last process needed that was after the same.

    To be called before what takes its time until they are asked for, such as the imports of what asks. `use` says what
    the process is after; where that comes to need other programs than before, time is lost and nothing else.
    """
    global _use
    _use = _Use(f"{_hash(use)}.txt" if _kept() else "")
    if not _use.file:
        return
    file = cache.find(KIND, _use.file)
    if file is None:
        return
    with contextlib.suppress(OSError, ValueError):  # The list is written anew then.
        _use.known = file.read_text().split()
    loader = ThreadPoolExecutor(1, "psla-loader")
    _use.loading = {name: loader.submit(_load, name) for name in _use.known}
    loader.shutdown(wait=False)


def _find(name: str) -> Callable[..., Any] | None:
    """The program of an earlier process, as a function of flat lists; None where there is none."""
    if _use.file and name not in [*_use.known, *_use.asked]:
        _use.asked.append(name)
        cache.store(KIND, _use.file, lambda file: file.write("\n".join(_use.asked).encode()))
    loading = _use.loading.pop(name, None)
    return _load(name) if loading is None else loading.result()


def _load(name: str) -> Callable[..., Any] | None:
    file = cache.find(KIND, f"{name}.xla")
    if file is None:
        return None
    # Whatever is wrong with it, it is made again.
    with contextlib.suppress(Exception):
        content = file.read_bytes()
        digest, body = content[:DIGEST_BYTES], content[DIGEST_BYTES:]
        if hashlib.sha256(body).digest() != digest:
            return None
        header, program = body.split(b"\n", 1)
        facts, devices = json.loads(header), {device.id: device for device in jax.devices()}
        return serialize_executable.deserialize_and_load(
            program,
            jax.tree.structure(((0,) * facts["inputs"], {})),
            jax.tree.structure([0] * facts["outputs"]),
            execution_devices=[devices[number] for number in facts["devices"]],
        )
    return None


def _store(name: str, compiled: jax.stages.Compiled) -> None:
    """Keeps a program; one that JAX cannot write down costs time at the next start, and nothing else."""
    with contextlib.suppress(Exception):
        program, inputs, outputs = serialize_executable.serialize(compiled)
        devices = [device.id for device in compiled.runtime_executable().local_devices()]  # type: ignore[union-attr]
        facts = {"inputs": inputs.num_leaves, "outputs": outputs.num_leaves, "devices": devices}
        body = json.dumps(facts).encode() + b"\n" + program
        cache.store(KIND, f"{name}.xla", lambda file: file.write(hashlib.sha256(body).digest() + body))


def _kept() -> bool:
    return cache.kept(KIND) is not None and jax.process_count() == 1


def _hash(*known: Any) -> str:
    """Of what is known of a program, and of all that every program depends on."""
    settings = {name: repr(getattr(jax.config, name, None)) for name in SETTINGS}
    text = json.dumps([_installation(), settings, known], sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


@functools.cache
def _installation() -> list[str]:
    """The source of this package, the versions of what it uses, and the devices, with what a CPU can do."""
    source = hashlib.sha256()
    root = Path(__file__).parent
    for file in sorted(root.rglob("*.py")):
        source.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    devices = [f"{device.platform} {device.device_kind}" for device in jax.devices()]
    topology = xla_client.get_topology_for_devices(jax.devices()).fingerprint()
    compiler = f"{backend.get_backend().platform_version} {os.environ.get('XLA_FLAGS', '')}"
    versions = [f"{library} {version(library)}" for library in LIBRARIES]
    return [source.hexdigest(), sys.version, *versions, compiler, f"{os.cpu_count()} cores", *devices, str(topology)]
