"""Programs of the evaluation view: options that XLA knows, and clips one by one as in a batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psla_jax import inference


@pytest.fixture(autouse=True)
def _asked_anew():
    for cached in (inference.compiler_options, inference.one_by_one):
        cached.cache_clear()
    yield
    for cached in (inference.compiler_options, inference.one_by_one):
        cached.cache_clear()


def test_the_options_are_known_to_this_xla_or_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    run = jax.jit(lambda a, b: a @ b, compiler_options=dict(inference.compiler_options()))
    np.testing.assert_allclose(run(np.eye(3), np.ones((3, 2))), np.ones((3, 2)))
    inference.compiler_options.cache_clear()
    monkeypatch.setattr(inference, "PLAIN_PRODUCTS", {"xla_no_such_option": "1"})
    assert inference.compiler_options() == {}


def test_accelerators_have_no_options_and_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert inference.compiler_options() == {}
    assert not inference.one_by_one()


def test_clips_one_by_one_and_in_a_batch_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def scores(x: jax.Array, scale: jax.Array) -> jax.Array:
        seen.append(x.shape[0])
        return jnp.tanh(x).sum(axis=1) * scale

    x, scale = np.random.default_rng(0).standard_normal((5, 7)), np.arange(5.0)
    results = []
    for alone in (True, False):
        monkeypatch.setattr(inference, "one_by_one", lambda alone=alone: alone)
        results.append(inference.by_clip(scores, jnp.asarray(x), jnp.asarray(scale)))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-6)
    assert seen == [1, 5]
