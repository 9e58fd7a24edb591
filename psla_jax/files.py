"""Files that appear whole or not at all: written aside, then renamed."""

from __future__ import annotations

import contextlib
import os
import uuid
import zipfile
import zlib
from collections.abc import Iterator
from typing import TextIO

DAMAGE = (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What NumPy raises of an ``.npz`` that is not what was written."""


@contextlib.contextmanager
def whole(path: str | os.PathLike[str]) -> Iterator[str]:
    """The name of a file to write beside ``path``, which takes its place at the end; nothing of it stays otherwise.

    Raises:
        OSError: the file cannot be written; it names ``path`` where the system names none, as for a full disk.
    """
    folder, name = os.path.split(os.fspath(path))
    # The process comes first: a run directory clears away what a killed one left, by that number.
    aside = os.path.join(folder, f".{name}.{os.getpid()}.{uuid.uuid4().hex}.part")
    try:
        yield aside
        os.replace(aside, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)
        if isinstance(error, OSError) and error.filename in (None, aside):
            error.filename = os.fspath(path)
        raise


@contextlib.contextmanager
def written_aside(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """A text file to write, UTF-8 with its line ends as given, that takes the place of ``path`` once it is whole."""
    with whole(path) as aside, open(aside, "w", encoding="utf-8", newline="") as file:
        yield file
