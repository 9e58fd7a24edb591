"""Models averaged into one: ``psla average``."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from psla_jax.aggregation import AggregationError, average, reestimate
from psla_jax.checkpoints import Model, ModelCard, find_model, load_model, require_place, save_model
from psla_jax.config import Channel, DataConfig
from psla_jax.data.datafile import Datafile
from psla_jax.data.pipeline import batches, plain_source
from psla_jax.data.sets import locate
from psla_jax.journal import Journal
from psla_jax.training import Placement, split_model
from psla_jax.verification import golden, golden_scores


@dataclass(frozen=True)
class Request:
    """What to average. Fields as in ``psla average``."""

    models: tuple[str, ...]
    destination: str
    data: str = ""
    batch_size: int = 32
    channel: Channel = "mean"
    trust: bool = False
    overwrite: bool = False


def average_models(request: Request) -> None:
    """Writes the mean of models of one architecture as a model directory.

    Weights and batch statistics are averaged plainly, as by the reference; with a training set, the statistics are
    then re-estimated on it, as ``psla train`` does.

    Raises:
        ValueError: one of this package's own, naming the model or file and the remedy.
    """
    journal, directory = Journal(), Path(request.destination)
    require_place(directory, overwrite=request.overwrite)
    first = load_model(request.models[0], trust=request.trust)
    data = Datafile.read(locate(request.data, journal.say), first.card.vocabulary) if request.data else None
    weights = average(split_model(_alike(first, path, request)) for path in request.models)
    if data is not None:
        weights = (weights[0], _statistics(first, weights, data, request, journal))
    names = [str(find_model(Path(path))) for path in request.models]
    notes = {"average_of": names, "statistics": "averaged" if data is None else "re-estimated"}
    network = nnx.merge(nnx.graphdef(first.network), *weights)
    card = first.card
    checked = golden(golden_scores(network, card.frontend), card.vocabulary)
    save_model(directory, ModelCard(card.model, card.frontend, card.vocabulary, notes, card.licence, checked), *weights)
    journal.say(f"{directory}: the average of {len(names)} models, statistics {notes['statistics']}")


def _alike(first: Model, path: str, request: Request) -> nnx.Module:
    """The network of a model, once it is known to be of the same kind as the first."""
    model = load_model(path, trust=request.trust)
    differing = _differences(first.card, model.card)
    if differing:
        raise AggregationError(
            f"{path} differs from {request.models[0]} in {', '.join(differing)}, so their weights cannot be averaged: "
            "name models of one kind, or compare them with psla evaluate."
        )
    return model.network


def _differences(one: ModelCard, other: ModelCard) -> list[str]:
    """The settings in which two models differ; how they were trained does not matter."""
    found = [] if one.vocabulary == other.vocabulary else ["their classes"]
    for section in ("model", "frontend"):
        ours, theirs = (dataclasses.asdict(getattr(card, section)) for card in (one, other))
        found += [
            f"{section}.{name} ({theirs[name]!r}, {ours[name]!r})"
            for name in ours
            if name != "drop_connect" and ours[name] != theirs[name]
        ]
    return found


def _statistics(model: Model, weights: Sequence, data: Datafile, request: Request, journal: Journal) -> Any:
    """Batch statistics of the averaged weights, by one pass over a training set."""
    placement = Placement.over_all_devices()
    placement.check_batch(request.batch_size)
    config = DataConfig(batch_size=request.batch_size, channel=request.channel)
    source = plain_source(data, config, num_samples=model.frontend.num_samples, seed=0)
    placed = jax.device_put(tuple(weights), placement.replicated)
    with journal.progress("re-estimating batch statistics", source.num_batches) as bar:
        graphdef = nnx.graphdef(model.network)
        return reestimate((graphdef, *placed), model.frontend, bar.over(batches(source)), placement.put)
