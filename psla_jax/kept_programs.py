"""Compiled programs, kept from one process to the next.

JAX keeps compiled programs itself, but finds them by what has to be traced and lowered first, which takes a large
network seconds. Here they are found by what decides them: this package's source, the versions of the libraries, the
devices, the shapes, and what the caller names; and if that has changed, by what was lowered, as in JAX's cache. It is
on where :func:`psla_jax.cache.keep` was called (the ``psla`` command does), off in a library's use, where anything may
be patched, and with several processes, which have to compile together. As in JAX's own cache, what is kept is machine
code: whoever can write there can run code as the user.

Of three kinds of files, ``.xla`` has a program, ``.name`` says which program it is that something decides, and ``.use``
lists the names that a process needed.
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
        def psla_kept(*arguments: Any) -> Any:  # A name of its own in JAX's cache, see _compiled.
            return function(*arguments)

        self._jitted, self._to_keep = jax.jit(function, **options), jax.jit(psla_kept, **options)
        self._result, self._identity, self._options = result, identity, options
        self._ready: Callable[..., Any] | None = None
        self._prepared: tuple[str | None, Callable[..., Any]] | None = None
        self._preparing: threading.Thread | None = None

    def __call__(self, *arguments: Any) -> Any:
        """What the function returns."""
        if self._preparing is not None:
            self._preparing.join()
            self._preparing = None
        if self._ready is None:
            self._ready = self._made(arguments)
        return self._ready(*arguments)

    def _made(self, arguments: Sequence[Any]) -> Callable[..., Any]:
        name = self._name(arguments)
        if name is None:
            return self._jitted  # It finds what it compiled while that was prepared, and takes other shapes too.
        if self._prepared is not None and self._prepared[0] == name:
            return self._prepared[1]
        return self.compiled(*arguments)

    def lower(self, *arguments: Any) -> jax.stages.Lowered:
        """The function for such arguments (arrays, or their shapes), ready to be compiled."""
        return self._jitted.lower(*arguments)

    def compiled(self, *arguments: Any, announce: Callable[[], None] = lambda: None) -> Callable[..., Any]:
        """The function compiled for such arguments (arrays, or their shapes), by an earlier process or now.

        `announce` is called before what takes its time: tracing and compiling.
        """
        name = self._name(arguments)
        if name is None:
            announce()
            return self.lower(*arguments).compile()
        program = _find(name)
        if program is None:
            announce()
            lowered = self._to_keep.lower(*arguments)
            content = _hash(_platform(), _settings(), self._said(), _places(arguments), lowered.as_text())
            cache.store(KIND, f"{name}.name", lambda file: file.write(content.encode()))
            program = _load(content)
            if program is None:
                return _compiled(lowered, content)
        out = jax.tree.structure(self._result(*arguments))
        return lambda *given: jax.tree.unflatten(out, program(*jax.tree.leaves(given)))

    def prepare(self, *arguments: Any) -> None:
        """Compiles the function for such shapes, or loads it, in a thread; the first call waits for the end of that."""

        def work() -> None:
            with contextlib.suppress(Exception):  # The call meets it again, and there it can be said.
                self._prepared = self._name(arguments), self.compiled(*arguments)

        self._preparing = threading.Thread(target=work, name="psla-compiler")
        self._preparing.start()

    def _name(self, arguments: Sequence[Any]) -> str | None:
        """What the program is kept under; None where it is not."""
        if self._identity is None or not _kept():
            return None
        leaves, tree = jax.tree.flatten(tuple(arguments))
        shapes = [f"{leaf.shape} {leaf.dtype}" for leaf in leaves]
        known = [self._identity, self._said(), shapes, _places(arguments), str(tree)]
        return _hash(_platform(), _source(), _settings(), known)

    def _said(self) -> dict[str, str]:
        return {name: repr(option) for name, option in self._options.items()}


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
    _use = _Use(f"{_hash(_platform(), _source(), use)}.use" if _kept() else "")
    if not _use.file:
        return
    _use.known = _words(_use.file)
    loader = ThreadPoolExecutor(1, "psla-loader")
    _use.loading = {name: loader.submit(_named, name) for name in _use.known}
    loader.shutdown(wait=False)


def _find(name: str) -> Callable[..., Any] | None:
    """The program that something decides, as a function of flat lists; None where there is none yet."""
    if _use.file and name not in _use.asked:
        _use.asked.append(name)
        if name not in _use.known:
            cache.store(KIND, _use.file, lambda file: file.write("\n".join(_use.asked).encode()))
    loading = _use.loading.pop(name, None)
    return _named(name) if loading is None else loading.result()


def _named(name: str) -> Callable[..., Any] | None:
    content = _words(f"{name}.name")
    return _load(content[0]) if content else None


def _words(name: str) -> list[str]:
    """Those in a kept file; none where it is not there, or damaged."""
    file = cache.find(KIND, name)
    with contextlib.suppress(OSError, ValueError):
        return file.read_text().split() if file else []
    return []


def _load(content: str) -> Callable[..., Any] | None:
    """A program, as a function of flat lists; None where there is none, or whatever is wrong with it."""
    file = cache.find(KIND, f"{content}.xla")
    if file is None:
        return None
    with contextlib.suppress(Exception):
        read = file.read_bytes()
        digest, body = read[:DIGEST_BYTES], read[DIGEST_BYTES:]
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


def _places(arguments: Sequence[Any]) -> list[str]:
    """Where the arguments of a program are; shardings alone do not say on which devices."""
    shardings = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(arguments)]
    return ["" if x is None else f"{x} {sorted(device.id for device in x.device_set)}" for x in shardings]


_from_jax = threading.local()


@functools.cache
def _listen() -> None:
    """Notes for each thread that JAX found a program in its own cache."""

    def note(event: str, **_: Any) -> None:
        if event == "/jax/compilation_cache/cache_hits":
            _from_jax.found = True

    jax.monitoring.register_event_listener(note)


def _compiled(lowered: jax.stages.Lowered, content: str) -> jax.stages.Compiled:
    """Compiles a program and keeps it; one that cannot be written down costs time at the next start, nothing else.

    What JAX found in its own cache is not kept: XLA leaves out the functions of a program that it has loaded itself.
    That happens only where a kept program was lost, since JAX knows those by a name that no other has.
    """
    _listen()
    _from_jax.found = False
    compiled = lowered.compile()
    if _from_jax.found:
        return compiled
    with contextlib.suppress(Exception):
        program, inputs, outputs = serialize_executable.serialize(compiled)
        devices = [device.id for device in compiled.runtime_executable().local_devices()]  # type: ignore[union-attr]
        facts = {"inputs": inputs.num_leaves, "outputs": outputs.num_leaves, "devices": devices}
        body = json.dumps(facts).encode() + b"\n" + program
        cache.store(KIND, f"{content}.xla", lambda file: file.write(hashlib.sha256(body).digest() + body))
    return compiled


def _kept() -> bool:
    return cache.kept(KIND) is not None and jax.process_count() == 1


def _hash(*known: Any) -> str:
    text = json.dumps(known, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:40]


def _settings() -> dict[str, str]:
    """All settings of JAX, as they are in this thread, but those of its cache and its log."""
    values = jax.config.values  # type: ignore[attr-defined]
    names = [name for name in values if "cache" not in name and "log" not in name]
    return {name: repr(getattr(jax.config, name, values[name])) for name in names}


@functools.cache
def _source() -> str:
    """A hash of this package's source."""
    source = hashlib.sha256()
    root = Path(__file__).parent
    for file in sorted(root.rglob("*.py")):
        source.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return source.hexdigest()


@functools.cache
def _platform() -> list[str]:
    """The versions of what this package uses, and the devices, with what a CPU can do."""
    devices = [f"{device.platform} {device.device_kind}" for device in jax.devices()]
    topology = ""
    with contextlib.suppress(Exception):  # Not every backend can say it; its kind has to do then.
        topology = str(xla_client.get_topology_for_devices(jax.devices()).fingerprint())
    compiler = f"{backend.get_backend().platform_version} {os.environ.get('XLA_FLAGS', '')}"
    versions = [f"{library} {version(library)}" for library in LIBRARIES]
    return [sys.version, *versions, compiler, f"{os.cpu_count()} cores", *devices, topology]
