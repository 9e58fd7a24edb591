"""Fits decision thresholds and probability curves to scores and labels; scikit-learn fits the curves.

A class with enough positive clips has its own threshold and curve. The other classes share one calibrator, because a
fit to a few recordings would not generalize; it is fitted to those of them that have a positive clip. :func:`crossfit`
applies calibrators to clips that they were not fitted to.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from psla_jax.evaluation.operating_points import OperatingPoints
from psla_jax.tagging.calibration.model import (
    CalibrationError,
    Calibrator,
    CalibratorSet,
    Curve,
    Isotonic,
    Sigmoid,
    log_odds,
)

Method = Literal["sigmoid", "isotonic"]
_MAX_CANDIDATES = 1000
"""Maximum number of candidates for the threshold that several classes share."""


@dataclass(frozen=True)
class FitOptions:
    """Options of the fit."""

    method: Method = "sigmoid"
    """``sigmoid`` (Platt scaling, two parameters per class) or ``isotonic`` (needs hundreds of positives per class)."""
    precision: float | None = None
    """Minimum precision: the threshold is the lowest one that reaches it. None: the threshold with the best F1."""
    min_positives: int = 10
    """Minimum number of positive clips of a class with its own calibrator."""
    folds: int = 5
    """Number of cross-fitting folds."""

    def __post_init__(self) -> None:
        precision = self.precision
        for name, value, ok, remedy in (
            ("method", self.method, self.method in get_args(Method), f"choose {' or '.join(get_args(Method))}"),
            ("precision", precision, precision is None or 0 < precision <= 1, "use a fraction, such as 0.8"),
            ("min_positives", self.min_positives, self.min_positives >= 1, "use 1 or more clips"),
            ("folds", self.folds, self.folds >= 2, "use 2 or more"),
        ):
            if not ok:
                raise CalibrationError(f"{name} of a calibration is {value!r}: {remedy}.")


# ---- thresholds


def best_macro_f1_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """Returns the threshold with the best macro F1 of scores and labels `(clips, classes)`; of several, the highest.

    Every class must have a positive clip. The best threshold is just below the score of a positive clip, so only these
    scores are candidates.
    """
    truth = labels > 0.5
    candidates = np.unique(scores[truth].astype(np.float64))
    if len(candidates) > _MAX_CANDIDATES:
        candidates = np.quantile(candidates, np.linspace(0, 1, _MAX_CANDIDATES), method="nearest")
    f1_sum = np.zeros(len(candidates))
    for column, positive in zip(scores.T.astype(np.float64), truth.T):
        detections = len(column) - np.searchsorted(np.sort(column), candidates)
        true_positives = positive.sum() - np.searchsorted(np.sort(column[positive]), candidates)
        f1_sum += 2 * true_positives / (detections + positive.sum())
    best = candidates[len(candidates) - 1 - np.argmax(f1_sum[::-1])]
    below = scores[scores < best]
    return float((best + below.max()) / 2) if below.size else float(best)


# ---- curves


def platt_targets(labels: np.ndarray) -> np.ndarray:
    """Returns Platt's targets: (P + 1) / (P + 2) for each of P positives, 1 / (N + 2) for each of N negatives.

    They keep the probabilities of perfectly separated clips away from 0 and 1.
    """
    truth = labels > 0.5
    positives, negatives = int(truth.sum()), int((~truth).sum())
    return np.where(truth, (positives + 1) / (positives + 2), 1 / (negatives + 2))


def fit_sigmoid(scores: np.ndarray, labels: np.ndarray) -> Sigmoid | None:
    """Fits Platt scaling to the log-odds of scores `(clips,)`; None if the probability does not rise with the score."""
    targets, x = platt_targets(labels), log_odds(scores)
    if np.ptp(x) == 0:
        return None
    mean, std = float(x.mean()), float(x.std())
    x = (x - mean) / std
    # Soft targets: each clip enters as a positive and as a negative, weighted by its target.
    outcomes, weights = np.repeat([1, 0], len(x)), np.concatenate([targets, 1 - targets])
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-8, max_iter=1000)
    model.fit(np.concatenate([x, x])[:, None], outcomes, sample_weight=weights)
    slope = float(model.coef_[0, 0]) / std
    return Sigmoid(slope, float(model.intercept_[0]) - slope * mean) if slope > 0 else None


def fit_isotonic(scores: np.ndarray, labels: np.ndarray) -> Isotonic:
    """Fits isotonic regression of Platt's targets on scores `(clips,)`."""
    model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
    model.fit(scores.astype(np.float64), platt_targets(labels))
    return Isotonic(tuple(map(float, model.X_thresholds_)), tuple(map(float, model.y_thresholds_)))


