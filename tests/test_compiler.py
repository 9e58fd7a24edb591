"""XLA's options: known to the XLA at hand, or left out."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from psla_jax import compiler

ASKED = (compiler.training_options, compiler.inference_options)


@pytest.fixture(autouse=True)
def _asked_anew():
    for cached in ASKED:
        cached.cache_clear()
    yield
    for cached in ASKED:
        cached.cache_clear()


def test_this_xla_knows_the_options_and_computes_with_them() -> None:
    assert compiler.training_options() == compiler.WIDE_VECTORS
    assert compiler.inference_options() == {**compiler.WIDE_VECTORS, **compiler.PLAIN_PRODUCTS}
    run = jax.jit(lambda a, b: a @ b, compiler_options=compiler.inference_options())
    np.testing.assert_allclose(run(np.eye(3), np.ones((3, 2))), np.ones((3, 2)))


def test_an_option_that_xla_does_not_know_is_left_out_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "PLAIN_PRODUCTS", {"xla_no_such_option": "1"})
    assert compiler.inference_options() == compiler.WIDE_VECTORS


def test_an_option_of_a_wrong_value_is_not_taken_for_an_unknown_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "WIDE_VECTORS", {"xla_cpu_prefer_vector_width": "wide"})
    with pytest.raises(jax.errors.JaxRuntimeError, match="wide"):
        compiler.training_options()


def test_accelerators_have_no_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert compiler.training_options() == compiler.inference_options() == {}
