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
