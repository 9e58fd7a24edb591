"""Specifications of ingredients: parsing, callables as text and back, and arguments passed by name."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import pytest

from psla_jax import ingredients
from psla_jax.config import OptimizerConfig, RunConfig, SamplingConfig, from_json, to_json
from psla_jax.ingredients import IngredientError

HERE = __name__


def scaled(x: float, offset: float = 0.0, *, factor: float = 2.0) -> float:
    return factor * x + offset


def open_ended(x: float, **options: float) -> dict[str, float]:
    return {"x": x, **options}


class Scale:
    def __init__(self, factor: float = 2.0) -> None:
        self.factor = factor

    def __call__(self, x: float) -> float:
        return self.factor * x

    @staticmethod
    def twice(x: float) -> float:
        return 2 * x


INSTANCE = Scale(3.0)
REGISTRY: dict[str, Callable] = {"scaled": scaled, "two-words": open_ended}


@pytest.mark.parametrize(
    ("text", "name", "options"),
    [
        ("scaled", "scaled", {}),
        (" two-words() ", "two-words", {}),
        ("a(b=0.5, c='(x)', d=(1, None), e=-2)", "a", {"b": 0.5, "c": "(x)", "d": (1, None), "e": -2}),
        ("package.module:Class.method(k=[1])", "package.module:Class.method", {"k": [1]}),
        ("a\n(b=1)", "a", {"b": 1}),
    ],
)
def test_a_specification_is_a_name_with_literal_options(text: str, name: str, options: dict):
    assert ingredients.parse(text) == (name, options)
    assert ingredients.is_imported(text) == (":" in name)


@pytest.mark.parametrize(
    "text", ["", "a b", "a(1)", "a(b=c)", "a(**b)", "a(b=1", "a(b=1))", "a(b=f())", "a:b:c", "a(b=1)x"]
)
def test_text_that_is_no_specification_is_refused(text: str):
    with pytest.raises(IngredientError, match="cannot be parsed: give a name or module:callable"):
        ingredients.parse(text)


@pytest.mark.parametrize(
    ("ingredient", "text"),
    [
        (scaled, f"{HERE}:scaled"),
        (Scale, f"{HERE}:Scale"),
        (Scale.twice, f"{HERE}:Scale.twice"),
        (functools.partial(scaled, factor=0.5), f"{HERE}:scaled(factor=0.5)"),
        (
            functools.partial(functools.partial(scaled, offset=(1, "a")), factor=None),
            f"{HERE}:scaled(offset=(1, 'a'), factor=None)",
        ),
        (" scaled(factor=3) ", "scaled(factor=3)"),
    ],
)
def test_a_callable_becomes_text_that_finds_it_again(ingredient: object, text: str):
    assert ingredients.specification(ingredient) == text
    found = ingredients.find(text, REGISTRY, "field")
    function = getattr(ingredient, "func", ingredient if callable(ingredient) else scaled)
    assert getattr(found, "func", found) is function
    assert getattr(found, "keywords", {}) == ingredients.parse(text)[1]


def local() -> Callable:
    def inner(x: float) -> float:
        return x

    return inner


@pytest.mark.parametrize(
    ("ingredient", "message"),
    [
        (lambda x: x, "cannot be imported as .*<lambda>: define it at the top level of a module"),
        (local(), "cannot be imported as .*local.<locals>.inner"),
        (INSTANCE, "cannot be imported as .*Scale: define it"),
        (functools.partial(scaled, 1), "has positional arguments: give them as keywords"),
        (functools.partial(scaled, factor=np.float32(1)), "has options that are not literals"),
        (functools.partial(scaled, factor=math.nan), "has options that are not literals"),
        (functools.partial(scaled, factor=scaled), "has options that are not literals"),
        (3, "cannot be imported as"),
    ],
)
def test_a_callable_without_an_import_path_is_refused(ingredient: object, message: str):
    with pytest.raises(IngredientError, match=message):
        ingredients.specification(ingredient)


def test_options_are_bound_and_other_arguments_passed_by_their_names():
    found = ingredients.find("scaled(factor=3)", REGISTRY, "field")
    available = {"offset": 1.0, "factor": 100.0, "other": None}
    assert ingredients.call(found, 2.0, field="field", **available) == 7.0
    assert ingredients.call(scaled, 2.0, field="field", **available) == 201.0
    assert ingredients.bound(found, 1, field="field", **available)(2.0) == 7.0
    # A parameter that is passed by position is not passed by name again.
    assert ingredients.call(scaled, 2.0, field="field", x=5.0) == 4.0
    # Those of **options are options only.
    assert ingredients.call(open_ended, 2.0, field="field", **available) == {"x": 2.0}
    assert ingredients.find(f"{HERE}:open_ended(any=1)", {}, "field")(2.0) == {"x": 2.0, "any": 1}
    assert ingredients.find("math:sqrt", {}, "field")(4) == 2


UNPARSED = "cannot be parsed: give a name or module:callable, optionally with options, as in name(option=0.5)."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scald", "'scald' is unknown: choose one of scaled, two-words, or name module:callable."),
        ("scaled(gain=1)", "scaled has no option 'gain': its parameters are x, offset, factor."),
        (
            "math:phi",
            "'math:phi' cannot be imported (module 'math' has no attribute 'phi'): name it as module:callable.",
        ),
        ("math:pi", "'math:pi' is a float: name a callable."),
        ("builtins:type", "type has no signature: call it in a function of your own."),
        ("math:", f"'math:' {UNPARSED}"),
        ("scaled(", f"'scaled(' {UNPARSED}"),
    ],
)
def test_what_cannot_be_found_is_named_with_its_field(text: str, message: str):
    with pytest.raises(IngredientError) as raised:
        ingredients.find(text, REGISTRY, "field")
    assert str(raised.value) == f"field is {text!r}: {message}"


@pytest.mark.parametrize("content", ["x =", "raise RuntimeError('oh')", "import nothing_like_this", "1 / 0"])
def test_a_module_that_cannot_be_executed_is_named_with_the_reason(tmp_path, monkeypatch, content: str):
    (tmp_path / "faulty_module.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(IngredientError, match=r"field is 'faulty_module:f': .* cannot be imported \(.+\): .*\.$"):
        ingredients.find("faulty_module:f", {}, "field")


def test_a_config_takes_callables_and_holds_text():
    """A single step is a list of one, and the JSON of a config gives it back."""
    config = RunConfig(
        optimizer=OptimizerConfig(name=functools.partial(scaled, factor=0.5), schedule=Scale.twice, loss=scaled),
        sampling=SamplingConfig(waveform=[scaled, "gain"], spectrogram=scaled),
    )
    optimizer, sampling = config.optimizer, config.sampling
    assert (optimizer.name, optimizer.schedule) == (f"{HERE}:scaled(factor=0.5)", f"{HERE}:Scale.twice")
    assert optimizer.loss == f"{HERE}:scaled"
    assert sampling.waveform == (f"{HERE}:scaled", "gain")
    assert sampling.spectrogram == (f"{HERE}:scaled",)
    assert SamplingConfig(waveform="gain(decibels=1)").waveform == ("gain(decibels=1)",)
    assert from_json(to_json(config)) == config
