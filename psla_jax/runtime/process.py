"""Process-wide settings that make programs faster and change no result: huge pages, and JAX's compilation cache.

``PSLA_HUGE_PAGES=0`` and ``JAX_ENABLE_COMPILATION_CACHE=false`` turn them off.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

from psla_jax.runtime.allocator import RETAIN_FREED_MEMORY, TUNABLES, retain_freed_memory
from psla_jax.runtime.cache import cache_directory, private_directory

SWITCH = "PSLA_HUGE_PAGES"
RESTARTED = "restarted"
"""Value of ``PSLA_HUGE_PAGES`` in a process that was restarted with huge pages."""
ORIGINAL_TUNABLES = "PSLA_ORIGINAL_GLIBC_TUNABLES"
HUGE_PAGES = "glibc.malloc.hugetlb=1"
HUGE_PAGE_SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
MIN_COMPILE_SECONDS = 0.1
"""Compilations that take at least this long are written to JAX's cache."""


def may_use_accelerator() -> bool:
    """Returns whether JAX would compute on a device other than the CPU, judged without importing JAX."""
    if platforms := os.environ.get("JAX_PLATFORMS", ""):
        return platforms.split(",")[0] != "cpu"
    plugins = any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
    return plugins or bool(entry_points(group="jax_plugins"))


def huge_pages_help() -> bool:
    """Returns whether restarting this process would give it huge pages that it lacks now.

    XLA allocates its working memory on a CPU, gigabytes of it, anew for every step. With pages of 4 kB, a third of the
    step is spent in page faults. glibc uses huge pages only if told before the process starts.
    """
    if os.environ.get(SWITCH) in ("0", RESTARTED) or HUGE_PAGES in os.environ.get(TUNABLES, ""):
        return False
    try:
        on_request = "[madvise]" in HUGE_PAGE_SETTING.read_text()
    except OSError:
        return False
    return on_request and platform.libc_ver()[0] == "glibc" and not may_use_accelerator()


def restart_with_huge_pages() -> None:
    """Restarts the command in this process with huge pages, where they help, and does not return then.

    The restarted process removes the setting from its environment again, so that loader workers do not inherit it.
    """
    if os.environ.get(SWITCH) == RESTARTED:
        del os.environ[SWITCH]
        os.environ.pop(TUNABLES, None)
        if original := os.environ.pop(ORIGINAL_TUNABLES, ""):
            os.environ[TUNABLES] = original
    elif huge_pages_help():
        original = os.environ.get(TUNABLES, "")
        # In a list of tunables the last value of a name counts, so the user's own settings win.
        tunables = ":".join(filter(None, [HUGE_PAGES, RETAIN_FREED_MEMORY, original]))
        sys.stdout.flush()
        sys.stderr.flush()
        environment = os.environ | {TUNABLES: tunables, ORIGINAL_TUNABLES: original, SWITCH: RESTARTED}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def configure_libraries() -> None:
    """Silences the logs of libraries whose errors this package reports itself, and turns on JAX's compilation cache.

    Freed memory is kept for the next arrays. Compiled programs are kept in the user's cache directory unless the
    environment names another one or none.
    """
    import jax
    from absl import logging

    retain_freed_memory()  # For the threads that read clips; commands that may use a GPU are not restarted.
    logging.set_verbosity(logging.FATAL)  # Orbax logs every exception that it raises, with stack traces.
    # A cache on a full or read-only disk costs time and nothing else.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")
    if directory := _own_cache():
        jax.config.update("jax_compilation_cache_dir", directory)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_SECONDS)


@contextlib.contextmanager
def compilation_cache() -> Iterator[None]:
    """Turns on JAX's compilation cache in a ``with`` block, and leaves JAX's settings as they were.

    It is for use as a library, where the settings of JAX belong to the application: if that has a cache of its own, it
    is used, and ``JAX_ENABLE_COMPILATION_CACHE=false`` turns off both. Only one thread at a time may enter the block.
    """
    import jax
    from jax.experimental.compilation_cache.compilation_cache import reset_cache

    if not (directory := _own_cache()):
        yield
        return
    jax.config.update("jax_compilation_cache_dir", directory)
    try:
        yield
    finally:
        if jax.config.jax_compilation_cache_dir == directory:  # type: ignore[attr-defined]
            jax.config.update("jax_compilation_cache_dir", None)
        reset_cache()  # JAX would write the application's programs to the directory that it has opened.


def _own_cache() -> str | None:
    """Creates this package's directory for JAX's cache; None if another one is configured, or it cannot be created."""
    import jax

    directory = cache_directory() / "xla"
    if jax.config.jax_compilation_cache_dir is not None or not jax.config.jax_enable_compilation_cache:  # type: ignore[attr-defined]
        return None
    try:
        return str(private_directory(directory))
    except OSError:
        return None
