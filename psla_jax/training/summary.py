"""The end of a run: best model, weight averages and checkpoint ensemble, with their metrics."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from psla_jax.aggregation.average import average, ensemble
from psla_jax.data.datasets import EVALUATION
from psla_jax.evaluation import per_class, tables
from psla_jax.evaluation.metrics import Metrics, bootstrap, d_prime
from psla_jax.evaluation.scores import Scores
from psla_jax.evaluation.tables import EpochRow, ModelSummary
from psla_jax.models.model_dir import AVERAGE, BEST, EMA, PLAIN_AVERAGE
from psla_jax.runtime import distributed
from psla_jax.training.artifacts import RunArtifacts
from psla_jax.training.run_directory import SUMMARY
from psla_jax.training.selection import averaged_epochs, best_epoch

SINGLE_WITHOUT_VALIDATION = 5
"""Number of last epochs whose mean metrics are the "single model" without a validation set, as in the reference for
AudioSet."""
ENSEMBLE, SINGLE = "ensemble", "single"
AGGREGATES = (AVERAGE, PLAIN_AVERAGE, EMA, ENSEMBLE)
"""Names of the models and scores that are made from several steps or epochs."""
TABLES = {AVERAGE: "wa_result", PLAIN_AVERAGE: "wa_plain_result", EMA: "ema_result"}
"""Names of the single-row tables of weight averages."""


def epoch_name(epoch: int) -> str:
    """Returns the name of the model and scores of an epoch, counted from 1."""
    return f"epoch_{epoch:03d}"


def summarise(artifacts: RunArtifacts, rows: list[EpochRow]) -> list[ModelSummary]:
    """Averages, ensembles and scores the epochs of a training, writes the result files and prints the table."""
    measured = {"best_single_result": _single(artifacts, rows)}
    held_out = artifacts.data.held_out
    for name, label in [*_averages(artifacts, len(rows)), *_moving_average(artifacts)]:
        scores = {kind: artifacts.scores(kind, name) for kind in held_out}
        measured[TABLES[name]] = _measure(artifacts, name, label, scores)
    label = f"checkpoint ensemble ({len(rows)} epoch{'' if len(rows) == 1 else 's'})"
    measured["ensemble_result"] = _measure(artifacts, ENSEMBLE, label, _ensembles(artifacts, len(rows)))
    models = list(measured.values())
    if distributed.is_primary():
        _write(artifacts, measured)
        tables.print_summary(artifacts.logger.console, models, f"summary of {artifacts.directory}")
    distributed.barrier("summarised")
    return models


def _single(artifacts: RunArtifacts, rows: list[EpochRow]) -> ModelSummary:
    """Returns the metrics of the best epoch on the validation set; without one, the mean over the last epochs."""
    if artifacts.data.primary == EVALUATION:
        last = range(max(len(rows) - SINGLE_WITHOUT_VALIDATION, 0) + 1, len(rows) + 1)
        members = [artifacts.scores(EVALUATION, epoch_name(e)) for e in last]
        mean = _mean_metrics([member.metrics() for member in members])
        further = [artifacts.evaluators(member) for member in members]
        _save_best(artifacts, len(rows))
        _write_per_class(artifacts, f"{EVALUATION}_{SINGLE}", members, mean)
        means = {name: float(np.mean([values[name] for values in further])) for name in further[0]}
        label = f"single (mean of epochs {last[0]}-{last[-1]})"
        return ModelSummary(label, {EVALUATION: mean}, {}, {EVALUATION: means})
    best = best_epoch(rows, artifacts.config)
    _save_best(artifacts, best)
    scores = {kind: artifacts.scores(kind, epoch_name(best)) for kind in artifacts.data.held_out}
    return _measure(artifacts, BEST, f"best single (epoch {best})", scores)


def _save_best(artifacts: RunArtifacts, epoch: int) -> None:
    artifacts.save_model(BEST, artifacts.weights(epoch_name(epoch)), {"epochs": [epoch]}, finished=True)


def _averages(artifacts: RunArtifacts, trained: int) -> list[tuple[str, str]]:
    """Saves the weight averages and returns the name and the label in the summary of each."""
    config = artifacts.config
    first, last = averaged_epochs(config.aggregation, config.optimizer.epochs, trained)
    planned = averaged_epochs(config.aggregation, config.optimizer.epochs, config.optimizer.epochs)
    if (first, last) != planned:
        artifacts.logger.info(
            f"epochs {planned[0]}-{planned[1]} were to be averaged, but training ended after epoch {trained}: the "
            f"weight average is that of the same share of its epochs, {first}-{last}"
        )
    label = f"weight average (epochs {first}-{last})"
    plain = average(artifacts.weights(epoch_name(e)) for e in range(first, last + 1))
    notes = {"epochs": list(range(first, last + 1))}
    if distributed.any_process(artifacts.notes(AVERAGE).get("epochs") != notes["epochs"]):
        artifacts.delete_scores(AVERAGE, PLAIN_AVERAGE)  # They are of an average of other epochs.
    if not artifacts.reestimates:
        artifacts.save_model(AVERAGE, plain, {**notes, "statistics": "averaged"}, finished=True)
        return [(AVERAGE, label)]
    artifacts.save_model(PLAIN_AVERAGE, plain, {**notes, "statistics": "averaged"}, finished=True)
    reestimated = artifacts.reestimate_batch_stats(plain)
    artifacts.save_model(AVERAGE, reestimated, {**notes, "statistics": "re-estimated"}, finished=True)
    return [(AVERAGE, f"{label}, statistics re-estimated"), (PLAIN_AVERAGE, f"{label}, plain")]


def _moving_average(artifacts: RunArtifacts) -> list[tuple[str, str]]:
    """Completes the model of the moving average, and returns its name and its label in the summary, if there is one."""
    decay = artifacts.config.optimizer.ema
    if not decay:
        return []
    weights, label = artifacts.weights(EMA), f"moving average of the weights (decay {decay:g})"
    notes = {"epochs": artifacts.notes(EMA)["epochs"], "decay": decay, "statistics": "averaged"}
    if artifacts.reestimates:
        weights, label = artifacts.reestimate_batch_stats(weights), f"{label}, statistics re-estimated"
        notes["statistics"] = "re-estimated"
    artifacts.save_model(EMA, weights, notes, finished=True)
    return [(EMA, label)]


def _ensembles(artifacts: RunArtifacts, epochs: int) -> dict[str, Scores]:
    combined = {}
    for kind in artifacts.data.held_out:
        combined[kind] = ensemble(artifacts.scores(kind, epoch_name(e)) for e in range(1, epochs + 1))
        artifacts.save_scores(kind, ENSEMBLE, combined[kind])
    return combined


def _measure(artifacts: RunArtifacts, name: str, label: str, scores: dict[str, Scores]) -> ModelSummary:
    """Returns the row `label` of the summary, and writes the results of every class of the model `name`."""
    resamples = artifacts.config.bootstrap if distributed.is_primary() else 0
    intervals = {k: bootstrap(s.scores, s.labels, resamples=resamples) for k, s in scores.items() if resamples}
    metrics = {k: s.metrics() for k, s in scores.items()}
    for kind in scores:
        _write_per_class(artifacts, f"{kind}_{name}", [scores[kind]], metrics[kind])
    return ModelSummary(label, metrics, intervals, {k: artifacts.evaluators(s) for k, s in scores.items()})


def _write_per_class(artifacts: RunArtifacts, name: str, members: Sequence[Scores], metrics: Metrics) -> None:
    if distributed.is_primary():
        per_class.write_all(artifacts.directory, name, members, metrics, artifacts.data.vocabulary)


def _write(artifacts: RunArtifacts, measured: Mapping[str, ModelSummary]) -> None:
    """Writes a table of each model, by the name of its file, and the summary of all."""
    for name, row in measured.items():
        tables.write_csv(artifacts.directory / f"{name}.csv", list(row.columns()), [row.columns()])
    text = json.dumps({row.name: row.to_json() for row in measured.values()}, indent=1)
    tables.write_text(artifacts.directory / SUMMARY, text + "\n")
    artifacts.logger.debug(text)


def read_rows(path: Path) -> list[EpochRow]:
    """Reads the rows of a ``result.csv``."""
    header, *lines = path.read_text(encoding="utf-8").splitlines()  # No name of a column has a comma.
    return [dict(zip(header.split(","), map(float, line.split(",")))) for line in lines]


def _mean_metrics(members: list[Metrics]) -> Metrics:
    """Returns the mean of each metric over epochs; d' is computed from the mean AUC."""
    names = ("mAP", "mAUC", "precision", "recall", "accuracy", "per_class_ap", "per_class_auc")
    mean: dict[str, Any] = {name: np.mean([getattr(m, name) for m in members], axis=0) for name in names}
    return dataclasses.replace(members[-1], **mean, d_prime=d_prime(float(mean["mAUC"])))
