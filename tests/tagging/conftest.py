"""Small models of every kind, saved once per session."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from sounds import VOCABULARY

from psla_jax.audio.frontend import Frontend
from psla_jax.config import FrontendConfig, ModelConfig
from psla_jax.models import factory, views
from psla_jax.models.model_dir import ModelCard, save_model
from psla_jax.models.state import split_model

FRAMES = 96
"""Spectrogram frames of a window: three output frames, 0.975 s."""
KINDS = {
    "attention": ModelConfig("efficientnet-tiny", "attention", 2),
    "other": ModelConfig("efficientnet-tiny", "attention", 2),
    "one head": ModelConfig("efficientnet-tiny", "attention", 1),
    "mean": ModelConfig("efficientnet-tiny", "mean"),
    "linear": ModelConfig("efficientnet-tiny", "linear"),
    "custom": ModelConfig("tiny:build"),
}


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A function from a key of KINDS to the directory of such a model, whose random weights distinguish sounds."""
    folder, saved_models = tmp_path_factory.mktemp("models"), {}

    def save(kind: str) -> Path:
        if kind not in saved_models:
            seed = list(KINDS).index(kind)
            network = factory.from_config(KINDS[kind], len(VOCABULARY), np.float32, nnx.Rngs(seed))
            params, batch_stats = split_model(with_batch_statistics(network))
            card = ModelCard(KINDS[kind], FrontendConfig(FRAMES), VOCABULARY, {"from": "a test"})
            save_model(folder / kind, card, with_larger_head(params), batch_stats)
            saved_models[kind] = folder / kind
        return saved_models[kind]

    return save


def with_batch_statistics(network: nnx.Module) -> nnx.Module:
    """Estimates batch statistics from some sounds; without them, a random network gives equal scores to all inputs."""
    pieces = [melody()[start : start + 15_600] for start in range(0, 80_000, 10_000)]
    spectrograms = Frontend(FRAMES)(np.stack(pieces), np.full(len(pieces), 15_600), zero_mean=False)
    nnx.jit(lambda model, x: views.statistics_view(model)(x))(network, spectrograms)
    return network


def with_larger_head(params):
    """Scales the weights of the head so that random scores differ from 0.5."""
    return {k: ({**_scaled(v)} if k in ("attention", "classifier") else v) for k, v in params.items()}


def _scaled(tree):
    return {k: _scaled(v) if isinstance(v, dict) else (v if k == "head_weight" else 8 * v) for k, v in tree.items()}


@pytest.fixture(scope="session")
def sound() -> np.ndarray:
    """Six seconds of intermittent tones and noise, `(samples,)` at 16 kHz."""
    return melody()


def melody() -> np.ndarray:
    rng = np.random.default_rng(7)
    time = np.arange(96_000) / 16_000
    tone = np.sin(2 * np.pi * 440 * time) * (np.floor(time) % 2)
    return (0.3 * tone + rng.normal(0, 0.1, time.size) * (time > 3)).astype(np.float32)
