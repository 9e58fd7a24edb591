"""The tagger: a backbone and a pooling head; and the one door through which any model is built."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from psla_jax.config import ModelConfig, Padding
from psla_jax.models.efficientnet import SCALES, EfficientNet
from psla_jax.models.layers import BatchNorm, ModelError, NoDraws
from psla_jax.models.mobilenet import MobileNetV2
from psla_jax.models.pooling import Pooling, build_pooling
from psla_jax.models.resnet import ResNet50

NAMES = (*SCALES, "resnet50", "mobilenet-v2")
"""The backbones."""


class AudioTagger(nnx.Module):
    """PSLA's model: features of a backbone, averaged over frequency, pooled over time.

    As built it is its evaluation view; :func:`train_view` gives the training view of the same variables. Attributes
    carry the names of the released checkpoints: ``effnet`` or ``model`` for the backbone, ``attention`` or
    ``classifier`` for the head.
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        pooling: str,
        heads: int,
        padding: Padding,
        drop_connect: float,
        dtype: DTypeLike,
        rngs: Any,
    ) -> None:
        if name in SCALES:
            self.effnet = EfficientNet(name, padding=padding, drop_connect=drop_connect, dtype=dtype, rngs=rngs)
        else:
            self.model = (ResNet50 if name == "resnet50" else MobileNetV2)(dtype=dtype, rngs=rngs)
        head = build_pooling(pooling, self.backbone.num_features, num_classes, heads, rngs=rngs)
        if pooling == "linear":
            self.classifier = head
        else:
            self.attention = head

    @property
    def backbone(self) -> EfficientNet | ResNet50 | MobileNetV2:
        """Spectrograms `(batch, frames, mels)` to features `(batch, steps, channels)`, a step every 32 frames."""
        return self.effnet if hasattr(self, "effnet") else self.model

    @property
    def head(self) -> Pooling:
        """Features `(batch, steps, channels)` to scores `(batch, classes)`."""
        return self.attention if hasattr(self, "attention") else self.classifier

    def __call__(
        self, spectrograms: jax.Array, valid: jax.Array | None = None, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Scores per class.

        Args:
            spectrograms: `(batch, frames, mels)`, normalised log-mel; any number of frames.
            valid: `(batch,)`, in training: clips with 0 do not count towards the batch statistics.
            rngs: in training: ``rngs.drop`` feeds drop-connect.

        Returns:
            `(batch, classes)` float32.
        """
        return self.head(self.backbone(spectrograms, valid, rngs))


def build_model(
    name: str,
    *,
    num_classes: int,
    pooling: Literal["mean", "linear", "attention"] = "attention",
    heads: int = 4,
    padding: Padding = "symmetric",
    drop_connect: float = 0.2,
    dtype: DTypeLike = jnp.float32,
    rngs: nnx.Rngs | NoDraws,
) -> nnx.Module:
    """Builds a model with fresh weights, in evaluation view.

    Args:
        name: ``efficientnet-b0`` to ``-b7``, the small ``efficientnet-tiny``, ``resnet50``, ``mobilenet-v2``, or
            ``package.module:callable`` for your own: the callable is called with ``num_classes`` and ``rngs`` and
            returns an NNX module that maps `(batch, frames, mels)` to scores `(batch, classes)`.
        num_classes: size of the vocabulary.
        pooling: ``attention``; ``mean`` of each step's scores; ``linear`` on the mean of the features. The reference
            has four heads with EfficientNet, one with ResNet-50 and ``linear`` with MobileNetV2.
        heads: of the attention.
        padding: of an EfficientNet, ``symmetric`` (efficientnet_pytorch 0.7.0) or ``static`` (0.7.1); shapes agree,
            values do not.
        drop_connect: of an EfficientNet, the rate at the end of the network, in training.
        dtype: of the backbone's activations.
        rngs: ``rngs.params`` draws the weights.

    Raises:
        ModelError: for an unknown name or padding, or an import that fails.
    """
    if ":" in name:
        try:
            return _custom_model(name)(num_classes=num_classes, rngs=rngs)
        except TypeError as error:
            raise ModelError(
                f"the model {name!r} cannot be built ({error}): it is called with num_classes and rngs."
            ) from error
    if name not in NAMES:
        raise ModelError(
            f"there is no model {name!r}: choose one of {', '.join(NAMES)}, or name your own as module:callable."
        )
    if padding not in ("symmetric", "static"):
        raise ModelError(f"padding is {padding!r}: choose symmetric or static.")
    if padding == "static" and name not in SCALES:
        raise ModelError(f"padding is 'static' for {name}: only EfficientNets have two schemes, use symmetric.")
    return AudioTagger(name, num_classes, pooling, heads, padding, drop_connect, dtype, rngs)


def _custom_model(name: str) -> Callable[..., nnx.Module]:
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ModelError(f"the model {name!r} cannot be imported ({error}): name it as module:callable.") from error


def from_config(config: ModelConfig, num_classes: int, dtype: DTypeLike, rngs: nnx.Rngs | NoDraws) -> nnx.Module:
    """:func:`build_model` from the model section of a config; with ``NoDraws``, one that waits for its weights."""
    return build_model(
        config.name,
        num_classes=num_classes,
        pooling=config.pooling,
        heads=config.heads,
        padding=config.padding,
        drop_connect=config.drop_connect,
        dtype=dtype,
        rngs=rngs,
    )


def train_view(model: nnx.Module, *, frozen: bool = False, remat: bool = False) -> nnx.Module:
    """The training view of a model: batch statistics in use and tracked, drop-connect on. The variables are shared.

    With `frozen`, the backbone stays in its evaluation view; see :func:`backbone_attribute`. With `remat`, the blocks
    of the backbone are computed again in the backward pass.
    """
    view = nnx.view(model, deterministic=False, use_running_average=False, remat=remat, raise_if_not_found=False)
    if frozen:
        name = backbone_attribute(view)
        setattr(view, name, eval_view(getattr(view, name)))
    return view


def backbone_attribute(model: nnx.Module) -> str:
    """The attribute that holds a model's backbone: ``effnet`` or ``model``; a model of your own may have one too.

    Raises:
        ModelError: the model has no such part.
    """
    for name in ("effnet", "model"):
        if hasattr(model, name):
            return name
    raise ModelError(
        f"{type(model).__name__} has no backbone that could be frozen or learn at a rate of its own: give it an "
        "attribute named model, or leave pretraining.freeze and pretraining.backbone_rate out."
    )


def eval_view(model: nnx.Module) -> nnx.Module:
    """The evaluation view of a model: running statistics, nothing random. The variables are shared."""
    return nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)


def statistics_view(model: nnx.Module) -> nnx.Module:
    """A view whose call leaves the statistics of that one batch as the running ones; nothing random."""
    view = nnx.view(model, deterministic=True, use_running_average=False, raise_if_not_found=False)
    for _, module in nnx.iter_modules(view):
        if isinstance(module, BatchNorm | nnx.BatchNorm):
            module.momentum = 0.0
    return view


def apply(model: nnx.Module, spectrograms: jax.Array, valid: jax.Array, rngs: nnx.Rngs) -> jax.Array:
    """Calls any model, with ``valid`` and ``rngs`` where its call takes them. Returns float32 scores."""
    offered = {"valid": valid, "rngs": rngs}
    taken = inspect.signature(type(model).__call__).parameters
    return model(spectrograms, **{k: v for k, v in offered.items() if k in taken}).astype(jnp.float32)
