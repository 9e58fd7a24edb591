"""Pipes, devices and standard streams in place of files: inputs are read into a temporary file, outputs written to."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import BinaryIO

STANDARD = "-"
"""Name of standard input or output on a command line."""
PARTNER_SECONDS = 10.0
"""Seconds to wait until another program opens the other end of a named pipe."""
_POLL_SECONDS = 0.05
_CHUNK = 1 << 16
_NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # Windows has neither this flag nor pipes among its files.

StrPath = str | os.PathLike[str]


def is_stream(path: StrPath) -> bool:
    """Returns whether a path is a pipe, a socket or a device, which can be read or written only once, in order."""
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def is_standard_output(path: StrPath) -> bool:
    """Returns whether a path is the file, pipe or terminal that is standard output, such as ``/dev/stdout``."""
    return _is_descriptor(path, 1)


def is_output_stream(path: StrPath) -> bool:
    """Returns whether output for a path is written to a stream, and nothing is replaced."""
    return is_stream(path) or is_standard_output(path)


def _is_descriptor(path: StrPath, descriptor: int) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    return False


@contextlib.contextmanager
def regular_file(path: StrPath) -> Iterator[str]:
    """Yields `path`; for a pipe or standard input (``-``), the path of a temporary file with everything read from it.

    Raises:
        OSError: the pipe cannot be read, has no writer within :data:`PARTNER_SECONDS`, or is a device or a terminal.
    """
    if os.fspath(path) != STANDARD and not is_stream(path):
        yield os.fspath(path)
        return
    with tempfile.TemporaryDirectory(prefix="psla-") as folder:
        name = os.path.join(folder, "content")
        with open(name, "wb") as file:
            _copy(path, file)
        yield name


def _copy(path: StrPath, file: BinaryIO) -> None:
    """Copies all that a pipe or standard input gives to a file."""
    if os.fspath(path) == STANDARD or (is_stream(path) and _is_descriptor(path, 0)):
        if sys.stdin is None or sys.stdin.isatty():
            raise OSError(errno.EINVAL, "standard input is not a pipe", os.fspath(path))
        shutil.copyfileobj(sys.stdin.buffer, file)
        return
    if not stat.S_ISFIFO(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "it is a device or a socket, not a file", os.fspath(path))
    with open(os.open(path, os.O_RDONLY | _NONBLOCK), "rb", buffering=0) as pipe:
        file.write(_first_bytes(pipe, path))
        os.set_blocking(pipe.fileno(), True)
        shutil.copyfileobj(pipe, file)


def _first_bytes(pipe: BinaryIO, path: StrPath) -> bytes:
    """Returns the first bytes of a pipe in nonblocking mode, or none as soon as there is, or was, a program to write.

    Raises TimeoutError if no program opens the pipe. Opening it in blocking mode would wait for one without end.
    """
    poll, deadline = select.poll(), time.monotonic() + PARTNER_SECONDS
    poll.register(pipe, select.POLLIN)
    while True:
        data = pipe.read(_CHUNK)  # None: a program has opened the pipe and has not written yet.
        if data is None or data or any(events & select.POLLHUP for _, events in poll.poll(0)):
            return data or b""
        _wait(deadline, "no program writes to this pipe", path)


@contextlib.contextmanager
def open_output(path: StrPath) -> Iterator[BinaryIO]:
    """Opens standard output, a pipe or a device for writing.

    Raises:
        OSError: it cannot be written, or is a pipe that no program opens within :data:`PARTNER_SECONDS`.
    """
    if os.fspath(path) == STANDARD or is_standard_output(path):
        sys.stdout.flush()
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    else:
        with open(_open_for_writing(path), "wb") as file:
            yield file


def discard_standard_output() -> None:
    """Redirects standard output to nowhere, after its reader has closed it: output at the exit would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def finish_standard_output() -> None:
    """Writes what is buffered for standard output; if that fails, the exit of the process does not try it again."""
    try:
        sys.stdout.flush()
    except OSError:
        discard_standard_output()


def _open_for_writing(path: StrPath) -> int:
    deadline = time.monotonic() + PARTNER_SECONDS
    while True:
        try:
            descriptor = os.open(path, os.O_WRONLY | _NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            _wait(deadline, "no program reads from this pipe", path)
        else:
            os.set_blocking(descriptor, True)
            return descriptor


def _wait(deadline: float, problem: str, path: StrPath) -> None:
    if time.monotonic() >= deadline:
        raise TimeoutError(errno.ETIMEDOUT, problem, os.fspath(path))
    time.sleep(_POLL_SECONDS)
