"""Ingredients of a training that a config names: losses, optimizers, augmentation, metrics and others.

The specification of an ingredient is text: a registered name (``focal``) or an import path (``package.module:name``),
each optionally with options as in a call (``focal(gamma=1.5)``). A config file may give a callable instead, which is
converted to its import path. A config therefore consists of text and numbers, which ``config.json`` records and a
resumed run compares. This module does not import JAX.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # A text or a callable is given, and a text is read.
    Ingredient = Any
else:  # Fields hold text; the command line parses it as such.
    Ingredient = str

_SPECIFICATION = re.compile(r"(?P<name>[\w.-]+(?::[\w.]+)?)\s*(?:\((?P<options>.*)\))?", re.DOTALL)


class IngredientError(ValueError):
    """An ingredient that cannot be found, or does not fit; the message names the field and the remedy."""


def parse(text: Ingredient) -> tuple[str, dict[str, Any]]:
    """Returns the name or import path of a specification, and its options.

    Raises:
        IngredientError: the text is no specification.
    """
    match = _SPECIFICATION.fullmatch(str(text).strip())
    try:
        if match is None:
            raise ValueError
        call = ast.parse(f"f({match['options'] or ''})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or None in [keyword.arg for keyword in call.keywords]:
            raise ValueError
        return match["name"], {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (ValueError, SyntaxError) as error:
        raise IngredientError(
            f"{text!r} cannot be parsed: give a name or module:callable, optionally with options, as in "
            "name(option=0.5)"
        ) from error


def specification(ingredient: Ingredient) -> str:
    """Returns the text for a callable, or for a ``functools.partial`` with keyword arguments; text is returned as is.

    Raises:
        IngredientError: the text cannot be parsed, or the callable cannot be imported by its name.
    """
    if isinstance(ingredient, str):
        parse(ingredient)
        return ingredient.strip()
    function, options = ingredient, {}
    if isinstance(ingredient, functools.partial):
        function, options = ingredient.func, ingredient.keywords
        if ingredient.args:
            raise IngredientError(f"{ingredient!r} has positional arguments: give them as keywords")
    path = f"{getattr(function, '__module__', '')}:{getattr(function, '__qualname__', type(function).__qualname__)}"
    try:
        importable = bool(parse(path)) and import_path(path) is function
    except IngredientError:
        importable = False
    if not importable:
        raise IngredientError(f"{function!r} cannot be imported as {path}: define it at the top level of a module")
    values = [f"{name}={value!r}" for name, value in options.items()]
    text = f"{path}({', '.join(values)})" if values else path
    if options and _parsed_or_none(text) != (path, options):
        raise IngredientError(f"{text} has options that are not literals: use numbers, texts, tuples or None")
    return text


def _parsed_or_none(text: str) -> tuple[str, dict[str, Any]] | None:
    try:
        return parse(text)
    except IngredientError:
        return None


def import_path(path: str) -> Any:
    """Returns the object that ``package.module:name`` names. Raises IngredientError if there is none."""
    module, _, names = path.partition(":")
    try:
        return functools.reduce(getattr, names.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, ValueError) as error:
        raise IngredientError(f"{path!r} cannot be imported ({error}): name it as module:callable") from error
    except Exception as error:  # Code of the user.
        raise IngredientError(f"{path!r} cannot be imported ({reason(error)}): correct the module") from error


def is_imported(text: Ingredient) -> bool:
    """Returns whether a specification names an import path rather than a registered name."""
    return ":" in parse(text)[0]


def find(text: Ingredient, registry: Mapping[str, Callable[..., Any]], field: str) -> Callable[..., Any]:
    """Returns the callable of a specification, with its options bound.

    Args:
        text: the specification.
        registry: registered callables by name.
        field: the name of the setting, for the message of an error.

    Raises:
        IngredientError: the name is unknown or cannot be imported, or the callable has no such option.
    """
    try:
        name, options = parse(text)
        if ":" in name:
            function = import_path(name)
        elif name in registry:
            function = registry[name]
        else:
            raise IngredientError(f"{name!r} is unknown: choose one of {', '.join(registry)}, or name module:callable")
        if not callable(function):
            raise IngredientError(f"{name!r} is a {type(function).__name__}: name a callable")
        known = ", ".join(_keywords(function)) or "none"
        unknown = [option for option in options if not _takes(function, option)]
        if unknown:
            raise IngredientError(f"{name} has no option {unknown[0]!r}: its parameters are {known}")
    except IngredientError as error:
        raise IngredientError(f"{field} is {text!r}: {error}.") from error.__cause__
    return functools.partial(function, **options) if options else function


def call(function: Callable[..., Any], /, *arguments: Any, field: str, **available: Any) -> Any:
    """Calls an ingredient with `arguments`, and with those of `available` that are named among its parameters.

    Options of the specification take precedence over `available`.

    Raises:
        IngredientError: it requires a parameter that is not available, or cannot take `arguments`.
    """
    return function(*arguments, **_accepted(function, arguments, field, available))


def bound(function: Callable[..., Any], num_arguments: int, *, field: str, **available: Any) -> Callable[..., Any]:
    """Returns the ingredient with those of `available` bound that are named among its parameters.

    Raises:
        IngredientError: it cannot be called with `num_arguments` positional arguments then.
    """
    accepted = _accepted(function, (None,) * num_arguments, field, available)
    return functools.partial(function, **accepted) if accepted else function


def accepts(function: Callable[..., Any], name: str) -> bool:
    """Returns whether an ingredient has a parameter of that name."""
    return name in _keywords(function)


def _accepted(function: Callable[..., Any], arguments: tuple, field: str, available: dict[str, Any]) -> dict[str, Any]:
    given = getattr(function, "keywords", {})
    positional = list(_signature(function).parameters)[: len(arguments)]
    names = [name for name in _keywords(function) if name in available and name not in given and name not in positional]
    accepted = {name: available[name] for name in names}
    try:
        _signature(function).bind(*arguments, **accepted)
    except TypeError as error:
        parameters, others = ", ".join(_signature(function).parameters), ", ".join(available)
        raise IngredientError(
            f"{field}: {_name(function)}({parameters}) cannot be called ({error}): it may take "
            f"{others or 'no further parameters'}."
        ) from error
    return accepted


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    """Returns the signature of a callable; of an NNX class that of its constructor, which its metaclass hides."""
    kind = getattr(function, "func", function)
    if not inspect.isclass(kind) or type(kind).__call__ is type.__call__:
        try:
            return inspect.signature(function)
        except ValueError as error:  # Some functions that are not written in Python have none.
            raise IngredientError(f"{_name(function)} has no signature: call it in a function of your own") from error
    arguments, keywords = getattr(function, "args", ()), getattr(function, "keywords", {})
    return inspect.signature(functools.partial(kind.__init__, None, *arguments, **keywords))  # type: ignore[misc]


def _name(function: Callable[..., Any]) -> str:
    inner = getattr(function, "func", function)
    return getattr(inner, "__qualname__", type(inner).__qualname__)


def _keywords(function: Callable[..., Any]) -> list[str]:
    kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
    return [name for name, parameter in _signature(function).parameters.items() if parameter.kind in kinds]


def reason(error: Exception) -> str:
    """Returns type and first line of an exception's message, to be embedded in a message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.')}" if lines else type(error).__name__


def _takes(function: Callable[..., Any], option: str) -> bool:
    """Returns whether a callable has a parameter of this name, or takes any keyword."""
    parameters = _signature(function).parameters.values()
    return option in _keywords(function) or any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
