"""Metrics of scores against labels: average precision, ROC AUC, d', and a confidence interval of the mAP.

All values equal those of scikit-learn, also with ties: clips of equal score cross the threshold together. Where
scikit-learn warns, an error is raised or the value is NaN. A class without a positive clip has no average precision,
and one without a positive or without a negative clip has no AUC; the means exclude such classes, which are counted.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike

_CLASSES_PER_TASK = 16
_WEIGHT_BYTES = 1 << 26
"""Upper bound on the size of the array with the counts of bootstrap resamples."""
_T = TypeVar("_T")


class MetricsError(ValueError):
    """Invalid scores, labels or settings of a metric; the message names the value and the remedy."""


@dataclass(frozen=True, eq=False)
class Metrics:
    """Metrics of a set of clips. Means are over the classes for which the metric is defined."""

    mAP: float
    """Mean average precision over ``num_scored`` classes."""
    mAUC: float
    """Mean area under the ROC curve over the classes with both positive and negative clips; NaN if there are none."""
    d_prime: float
    """``sqrt(2) * Phi^-1(mAUC)``."""
    precision: float
    """Mean precision at the middle of the classes' precision-recall curves, as reported by the reference."""
    recall: float
    """Mean recall at the middle of the classes' precision-recall curves."""
    accuracy: float
    """Fraction of clips whose label has the highest score; NaN unless every clip has exactly one label."""
    num_clips: int
    num_classes: int
    num_scored: int
    """Number of classes with at least one positive clip."""
    per_class_ap: np.ndarray
    """``(classes,)`` average precision; NaN for a class without a positive clip."""
    per_class_auc: np.ndarray
    """``(classes,)`` AUC; NaN for a class without a positive or without a negative clip."""


@dataclass(frozen=True)
class Interval:
    """Bounds of a confidence interval."""

    low: float
    high: float


def average_precision(scores: ArrayLike, labels: ArrayLike) -> float:
    """Returns the average precision of one class: precision times increase in recall, summed over the distinct scores.

    Scores ``(clips,)`` are on any real scale, labels ``(clips,)`` 0 or 1. Raises MetricsError if the arrays are
    invalid, or if no clip is positive (scikit-learn warns and returns 0).
    """
    return _single_curve(scores, labels).average_precision()


