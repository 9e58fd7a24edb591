"""The user's cache directory: downloads, compiled programs and other files that can be made again."""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from psla_jax.runtime.files import atomic_path
from psla_jax.runtime.terminal import printable

T = TypeVar("T")

MAX_FILES = 64
"""Number of files of one kind that :func:`cached` keeps; the least recently used ones are deleted."""
DIGEST_BYTES = 32


def cache_directory() -> Path:
    """Returns ``$PSLA_CACHE``, or the user's cache directory for this package. It may not exist yet."""
    if configured := os.environ.get("PSLA_CACHE"):
        return Path(configured)
    import platformdirs

    return Path(platformdirs.user_cache_dir("psla_jax", appauthor=False))


def private_directory(path: Path) -> Path:
    """Creates a directory that only its owner can access, because programs in a cache are executed as the owner."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


def cached(kind: str, key: str, make: Callable[[], bytes]) -> bytes:
    """Returns the cached content for a key, or the result of ``make()``, which is then cached.

    `kind` is a subdirectory of :func:`cache_directory`, and `key` everything that determines the content. A cache that
    is damaged, or cannot be read or written, costs time and never raises.
    """
    path = cache_directory() / kind / hashlib.sha256(key.encode()).hexdigest()
    with contextlib.suppress(OSError):
        stored = path.read_bytes()
        digest, content = stored[:DIGEST_BYTES], stored[DIGEST_BYTES:]
        if hashlib.sha256(content).digest() == digest:
            os.utime(path)
            return content
    content = make()
    with contextlib.suppress(OSError):
        private_directory(path.parent)
        with atomic_path(path) as temporary:
            Path(temporary).write_bytes(hashlib.sha256(content).digest() + content)
        latest_first = sorted(path.parent.iterdir(), key=lambda file: -file.stat().st_mtime)
        for file in latest_first[MAX_FILES:]:
            file.unlink(missing_ok=True)
    return content


_NOT_WRITABLE = set[Path]()
"""Paths in the cache that could not be written; an attempt may take long and is not repeated in this process."""


def in_cache(make: Callable[[Path], T], *parts: str) -> T:
    """Returns ``make(path)`` for a path in :func:`cache_directory`, which `make` returns quickly if it is complete.

    If it cannot be written there, because the disk is full or read-only, one line on standard error says so, and the
    path is in a temporary directory that is deleted at the end of the process. Raises OSError if that fails too.
    """
    path = cache_directory().joinpath(*parts)
    if path not in _NOT_WRITABLE:
        try:
            return make(path)
        except OSError as error:
            _NOT_WRITABLE.add(path)
            problem = f"{error.filename or path} cannot be written ({error.strerror or error})"
            text = f"the cache is not used: {problem}; PSLA_CACHE can name another directory"
            print(printable(text), file=sys.stderr)
    return make(_temporary_directory().joinpath(*parts))


@functools.cache
def _temporary_directory() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="psla-cache-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


@functools.cache
def source_digest() -> str:
    """Returns a SHA-256 of this package's source files: results of other source code must not be taken from a cache."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
