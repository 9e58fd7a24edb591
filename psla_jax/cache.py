"""Where files that can be made or fetched again are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_directory() -> Path:
    """``$PSLA_CACHE``, or the user's cache directory for this package. It may not exist yet."""
    given = os.environ.get("PSLA_CACHE")
    if given:
        return Path(given)
    import platformdirs

    return Path(platformdirs.user_cache_dir("psla_jax", appauthor=False))


_kept: list[Path] = []


def keep(directory: Path | None) -> None:
    """Has what makes a start slow kept in `directory` from now on, for the next one; None: no longer.

    That is traced programs (:mod:`psla_jax.traces`) and the weights of models (:mod:`psla_jax.kept_weights`).
    """
    _kept[:] = [] if directory is None else [directory]


def kept(kind: str) -> Path | None:
    """Where that is kept, if it is."""
    return _kept[0] / kind if _kept else None
