"""Output frames of backbones with another stride on the grid of the timeline: one frame per 32 spectrogram frames."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from psla_jax.audio.windows import OUTPUT_STRIDE
from psla_jax.models.protocols import Parts


def is_on_grid(parts: Parts) -> bool:
    """Returns whether output frames are those of the timeline, as for all backbones of this package."""
    return (parts.stride, parts.offset) == (OUTPUT_STRIDE, 0)


def overlaps(parts: Parts, num_inputs: int, num_outputs: int) -> np.ndarray:
    """Returns for each frame of the timeline its overlap with each output frame, `(num_outputs, num_inputs)`.

    Frames extend by half a stride to both sides of their centres. A frame of the timeline without any overlap has that
    of the nearest output frame.
    """
    centres = OUTPUT_STRIDE * np.arange(num_outputs)[:, None], parts.offset + parts.stride * np.arange(num_inputs)
    halves = OUTPUT_STRIDE / 2, parts.stride / 2
    ends = np.minimum(*(centre + half for centre, half in zip(centres, halves)))
    starts = np.maximum(*(centre - half for centre, half in zip(centres, halves)))
    shared = np.maximum(ends - starts, 0.0)
    nearest = np.abs(centres[1] - centres[0]).argmin(axis=1)
    empty = np.flatnonzero(shared.sum(axis=1) == 0)
    shared[empty, nearest[empty]] = 1.0
    return shared.astype(np.float32)


def to_grid(values: jax.Array, mask: jax.Array, shared: np.ndarray) -> jax.Array:
    """Returns the means of `values (batch, num_inputs, n)` over the frames of the timeline, `(batch, num_outputs, n)`.

    Output frames where `mask (batch, num_inputs)` is 0 do not count; without any that counts, the mean is 0.
    """
    weights = shared * mask[:, None]
    total = jnp.sum(weights, axis=2, keepdims=True)
    return jnp.einsum("boi,bin->bon", weights / jnp.maximum(total, 1e-6), values)
