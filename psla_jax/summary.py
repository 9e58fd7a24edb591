"""What a run ends with: its best model, averaged weights and the ensemble of its epochs, scored and written down."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from psla_jax import processes, results
from psla_jax.aggregation import average, ensemble
from psla_jax.checkpoints import AVERAGE, BEST, PLAIN_AVERAGE
from psla_jax.data.sets import EVALUATION
from psla_jax.metrics import Metrics, bootstrap, d_prime
from psla_jax.results import ACCURACY, Measured, Row
from psla_jax.run_directory import SUMMARY
from psla_jax.scores import Scores
from psla_jax.shelf import Shelf

SINGLE_WITHOUT_VALIDATION = 5
"""Epochs whose mean is the "single model" where no validation set can choose one (the reference, for AudioSet)."""
ENSEMBLE = "ensemble"
AGGREGATES = (AVERAGE, PLAIN_AVERAGE, ENSEMBLE)
"""Names of what is made of the epochs."""


def epoch_name(epoch: int) -> str:
    """Name of an epoch's model and scores; epochs are counted from 1."""
    return f"epoch_{epoch:03d}"


def summarise(shelf: Shelf, rows: list[Row]) -> list[Measured]:
    """Averages, ensembles and scores what training left; writes the CSVs and shows the table."""
    measured = [_single(shelf, rows)]
    held_out = shelf.data.held_out
    for name, label in _averages(shelf):
        measured.append(_measure(shelf, label, {kind: shelf.scores(kind, name) for kind in held_out}))
    measured.append(_measure(shelf, f"checkpoint ensemble ({len(rows)} epochs)", _ensembles(shelf, len(rows))))
    if processes.first():
        _write(shelf, measured)
        results.show_summary(shelf.journal.console, measured, f"summary of {shelf.directory}")
    processes.barrier("summarised")
    return measured


def _single(shelf: Shelf, rows: list[Row]) -> Measured:
    """The best epoch on the validation set; without one, the mean of the last epochs."""
    if shelf.data.primary == EVALUATION:
        last = range(max(len(rows) - SINGLE_WITHOUT_VALIDATION, 0) + 1, len(rows) + 1)
        members = [shelf.scores(EVALUATION, epoch_name(e)).metrics() for e in last]
        _keep_best(shelf, len(rows))
        return Measured(f"single (mean of epochs {last[0]}-{last[-1]})", {EVALUATION: _mean_metrics(members)}, {})
    by_accuracy = shelf.config.optimizer.loss == "ce"  # Few clips make many ties, which the mAP then decides.
    merits = [(row.get(ACCURACY, 0.0) if by_accuracy else 0.0, row["mAP"]) for row in rows]
    best = 1 + merits.index(max(merits))
    _keep_best(shelf, best)
    scores = {kind: shelf.scores(kind, epoch_name(best)) for kind in shelf.data.held_out}
    return _measure(shelf, f"best single (epoch {best})", scores)


def _keep_best(shelf: Shelf, epoch: int) -> None:
    shelf.save_model(BEST, shelf.weights(epoch_name(epoch)), {"epochs": [epoch]}, finished=True)


def _averages(shelf: Shelf) -> list[tuple[str, str]]:
    """Makes the weight averages; their model names and their labels in the summary."""
    config = shelf.config
    first, last = config.aggregation.first, config.aggregation.last
    label = f"weight average (epochs {first}-{last})"
    plain = average(shelf.weights(epoch_name(e)) for e in range(first, last + 1))
    notes = {"epochs": list(range(first, last + 1))}
    # A frozen backbone has the statistics that it came with, in every epoch.
    if not config.aggregation.reestimate or config.pretraining.freeze:
        shelf.save_model(AVERAGE, plain, {**notes, "statistics": "averaged"}, finished=True)
        return [(AVERAGE, label)]
    shelf.save_model(PLAIN_AVERAGE, plain, {**notes, "statistics": "averaged"}, finished=True)
    shelf.save_model(AVERAGE, shelf.reestimated(plain), {**notes, "statistics": "re-estimated"}, finished=True)
    return [(AVERAGE, f"{label}, statistics re-estimated"), (PLAIN_AVERAGE, f"{label}, plain")]


def _ensembles(shelf: Shelf, epochs: int) -> dict[str, Scores]:
    combined = {}
    for kind in shelf.data.held_out:
        combined[kind] = ensemble(shelf.scores(kind, epoch_name(e)) for e in range(1, epochs + 1))
        shelf.keep(kind, ENSEMBLE, combined[kind])
    return combined


def _measure(shelf: Shelf, name: str, scores: dict[str, Scores]) -> Measured:
    resamples = shelf.config.bootstrap if processes.first() else 0
    intervals = {k: bootstrap(s.scores, s.labels, resamples=resamples) for k, s in scores.items() if resamples}
    return Measured(name, {k: s.metrics() for k, s in scores.items()}, intervals)


def _write(shelf: Shelf, measured: list[Measured]) -> None:
    names = ["best_single_result", "wa_result", *["wa_plain_result"] * (len(measured) - 3), "ensemble_result"]
    for name, row in zip(names, measured):
        results.write_csv(shelf.directory / f"{name}.csv", list(row.columns()), [row.columns()])
    text = json.dumps({row.name: row.to_json() for row in measured}, indent=1)
    results.write_text(shelf.directory / SUMMARY, text + "\n")
    shelf.journal.note(text)


def read_rows(path: Path) -> list[Row]:
    """The rows of a ``result.csv``."""
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    return [dict(zip(header.split(","), map(float, line.split(",")))) for line in lines]


def _mean_metrics(members: list[Metrics]) -> Metrics:
    """Figure by figure over epochs; d' follows from the mean AUC."""
    names = ("mAP", "mAUC", "precision", "recall", "accuracy", "per_class_ap", "per_class_auc")
    mean: dict[str, Any] = {name: np.mean([getattr(m, name) for m in members], axis=0) for name in names}
    return dataclasses.replace(members[-1], **mean, d_prime=d_prime(float(mean["mAUC"])))
