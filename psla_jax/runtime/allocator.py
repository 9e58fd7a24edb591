"""The memory allocator of this process (glibc only): whether freed memory is kept. This module does not import JAX."""

from __future__ import annotations

import ctypes
import os
import platform

TUNABLES = "GLIBC_TUNABLES"
MMAP_THRESHOLD, TRIM_THRESHOLD = 1 << 25, 1 << 28
"""Bytes: smaller arrays are allocated in memory that the process keeps, and it keeps that much unused memory."""
RETAIN_FREED_MEMORY = f"glibc.malloc.mmap_threshold={MMAP_THRESHOLD}:glibc.malloc.trim_threshold={TRIM_THRESHOLD}"
"""Keeps freed memory in the process, see :func:`retain_freed_memory`. With huge pages, memory that is returned and
requested again must be cleared two megabytes at a time, which made reading a clip take half as long again."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


def retain_freed_memory() -> None:
    """Makes this process keep the memory of freed arrays for the next ones (glibc only; its own tunables win).

    By default, the arrays of every clip that a loader reads are returned to the operating system, which clears their
    pages again for the next clip: more than half of the time that reading and mixing 16-bit shards takes.
    """
    if platform.libc_ver()[0] == "glibc" and "glibc.malloc" not in os.environ.get(TUNABLES, ""):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, MMAP_THRESHOLD)
        libc.mallopt(_M_TRIM_THRESHOLD, TRIM_THRESHOLD)


def release_freed_memory() -> None:
    """Returns freed memory, for example that of the compiler, to the operating system (glibc only)."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
