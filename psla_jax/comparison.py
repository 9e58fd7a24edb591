"""Models side by side, and their ensemble: ``psla evaluate``."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from psla_jax import processes, score_cache
from psla_jax.aggregation import RunningEnsemble
from psla_jax.checkpoints import find_model, load_model, read_card
from psla_jax.config import Channel, DataConfig, DistributedConfig
from psla_jax.data.datafile import Datafile
from psla_jax.data.pipeline import batches, evaluation_source
from psla_jax.data.sets import DataError, locate
from psla_jax.evaluation import score
from psla_jax.journal import Journal
from psla_jax.metrics import Metrics, bootstrap
from psla_jax.ontology import Vocabulary, VocabularyError
from psla_jax.results import counted, ensemble_lines
from psla_jax.scores import Scores, ScoresError
from psla_jax.training import Placement, split_model


@dataclass(frozen=True)
class Request:
    """What to compare, on what. Fields as in ``psla evaluate``."""

    models: tuple[str, ...]
    data: str
    labels: str = ""
    batch_size: int = 32
    channel: Channel = "mean"
    bootstrap: int = 200
    trust: bool = False
    keep_scores: bool = True
    save: str = ""
    distributed: DistributedConfig = field(default_factory=DistributedConfig)


@dataclass(frozen=True)
class Comparison:
    """Metrics of every model and of the mean of their scores."""

    models: tuple[Metrics, ...]
    ensemble: Metrics


def evaluate(request: Request) -> Comparison:
    """Scores the models one after the other, with one of them in memory, and shows the reference's summary.

    Raises:
        ValueError: one of this package's own, naming the model or file and the remedy.
        PeerError: another process of the command is gone.
    """
    with processes.joined(request.distributed):
        return _evaluated(request)


def _evaluated(request: Request) -> Comparison:
    if not request.models:
        raise DataError("there is no model to evaluate: name at least one.")
    if os.path.exists(request.save):
        raise ScoresError(f"{request.save} is there already, and scores are not overwritten: name another file.")
    journal = Journal(silent=not processes.first())
    placement = Placement.over_all_devices()
    placement.check_batch(DataConfig(batch_size=request.batch_size).batch_size)
    cards = {path: read_card(find_model(Path(path))) for path in request.models}
    vocabulary: Vocabulary | None = Vocabulary.read(locate(request.labels, journal.say)) if request.labels else None
    vocabulary = vocabulary or cards[request.models[0]].vocabulary
    orders = {path: class_order(card.vocabulary, vocabulary, path) for path, card in cards.items()}
    data = Datafile.read(locate(request.data, journal.say), vocabulary)
    running, members = RunningEnsemble(), []
    for path in request.models:
        scores = _kept(path, orders[path], vocabulary, data, request, placement, journal)
        running.add(scores)
        members.append(scores.metrics())
    _show(request, members, running.mean(), journal)
    if request.save and processes.first():
        replace(running.mean(), mids=vocabulary.mids).save(Path(request.save))
        journal.say(f"{request.save}: the scores of {'them together' if len(members) > 1 else 'it'}, by clip id")
    return Comparison(tuple(members), running.mean().metrics())


def _kept(
    path: str,
    order: np.ndarray,
    vocabulary: Vocabulary,
    data: Datafile,
    request: Request,
    placement: Placement,
    journal: Journal,
) -> Scores:
    """A model's scores from an earlier call, if model and data are the same as then; else made, and kept."""
    if not request.keep_scores:
        return _scored(path, order, data, request, placement, journal)
    return score_cache.kept(
        find_model(Path(path)),
        vocabulary,
        data,
        (request.channel,),
        lambda: _scored(path, order, data, request, placement, journal),
        lambda: journal.say(f"{path}: scores kept from an earlier call (--keep-scores False makes them anew)"),
    )


def _scored(
    path: str, order: np.ndarray, data: Datafile, request: Request, placement: Placement, journal: Journal
) -> Scores:
    """A model's scores, its classes brought into the order asked for."""
    model = load_model(path, trust=request.trust)
    graphdef = nnx.graphdef(model.network)
    weights = placement.replicate(jax.device_get(split_model(model.network)))
    config = DataConfig(batch_size=request.batch_size, channel=request.channel)
    source = evaluation_source(data, config, num_samples=model.frontend.num_samples)
    with journal.progress(f"scoring {path}", source.num_batches) as bar:
        stream = bar.over(batches(source, rows=placement.rows(source.batch_size)))
        found = score((graphdef, *weights), model.frontend, stream, placement.put, data.clip_id)
    if found.skipped:
        journal.say(f"{len(found.skipped)} clips cannot be read: {', '.join(found.skipped[:5])}")
    return Scores(found.clips, found.scores[:, order], found.labels, found.skipped)


def class_order(own: Vocabulary, wanted: Vocabulary, path: str) -> np.ndarray:
    """Where each wanted class is among the model's own, matched by mid.

    Raises:
        VocabularyError: if the model lacks one.
    """
    lacking = [mid for mid in wanted.mids if mid not in own]
    if lacking:
        raise VocabularyError(
            f"the model {path} does not know {len(lacking)} of the {len(wanted)} classes, such as {lacking[0]!r}: "
            "name those that all models know with --labels L.csv."
        )
    return np.array([own.index(mid) for mid in wanted.mids])


def _show(request: Request, members: list[Metrics], combined: Scores, journal: Journal) -> None:
    together = combined.metrics()
    for line in ensemble_lines([str(Path(m)) for m in request.models], members, together):
        journal.say(line)
    journal.say(counted(request.data, together))
    if request.bootstrap and processes.first():
        interval = bootstrap(combined.scores, combined.labels, resamples=request.bootstrap)
        journal.say(f"95% interval of the last mAP (bootstrap over clips): {interval.low:.4f} to {interval.high:.4f}")