def roc_auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Returns the area under the ROC curve of one class: how often positive clips outscore negative ones, ties half.

    Arguments and errors are those of :func:`average_precision`, but a negative clip is required too (scikit-learn warns
    and returns NaN).
    """
    return _single_curve(scores, labels, negative=True).roc_auc()


def d_prime(auc: float) -> float:
    """Returns ``sqrt(2) * Phi^-1(auc)``: infinite at 0 and 1, NaN for NaN. Raises MetricsError outside [0, 1]."""
    if math.isnan(auc):
        return math.nan
    if not 0 <= auc <= 1:
        raise MetricsError(f"an AUC of {auc} has no d': pass a value from 0 to 1.")
    if auc in (0, 1):
        return math.inf if auc else -math.inf
    return math.sqrt(2) * statistics.NormalDist().inv_cdf(auc)


def middle_precision_recall(scores: ArrayLike, labels: ArrayLike) -> tuple[float, float]:
    """Returns precision and recall at the middle of the curve: entry ``len // 2`` of scikit-learn's arrays.

    The reference calls their means over the classes average precision and average recall. Arguments and errors are
    those of :func:`average_precision`.
    """
    return _single_curve(scores, labels).middle()


def evaluate(scores: np.ndarray, labels: np.ndarray) -> Metrics:
    """Returns all metrics for scores ``(clips, classes)`` on any real scale and labels of this shape, 0 or 1.

    Raises MetricsError for different shapes, no clips, NaN, labels other than 0 and 1, or no positive label.
    """
    scores, labels = _validated(scores, labels, 2)
    ap, auc, precision, recall = np.array(list(_over_classes(_class_row, scores, labels))).T
    scored, both = ~np.isnan(ap), ~np.isnan(auc)
    mean_auc = float(auc[both].mean()) if both.any() else math.nan
    return Metrics(
        mAP=float(ap[scored].mean()),
        mAUC=mean_auc,
        d_prime=d_prime(mean_auc),
        precision=float(precision[scored].mean()),
        recall=float(recall[scored].mean()),
        accuracy=_accuracy(scores, labels),
        num_clips=scores.shape[0],
        num_classes=scores.shape[1],
        num_scored=int(scored.sum()),
        per_class_ap=ap,
        per_class_auc=auc,
    )


def bootstrap(
    scores: np.ndarray, labels: np.ndarray, *, resamples: int = 200, seed: int = 0, level: float = 0.95
) -> Interval:
    """Returns a confidence interval of the mAP, by bootstrap over clips with percentiles centred on the mAP.

    Resample ``r`` is a function of ``(seed, r)``. Classes without a positive clip in a resample are excluded from it,
    and resamples without any positive label are discarded.

    Clips that are drawn twice tie with themselves, which raises average precision where positives are rare. In
    simulations with a dozen positives per class, plain percentiles are about 0.015 too high, and a 95% interval covers
    the true mAP 70% of the time; shifted so that the mean of the resamples is the mAP, it does so 93% of the time.

    Scores and labels are those of :func:`evaluate`; `level` is the probability mass of the interval. Raises
    MetricsError as :func:`evaluate`, or if the number of resamples, the seed or the level is out of range.
    """
    scores, labels = _validated(scores, labels, 2)
    if resamples < 1:
        raise MetricsError(f"resamples is {resamples}: use at least 1.")
    if seed < 0:
        raise MetricsError(f"seed is {seed}: use 0 or a positive number.")
    if not 0 < level < 1:
        raise MetricsError(f"level is {level}: use a number between 0 and 1, such as 0.95.")
    clips = scores.shape[0]
    chunk = max(1, _WEIGHT_BYTES // (4 * clips))
    chunks = [range(start, min(start + chunk, resamples)) for start in range(0, resamples, chunk)]
    means = np.concatenate([_resampled_map(scores, labels, _counts(clips, seed, each)) for each in chunks])
    means = means[~np.isnan(means)]
    if means.size == 0:
        raise MetricsError(f"none of the {resamples} resamples holds a positive label: use more resamples or clips.")
    means += evaluate(scores, labels).mAP - means.mean()
    low, high = np.quantile(np.clip(means, 0.0, 1.0), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


@dataclass(frozen=True)
class _Curve:
    """Numbers of positive (`hits`) and of all clips (`totals`) at or above each distinct score, from the highest."""

    hits: np.ndarray
    totals: np.ndarray

    @property
    def positives(self) -> int:
        return int(self.hits[-1])

    @property
    def clips(self) -> int:
        return int(self.totals[-1])

    def average_precision(self) -> float:
        return float(np.sum(np.diff(self.hits, prepend=0) * (self.hits / self.totals)) / self.positives)

    def roc_auc(self) -> float:
        misses = self.totals - self.hits
        twice = np.diff(misses, prepend=0) * (2 * self.hits - np.diff(self.hits, prepend=0))
        return int(twice.sum()) / (2 * self.positives * (self.clips - self.positives))

    def middle(self) -> tuple[float, float]:
        # scikit-learn's curve begins at the lowest score and ends with an extra point of precision 1, recall 0.
        index = len(self.hits) - 1 - (len(self.hits) + 1) // 2
        if index < 0:
            return 1.0, 0.0
        return float(self.hits[index] / self.totals[index]), float(self.hits[index] / self.positives)


def _curve(scores: np.ndarray, labels: np.ndarray) -> _Curve:
    order = np.argsort(scores)[::-1]
    ranked = scores[order]
    ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
    return _Curve(np.cumsum(labels[order], dtype=np.int64)[ends], ends + 1)


def _single_curve(scores: ArrayLike, labels: ArrayLike, *, negative: bool = False) -> _Curve:
    """Returns the curve of one class, which needs a positive clip and, if `negative`, a negative one."""
    curve = _curve(*_validated(scores, labels, 1))
    if curve.positives == 0 or (negative and curve.positives == curve.clips):
        required = "a positive and a negative clip" if negative else "a positive clip"
        raise MetricsError(f"{curve.positives} of {curve.clips} labels are 1: the metric needs {required}.")
    return curve


def _class_row(scores: np.ndarray, labels: np.ndarray) -> tuple[float, float, float, float]:
    """Returns AP, AUC, and precision and recall at the middle of the curve of one class; NaN where undefined."""
    if not labels.any():
        return (math.nan,) * 4
    curve = _curve(scores, labels)
    auc = curve.roc_auc() if curve.positives < curve.clips else math.nan
    return curve.average_precision(), auc, *curve.middle()


def _accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
    if not (np.count_nonzero(labels, axis=1) == 1).all():
        return math.nan
    return float(np.mean(scores.argmax(axis=1) == labels.argmax(axis=1)))


def _counts(clips: int, seed: int, resamples: range) -> np.ndarray:
    """Returns how often each resample contains each clip, ``(clips, resamples)``, in a type with exact sums."""
    counts = np.empty((clips, len(resamples)), np.float32 if clips < 1 << 24 else np.float64)
    for column, resample in enumerate(resamples):
        drawn = np.random.default_rng([seed, resample]).integers(0, clips, clips)
        counts[:, column] = np.bincount(drawn, minlength=clips)
    return counts


def _resampled_map(scores: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns the mAP of each resample, ``(resamples,)``; NaN if a resample has no positive label."""
    total, present = np.zeros(counts.shape[1]), np.zeros(counts.shape[1], np.int64)
    for ap in _over_classes(lambda s, y: _weighted_ap(s, y, counts), scores, labels):
        defined = ~np.isnan(ap)
        total[defined] += ap[defined]
        present += defined
    with np.errstate(invalid="ignore"):
        return total / present


