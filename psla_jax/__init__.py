"""PSLA audio tagging in JAX: pretraining, sampling, labeling, aggregation."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "AudioTagger": "psla_jax.models.tagger",
    "Frontend": "psla_jax.frontend",
    "Stream": "psla_jax.tagging.stream",
    "Tagger": "psla_jax.tagging.tagger",
    "Vocabulary": "psla_jax.ontology",
    "build_model": "psla_jax.models.tagger",
    "load": "psla_jax.tagging.tagger",
    "load_model": "psla_jax.checkpoints",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Hands out the public names when they are first asked for: importing the package loads nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
