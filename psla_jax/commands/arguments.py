"""What the commands share: how arguments become a dataclass, and what a wrong command line raises."""

from __future__ import annotations

from typing import Any

import tyro


class UsageError(ValueError):
    """A command line that cannot be carried out."""


def parse(kind: type, arguments: list[str], prog: str, *, switches: bool = False) -> Any:
    """The dataclass `kind`, fields from the command line, docstring as help; exits with 2 if they do not fit.

    A field that is True or False is set with ``--field True``, or with `switches` by ``--field`` alone.
    """
    how = tyro.conf.FlagCreatePairsOff if switches else tyro.conf.FlagConversionOff
    return tyro.cli(kind, args=arguments, prog=prog, config=(how,))