def _weighted_ap(scores: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Returns the AP of one class in each resample, ``(resamples,)``; NaN if a resample has no positive clip.

    Only thresholds at the scores of positive clips contribute, so the counts are summed between those.
    """
    from scipy import sparse

    if not labels.any():
        return np.full(counts.shape[1], np.nan)
    thresholds, segments_of_hits = np.unique(-scores[labels], return_inverse=True)

    def cumulated(segments: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Returns the sums of the weights up to each threshold; those after the last threshold are dropped."""
        shape = (len(thresholds) + 1, len(segments))
        ones = np.ones(len(segments), counts.dtype)
        sums = sparse.csc_array((ones, segments, np.arange(len(segments) + 1)), shape=shape) @ weights
        return np.cumsum(sums[:-1], axis=0)

    hits = cumulated(segments_of_hits, counts[labels])
    totals = cumulated(np.searchsorted(thresholds, -scores), counts)
    gains = np.diff(hits, axis=0, prepend=0).astype(np.float64)
    with np.errstate(invalid="ignore"):
        return np.sum(gains * hits / np.maximum(totals, 1), axis=0) / hits[-1]


def _over_classes(
    function: Callable[[np.ndarray, np.ndarray], _T], scores: np.ndarray, labels: np.ndarray
) -> Iterator[_T]:
    """Yields ``function(scores, labels)`` of each class in order. NumPy's sorts and sums run in parallel threads."""

    def block(start: int) -> list[_T]:
        columns = slice(start, start + _CLASSES_PER_TASK)
        pairs = zip(np.ascontiguousarray(scores[:, columns].T), np.ascontiguousarray(labels[:, columns].T), strict=True)
        return [function(s, y) for s, y in pairs]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for results in pool.map(block, range(0, scores.shape[1], _CLASSES_PER_TASK)):
            yield from results


def _validated(scores: ArrayLike, labels: ArrayLike, ndim: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns scores as a float array and labels as a boolean array, after validating them."""
    scores, labels = np.asarray(scores), np.asarray(labels)
    if not np.issubdtype(scores.dtype, np.floating):
        scores = scores.astype(np.float64)
    if scores.ndim != ndim or scores.shape != labels.shape:
        axes = "(clips, classes)" if ndim == 2 else "(clips,)"
        raise MetricsError(f"scores have shape {scores.shape} and labels {labels.shape}: pass {axes} for both.")
    if scores.size == 0:
        raise MetricsError(f"scores have shape {scores.shape}: there is no clip or no class to evaluate.")
    if undefined := np.isnan(scores).sum():
        raise MetricsError(f"{undefined} of {scores.size} scores are NaN: check the model first.")
    positive = labels.astype(bool)
    if labels.dtype != bool and not np.array_equal(positive, labels):
        raise MetricsError(f"a label is {labels[positive != labels].flat[0]}: labels are 0 or 1.")
    if ndim == 2 and not positive.any():
        raise MetricsError(f"none of {labels.shape[0]} clips has a label: there is no class to score.")
    return scores, positive
