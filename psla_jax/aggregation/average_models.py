"""Average of the weights of several models: ``psla average``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from psla_jax.aggregation.average import AggregationError, average, reestimate
from psla_jax.audio.windows import Grid
from psla_jax.config import Channel, DataConfig
from psla_jax.data.datafile import Datafile
from psla_jax.data.datasets import data_notes, locate
from psla_jax.data.loader import batches
from psla_jax.data.train_source import plain_source
from psla_jax.models.model_dir import Model, ModelCard, find_model, load_model, require_replaceable, save_model
from psla_jax.models.self_test import self_test_record, self_test_scores
from psla_jax.models.state import split_model
from psla_jax.runtime.logging import Logger
from psla_jax.runtime.sharding import Placement


@dataclass(frozen=True)
class Request:
    """Arguments of :func:`average_models`; the fields are the options of ``psla average``."""

    models: tuple[str, ...]
    destination: str
    data: str = ""
    batch_size: int = 32
    channel: Channel | None = None
    trust: bool = False
    overwrite: bool = False


def average_models(request: Request) -> None:
    """Writes the average of several models of the same architecture as a model directory.

    Weights and batch statistics are averaged, as in the reference. If ``request.data`` names a training set, the batch
    statistics are then re-estimated on it, as in ``psla train``. Raises an error class of this package, a ValueError,
    whose message names the model or file and the remedy.
    """
    logger, directory = Logger(), Path(request.destination)
    require_replaceable(directory, overwrite=request.overwrite)
    first = load_model(request.models[0], trust=request.trust)
    data = Datafile.read(locate(request.data, logger.info), first.card.vocabulary) if request.data else None
    for note in data_notes(data, held_out=False) if data else ():
        logger.info(note)
    weights = average(split_model(_load_compatible(first, path, request)) for path in request.models)
    if data is not None:
        weights = (weights[0], _reestimated(first, weights, data, request, logger))
    names = [str(find_model(Path(path))) for path in request.models]
    notes = {"average_of": names, "statistics": "averaged" if data is None else "re-estimated"}
    network = nnx.merge(nnx.graphdef(first.network), *weights)
    test_scores = self_test_record(self_test_scores(network, first.card.frontend), first.card.vocabulary)
    save_model(directory, dataclasses.replace(first.card, notes=notes, golden=test_scores), *weights)
    logger.info(f"{directory}: the average of {len(names)} models, statistics {notes['statistics']}")


def _load_compatible(first: Model, path: str, request: Request) -> nnx.Module:
    """Loads the network of a model; raises AggregationError if it cannot be averaged with the first model."""
    model = load_model(path, trust=request.trust)
    if differing := _differences(first.card, model.card):
        raise AggregationError(
            f"{path} differs from {request.models[0]} in {', '.join(differing)}, so their weights cannot be averaged: "
            "name models of the same kind, or compare them with psla evaluate."
        )
    return model.network


def _differences(first: ModelCard, other: ModelCard) -> list[str]:
    """Returns the settings in which two models differ, apart from those that only affect training."""
    differences = [] if first.vocabulary == other.vocabulary else ["their classes"]
    differences += [] if first.exclusive == other.exclusive else ["whether their classes are exclusive"]
    for section in ("model", "frontend"):
        expected, actual = (dataclasses.asdict(getattr(card, section)) for card in (first, other))
        differences += [
            f"{section}.{name} ({actual[name]!r}, {expected[name]!r})"
            for name in expected
            if name not in ("drop_connect", "batch_norm") and expected[name] != actual[name]
        ]
    return differences


def _reestimated(model: Model, weights: Sequence, data: Datafile, request: Request, logger: Logger) -> Any:
    """Re-estimates the batch statistics of the averaged weights in one pass over a training set."""
    placement = Placement.over_all_devices()
    config = DataConfig(batch_size=request.batch_size, channel=request.channel or model.card.channel)
    source = plain_source(data, config, num_samples=model.frontend.num_samples, grid=Grid.of(model.frontend), seed=0)
    placed = jax.device_put(tuple(weights), placement.replicated)
    with logger.progress("re-estimating batch statistics", source.num_batches) as bar:
        graphdef = nnx.graphdef(model.network)
        stream = bar.track(batches(source, rows=placement.rows(source.batch_size)))
        return reestimate((graphdef, *placed), model.frontend, stream, placement.shard_rows)
