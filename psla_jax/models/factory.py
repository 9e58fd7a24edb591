"""Model factory."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from psla_jax import ingredients
from psla_jax.config import ModelConfig, Padding, network_settings
from psla_jax.models import custom, views
from psla_jax.models.efficientnet import SCALES, EfficientNet
from psla_jax.models.initializers import AbstractRngs
from psla_jax.models.layers import ModelError
from psla_jax.models.mobilenet import MobileNetV2
from psla_jax.models.pooling import build_pooling
from psla_jax.models.protocols import is_backbone
from psla_jax.models.psla import PSLAModel
from psla_jax.models.resnet import ResNet50

BACKBONES: dict[str, Callable[..., nnx.Module]] = {
    **{name: functools.partial(EfficientNet, name) for name in SCALES},
    "resnet50": ResNet50,
    "mobilenet-v2": MobileNetV2,
}
"""Backbones by name, see :mod:`psla_jax.models.protocols`."""


def build_model(
    name: str,
    *,
    num_classes: int,
    pooling: str = "attention",
    heads: int = 4,
    padding: Padding = "symmetric",
    drop_connect: float = 0.2,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs | AbstractRngs,
) -> nnx.Module:
    """Returns a model with new weights, in its evaluation view.

    Args:
        name: ``efficientnet-b0`` to ``-b7``, the small ``efficientnet-tiny``, ``resnet50``, ``mobilenet-v2``, or
            ``package.module:callable``, optionally with options as in ``my_module:build(width=32)``. The callable
            takes any of ``num_classes``, ``dtype`` and ``rngs``, and returns a backbone
            (:mod:`psla_jax.models.protocols`), which gets a pooling head, or an NNX module from `(batch, frames, mels)`
            to scores `(batch, classes)` (:mod:`psla_jax.models.custom`).
        num_classes: size of the vocabulary.
        pooling: head of a backbone: ``attention``, ``mean`` of the frames' scores, ``linear`` on the mean of the
            features, or ``package.module:callable``, see :func:`psla_jax.models.pooling.build_pooling`. The reference
            has four heads with EfficientNet, one with ResNet-50 and ``linear`` with MobileNetV2.
        heads: number of attention heads.
        padding: padding of an EfficientNet, ``symmetric`` (efficientnet_pytorch 0.7.0) or ``static`` (0.7.1); both
            have weights of the same shapes but different scores.
        drop_connect: drop rate at the end of an EfficientNet in training.
        dtype: dtype of the backbone's activations.
        rngs: ``rngs.params`` draws the weights.

    Raises:
        IngredientError: a name is unknown, or the callable cannot be imported or called.
        ModelError: the padding, the number of heads or a custom model is invalid.
    """
    make = ingredients.find(name, BACKBONES, "model.name")
    if padding not in ("symmetric", "static"):
        raise ModelError(f"padding is {padding!r}: choose symmetric or static.")
    is_custom = ingredients.is_imported(name)
    if padding == "static" and not (is_custom or ingredients.accepts(make, "padding")):
        raise ModelError(f"padding is 'static' for {name}: only EfficientNets support it, use symmetric.")
    settings = {"num_classes": num_classes} if is_custom else {"padding": padding, "drop_connect": drop_connect}
    model = custom.build(make, name, dtype, {**settings, "rngs": rngs})
    if is_backbone(model):
        head = build_pooling(pooling, model.num_features, num_classes, heads, rngs=rngs)
        attributes = _attributes(name, pooling)
        model = PSLAModel(model, head, backbone_attribute=attributes[0], head_attribute=attributes[1])
        is_custom = is_custom or ingredients.is_imported(pooling)
    if not is_custom:
        return model
    custom.detach_streams(model, name)
    return views.eval_view(model)


def _attributes(name: str, pooling: str) -> tuple[str, str]:
    """Returns the names of the attributes of backbone and head in the released checkpoints."""
    backbone, head = (ingredients.parse(text)[0] for text in (name, pooling))
    return "effnet" if backbone in SCALES else "model", "attention" if head in ("attention", "mean") else "classifier"


def from_config(config: ModelConfig, num_classes: int, dtype: DTypeLike, rngs: nnx.Rngs | AbstractRngs) -> nnx.Module:
    """Calls :func:`build_model` with the model section of a config."""
    return build_model(**network_settings(config), num_classes=num_classes, dtype=dtype, rngs=rngs)
