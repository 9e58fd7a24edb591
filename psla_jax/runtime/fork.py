"""Detects that a process was forked from one that had used JAX: its threads are missing, and computing never ends."""

from __future__ import annotations

import functools
import os


class ForkError(RuntimeError):
    """JAX cannot compute in this process; the message says where it can."""


def require_own_devices() -> None:
    """Raises ForkError in a process that was forked after its parent had called this function.

    It is called wherever this package starts to use JAX: a model is loaded or applied, or a training starts.
    """
    if (first := _first_process()) != os.getpid():
        raise ForkError(
            f"process {os.getpid()} was forked from process {first} after that one had loaded a model, and JAX cannot "
            "compute in a forked process: load the model in each worker and not before, or start the workers with "
            "multiprocessing.get_context('spawn')."
        )


@functools.cache
def _first_process() -> int:
    """The process that called this function first; a fork inherits the answer."""
    return os.getpid()
