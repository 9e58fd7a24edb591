"""How far scores can be taken at their word: calibration error, Brier score, and F1 of decisions.

A score is taken for the probability of its class; those outside [0, 1], which several heads can give, for 0 or 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS = 15
"""Of equal width, over [0, 1]."""


@dataclass(frozen=True)
class Reliability:
    """Of probabilities `(clips, classes)`; NaN where there is nothing to measure."""

    brier: float
    """The mean of ``(probability - label) ** 2``."""
    ece: float
    """Expected calibration error of all clips and classes together."""
    ece_per_class: float
    """The mean of the classes' own."""


def reliability(probabilities: np.ndarray, labels: np.ndarray) -> Reliability:
    """The figures of probabilities `(clips, classes)` with labels of 0 or 1."""
    taken = np.clip(np.asarray(probabilities, np.float64), 0, 1)
    if taken.size == 0:
        return Reliability(np.nan, np.nan, np.nan)
    columns = [expected_calibration_error(p, y) for p, y in zip(taken.T, labels.T)]
    return Reliability(brier_score(taken, labels), expected_calibration_error(taken, labels), float(np.mean(columns)))


def brier_score(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The mean squared difference of probabilities and labels, of any one shape."""
    return float(np.mean((np.clip(probabilities, 0, 1) - labels) ** 2))


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """How far the mean probability of a bin is from the share of positives in it, averaged over the probabilities.

    Args:
        probabilities: of any shape.
        labels: 0 or 1, of the same.
        bins: of equal width over [0, 1]; a probability on the border of two belongs to the upper one.
    """
    taken = np.clip(np.asarray(probabilities, np.float64), 0, 1).ravel()
    bin_of = np.minimum((taken * bins).astype(np.int64), bins - 1)
    excess = np.bincount(bin_of, weights=taken - np.asarray(labels, np.float64).ravel(), minlength=bins)
    return float(np.abs(excess).sum() / taken.size)


@dataclass(frozen=True)
class Decisions:
    """How good decisions are, over the classes with a positive clip; NaN where nothing is defined."""

    micro_f1: float
    """Over all clips and classes."""
    macro_f1: float
    """The mean over the classes."""
    precision: float
    """Over all clips and classes."""
    recall: float
    """Over all clips and classes."""
    of_class: dict[str, np.ndarray]
    """``precision``, ``recall`` and ``f1`` of each class, `(classes,)`."""


def decisions(present: np.ndarray, labels: np.ndarray) -> Decisions:
    """The figures of decisions `(clips, classes)` with labels of 0 or 1."""
    truth = np.asarray(labels) > 0.5
    hits, found, positives = (present & truth).sum(axis=0), present.sum(axis=0), truth.sum(axis=0)
    scored = positives > 0
    with np.errstate(invalid="ignore"):
        of_class = {
            "precision": hits / found,
            "recall": hits / positives,
            "f1": np.where(scored, 2 * hits / (found + positives), np.nan),
        }
        hit, called, all_positives = hits[scored].sum(), found[scored].sum(), positives.sum()
        return Decisions(
            micro_f1=float(2 * hit / (called + all_positives)),
            macro_f1=float(np.mean(of_class["f1"][scored])) if scored.any() else np.nan,
            precision=float(hit / called),
            recall=float(hit / all_positives),
            of_class=of_class,
        )
