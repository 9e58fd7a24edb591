"""PSLA's model: a backbone and a pooling head."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx
from jax.typing import DTypeLike

from psla_jax.config import Padding
from psla_jax.models.efficientnet import SCALES, EfficientNet
from psla_jax.models.mobilenet import MobileNetV2
from psla_jax.models.pooling import Pooling, build_pooling
from psla_jax.models.resnet import ResNet50


class PSLAModel(nnx.Module):
    """Backbone features, averaged over frequency and pooled over time.

    A new model is in its evaluation view; :func:`train_view` returns the training view of the same variables. As in the
    released checkpoints, the backbone is the attribute ``effnet`` or ``model``, the head ``attention`` or
    ``classifier``.
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
        """Module from `(batch, frames, mels)` to `(batch, output frames, channels)`, one per 32 spectrogram frames."""
        return self.effnet if hasattr(self, "effnet") else self.model

    @property
    def head(self) -> Pooling:
        """Module from features `(batch, output frames, channels)` to scores `(batch, classes)`."""
        return self.attention if hasattr(self, "attention") else self.classifier

    def __call__(
        self, spectrograms: jax.Array, valid: jax.Array | None = None, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Returns float32 scores `(batch, classes)`.

        Args:
            spectrograms: normalised log-mel spectrograms `(batch, frames, mels)` with any number of frames.
            valid: `(batch,)`, for training: clips with 0 do not count towards the batch statistics.
            rngs: for training: ``rngs.drop`` draws the numbers of drop-connect.
        """
        return self.head(self.backbone(spectrograms, valid, rngs))
