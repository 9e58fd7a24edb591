"""Metrics of calibrated scores: calibration error, Brier score, and precision, recall and F1 of decisions.

Scores are evaluated as probabilities. Multi-head scores outside [0, 1] are clipped.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 15
"""Number of equal-width bins over [0, 1]."""


@dataclass(frozen=True)
class CalibrationMetrics:
    """Metrics of probabilities `(clips, classes)`; NaN if there are none."""

    brier: float
    """Brier score: mean of ``(probability - label) ** 2``."""
    ece: float
    """Expected calibration error over all clips and classes."""
    ece_per_class: float
    """Mean over the classes of their expected calibration errors."""


def calibration_metrics(probabilities: np.ndarray, labels: np.ndarray) -> CalibrationMetrics:
    """Returns the metrics of probabilities `(clips, classes)` for labels of 0 or 1 of the same shape."""
    clipped = np.clip(np.asarray(probabilities, np.float64), 0, 1)
    if clipped.size == 0:
        return CalibrationMetrics(np.nan, np.nan, np.nan)
    per_class = [expected_calibration_error(p, y) for p, y in zip(clipped.T, labels.T)]
    brier = float(np.mean((clipped - labels) ** 2))
    return CalibrationMetrics(brier, expected_calibration_error(clipped, labels), float(np.mean(per_class)))


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Returns the difference of mean probability and share of positives in a bin, averaged over the probabilities.

    Probabilities and labels of 0 or 1 have the same, arbitrary shape. The bins divide [0, 1] into equal parts; a
    probability on a bin edge belongs to the upper bin.
    """
    clipped = np.clip(np.asarray(probabilities, np.float64), 0, 1).ravel()
    bin_of = np.minimum((clipped * bins).astype(np.int64), bins - 1)
    excess = np.bincount(bin_of, weights=clipped - np.asarray(labels, np.float64).ravel(), minlength=bins)
    return float(np.abs(excess).sum() / clipped.size)


@dataclass(frozen=True)
class DecisionMetrics:
    """Metrics of decisions, over the classes with a positive clip; NaN where a metric is undefined."""

    micro_f1: float
    """F1 over all clips and classes."""
    macro_f1: float
    """Mean F1 of the classes."""
    precision: float
    """Precision over all clips and classes."""
    recall: float
    """Recall over all clips and classes."""
    per_class: dict[str, np.ndarray]
    """``precision``, ``recall`` and ``f1`` of each class, `(classes,)`."""


def decision_metrics(present: np.ndarray, labels: np.ndarray) -> DecisionMetrics:
    """Returns the metrics of decisions `(clips, classes)` for labels of 0 or 1 of the same shape."""
    truth = np.asarray(labels) > 0.5
    true_positives, predicted, positives = (present & truth).sum(axis=0), present.sum(axis=0), truth.sum(axis=0)
    has_positive = positives > 0
    with np.errstate(invalid="ignore"):
        f1 = np.where(has_positive, 2 * true_positives / (predicted + positives), np.nan)
        hits, detections, relevant = true_positives[has_positive].sum(), predicted[has_positive].sum(), positives.sum()
        return DecisionMetrics(
            micro_f1=float(2 * hits / (detections + relevant)),
            macro_f1=float(np.mean(f1[has_positive])) if has_positive.any() else np.nan,
            precision=float(hits / detections),
            recall=float(hits / relevant),
            per_class={"precision": true_positives / predicted, "recall": true_positives / positives, "f1": f1},
        )
