"""Validation of the fields of configs; the sections themselves are in :mod:`psla_jax.config`."""

from __future__ import annotations

from typing import get_args

from psla_jax.ingredients import IngredientError, specification

PREFIXES: dict[type, str] = {}
"""Prefix of the command-line names of a section's fields by its class, which :mod:`psla_jax.config` fills in."""


class ConfigError(ValueError):
    """An invalid setting; the message names the field, its value and the remedy."""


def field_name(config: object, name: str) -> str:
    """Returns the command-line name of a field of a section."""
    return f"{PREFIXES.get(type(config), '')}{name}"


def require(config: object, name: str, valid: bool, remedy: str) -> None:
    """Raises ConfigError, with the command-line name of the field `name` of `config`, unless its value is valid."""
    if not valid:
        raise ConfigError(f"{field_name(config, name)} is {getattr(config, name)!r}: {remedy}.")


def require_one_of(config: object, name: str, choices: object) -> None:
    """Raises ConfigError unless the value of a field is one of the values of a Literal."""
    options = get_args(choices)
    require(config, name, getattr(config, name) in options, "choose one of " + ", ".join(map(str, options)))


def name_ingredients(config: object, *names: str, several: bool = False) -> None:
    """Replaces callables in the fields `names` by their import paths; with `several`, a field has a sequence of them.

    Raises ConfigError for those that cannot be imported, and for text that is no specification.
    """
    for name in names:
        value = getattr(config, name)
        if several and (isinstance(value, str) or callable(value)):
            value = (value,)
        try:
            text = tuple(map(specification, value)) if several else specification(value)
        except IngredientError as error:
            raise ConfigError(f"{field_name(config, name)}: {error}.") from error
        object.__setattr__(config, name, text)
