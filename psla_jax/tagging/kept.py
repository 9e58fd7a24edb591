"""Compiled programs kept from one process to the next, so that a file is tagged without tracing the network again.

JAX keeps what XLA compiles, but finds it by the traced program, and tracing takes longer than reading it. These are
found by what they are made from: versions, source, architecture, shapes, machine. They lie in JAX's own cache
directory, and are made anew wherever they cannot be used.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

SOURCES = ("frontend.py", "models", "tagging/programs.py")
"""Files and folders of this package that decide what a program computes."""


def key(*made_from: Any) -> str:
    """The name of a program that is made from these things (anything JSON can hold), here and now."""
    device = jax.devices()[0]
    surroundings = (
        jax.__version__, jax.lib.__version__, _source(), device.platform, device.device_kind, len(jax.devices()),
        _processor(), os.environ.get("XLA_FLAGS", ""), str(jax.config.jax_default_matmul_precision),  # type: ignore[attr-defined]
    )  # fmt: skip
    return hashlib.sha256(json.dumps([surroundings, made_from]).encode()).hexdigest()


def compiled_anew(function: Callable, *shapes: Any) -> Any:
    """A program that XLA has just compiled: one that JAX took from its own cache cannot be kept.

    Its name is its own, so that JAX's cache has no such program.
    """

    def program(*arguments: Any) -> Any:
        return function(*arguments)

    program.__name__ = f"program_{uuid.uuid4().hex}"
    return jax.jit(program).lower(*shapes).compile()


def read(name: str, in_tree: Any, out_tree: Any, example: tuple[Any, ...]) -> Any | None:
    """A kept program, or None if there is none that can be used.

    Args:
        name: from :func:`key`.
        in_tree: structure of its arguments, ``(args, kwargs)``.
        out_tree: structure of what it returns.
        example: arguments to try it on: some that cannot be used show it only when they run.
    """
    folder = _folder()
    if folder is None or not (folder / name).is_file():
        return None
    # A file from elsewhere, or cut short: whatever it raises, the program can be compiled.
    with contextlib.suppress(Exception):
        program = serialize_executable.deserialize_and_load((folder / name).read_bytes(), in_tree, out_tree)
        jax.block_until_ready(program(*example))
        return program
    return None


def write(name: str, program: Any) -> None:
    """Keeps a program, where there is a place and the platform can do it."""
    folder = _folder()
    if folder is None:
        return
    with contextlib.suppress(Exception):
        payload, _, _ = serialize_executable.serialize(program)
        folder.mkdir(parents=True, exist_ok=True)
        aside = folder / f".{name}.{os.getpid()}"
        aside.write_bytes(payload)
        os.replace(aside, folder / name)


def _folder() -> Path | None:
    """Beside what JAX keeps; None if it keeps nothing."""
    config = jax.config
    place, on = config.jax_compilation_cache_dir, config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    return Path(place) / "programs" if place and on else None


@functools.cache
def _source() -> str:
    """A hash of the code that the programs come from."""
    digest, package = hashlib.sha256(), Path(__file__).resolve().parents[1]
    for name in SOURCES:
        path = package / name
        for file in sorted(path.glob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()


@functools.cache
def _processor() -> str:
    """What a program for this CPU may use."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        found = {line for line in lines if line.startswith(("flags", "Features", "model name"))}
        return f"{platform.machine()} {sorted(found)}"
    return f"{platform.machine()} {platform.processor()}"