CURVE_FITS: dict[Method, Callable[..., Curve | None]] = {"sigmoid": fit_sigmoid, "isotonic": fit_isotonic}


# ---- all classes


def fit(
    scores: np.ndarray, labels: np.ndarray, options: FitOptions, own_calibrator: np.ndarray | None = None
) -> CalibratorSet:
    """Fits calibrators to scores `(clips, classes)` and labels of 0 or 1 of the same shape.

    The classes with `options.min_positives` positive clips, or those in `own_calibrator`, bool `(classes,)`, if it is
    given, get their own calibrator.

    Raises:
        CalibrationError: the scores are not finite, there is no clip, or no clip has a label.
    """
    _require_valid(scores, labels)
    positives = (labels > 0.5).sum(axis=0)
    if own_calibrator is None:
        own_calibrator = positives >= options.min_positives
    # The rare classes share a calibrator; if they have too few positives even together, it is fitted to all classes.
    rare = (positives > 0) & ~own_calibrator
    pooled = rare if positives[rare].sum() >= options.min_positives else positives > 0
    shared = _fit_shared(scores[:, pooled], labels[:, pooled], options)

    def fit_one(i: int) -> Calibrator | None:
        return _fit_class(scores[:, i], labels[:, i], options) if own_calibrator[i] and positives[i] else None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return CalibratorSet(shared, tuple(pool.map(fit_one, range(scores.shape[1]))))


def _fit_class(scores: np.ndarray, labels: np.ndarray, options: FitOptions) -> Calibrator | None:
    """Fits the calibrator of one class; None without a negative clip or an increasing curve."""
    curve = None if (labels > 0.5).all() else CURVE_FITS[options.method](scores, labels)
    if curve is None:
        return None
    points = OperatingPoints.from_scores(scores, labels)
    threshold = points.best_f1_threshold() if options.precision is None else points.lowest_threshold(options.precision)
    return Calibrator(threshold, curve)


def _fit_shared(scores: np.ndarray, labels: np.ndarray, options: FitOptions) -> Calibrator:
    """Fits one calibrator to several classes. Without an increasing curve, probabilities are the share of positives."""
    pairs = scores.ravel(), labels.ravel()
    if options.precision is None:
        threshold = best_macro_f1_threshold(scores, labels)
    else:
        threshold = OperatingPoints.from_scores(*pairs).lowest_threshold(options.precision)
    curve = None if (labels > 0.5).all() else CURVE_FITS[options.method](*pairs)
    rate = (labels.sum() + 1) / (labels.size + 2)
    return Calibrator(threshold, curve or Sigmoid(0.0, float(log_odds(rate))))


def _require_valid(scores: np.ndarray, labels: np.ndarray) -> None:
    if scores.ndim != 2 or scores.shape != labels.shape or not len(scores):
        raise CalibrationError(
            f"scores have shape {scores.shape} and labels {labels.shape}: both must be (clips, classes), with at least "
            "one clip."
        )
    invalid = np.argwhere(~np.isfinite(scores))
    if len(invalid):
        clip, column = invalid[0]
        raise CalibrationError(
            f"clip {clip} has the score {scores[clip, column]} for class {column}: check the model with psla "
            "check-model."
        )
    if not (labels > 0.5).any():
        raise CalibrationError(f"none of the {len(labels)} clips has a label: add clips with labels.")


def crossfit(scores: np.ndarray, labels: np.ndarray, options: FitOptions) -> tuple[np.ndarray, np.ndarray]:
    """Applies to each fold of the clips the calibrators fitted to the other folds. Arguments as for :func:`fit`.

    The same classes have their own calibrators in every fold, even if the fold leaves them fewer positive clips than
    `options.min_positives`.

    Returns held-out probabilities `(clips, classes)`, and decisions, bool of the same shape.

    Raises:
        CalibrationError: as for :func:`fit`; or there are fewer clips than folds, or all labels are in one fold.
    """
    _require_valid(scores, labels)
    if len(scores) < options.folds:
        raise CalibrationError(
            f"{len(scores)} clips are fewer than {options.folds} folds: use more clips, or a smaller --folds."
        )
    fold_of = np.random.default_rng(0).permutation(len(scores)) % options.folds
    own_calibrator = (labels > 0.5).sum(axis=0) >= options.min_positives
    probabilities, present = np.zeros(scores.shape), np.zeros(scores.shape, bool)
    for fold in range(options.folds):
        held_out = fold_of == fold
        calibrators = fit(scores[~held_out], labels[~held_out], options, own_calibrator)
        probabilities[held_out] = calibrators.probabilities(scores[held_out])
        present[held_out] = calibrators.present(scores[held_out])
    return probabilities, present
