"""Where files that can be made or fetched again are kept."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from psla_jax.files import whole

LIMIT = 2 * 1024**3
"""Bytes of each kind that :func:`store` keeps."""


def cache_directory() -> Path:
    """``$PSLA_CACHE``, or the user's cache directory for this package. It may not exist yet."""
    given = os.environ.get("PSLA_CACHE")
    if given:
        return Path(given)
    import platformdirs

    return Path(platformdirs.user_cache_dir("psla_jax", appauthor=False))


_kept: list[Path] = []


def keep(directory: Path | None) -> None:
    """Has what makes a start slow kept in `directory` from now on, for the next one; None: no longer.

    That is compiled programs (:mod:`psla_jax.kept_programs`) and the weights of models (:mod:`psla_jax.kept_weights`).
    """
    _kept[:] = [] if directory is None else [directory]


def kept(kind: str) -> Path | None:
    """Where that is kept, if it is."""
    return _kept[0] / kind if _kept else None


def find(kind: str, name: str) -> Path | None:
    """What was stored under a name, which counts as used now; None if nothing was, or nothing is kept."""
    directory = kept(kind)
    if directory is None or not (directory / name).is_file():
        return None
    with contextlib.suppress(OSError):  # It may be another user's.
        os.utime(directory / name)
    return directory / name


def store(kind: str, name: str, write: Callable[[BinaryIO], object]) -> None:
    """Keeps what `write` writes, if anything is kept; then what was not used for longest goes beyond :data:`LIMIT`.

    A disk that takes none costs time at the next start, and nothing else.
    """
    directory = kept(kind)
    if directory is None:
        return
    with contextlib.suppress(OSError):
        directory.mkdir(parents=True, exist_ok=True)
        with whole(directory / name) as aside, open(aside, "wb") as file:
            write(file)
        _shrink(directory)


def _shrink(directory: Path) -> None:
    files = sorted((-file.stat().st_mtime, file.stat().st_size, file) for file in directory.iterdir())
    total = 0
    for number, (_, size, file) in enumerate(files):
        total += size
        if number and total > LIMIT:
            file.unlink(missing_ok=True)
