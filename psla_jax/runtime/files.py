"""Atomic file writes: a file appears complete or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from typing import TextIO

NPZ_ERRORS = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""Exceptions that NumPy raises for a damaged ``.npz`` file."""


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yields the name of a temporary file that replaces ``path`` on success and is deleted on failure.

    Raises:
        OSError: the file cannot be written; its ``filename`` is ``path`` where the system names none (full disk).
    """
    folder, name = os.path.split(os.fspath(path))
    # A run directory deletes the temporary files of killed processes by this pattern: .NAME.PID.
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.{uuid.uuid4().hex}.part")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename in (None, temporary):
            error.filename = os.fspath(path)
        raise


@contextlib.contextmanager
def atomic_text(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """Opens a UTF-8 text file for writing, without newline translation, that replaces ``path`` once it is complete."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        yield file
