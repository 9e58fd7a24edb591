"""What the commands share: how arguments become a dataclass, and what a wrong command line raises."""

from __future__ import annotations

from typing import Any

import tyro


class UsageError(ValueError):
    """A command line that cannot be carried out."""


def parse(kind: type, arguments: list[str], prog: str) -> Any:
    """The dataclass `kind`, fields from the command line, docstring as help; exits with 2 if they do not fit."""
    return tyro.cli(kind, args=arguments, prog=prog, config=(tyro.conf.FlagConversionOff,))
