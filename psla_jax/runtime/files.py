"""Atomic file writes: a file appears complete or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import uuid
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from typing import TextIO

from psla_jax.runtime import streams

NPZ_ERRORS = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""Exceptions that NumPy raises for a damaged ``.npz`` file."""


_NAME_BYTES = 100
"""Bytes of a file's name that the name of its temporary file begins with; systems allow 255 bytes in a name."""


def shortened(name: str) -> str:
    """Returns the beginning of a name, for the name of a temporary file or directory that is longer."""
    return os.fsencode(name)[:_NAME_BYTES].decode(errors="ignore")


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[str]:
    """Yields the name of a temporary file that replaces ``path`` on success and is deleted on failure.

    A symbolic link is kept, and the file it points to is replaced. If ``path`` is a pipe, a device or standard output,
    the content of the temporary file is written to it.

    Raises:
        OSError: the file cannot be written; its ``filename`` is ``path`` where the system names none (full disk).
    """
    is_stream = streams.is_output_stream(path)
    target = os.path.realpath(path) if os.path.islink(path) else os.fspath(path)
    folder, name = (tempfile.gettempdir(), "psla") if is_stream else os.path.split(target)
    # A run directory deletes the temporary files of killed processes by this pattern: .NAME.PID.
    temporary = os.path.join(folder, f".{shortened(name)}.{os.getpid()}.{uuid.uuid4().hex}.part")
    try:
        yield temporary
        if is_stream:
            with open(temporary, "rb") as content, streams.open_output(path) as output:
                shutil.copyfileobj(content, output)
        else:
            os.replace(temporary, target)
    except BaseException as error:
        if isinstance(error, OSError) and error.filename in (None, temporary):
            error.filename = os.fspath(path)
        raise
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


@contextlib.contextmanager
def atomic_text(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """Opens a UTF-8 text file for writing, without newline translation, that replaces ``path`` once it is complete."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        yield file


def exists(path: str | os.PathLike[str]) -> bool:
    """Returns whether there is a file or folder that writing to `path` would replace; false for a pipe or device."""
    return os.path.lexists(path) and not streams.is_output_stream(path)


def same_file(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> bool:
    """Returns whether two paths exist and are the same file, for example through a link."""
    with contextlib.suppress(OSError, ValueError):
        return os.path.samefile(first, second)
    return False


@contextlib.contextmanager
def removed_on_failure(paths: Iterable[str | os.PathLike[str]]) -> Iterator[None]:
    """Deletes the files among `paths` that did not exist before if the block fails, so that it can be repeated."""
    new = [path for path in paths if not os.path.lexists(path)]
    try:
        yield
    except BaseException:
        for path in new:
            with contextlib.suppress(OSError):
                os.unlink(path)
        raise


@contextlib.contextmanager
def named_in_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Sets the ``filename`` of an OSError of the block to ``path`` where the system names none, as on a full disk."""
    try:
        yield
    except OSError as error:
        error.filename = os.fspath(path) if error.filename is None else error.filename
        raise
