"""Models that train in seconds; configs name the first one ``tiny:build``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from sounds import VOCABULARY

from psla_jax.config import FrontendConfig, ModelConfig
from psla_jax.models.factory import from_config
from psla_jax.models.layers import BatchNorm, Conv, DropConnect
from psla_jax.models.model_dir import ModelCard, save_model
from psla_jax.models.pooling import build_pooling
from psla_jax.models.state import split_model


class TinyTagger(nnx.Module):
    """Three strided convolutions, batch normalisation, drop-connect and an attention head."""

    def __init__(self, num_classes: int, rngs: nnx.Rngs, mels: int = 128) -> None:
        pads = ((1, 1), (1, 1))
        self.stem = Conv(1, 8, 3, stride=2, padding=pads, rngs=rngs)
        self.norm = BatchNorm(8, momentum=0.9)
        self.depthwise = Conv(8, 8, 3, stride=2, padding=pads, depthwise=True, rngs=rngs)
        self.project = Conv(8, 8, rngs=rngs)
        self.norm2 = BatchNorm(8, momentum=0.9)
        self.drop = DropConnect(0.2)
        self.head = build_pooling("attention", mels, num_classes, 2, rngs=rngs)

    def __call__(self, x: jax.Array, valid: jax.Array | None = None, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = jnp.swapaxes(x, 1, 2)[..., None]
        x = jax.nn.swish(self.norm(self.stem(x), valid))
        y = self.norm2(self.project(self.depthwise(x)), valid)
        y = self.drop(y, None if rngs is None else jax.random.uniform(rngs.drop(), (y.shape[0],))) + y
        y = y[:, ::2]
        y = jnp.swapaxes(y, 1, 2)
        return self.head(y.reshape(*y.shape[:2], -1))


class TinyWithBackbone(nnx.Module):
    """A backbone (``model``) and a head, for tests of frozen backbones and of learning rates per part."""

    def __init__(self, num_classes: int, rngs: nnx.Rngs) -> None:
        self.model = Conv(1, 4, 3, stride=2, padding=((1, 1), (1, 1)), rngs=rngs)
        self.head = build_pooling("attention", 4 * 64, num_classes, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jax.nn.swish(self.model(jnp.swapaxes(x, 1, 2)[..., None]))
        y = jnp.swapaxes(y, 1, 2)
        return self.head(y.reshape(*y.shape[:2], -1))


def build(num_classes: int, rngs: nnx.Rngs) -> TinyTagger:
    return TinyTagger(num_classes, rngs)


def build64(num_classes: int, rngs: nnx.Rngs) -> TinyTagger:
    """Builds the model for spectrograms of 64 mel bins."""
    return TinyTagger(num_classes, rngs, mels=64)


def save(directory: Path, name: str = "efficientnet-tiny", *, seed: int = 0, **card: Any) -> Path:
    """Writes a model directory with random weights, for clips of 40 frames and the classes of `sounds`."""
    config = ModelConfig(name)
    network = from_config(config, len(VOCABULARY), jnp.float32, nnx.Rngs(seed))
    values: dict[str, Any] = {"frontend": FrontendConfig(40), **card}
    save_model(directory, ModelCard(config, vocabulary=VOCABULARY, notes={}, **values), *split_model(network))
    return directory
