"""The user's cache directory: downloads, compiled programs and other files that can be made again."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from psla_jax.runtime.files import atomic_path

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


@functools.cache
def source_digest() -> str:
    """Returns a SHA-256 of this package's source files: results of other source code must not be taken from a cache."""
    digest = hashlib.sha256()
    root = Path(__file__).parents[1]
    for file in sorted(root.rglob("*.py")):
        digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
