"""Failures of disks."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from collections.abc import Iterator


def full_disk(*_: object, **__: object) -> None:
    """Replaces a function that writes a file."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Lets writes beyond `size` bytes of a file fail like those on a full disk: with an OSError after a part."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
