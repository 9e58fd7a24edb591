"""Parsing of command lines, shared by all commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tyro


class UsageError(ValueError):
    """Invalid command line."""


def parse(options: type, arguments: Sequence[str], prog: str) -> Any:
    """Returns an instance of the dataclass `options` with the fields given on the command line.

    A boolean field is a pair of flags, ``--force`` and ``--no-force``. The docstrings of the class and its fields are
    the help text. Invalid arguments end the process with exit code 2.
    """
    return tyro.cli(options, args=arguments, prog=prog)
