"""Results of every class: a table of average precision, AUC and best F1, and the confusion matrix."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from psla_jax.evaluation.metrics import Metrics
from psla_jax.evaluation.operating_points import OperatingPoints
from psla_jax.evaluation.scores import Scores
from psla_jax.evaluation.tables import write_csv
from psla_jax.runtime.files import atomic_text
from psla_jax.vocabulary.vocabulary import Vocabulary

COLUMNS = ("class", "mid", "AP", "AUC", "positives", "threshold", "F1")
"""``F1`` is the best one that a threshold can reach, and ``threshold`` is where; a score at the threshold counts."""


def write_class_table(path: Path, members: Sequence[Scores], metrics: Metrics, vocabulary: Vocabulary) -> None:
    """Writes a CSV file with a row per class, in the order of the vocabulary. Undefined values are empty.

    Args:
        path: the file, which is replaced atomically.
        members: scores of one model; or of several on the same clips, which gives the mean of their best F1 and no
            threshold.
        metrics: metrics of the model, or their mean over several.
        vocabulary: the classes, in the order of the columns of the scores.
    """
    positives = (members[0].labels > 0.5).sum(axis=0)
    best = np.mean([best_f1(scores) for scores in members], axis=0)
    thresholds = best[:, 0] if len(members) == 1 else np.full(len(vocabulary), math.nan)
    columns = (metrics.per_class_ap, metrics.per_class_auc, positives, thresholds, best[:, 1])
    rows = [
        dict(zip(COLUMNS, (name, mid, *map(_cell, values))))
        for name, mid, *values in zip(vocabulary.names, vocabulary.mids, *columns)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(path, COLUMNS, rows)


def _cell(value: Any) -> Any:
    number = value.item()
    return "" if isinstance(number, float) and math.isnan(number) else number


def best_f1(scores: Scores) -> np.ndarray:
    """Returns threshold and F1 of the threshold with the best F1, ``(classes, 2)``; NaN without a positive clip."""
    best = np.full((scores.scores.shape[1], 2), math.nan)
    for index in np.flatnonzero((scores.labels > 0.5).any(axis=0)):
        points = OperatingPoints.from_scores(scores.scores[:, index], scores.labels[:, index])
        best[index] = points.best_f1_threshold(), points.f1().max()
    return best


def confusion_matrix(scores: Scores) -> np.ndarray:
    """Returns the number of clips of each class (rows) with the highest score for each class (columns).

    Every clip must have exactly one label. Of equal scores, the first one counts, as in the accuracy.
    """
    classes = scores.scores.shape[1]
    pairs = scores.labels.argmax(axis=1) * classes + scores.scores.argmax(axis=1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def write_confusion_matrix(path: Path, scores: Scores, vocabulary: Vocabulary) -> None:
    """Writes the confusion matrix as a CSV file: a row per true class and a column per predicted class."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_text(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["true class", *vocabulary.names])
        writer.writerows([name, *row] for name, row in zip(vocabulary.names, confusion_matrix(scores).tolist()))


def write_all(directory: Path, name: str, members: Sequence[Scores], metrics: Metrics, vocabulary: Vocabulary) -> None:
    """Writes ``per_class/NAME.csv`` and, if every clip has exactly one label, ``confusion/NAME.csv`` of one model.

    Arguments are those of :func:`write_class_table`.
    """
    write_class_table(directory / "per_class" / f"{name}.csv", members, metrics, vocabulary)
    if len(members) == 1 and not math.isnan(metrics.accuracy):
        write_confusion_matrix(directory / "confusion" / f"{name}.csv", members[0], vocabulary)
