"""What a backbone and a pooling head are: the attributes and methods that the rest of the package uses.

A backbone is an NNX module with the attribute ``num_features``, the number of channels. It is called with spectrograms
`(batch, frames, mels)` and returns features `(batch, output frames, channels)`. Its call may take ``valid (batch,)``, 0
for rows without a clip, and ``rngs``, of which ``rngs.drop`` is a random stream. Two more attributes are optional:

- ``stride``: spectrogram frames per output frame, 32 unless given.
- ``offset``: spectrogram frame at the centre of the first output frame, 0 unless given. It is `(stride - 1) / 2` for a
  division into patches, and 0 for convolutions of odd size with symmetric padding.

A head is an NNX module that maps features to scores `(batch, classes)` in [0, 1]. Its call may take ``mask (batch,
output frames)``, 1 at frames with sound. A head with scores of every frame has a method ``frame_outputs(features,
mask)``, which returns :class:`psla_jax.models.pooling.FrameOutputs`; ``has_attention`` is True if they have attention.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
from flax import nnx

from psla_jax import ingredients
from psla_jax.audio.windows import OUTPUT_STRIDE


class Parts(NamedTuple):
    """Backbone and head of a model."""

    backbone: Any
    head: Any

    @property
    def stride(self) -> float:
        """Spectrogram frames per output frame."""
        return getattr(self.backbone, "stride", OUTPUT_STRIDE)

    @property
    def offset(self) -> float:
        """Spectrogram frame at the centre of the first output frame."""
        return getattr(self.backbone, "offset", 0)

    @property
    def has_frames(self) -> bool:
        """Whether the head scores every output frame."""
        return hasattr(self.head, "frame_outputs")

    @property
    def has_attention(self) -> bool:
        """Whether the head weights output frames by attention."""
        return self.has_frames and getattr(self.head, "has_attention", False)

    @property
    def takes_mask(self) -> bool:
        """Whether the head can pool over a part of the output frames."""
        return ingredients.accepts(self.head, "mask")

    def features(
        self, spectrograms: jax.Array, valid: jax.Array | None = None, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Returns the features of spectrograms, passing ``valid`` and ``rngs`` if the backbone takes them."""
        return ingredients.call(self.backbone, spectrograms, field="model.name", valid=valid, rngs=rngs)

    def scores(self, features: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        """Returns the scores of clips, passing ``mask`` if the head takes it."""
        return ingredients.call(self.head, features, field="model.pooling", mask=mask)


def is_backbone(module: Any) -> bool:
    """Returns whether a module is a backbone, not a whole model."""
    return hasattr(module, "num_features")


def parts(model: nnx.Module) -> Parts | None:
    """Returns the parts of a model with the attributes ``backbone`` and ``head``; None for other models."""
    backbone, head = getattr(model, "backbone", None), getattr(model, "head", None)
    return Parts(backbone, head) if is_backbone(backbone) and callable(head) else None


def can_rematerialise(model: nnx.Module) -> bool:
    """Returns whether the blocks of a model's backbone are known, as in :class:`psla_jax.models.layers.Backbone`."""
    found = parts(model)
    return found is not None and hasattr(found.backbone, "remat")
