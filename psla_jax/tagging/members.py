"""Checks that the models of an ensemble fit together, so that their scores can be averaged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from psla_jax.audio.frontend import Frontend
from psla_jax.audio.windows import Grid
from psla_jax.models.model_dir import Model


class TaggerError(ValueError):
    """Models or settings that cannot be used together; the message names them."""


def require_one_grid(members: Sequence[tuple[str, Frontend]]) -> None:
    """Raises TaggerError if the output frames of the models, given by name, are not equally long."""
    seconds = [Grid.of(frontend).output_seconds for _, frontend in members]
    differing = next((i for i, each in enumerate(seconds) if abs(each - seconds[0]) > 1e-9), 0)
    if differing:
        raise TaggerError(
            f"the output frames of {members[0][0]} last {seconds[0]:.4g} s, and those of {members[differing][0]} "
            f"{seconds[differing]:.4g} s: an ensemble needs models with the same frontend.hop."
        )


def class_order(reference: tuple[str, Model], other: tuple[str, Model]) -> np.ndarray:
    """Returns the index in the classes of `other` of each class of `reference`, matched by mid."""
    vocabulary, mids = other[1].card.vocabulary, reference[1].card.vocabulary.mids
    if differing := sorted(set(mids) ^ set(vocabulary.mids)):
        raise TaggerError(
            f"the models {reference[0]} and {other[0]} differ in {len(differing)} classes, such as {differing[0]!r}: "
            "an ensemble needs models of the same classes."
        )
    return np.array([vocabulary.index(mid) for mid in mids])
