"""A model over a set of clips: scores with their clip ids."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from psla_jax import processes
from psla_jax.compiler import inference_options
from psla_jax.frontend import Frontend
from psla_jax.scores import Scores, ScoresError

Put = Callable[[dict[str, np.ndarray]], dict[str, jax.Array]]


@functools.cache
def score_batch() -> Callable[..., jax.Array]:
    """The program ``(graphdef, frontend, params, rest, batch) -> scores (batch, classes)``, from waveforms on."""
    return jax.jit(_score_batch, static_argnums=(0, 1), compiler_options=inference_options())


def _score_batch(graphdef: Any, frontend: Frontend, params: Any, rest: Any, batch: dict[str, jax.Array]) -> jax.Array:
    model = nnx.merge(graphdef, params, rest)
    spectrograms = frontend(batch["waveform"], batch["num_samples"])
    return model(spectrograms).astype(jnp.float32)


def score(
    model: tuple[Any, Any, Any],
    frontend: Frontend,
    batches: Iterable[dict[str, np.ndarray]],
    put: Put,
    clip_id: Callable[[int], str],
) -> Scores:
    """Scores every clip of `batches` once; rows without a clip are dropped.

    Args:
        model: graphdef, parameters and other variables, in evaluation view.
        frontend: waveforms to spectrograms.
        batches: from ``data.pipeline``, all of one size.
        put: moves a batch to the devices.
        clip_id: from clip index to path, see ``Datafile.clip_id``.
    """
    found: list[dict[str, np.ndarray]] = []
    pending: list[dict[str, Any]] = []
    program = score_batch()
    for batch in batches:
        scores = program(model[0], frontend, model[1], model[2], put(batch))
        pending.append({"scores": scores, **{name: batch[name] for name in ("clip", "labels", "valid")}})
        # One batch stays in flight, so that the device computes while the next one is read.
        found += [_fetched(pending.pop(0))] if len(pending) > 1 else []
    found += [_fetched(rest) for rest in pending]
    if not found:
        raise ScoresError("there is no clip to score: the datafile is empty.")
    whole = {name: np.concatenate([batch[name] for batch in found]) for name in found[0]}
    clip, good = whole["clip"], whole["valid"] > 0
    return Scores(
        np.array([clip_id(int(i)) for i in clip[good]], dtype=str),
        whole["scores"][good],
        whole["labels"][good],
        tuple(clip_id(int(i)) for i in clip[~good & (clip >= 0)]),
    )


def _fetched(batch: dict[str, Any]) -> dict[str, np.ndarray]:
    """A whole batch on the host, the rows of all processes in their order."""
    return {name: np.asarray(field) for name, field in processes.gather(batch).items()}
