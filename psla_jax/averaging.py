"""Models averaged into one: ``psla average``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
from flax import nnx

from psla_jax.aggregation import AggregationError, average, reestimate
from psla_jax.checkpoints import Model, ModelCard, find_model, load_model, save_model
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
    if directory.exists() and not request.overwrite:
        raise AggregationError(
            f"{directory} is there already: name another place, or replace it with --overwrite True."
        )
    first = load_model(request.models[0], trust=request.trust)
    data = Datafile.read(locate(request.data, journal.say), first.card.vocabulary) if request.data else None
    weights = average(split_model(_alike(first, path, request)) for path in request.models)
    if data is not None:
        weights = (weights[0], _statistics(first, weights, data, request, journal))
    names = [str(find_model(Path(path))) for path in request.models]
    notes = {"average_of": names, "statistics": "averaged" if data is None else "re-estimated"}
    network = nnx.merge(nnx.graphdef(first.network), *weights)
    checked = golden(golden_scores(network, first.card.frontend))
    card = first.card
    save_model(directory, ModelCard(card.model, card.frontend, card.vocabulary, notes, card.licence, checked), *weights)
    journal.say(f"{directory}: the average of {len(names)} models, statistics {notes['statistics']}")


def _alike(first: Model, path: str, request: Request) -> nnx.Module:
    """The network of a model, once it is known to be of the same kind as the first."""
    model = load_model(path, trust=request.trust)
    for what in ("model", "frontend", "vocabulary"):
        if getattr(model.card, what) != getattr(first.card, what):
            raise AggregationError(
                f"{path} has another {what} than {request.models[0]}: their weights cannot be averaged; average models "
                "of one run, or compare them with psla evaluate."
            )
    return model.network


def _statistics(model: Model, weights: Sequence, data: Datafile, request: Request, journal: Journal):
    """Batch statistics of the averaged weights, by one pass over a training set."""
    placement = Placement.over_all_devices()
    placement.check_batch(request.batch_size)
    config = DataConfig(batch_size=request.batch_size, channel=request.channel)
    source = plain_source(data, config, num_samples=model.frontend.num_samples, seed=0)
    placed = jax.device_put(tuple(weights), placement.replicated)
    with journal.progress("re-estimating batch statistics", source.num_batches) as bar:
        graphdef = nnx.graphdef(model.network)
        return reestimate((graphdef, *placed), model.frontend, bar.over(batches(source)), placement.put)
