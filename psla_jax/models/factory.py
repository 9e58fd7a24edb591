"""Model factory."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from psla_jax.config import ModelConfig, Padding
from psla_jax.models import custom
from psla_jax.models.efficientnet import SCALES
from psla_jax.models.initializers import AbstractRngs
from psla_jax.models.layers import ModelError
from psla_jax.models.psla import PSLAModel

NAMES = (*SCALES, "resnet50", "mobilenet-v2")
"""Names of the backbones."""


def build_model(
    name: str,
    *,
    num_classes: int,
    pooling: Literal["mean", "linear", "attention"] = "attention",
    heads: int = 4,
    padding: Padding = "symmetric",
    drop_connect: float = 0.2,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs | AbstractRngs,
) -> nnx.Module:
    """Returns a model with new weights, in its evaluation view.

    Args:
        name: ``efficientnet-b0`` to ``-b7``, the small ``efficientnet-tiny``, ``resnet50``, ``mobilenet-v2``, or
            ``package.module:callable`` for a custom model: the callable takes ``num_classes``, ``rngs`` and optionally
            ``dtype``, and returns an NNX module from `(batch, frames, mels)` to scores `(batch, classes)`, see
            :mod:`psla_jax.models.custom`.
        num_classes: size of the vocabulary.
        pooling: ``attention``, ``mean`` of the frames' scores, or ``linear`` on the mean of the features. The
            reference has four heads with EfficientNet, one with ResNet-50 and ``linear`` with MobileNetV2.
        heads: number of attention heads.
        padding: padding of an EfficientNet, ``symmetric`` (efficientnet_pytorch 0.7.0) or ``static`` (0.7.1); both
            have weights of the same shapes but different scores.
        drop_connect: drop rate at the end of an EfficientNet in training.
        dtype: dtype of the backbone's activations.
        rngs: ``rngs.params`` draws the weights.

    Raises:
        ModelError: if a name, the padding or the number of heads is invalid, or a custom model cannot be imported.
    """
    if ":" in name:
        return custom.build(name, num_classes, dtype, rngs)
    if name not in NAMES:
        raise ModelError(
            f"there is no model {name!r}: choose one of {', '.join(NAMES)}, or name a custom one as module:callable."
        )
    if padding not in ("symmetric", "static"):
        raise ModelError(f"padding is {padding!r}: choose symmetric or static.")
    if padding == "static" and name not in SCALES:
        raise ModelError(f"padding is 'static' for {name}: only EfficientNets support it, use symmetric.")
    return PSLAModel(name, num_classes, pooling, heads, padding, drop_connect, dtype, rngs)


def from_config(config: ModelConfig, num_classes: int, dtype: DTypeLike, rngs: nnx.Rngs | AbstractRngs) -> nnx.Module:
    """Calls :func:`build_model` with the model section of a config."""
    return build_model(**dataclasses.asdict(config), num_classes=num_classes, dtype=dtype, rngs=rngs)
