"""Validation of the fields of configs; the sections themselves are in :mod:`psla_jax.config`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar, get_args

from psla_jax.ingredients import IngredientError, specification

Config = TypeVar("Config")

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


def to_tuples(config: object, *names: str) -> None:
    """Replaces the lists in the fields `names`, which JSON has, by tuples."""
    for name in names:
        object.__setattr__(config, name, tuple(getattr(config, name)))


def with_settings(config: Config, settings: Mapping[str, Any]) -> Config:
    """Returns a config with other values of fields, by their command-line names, as in ``{"optimizer.epochs": 5}``.

    Raises ConfigError if there is no such field, or a value is invalid.
    """
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    values: dict[str, Any] = {}
    of_sections: dict[str, dict[str, Any]] = {}
    for name, value in settings.items():
        section, _, field = name.partition(".")
        if section not in fields or (field and not dataclasses.is_dataclass(fields[section])):
            raise ConfigError(f"there is no setting {field_name(config, name)}: psla train CONFIG --help lists them.")
        if field:
            of_sections.setdefault(section, {})[field] = value
        else:
            values[section] = value
    for name, changes in of_sections.items():
        values[name] = with_settings(values.get(name, fields[name]), changes)
    return dataclasses.replace(config, **values)  # type: ignore[type-var]
