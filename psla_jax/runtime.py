"""What the process asks of the machine before it computes: huge pages, and a cache of compiled programs.

Both make things faster and change no result. ``PSLA_HUGE_PAGES=0`` and ``JAX_ENABLE_COMPILATION_CACHE=false`` turn them
off.
"""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from psla_jax.cache import cache_directory, keep

SWITCH = "PSLA_HUGE_PAGES"
TUNABLES, HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
KEEPING = "glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=268435456"
"""That memory of small arrays stays with the process. In huge pages, what is given back and asked for again has to be
cleared two megabytes at a time: reading a clip took half as long again."""
PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
SHORTEST_COMPILATION = 0.1
"""Seconds that a compilation has to take to be kept."""


def huge_pages_wanted() -> bool:
    """Whether a new start of this process would get huge pages, and does not have them.

    XLA on a CPU allocates its working memory, gigabytes of it, anew for every step; in pages of 4 kB, faulting them in
    takes a third of the step. glibc asks for huge ones if it is told so before the process starts.
    """
    if os.environ.get(SWITCH) == "0" or HUGE_PAGES in os.environ.get(TUNABLES, ""):
        return False
    try:
        given_on_request = "[madvise]" in PAGES.read_text()
    except OSError:
        return False
    return given_on_request and platform.libc_ver()[0] == "glibc"


def restart_with_huge_pages() -> None:
    """Starts the same command again in this process, with huge pages, where that is possible. Then does not return."""
    if not huge_pages_wanted():
        return
    tunables = ":".join(filter(None, [HUGE_PAGES, KEEPING, os.environ.get(TUNABLES)]))  # The last word is the user's.
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {TUNABLES: tunables})


def prepare_libraries(*, programs: bool = True) -> None:
    """Leaves it to this package to say what goes wrong, and keeps for the next start what makes it slow.

    That is what JAX compiled, and with `programs` whole programs and loaded weights by what they are of, in the user's
    cache unless the environment names another place or none. `programs` are for a process that does nothing but this
    package's command: in any other one, functions may be replaced by others.
    """
    import jax
    from absl import logging

    logging.set_verbosity(logging.FATAL)  # Orbax logs what it raises too, with the traces of its threads.
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", SHORTEST_COMPILATION)
    if programs and jax.config.jax_enable_compilation_cache:  # type: ignore[attr-defined]
        keep(cache_directory())
