"""What the commands share: how arguments become a dataclass, and what a wrong command line raises."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import tyro


class UsageError(ValueError):
    """A command line that cannot be carried out."""


def parse(kind: type, arguments: Sequence[str], prog: str) -> Any:
    """The dataclass `kind`, fields from the command line, docstring as help; exits with 2 if they do not fit.

    A field that is True or False is set with ``--field True``, or made True by ``--field`` alone.
    """
    return tyro.cli(kind, args=spelled_out(kind, arguments), prog=prog, config=(tyro.conf.FlagConversionOff,))


def spelled_out(kind: type, arguments: Sequence[str]) -> list[str]:
    """The arguments with ``--field True`` for ``--field``, where a field of `kind` is True or False."""
    switches = {field.name for field in dataclasses.fields(kind) if field.type in (bool, "bool")}
    full: list[str] = []
    for argument, following in zip(arguments, [*arguments[1:], ""]):
        full.append(argument)
        name = argument.removeprefix("--").replace("-", "_")
        if argument.startswith("--") and name in switches and following not in ("True", "False"):
            full.append("True")
    return full
