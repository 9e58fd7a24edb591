"""Weights of models that were used lately, in a form that is read at once.

Orbax restores what a model directory has, of any size and from any number of processes; to import it and to start it
takes longer than a clip takes to be tagged. What it restored is kept here under the model's fingerprint, so it cannot
be another model's; on where :func:`psla_jax.cache.keep` was called, as the ``psla`` command does.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from psla_jax import cache
from psla_jax.files import DAMAGE, whole

KEPT = 4
"""Models; those that were kept first go, but for another one only after :data:`STAY`."""
STAY = 24 * 60 * 60.0
"""Seconds. Otherwise a larger ensemble would write all of its models anew each time, and find none of them."""


def read(fingerprint: str, like: Any) -> Any | None:
    """The weights of a model, as NumPy arrays in the structure of `like`; None if they are not kept, or damaged."""
    file = _file(fingerprint)
    if file is None:
        return None
    wanted, structure = jax.tree.flatten(like)
    try:
        with np.load(file, allow_pickle=False) as found:
            leaves = [found[str(number)] for number in range(len(wanted))]
    except DAMAGE:
        return None
    if any(leaf.shape != x.shape or leaf.dtype != x.dtype for leaf, x in zip(leaves, wanted)):
        return None
    return jax.tree.unflatten(structure, leaves)


def write(fingerprint: str, weights: Any) -> None:
    """Keeps the weights of a model; a disk that takes none costs time at the next start, and nothing else."""
    file = _file(fingerprint)
    if file is None:
        return
    leaves: dict[str, Any] = {str(number): np.asarray(leaf) for number, leaf in enumerate(jax.tree.leaves(weights))}
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        others = sorted((x.stat().st_mtime, x) for x in file.parent.glob("*.npz") if x != file)
        spare = others[: len(others) + 1 - KEPT] if len(others) >= KEPT else []
        if spare and time.time() - spare[-1][0] < STAY:
            return
        with whole(file) as aside, open(aside, "wb") as out:
            np.savez(out, **leaves)
        for _, old in spare:
            old.unlink()


def _file(fingerprint: str) -> Path | None:
    directory = cache.kept("weights")
    return directory and directory / f"{fingerprint}.npz"
