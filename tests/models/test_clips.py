"""Evaluation clip by clip: the same as of a batch, and evaluation alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from psla_jax.models import clips
from psla_jax.models.tagger import build_model, statistics_view, train_view

NAMES = ("efficientnet-tiny", "resnet50", "mobilenet-v2")


@pytest.fixture(autouse=True)
def _asked_anew():
    clips.one_by_one.cache_clear()
    yield
    clips.one_by_one.cache_clear()


@pytest.mark.parametrize(
    ("backend", "devices", "cores", "expected"),
    [("cpu", 1, 2, True), ("cpu", 1, 5, False), ("cpu", 2, 2, False), ("gpu", 1, 2, False)],
)
def test_one_cpu_device_of_few_cores_takes_clips_one_by_one(
    monkeypatch: pytest.MonkeyPatch, backend: str, devices: int, cores: int, expected: bool
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    monkeypatch.setattr(clips.os, "cpu_count", lambda: cores)
    assert clips.one_by_one() is expected


def spectrograms() -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal((3, 70, 64)), jnp.float32)


def model(name: str) -> nnx.Module:
    """With an output that shows every clip: batch statistics are those of noise."""
    built = build_model(name, num_classes=4, drop_connect=0.0, rngs=nnx.Rngs(0))
    statistics_view(built)(spectrograms())
    return built


@pytest.mark.parametrize("name", NAMES)
def test_clips_one_by_one_and_in_a_batch_give_the_same(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    built, results, programs = model(name), [], []
    for alone in (True, False):
        monkeypatch.setattr(clips, "one_by_one", lambda alone=alone: alone)
        programs.append(str(jax.make_jaxpr(lambda x: built(x))(spectrograms())))
        results.append(np.asarray(jax.jit(lambda x: built(x))(spectrograms())))
    assert ["scan" in program for program in programs] == [True, False]
    assert np.ptp(results[0], axis=0).max() > 1e-3
    np.testing.assert_allclose(results[0], results[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("view", [train_view, statistics_view])
def test_batch_statistics_are_never_those_of_one_clip(monkeypatch: pytest.MonkeyPatch, name: str, view) -> None:
    monkeypatch.setattr(clips, "one_by_one", lambda: True)
    seen = []
    monkeypatch.setattr(jax.lax, "map", lambda function, x: seen.append(x))
    jax.eval_shape(lambda x: view(model(name))(x, jnp.ones(3), nnx.Rngs(drop=0)), spectrograms())
    assert seen == []
