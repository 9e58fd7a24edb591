"""Weights of models that were used lately, in a form that is read at once.

Orbax restores what a model directory has, of any size and from any number of processes; to import it and to start it
takes longer than a clip takes to be tagged. What it restored is kept here under the model's fingerprint, so it cannot
be another model's; on where :func:`psla_jax.cache.keep` was called, as the ``psla`` command does.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from psla_jax import cache
from psla_jax.files import DAMAGE

KIND = "weights"


def read(fingerprint: str, like: Any) -> Any | None:
    """The weights of a model, as NumPy arrays in the structure of `like`; None if they are not kept, or damaged."""
    file = cache.find(KIND, f"{fingerprint}.npz")
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
    """Keeps the weights of a model."""
    leaves: dict[str, Any] = {str(number): np.asarray(leaf) for number, leaf in enumerate(jax.tree.leaves(weights))}
    cache.store(KIND, f"{fingerprint}.npz", lambda file: np.savez(file, **leaves))
