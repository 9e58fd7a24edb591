"""The objective of a training step: frontend, augmentation, the targets of a teacher, model and loss of a microbatch.

:func:`psla_jax.training.step.make_train_step` describes the fields of :class:`Objective`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from psla_jax.audio.frontend import Frontend
from psla_jax.models import custom, views
from psla_jax.models.state import split_model
from psla_jax.sampling.spectrogram import Augment, Batch
from psla_jax.training import losses
from psla_jax.training.losses import Loss

Teach = Callable[[Batch, Any], jax.Array]
"""A teacher in the step: ``teach(batch, weights) -> scores (batch, classes)``."""
Consistency = Callable[[jax.Array, jax.Array], jax.Array]
"""Term of the loss for the scores ``(batch, classes)`` of two views of each clip, ``(batch,)``."""


@dataclass(frozen=True)
class Objective:
    """Loss, new batch statistics and gradients of a microbatch."""

    graphdef: nnx.GraphDef
    loss: Loss
    augment: Augment | None = None
    frontend: Frontend | None = None
    frozen: str = ""
    remat: bool = False
    local_statistics: bool = False
    teach: Teach | None = None
    consistency: Consistency | None = None

    def value_and_grad(
        self, params: Any, batch_stats: Any, batch: Batch, key: jax.Array, total: jax.Array, teacher_weights: Any
    ) -> tuple[tuple[jax.Array, Any], Any]:
        """Returns ``((loss, batch_stats), gradients)`` of a microbatch.

        Args:
            params: parameters of the model.
            batch_stats: its running statistics.
            batch: the microbatch, with waveforms or spectrograms.
            key: key of its augmentation and drop-connect.
            total: number of clips of the whole batch, by which the sum of the losses is divided.
            teacher_weights: second argument of `teach`.
        """
        augment_key, drop_key = jax.random.split(key)
        batch = with_spectrograms(batch, self.frontend)
        if self.consistency is None:
            batch = self._view(batch, augment_key, teacher_weights)
        else:
            keys = jax.random.split(augment_key)
            batch = _interleaved([self._view(batch, view_key, teacher_weights) for view_key in keys])
        return jax.value_and_grad(self._value, has_aux=True)(params, batch_stats, batch, drop_key, total)

    def _view(self, batch: Batch, key: jax.Array, teacher_weights: Any) -> Batch:
        """Returns the augmented batch, with the teacher's scores of it if there is a teacher."""
        batch = augmented(batch, self.augment, key)
        if self.teach is None:
            return batch
        return {**batch, "teacher": jax.lax.stop_gradient(self.teach(batch, teacher_weights))}

    def _value(
        self, params: Any, batch_stats: Any, batch: Batch, key: jax.Array, total: jax.Array
    ) -> tuple[jax.Array, Any]:
        if self.frozen:
            params = {**params, self.frozen: jax.lax.stop_gradient(params[self.frozen])}
        model = nnx.merge(self.graphdef, params, batch_stats)
        settings = {"remat": self.remat, "local_statistics": self.local_statistics}
        view = views.train_view(model, frozen=bool(self.frozen), **settings)
        custom.attach_streams(view, key)
        scores = views.apply(view, batch["spectrogram"], batch["valid"], nnx.Rngs(drop=key))
        fields = {name: value for name, value in batch.items() if name not in ("spectrogram", "labels")}
        per_row = losses.call(self.loss, scores, batch["labels"], fields)
        if per_row.shape != batch["valid"].shape:
            raise ValueError(
                f"the loss has the shape {per_row.shape}: return one value per clip, {batch['valid'].shape}."
            )
        if self.consistency is not None:  # The rows are pairs of views, and the loss of a clip is the mean of both.
            per_row = per_row / 2 + jnp.repeat(self.consistency(scores[::2], scores[1::2]) / 2, 2)
        # Without a clip, as in the last microbatch of a short batch, there are no statistics to learn from.
        any_clip = batch["valid"].any()
        updated = jax.tree.map(lambda new, old: jnp.where(any_clip, new, old), split_model(view)[1], batch_stats)
        return jnp.sum(jnp.where(batch["valid"] > 0, per_row, 0.0)) / total, updated


def with_spectrograms(batch: Batch, frontend: Frontend | None) -> Batch:
    """Returns a batch with normalised spectrograms in place of its waveforms, or as it is if it has spectrograms."""
    if "spectrogram" in batch:
        return batch
    if frontend is None:
        raise ValueError("the batch has waveforms: pass a frontend to make_train_step, or batches of spectrograms.")
    spectrogram = frontend.normalise(frontend.log_mel(batch["waveform"], batch["num_samples"]))
    others = {name: value for name, value in batch.items() if name not in ("waveform", "num_samples")}
    return {**others, "spectrogram": spectrogram}


def augmented(batch: Batch, augment: Augment | None, key: jax.Array) -> Batch:
    """Returns the batch after augmentation, with ``taught``, the scores of its augmented rows, as ``teacher``."""
    if augment is not None:
        batch = augment(batch, key)
    if "taught" not in batch:
        return batch
    return {name: value for name, value in batch.items() if name != "taught"} | {"teacher": batch["taught"]}


def _interleaved(pair: list[Batch]) -> Batch:
    """Returns a batch with the views of a clip in successive rows, so that every device keeps the rows that it has."""
    return {
        name: jnp.stack([view[name] for view in pair], axis=1).reshape(-1, *x.shape[1:]) for name, x in pair[0].items()
    }


def microbatches(batch: Any, parts: int) -> Any:
    """Returns arrays ``(parts, rows / parts, ...)`` of the rows of a batch.

    Row i goes to microbatch i % parts, so that every device keeps the rows that it has.
    """
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, parts, *x.shape[1:]), 1, 0), batch)


def rejoined(parts: jax.Array) -> jax.Array:
    """Returns the rows of an array that :func:`microbatches` split."""
    return jnp.moveaxis(parts, 0, 1).reshape(-1, *parts.shape[2:])
