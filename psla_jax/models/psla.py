"""PSLA's model: a backbone and a pooling head."""

from __future__ import annotations

import jax
from flax import nnx

from psla_jax.models.protocols import Parts


class PSLAModel(nnx.Module):
    """Backbone features, averaged over frequency and pooled over time.

    A new model is in its evaluation view; :func:`psla_jax.models.views.train_view` returns the training view of the
    same variables. As in the released checkpoints, the backbone is the attribute ``effnet`` or ``model``, the head
    ``attention`` or ``classifier``.

    Args:
        backbone, head: see :mod:`psla_jax.models.protocols`.
        backbone_attribute, head_attribute: the names of their attributes.
    """

    effnet: nnx.Module
    model: nnx.Module
    attention: nnx.Module
    classifier: nnx.Module

    def __init__(
        self,
        backbone: nnx.Module,
        head: nnx.Module,
        *,
        backbone_attribute: str = "model",
        head_attribute: str = "attention",
    ) -> None:
        setattr(self, backbone_attribute, backbone)
        setattr(self, head_attribute, head)

    @property
    def backbone(self) -> nnx.Module:
        """Module from `(batch, frames, mels)` to `(batch, output frames, channels)`."""
        return self.effnet if hasattr(self, "effnet") else self.model

    @property
    def head(self) -> nnx.Module:
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
        parts = Parts(self.backbone, self.head)
        return parts.scores(parts.features(spectrograms, valid, rngs))
