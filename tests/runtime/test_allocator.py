"""Freed memory is kept for the next arrays, or returned to the operating system."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys

from psla_jax.runtime import allocator


def test_freed_memory_is_returned_to_the_operating_system() -> None:
    program = """
import re
from pathlib import Path
from psla_jax.runtime.allocator import release_freed_memory
status = Path("/proc/self/status")
resident = lambda: int(re.search(r"VmRSS:\\s+(\\d+)", status.read_text())[1]) >> 10 if status.exists() else 0
blocks = [bytes(100_000) for _ in range(2000)]
del blocks
before = resident()
release_freed_memory()
print(before - resident())
"""
    environment = os.environ | {allocator.TUNABLES: allocator.RETAIN_FREED_MEMORY, "PYTHONMALLOC": "malloc"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    if platform.libc_ver()[0] == "glibc":  # Other C libraries have no such call, and nothing happens.
        assert int(run.stdout) > 100  # MB, of the 190 that were allocated


FAULTS = """
import resource, sys
import numpy as np
from psla_jax.runtime import allocator
if sys.argv[1] == "retained":
    allocator.retain_freed_memory()
def clips():
    return [np.ones(160_000, np.float32) for _ in range(4)]
clips()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    clips()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(*arguments: str, **environment: str) -> int:
    """Returns the page faults of a process that allocates and frees the waveforms of 80 clips."""
    inherited = {name: value for name, value in os.environ.items() if name != allocator.TUNABLES}
    command = [sys.executable, "-c", FAULTS, *arguments]
    return int(subprocess.run(command, env=inherited | environment, capture_output=True, text=True, check=True).stdout)


def test_the_memory_of_freed_arrays_is_reused_unless_the_user_set_the_allocator() -> None:
    pages = 20 * 4 * 160_000 * 4 // resource.getpagesize()
    retained = page_faults("retained")
    if platform.libc_ver()[0] == "glibc":  # Other C libraries have no such setting, and nothing happens.
        assert retained < 0.01 * pages
        assert page_faults("retained", GLIBC_TUNABLES="glibc.malloc.mmap_threshold=131072") > 0.9 * pages
