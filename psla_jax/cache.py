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


_traces: list[Path] = []


def keep_traces(directory: Path | None) -> None:
    """Has traced programs kept in `directory` from now on; None: no longer. See :mod:`psla_jax.traces`."""
    _traces[:] = [] if directory is None else [directory]


def traces_directory() -> Path | None:
    """Where traced programs are kept, if they are."""
    return _traces[0] if _traces else None
