"""Scores of a model for a set of clips."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from psla_jax.audio.frontend import Frontend
from psla_jax.config import Precision
from psla_jax.evaluation.scores import Scores, ScoresError
from psla_jax.models.exclusive import normalise
from psla_jax.models.platforms import layers_for, layers_where
from psla_jax.models.precision import computed_in, products
from psla_jax.models.state import split_model
from psla_jax.runtime import distributed
from psla_jax.runtime.cores import SideBySide
from psla_jax.runtime.xla_options import inference_options

ShardRows = Callable[[dict[str, np.ndarray]], Mapping[str, Any]]
"""Splits arrays over the devices, see :meth:`psla_jax.runtime.sharding.Placement.shard_rows`."""

HOST_FIELDS = ("labels", "valid", "left_out", "flawed", "narrow")
"""Batch fields that are returned with the scores."""


@functools.cache
def scoring_program(platform: str) -> Any:
    """Returns the jitted function of :func:`_score_batch`, to be called in :func:`layers_for` of the same platform."""
    return jax.jit(_score_batch, static_argnums=(0, 1, 2), compiler_options=inference_options(platform))


def _score_batch(
    graphdef: Any, frontend: Frontend, exclusive: bool, params: Any, batch_stats: Any, batch: dict[str, jax.Array]
) -> jax.Array:
    """Returns float32 scores `(batch, classes)`; those of exclusive classes add up to 1."""
    model = nnx.merge(graphdef, params, batch_stats)
    spectrograms = frontend(batch["waveform"], batch["num_samples"], zero_mean=False)
    scores = model(spectrograms).astype(jnp.float32)
    return normalise(scores) if exclusive else scores


def predict(
    model: nnx.Module,
    frontend: Frontend,
    batches: Iterable[dict[str, np.ndarray]],
    *,
    exclusive: bool = False,
    clip_id: Callable[[int], str] = str,
    precision: Precision = "highest",
) -> Scores:
    """Returns scores and labels of the clips of a data set; ``predict(...).metrics().mAP`` is their mAP.

    Args:
        model: the model, in its evaluation view.
        frontend: converts waveforms to spectrograms.
        batches: the data set, as from :func:`psla_jax.data.loader.loader` without sampling.
        exclusive: normalise the scores over the classes, for models trained with cross-entropy.
        clip_id: as for :func:`score`; by default the index of the clip in the datafile.
        precision: as for :func:`score`.

    Raises:
        ScoresError: no clip is readable.
    """
    weights = nnx.graphdef(model), *split_model(model)
    return score(weights, frontend, batches, jax.device_put, clip_id, exclusive=exclusive, precision=precision)


def score(
    model: tuple[Any, Any, Any],
    frontend: Frontend,
    batches: Iterable[dict[str, np.ndarray]],
    shard_rows: ShardRows,
    clip_id: Callable[[int], str],
    *,
    exclusive: bool = False,
    clip_of_row: np.ndarray | None = None,
    precision: Precision = "highest",
) -> Scores:
    """Scores every clip of `batches` once; rows without a clip are dropped. Raises ScoresError if no clip is readable.

    Args:
        model: graphdef, parameters and batch statistics, in evaluation view.
        frontend: converts waveforms to spectrograms.
        batches: batches of equal size from the data loader, with zero-mean waveforms.
        shard_rows: transfers the rows of a batch to the devices.
        clip_id: maps the index of a clip to its id, see ``Datafile.clip_id``.
        exclusive: normalise the scores over the classes, as cross-entropy does.
        clip_of_row: index of the clip of each window if the rows are windows of clips, see
            :class:`psla_jax.data.loader.WindowSource`. The score of a clip is then the largest one of its windows, or
            with exclusive classes their mean, as in ``psla tag``.
        precision: precision of the products (:mod:`psla_jax.models.precision`); for ``bf16``, the backbone of `model`
            is built with that type.
    """
    pending: list[tuple[Callable[[], Any], dict[str, Any]]] = []
    fetched: list[dict[str, np.ndarray]] = []
    with _scorer(model, frontend, exclusive, precision, shard_rows) as scorer:
        for batch in batches:
            scores = scorer({name: batch[name] for name in ("waveform", "num_samples")})
            # Sharded like the scores, so that the rows are those of the scores in any order of the devices.
            clips = shard_rows({"clip": batch["clip"].astype(np.int32), **{name: batch[name] for name in HOST_FIELDS}})
            pending.append((scores, dict(clips)))
            # One batch stays in flight, so that the device computes while the next one is read.
            if len(pending) > 1:
                fetched.append(_fetch(*pending.pop(0)))
        fetched += [_fetch(*batch) for batch in pending]
    if not fetched:
        raise ScoresError("there is no clip to score: the datafile is empty.")
    fields = {name: np.concatenate([batch[name] for batch in fetched]) for name in fetched[0]}
    if clip_of_row is not None:
        fields = _join_windows(fields, clip_of_row, mean=exclusive)
    clip, valid = fields["clip"], fields["valid"] > 0
    skipped = tuple(clip_id(int(i)) for i in clip[~valid & (clip >= 0)])
    if skipped and not valid.any():
        raise ScoresError(
            f"none of the {len(skipped):,} clips can be read, such as {skipped[0]}: correct the paths in the datafile "
            "(relative ones start at its own folder), or run psla check on it."
        )
    readable = np.array([clip_id(int(i)) for i in clip[valid]], dtype=str)
    left_out = fields["left_out"][valid].astype(np.float32) / frontend.sample_rate
    flawed, narrow = (tuple(readable[fields[name][valid] > 0].tolist()) for name in ("flawed", "narrow"))
    arrays = readable, fields["scores"][valid], fields["labels"][valid]
    computed = computed_in(precision, _platform(model))
    return Scores(*arrays, skipped, left_out=left_out, flawed=flawed, narrow=narrow, computed_in=computed)


@contextlib.contextmanager
def _scorer(
    model: tuple[Any, Any, Any], frontend: Frontend, exclusive: bool, precision: Precision, shard_rows: ShardRows
) -> Iterator[Callable[[dict[str, np.ndarray]], Callable[[], Any]]]:
    """Yields a function that starts the scoring of a batch, and returns one that waits for the scores."""
    graphdef, *weights = model
    static = graphdef, frontend, exclusive

    def on_devices(batch: dict[str, np.ndarray]) -> Callable[[], Any]:
        sound = shard_rows(batch)
        with layers_where(sound["waveform"]), products(precision):
            scores = scoring_program(_platform(model))(*static, *weights, sound)
        return lambda: scores

    def compiled(group: dict[str, np.ndarray]) -> Callable[[dict[str, np.ndarray]], Any]:
        with layers_for("cpu"), products(precision):
            lowered = scoring_program("cpu").lower(*static, *weights, group)
        return functools.partial(lowered.compile(), *weights)

    if _platform(model) == "cpu" and len(_devices(model)) == 1:
        with SideBySide(compiled) as side_by_side:
            yield side_by_side
    else:
        yield on_devices


def _devices(model: tuple[Any, Any, Any]) -> list[jax.Device]:
    """Returns the devices that hold the weights of a model."""
    weights = jax.tree.leaves(model[1:])
    return list(weights[0].sharding.device_set) if weights else jax.local_devices()[:1]


def _platform(model: tuple[Any, Any, Any]) -> str:
    return _devices(model)[0].platform


def _join_windows(fields: dict[str, np.ndarray], clip_of_row: np.ndarray, *, mean: bool) -> dict[str, np.ndarray]:
    """Returns the fields of clips from those of their windows, with the mean or the largest of their scores.

    A clip is valid if all of its windows are.
    """
    rows = fields["clip"] >= 0  # without the padding
    scores, labels, valid, window = (fields[name][rows] for name in ("scores", "labels", "valid", "clip"))
    clips, first, count = np.unique(clip_of_row[window], return_index=True, return_counts=True)
    joined = np.add.reduceat(scores, first) / count[:, None] if mean else np.maximum.reduceat(scores, first)
    return {
        "clip": clips,
        "scores": joined.astype(np.float32),
        "labels": labels[first],
        "valid": np.minimum.reduceat(valid, first),
        "left_out": np.zeros(len(clips), np.int32),
        "flawed": fields["flawed"][rows][first],
        "narrow": fields["narrow"][rows][first],
    }


def _fetch(scores: Callable[[], Any], clips: dict[str, Any]) -> dict[str, np.ndarray]:
    """Transfers a batch to the host, with the rows of all processes in the order of the batch."""
    return {name: np.asarray(field) for name, field in distributed.gather({"scores": scores(), **clips}).items()}
