"""Evaluation programs: clips one by one as in a batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from psla_jax import inference


def test_accelerators_take_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    inference.one_by_one.cache_clear()
    try:
        assert not inference.one_by_one()
    finally:
        inference.one_by_one.cache_clear()


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
