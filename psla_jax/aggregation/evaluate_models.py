"""Evaluation of models and of their ensemble: ``psla evaluate``."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from psla_jax.aggregation.average import RunningEnsemble
from psla_jax.audio.windows import Grid
from psla_jax.config import Channel, DataConfig, DistributedConfig, Precision
from psla_jax.config_distill import DistillConfig
from psla_jax.data.datafile import Datafile
from psla_jax.data.datasets import DataError, data_notes, locate, require_single_labels
from psla_jax.data.loader import batches, evaluation_source
from psla_jax.data.segmented import cut
from psla_jax.evaluation import per_class, score_cache
from psla_jax.evaluation.evaluators import Evaluators
from psla_jax.evaluation.metrics import Metrics, bootstrap
from psla_jax.evaluation.predict import score
from psla_jax.evaluation.scores import Scores, ScoresError
from psla_jax.evaluation.tables import Measured, coverage, ensemble_lines
from psla_jax.ingredients import Ingredient, specification
from psla_jax.models.model_dir import find_model, load_model, read_card
from psla_jax.models.precision import computed_in
from psla_jax.models.state import split_model
from psla_jax.pretraining import zoo
from psla_jax.runtime import distributed
from psla_jax.runtime.files import exists
from psla_jax.runtime.logging import Logger
from psla_jax.runtime.sharding import Placement
from psla_jax.vocabulary.vocabulary import Vocabulary, VocabularyError


@dataclass(frozen=True)
class Request:
    """Arguments of :func:`evaluate_request`; the fields are the options of ``psla evaluate``."""

    models: tuple[str, ...]
    data: str
    labels: str = ""
    batch_size: int = 32
    channel: Channel | None = None
    windows: bool = False
    bootstrap: int = 200
    trust: bool = False
    keep_scores: bool = True
    save: str = ""
    per_class: str = ""
    confusion: str = ""
    metrics: tuple[str, ...] = ()
    segments: float = 0.0
    precision: Precision = "highest"
    distributed: DistributedConfig = field(default_factory=DistributedConfig)


@dataclass(frozen=True)
class EvaluationResult:
    """Metrics of every model and of their ensemble, the mean of their scores."""

    models: tuple[Metrics, ...]
    ensemble: Metrics
    further_models: tuple[Mapping[str, float], ...] = ()
    """Values of the further metrics that were asked for, by name, for every model."""
    further_ensemble: Mapping[str, float] = field(default_factory=dict)


def evaluate(
    models: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    data: str | os.PathLike[str],
    *,
    labels: str | os.PathLike[str] = "",
    batch_size: int = 32,
    channel: Channel | None = None,
    windows: bool = False,
    bootstrap: int = 200,
    trust: bool = False,
    keep_scores: bool = True,
    save: str | os.PathLike[str] = "",
    per_class: str | os.PathLike[str] = "",
    confusion: str | os.PathLike[str] = "",
    metrics: Sequence[Ingredient] = (),
    segments: float = 0.0,
    precision: Precision = "highest",
) -> EvaluationResult:
    """Evaluates one or several models and their ensemble on a data set, and prints the reference's summary.

    Args:
        models: model or run directories, or names of released models, which are downloaded once; one of them is in
            memory at a time.
        data: the datafile.
        labels: label CSV that fixes the order of the classes; by default the order of the first model.
        batch_size: number of clips that are scored at a time.
        channel: channel of multi-channel files, ``mean`` or ``first``; by default that of each model's training.
        windows: score clips that are longer than the input of a model by overlapping windows, as
            :meth:`psla_jax.tagging.tagger.Tagger.tag` does, instead of their beginning only.
        bootstrap: number of resamples for the confidence interval; 0 disables it.
        trust: import the Python code that a custom model names.
        keep_scores: cache the scores, and use cached ones if neither model nor data have changed.
        save: ``.npz`` file to write the scores (of several models, their mean) to.
        per_class: CSV file to write the results of every class to, of the model or the ensemble.
        confusion: CSV file to write the confusion matrix to, if every clip has exactly one label.
        metrics: further metrics, as the setting of a training, see :mod:`psla_jax.evaluation.evaluators`.
        segments: seconds of the segments to score instead of whole clips, see :func:`psla_jax.data.segmented.cut`.
        precision: precision of the products, see :mod:`psla_jax.models.precision`.

    Raises:
        ValueError: an error class of this package; the message names the model or file and the remedy.
    """
    paths = (models,) if isinstance(models, str | os.PathLike) else models
    names = tuple(os.fspath(path) for path in paths)
    request = Request(names, os.fspath(data), os.fspath(labels), batch_size, channel, windows, bootstrap)
    request = replace(request, save=os.fspath(save), per_class=os.fspath(per_class), confusion=os.fspath(confusion))
    named = tuple(specification(metric) for metric in metrics)
    request = replace(request, trust=trust, keep_scores=keep_scores, metrics=named, segments=segments)
    request = replace(request, precision=precision)
    return evaluate_request(request)


def evaluate_request(request: Request) -> EvaluationResult:
    """As :func:`evaluate`, also for several processes. Raises PeerError if another process of the command has ended."""
    with distributed.session(request.distributed):
        return _evaluate(request)


def _evaluate(request: Request) -> EvaluationResult:
    if not request.models:
        raise DataError("there is no model to evaluate: name at least one.")
    files = [os.path.abspath(file) for file in (request.save, request.per_class, request.confusion) if file]
    if len(set(files)) < len(files):
        raise ScoresError(f"two results would be written to {max(files, key=files.count)}: name a file for each.")
    for file in filter(exists, (request.save, request.per_class, request.confusion)):
        raise ScoresError(f"{file} already exists, and results are not overwritten: name another file.")
    logger = Logger(silent=not distributed.is_primary())
    request = replace(request, models=tuple(zoo.resolve(request.models, logger.info)))
    placement = Placement.over_all_devices()
    DataConfig(batch_size=request.batch_size)  # Raises ConfigError for a batch without clips.
    cards = {path: read_card(find_model(Path(path))) for path in request.models}
    vocabulary = cards[request.models[0]].vocabulary
    if request.labels:
        vocabulary = Vocabulary.read(locate(request.labels, logger.info))
    orders = {path: class_order(card.vocabulary, vocabulary, path) for path, card in cards.items()}
    DistillConfig(segments=request.segments)  # Raises ConfigError for a segment that is too short.
    data = cut(Datafile.read(locate(request.data, logger.info), vocabulary), request.segments)
    if request.segments:
        logger.info(f"{request.data}: {len(data):,} segments of {request.segments:g} s with the labels of their clips")
    if request.confusion:
        reason, remedy = "a confusion matrix needs one per clip", "omit --confusion, or use --per-class"
        require_single_labels(data, reason, remedy)
    evaluators = Evaluators.find(request.metrics, vocabulary, all(card.exclusive for card in cards.values()))
    evaluators.require_defined(data)
    for note in data_notes(data, held_out=True):
        logger.info(note)
    running, members = RunningEnsemble(), list[Measured]()
    for path in request.models:
        compute = functools.partial(_compute_scores, path, orders[path], data, request, placement, logger)
        if request.keep_scores:
            note = f"{path}: scores kept from an earlier call (--no-keep-scores recomputes them)"
            model, on_hit = find_model(Path(path)), functools.partial(logger.info, note)
            settings = [request.channel or cards[path].channel, f"windows {request.windows}"]
            settings += [f"segments {request.segments}"] if request.segments else []
            settings += [f"precision {computed_in(request.precision, placement.platform)}"]
            scores = score_cache.cached(model, vocabulary, data, settings, compute, on_hit, logger.info)
        else:
            scores = compute()
        for note in scores.notes():
            logger.info(f"{path}: {note}")
        running.add(scores)
        members.append((scores.metrics(), evaluators(scores)))
    combined = running.mean()
    ensemble, further = combined.metrics(), evaluators(combined)
    try:
        _log_summary(request, members, (ensemble, further), combined, logger)
    finally:  # The results are kept even if they cannot be printed.
        if distributed.is_primary():
            _write_files(request, replace(combined, mids=vocabulary.mids), ensemble, vocabulary)
    _log_files(request, logger)
    models, further_models = zip(*members)
    return EvaluationResult(models, ensemble, further_models, further)


def _write_files(request: Request, scores: Scores, metrics: Metrics, vocabulary: Vocabulary) -> None:
    """Writes the requested files about the model or the ensemble, all of them even if one cannot be written."""
    with contextlib.ExitStack() as files:
        if request.save:
            files.callback(scores.save, Path(request.save))
        if request.per_class:
            files.callback(per_class.write_class_table, Path(request.per_class), [scores], metrics, vocabulary)
        if request.confusion:
            files.callback(per_class.write_confusion_matrix, Path(request.confusion), scores, vocabulary)


def _log_files(request: Request, logger: Logger) -> None:
    name = "the ensemble" if len(request.models) > 1 else "the model"
    contents = {
        request.save: f"the scores of {name}, by clip id",
        request.per_class: f"the results of {name} for every class",
        request.confusion: f"the confusion matrix of {name}, a row per true class",
    }
    for file, content in contents.items():
        if file:
            logger.info(f"{file}: {content}")


def _compute_scores(
    path: str, order: np.ndarray, data: Datafile, request: Request, placement: Placement, logger: Logger
) -> Scores:
    """Computes a model's scores; `order` holds the index of every requested class among those of the model."""
    model = load_model(path, trust=request.trust, precision=request.precision)
    graphdef = nnx.graphdef(model.network)
    weights = placement.replicate(jax.device_get(split_model(model.network)))
    channel = request.channel or model.card.channel
    config = DataConfig(batch_size=request.batch_size, channel=channel, windows=request.windows)
    source = evaluation_source(data, config, num_samples=model.frontend.num_samples, grid=Grid.of(model.frontend))
    with logger.progress(f"scoring {path}", source.num_batches) as bar:
        stream = bar.track(batches(source, rows=placement.rows(source.batch_size)))
        scores = score(
            (graphdef, *weights), model.frontend, stream, placement.shard_rows, data.clip_id,
            exclusive=model.card.exclusive, clip_of_row=source.clip_of_row, precision=request.precision,
        )  # fmt: skip
    return replace(scores, scores=scores.scores[:, order])


def class_order(own: Vocabulary, requested: Vocabulary, path: str) -> np.ndarray:
    """Returns the index, by mid, of every class of `requested` in `own`; raises VocabularyError if it lacks one."""
    if missing := [mid for mid in requested.mids if mid not in own]:
        raise VocabularyError(
            f"the model {path} lacks {len(missing)} of the {len(requested)} classes, such as {missing[0]!r}: "
            "name a vocabulary that all models contain with --labels L.csv."
        )
    return np.array([own.index(mid) for mid in requested.mids])


def _log_summary(request: Request, members: list[Measured], ensemble: Measured, scores: Scores, logger: Logger) -> None:
    """Logs the metrics, and the confidence interval of the ensemble, whose scores are `scores`."""
    for line in ensemble_lines([str(Path(path)) for path in request.models], members, ensemble):
        logger.info(line)
    logger.info(coverage(request.data, ensemble[0]))
    if request.bootstrap and distributed.is_primary():
        interval = bootstrap(scores.scores, scores.labels, resamples=request.bootstrap)
        logger.info(f"95% interval of the last mAP (bootstrap over clips): {interval.low:.4f} to {interval.high:.4f}")
