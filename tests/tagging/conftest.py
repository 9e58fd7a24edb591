"""A small model of every kind, saved once for all tests of tagging."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from sounds import VOCABULARY

from psla_jax.checkpoints import ModelCard, save_model
from psla_jax.config import FrontendConfig, ModelConfig
from psla_jax.frontend import Frontend
from psla_jax.models import tagger
from psla_jax.training import split_model

FRAMES = 96
"""Of a window: three steps, 0.975 s."""
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
    """From the name of a kind to the directory of such a model, with random weights that tell sounds apart."""
    folder, made = tmp_path_factory.mktemp("models"), {}

    def save(kind: str) -> Path:
        if kind not in made:
            seed = list(KINDS).index(kind)
            network = tagger.from_config(KINDS[kind], len(VOCABULARY), np.float32, nnx.Rngs(seed))
            params, rest = split_model(listened(network))
            card = ModelCard(KINDS[kind], FrontendConfig(FRAMES), VOCABULARY, {"from": "a test"})
            save_model(folder / kind, card, louder(params), rest)
            made[kind] = folder / kind
        return made[kind]

    return save


def listened(network: nnx.Module) -> nnx.Module:
    """The network with the batch statistics of some sounds: without them a random one says the same of everything."""
    pieces = [melody()[start : start + 15_600] for start in range(0, 80_000, 10_000)]
    spectrograms = Frontend(FRAMES)(np.stack(pieces), np.full(len(pieces), 15_600))
    nnx.jit(lambda model, x: tagger.statistics_view(model)(x))(network, spectrograms)
    return network


def louder(params):
    """The head's weights larger, so that random scores leave 0.5."""
    return {k: ({**_scaled(v)} if k in ("attention", "classifier") else v) for k, v in params.items()}


def _scaled(tree):
    return {k: _scaled(v) if isinstance(v, dict) else (v if k == "head_weight" else 8 * v) for k, v in tree.items()}


@pytest.fixture(scope="session")
def sound() -> np.ndarray:
    """Six seconds of tones and noise that come and go, `(samples,)` at 16 kHz."""
    return melody()


def melody() -> np.ndarray:
    rng = np.random.default_rng(7)
    time = np.arange(96_000) / 16_000
    tone = np.sin(2 * np.pi * 440 * time) * (np.floor(time) % 2)
    return (0.3 * tone + rng.normal(0, 0.1, time.size) * (time > 3)).astype(np.float32)
