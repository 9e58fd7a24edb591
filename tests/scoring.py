"""Scores of a tiny model for a stream of synthetic clips."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np
from flax import nnx
from tiny import build

from psla_jax.audio.frontend import Frontend
from psla_jax.evaluation.predict import score
from psla_jax.evaluation.scores import Scores
from psla_jax.models.state import split_model
from psla_jax.runtime.sharding import Placement

FRONTEND = Frontend(target_length=40)


def stream(clips: int, batch: int, missing: tuple[int, ...] = ()) -> Iterator[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    waveforms = rng.normal(0, 0.1, (clips, FRONTEND.num_samples)).astype(np.float32)
    labels = (rng.random((clips, 5)) < 0.4).astype(np.float32)
    for start in range(0, clips, batch):
        rows = np.arange(start, start + batch)
        exists = rows < clips
        indices = np.minimum(rows, clips - 1)
        yield {
            "waveform": waveforms[indices] * exists[:, None],
            "num_samples": np.where(exists, FRONTEND.num_samples, 0).astype(np.int32),
            "labels": labels[indices] * exists[:, None],
            "valid": (exists & ~np.isin(rows, missing)).astype(np.float32),
            "clip": np.where(exists, rows, -1),
            "left_out": np.zeros(batch, np.int32),
            "flawed": np.zeros(batch, np.int32),
            "narrow": np.zeros(batch, np.int32),
        }


def scored(
    clips: int, batch: int, devices: int = 1, missing: tuple[int, ...] = (), placement: Placement | None = None
) -> Scores:
    model = build(5, nnx.Rngs(0))
    placement = placement or Placement.over(jax.devices()[:devices])
    weights = placement.replicate(jax.device_get(split_model(model)))
    own = placement.rows(batch)
    batches = ({k: v[own] for k, v in fields.items()} for fields in stream(clips, batch, missing))
    return score((nnx.graphdef(model), *weights), FRONTEND, batches, placement.shard_rows, lambda i: f"clip{i}.wav")
