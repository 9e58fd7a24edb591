"""Exceptions of this package, whose messages are sentences for the user."""

from __future__ import annotations

PACKAGE = __name__.partition(".")[0]


def is_own(error: BaseException) -> bool:
    """Returns whether an exception is of a class of this package; those of other libraries need a traceback."""
    return type(error).__module__.startswith(f"{PACKAGE}.")
