"""Thresholds and curves from scores and labels; scikit-learn fits the curves.

A class with enough positive clips has a threshold and a curve of its own. The others share one of each, fitted to all
of them that have a positive clip: their own would be those of a few recordings. What is found is judged on clips that
it was not fitted to (:func:`crossfit`).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from psla_jax.calibration import CalibrationError, Curve, Decider, Deciders, Isotonic, Sigmoid, log_odds

Method = Literal["sigmoid", "isotonic"]
_TRIED = 1000
"""Thresholds that are tried for several classes together."""


@dataclass(frozen=True)
class Recipe:
    """How to fit."""

    method: Method = "sigmoid"
    """``sigmoid`` (Platt): two numbers a class; ``isotonic``: any rising curve, for hundreds of positives a class."""
    precision: float | None = None
    """The threshold is the lowest one with this precision; None: the one with the best F1."""
    min_positives: int = 10
    """Classes with fewer positive clips share a threshold and a curve."""
    folds: int = 5
    """Parts of the clips, each judged by what was fitted to the others."""

    def __post_init__(self) -> None:
        for name, value, ok, remedy in (
            ("method", self.method, self.method in get_args(Method), f"choose {' or '.join(get_args(Method))}"),
            (
                "precision", self.precision, self.precision is None or 0 < self.precision <= 1,
                "use a fraction, such as 0.8",
            ),
            ("min_positives", self.min_positives, self.min_positives >= 1, "use 1 or more clips"),
            ("folds", self.folds, self.folds >= 2, "use 2 or more"),
        ):  # fmt: skip
            if not ok:
                raise CalibrationError(f"{name} of a calibration is {value!r}: {remedy}.")


@dataclass(frozen=True)
class Fit:
    """What was fitted to some clips."""

    shared: Decider
    own: tuple[Decider | None, ...]
    """Of each class; None where the shared one stands in."""

    @property
    def deciders(self) -> Deciders:
        """One for each class."""
        return Deciders(tuple(own or self.shared for own in self.own))


# ---- thresholds


@dataclass(frozen=True)
class Cuts:
    """Every way to cut the scores of a class in two, from the highest threshold down.

    Attributes:
        thresholds: `(cuts,)`, halfway between two scores that follow each other; the last one is the lowest score.
        hits: positives at or above each.
        found: clips at or above each.
        positives: of all.
    """

    thresholds: np.ndarray
    hits: np.ndarray
    found: np.ndarray
    positives: int

    @classmethod
    def of(cls, scores: np.ndarray, labels: np.ndarray) -> Cuts:
        """Of the scores and labels `(clips,)` of a class; clips of one score are never parted."""
        order = np.argsort(-scores, kind="stable")
        ranked = scores[order].astype(np.float64)
        ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
        below = ranked[np.minimum(ends + 1, len(ranked) - 1)]
        hits = np.cumsum(labels[order] > 0.5)[ends]
        return cls((ranked[ends] + below) / 2, hits, ends + 1, int(hits[-1]))

    def best_f1(self) -> float:
        """The threshold of the best F1; of several, the highest."""
        return float(self.thresholds[np.argmax(2 * self.hits / (self.found + self.positives))])

    def lowest_with(self, precision: float) -> float:
        """The lowest threshold of that precision at least; infinite if there is none."""
        reached = np.flatnonzero(self.hits >= precision * self.found)
        return float(self.thresholds[reached[-1]]) if len(reached) else math.inf


def best_mean_f1(scores: np.ndarray, labels: np.ndarray) -> float:
    """The threshold with the best mean F1 of several classes `(clips, classes)`, each of which has a positive.

    F1 can only be best where a positive is just above the threshold; of several such places, the highest.
    """
    truth = labels > 0.5
    tried = np.unique(scores[truth].astype(np.float64))
    if len(tried) > _TRIED:
        tried = np.quantile(tried, np.linspace(0, 1, _TRIED), method="nearest")
    total = np.zeros(len(tried))
    for column, positive in zip(scores.T.astype(np.float64), truth.T):
        found = len(column) - np.searchsorted(np.sort(column), tried)
        hits = positive.sum() - np.searchsorted(np.sort(column[positive]), tried)
        total += 2 * hits / (found + positive.sum())
    best = tried[len(tried) - 1 - np.argmax(total[::-1])]
    below = scores[scores < best]
    return float((best + below.max()) / 2) if below.size else float(best)


# ---- curves


def targets(labels: np.ndarray) -> np.ndarray:
    """How much of a positive each clip counts for, as Platt has it: (P + 1) / (P + 2) for one of P, 1 / (N + 2) for one
    of N negatives. So scores that part a few clips without fault do not become certainties.
    """
    truth = labels > 0.5
    positives, negatives = int(truth.sum()), int((~truth).sum())
    return np.where(truth, (positives + 1) / (positives + 2), 1 / (negatives + 2))


def sigmoid_curve(scores: np.ndarray, labels: np.ndarray) -> Sigmoid | None:
    """Platt scaling of the log-odds of scores `(clips,)`; None where higher scores do not mean higher probability."""
    share, x = targets(labels), log_odds(scores)
    middle, spread = float(x.mean()), float(x.std())
    if np.ptp(x) == 0:
        return None
    x = (x - middle) / spread
    # Every clip is there twice, as a positive and as a negative, weighted by its share of each.
    outcomes, weights = np.repeat([1, 0], len(x)), np.concatenate([share, 1 - share])
    model = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-8, max_iter=1000)
    model.fit(np.concatenate([x, x])[:, None], outcomes, sample_weight=weights)
    slope = float(model.coef_[0, 0]) / spread
    return Sigmoid(slope, float(model.intercept_[0]) - slope * middle) if slope > 0 else None


def isotonic_curve(scores: np.ndarray, labels: np.ndarray) -> Isotonic:
    """The rising curve that is nearest to the targets of labels `(clips,)`."""
    model = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
    model.fit(scores.astype(np.float64), targets(labels))
    return Isotonic(tuple(map(float, model.X_thresholds_)), tuple(map(float, model.y_thresholds_)))


CURVES: dict[Method, Callable[[np.ndarray, np.ndarray], Curve | None]] = {
    "sigmoid": sigmoid_curve,
    "isotonic": isotonic_curve,
}


# ---- all classes


def fit(scores: np.ndarray, labels: np.ndarray, recipe: Recipe, has_own: np.ndarray | None = None) -> Fit:
    """Fits every class.

    Args:
        scores: `(clips, classes)`.
        labels: of the same shape, 0 or 1.
        recipe: how.
        has_own: which classes have enough positives for a decider of their own, bool `(classes,)`; None: count them.

    Raises:
        CalibrationError: the scores are not finite, there is no clip, or no label.
    """
    _require_usable(scores, labels)
    positives = (labels > 0.5).sum(axis=0)
    if has_own is None:
        has_own = positives >= recipe.min_positives
    few = (positives > 0) & ~has_own
    pooled = few if positives[few].sum() >= recipe.min_positives else positives > 0
    shared = _shared(scores[:, pooled], labels[:, pooled], recipe)

    def own(i: int) -> Decider | None:
        return _decider(scores[:, i], labels[:, i], recipe) if has_own[i] and positives[i] else None

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return Fit(shared, tuple(pool.map(own, range(scores.shape[1]))))


def _decider(scores: np.ndarray, labels: np.ndarray, recipe: Recipe) -> Decider | None:
    """Threshold and curve of some scores; None where no curve rises."""
    if (labels > 0.5).all():  # There is nothing to tell its clips from.
        return None
    curve = CURVES[recipe.method](scores, labels)
    cuts = Cuts.of(scores, labels)
    threshold = cuts.best_f1() if recipe.precision is None else cuts.lowest_with(recipe.precision)
    return None if curve is None else Decider(threshold, curve)


def _shared(scores: np.ndarray, labels: np.ndarray, recipe: Recipe) -> Decider:
    """Of several classes together. Where their scores tell nothing, every probability is the share of positives."""
    cells = scores.ravel(), labels.ravel()
    if recipe.precision is None:
        threshold = best_mean_f1(scores, labels)
    else:
        threshold = Cuts.of(*cells).lowest_with(recipe.precision)
    curve = None if (labels > 0.5).all() else CURVES[recipe.method](*cells)
    rate = (labels.sum() + 1) / (labels.size + 2)
    return Decider(threshold, curve or Sigmoid(0.0, float(log_odds(rate))))


def _require_usable(scores: np.ndarray, labels: np.ndarray) -> None:
    if scores.ndim != 2 or scores.shape != labels.shape or not len(scores):
        raise CalibrationError(
            f"scores have shape {scores.shape} and labels {labels.shape}: both must be (clips, classes), with a clip "
            "at least."
        )
    bad = np.argwhere(~np.isfinite(scores))
    if len(bad):
        raise CalibrationError(
            f"clip {bad[0][0]} has the score {scores[tuple(bad[0])]} for class {bad[0][1]}: calibrate a model that is "
            "sound (psla check-model)."
        )
    if not (labels > 0.5).any():
        raise CalibrationError(f"none of the {len(labels)} clips has a label: there is nothing to fit to.")


@dataclass(frozen=True)
class HeldOut:
    """What clips were given by fits that had not seen them."""

    probabilities: np.ndarray
    """`(clips, classes)`."""
    present: np.ndarray
    """Decisions, of the same shape."""


def crossfit(scores: np.ndarray, labels: np.ndarray, recipe: Recipe) -> HeldOut:
    """Judges the recipe: every fold of the clips by a fit to the others. Arguments and errors as for :func:`fit`.

    The same classes have deciders of their own in every fold, though some are then fitted to fewer positives.

    Raises:
        CalibrationError: there are fewer clips than folds, or all labels are in one of them.
    """
    _require_usable(scores, labels)
    if len(scores) < recipe.folds:
        raise CalibrationError(f"{len(scores)} clips do not make {recipe.folds} folds: give more clips, or --folds 2.")
    fold_of = np.random.default_rng(0).permutation(len(scores)) % recipe.folds
    has_own = (labels > 0.5).sum(axis=0) >= recipe.min_positives
    probabilities, present = np.zeros(scores.shape), np.zeros(scores.shape, bool)
    for fold in range(recipe.folds):
        held = fold_of == fold
        deciders = fit(scores[~held], labels[~held], recipe, has_own).deciders
        probabilities[held], present[held] = deciders.probabilities(scores[held]), deciders.present(scores[held])
    return HeldOut(probabilities, present)
