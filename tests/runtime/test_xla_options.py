"""Compiler options: supported by the installed XLA, or left out."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from psla_jax.runtime import xla_options

FUNCTIONS = (xla_options.training_options, xla_options.inference_options)


@pytest.fixture(autouse=True)
def _clear_caches():
    for cached in FUNCTIONS:
        cached.cache_clear()
    yield
    for cached in FUNCTIONS:
        cached.cache_clear()


def test_this_xla_knows_the_options_and_computes_with_them() -> None:
    assert xla_options.training_options("cpu") == xla_options.FULL_WIDTH_VECTORS
    assert xla_options.inference_options("cpu") == {**xla_options.FULL_WIDTH_VECTORS, **xla_options.NO_YNN_FUSION}
    run = jax.jit(lambda a, b: a @ b, compiler_options=xla_options.inference_options("cpu"))
    np.testing.assert_allclose(run(np.eye(3), np.ones((3, 2))), np.ones((3, 2)))


def test_an_option_that_xla_does_not_know_is_left_out_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xla_options, "NO_YNN_FUSION", {"xla_no_such_option": "1"})
    assert xla_options.inference_options("cpu") == xla_options.FULL_WIDTH_VECTORS


def test_an_option_of_a_wrong_value_is_not_taken_for_an_unknown_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xla_options, "FULL_WIDTH_VECTORS", {"xla_cpu_prefer_vector_width": "wide"})
    with pytest.raises(jax.errors.JaxRuntimeError, match="wide"):
        xla_options.training_options("cpu")


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_accelerators_have_no_options_also_where_the_process_has_none(platform: str) -> None:
    assert xla_options.training_options(platform) == xla_options.inference_options(platform) == {}
