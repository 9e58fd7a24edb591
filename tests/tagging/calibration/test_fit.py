"""Thresholds against all possible thresholds and scikit-learn's precision-recall curve; curves against scikit-learn."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import f1_score, precision_recall_curve

from psla_jax.evaluation.operating_points import OperatingPoints
from psla_jax.tagging.calibration.fit import (
    FitOptions,
    best_macro_f1_threshold,
    crossfit,
    fit,
    fit_isotonic,
    fit_sigmoid,
    platt_targets,
)
from psla_jax.tagging.calibration.model import CalibrationError, Isotonic, Sigmoid, curve_from_json, log_odds


def one_class(seed: int, clips: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Returns scores with ties, some outside [0, 1], and labels correlated with them."""
    rng = np.random.default_rng(seed)
    scores = np.round(rng.beta(1, 3, clips) * 1.2 - 0.02, 2).astype(np.float32)
    labels = (rng.random(clips) < np.clip(scores, 0.05, 0.95)).astype(np.float32)
    labels[0] = 1
    return scores, labels


def best_f1_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    return OperatingPoints.from_scores(scores, labels).best_f1_threshold()


def several_classes(classes: int, clips: int = 80, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    columns = [one_class(seed + 100 + i, clips) for i in range(classes)]
    return np.stack([s for s, _ in columns], axis=1), np.stack([y for _, y in columns], axis=1)


# ---- thresholds


@pytest.mark.parametrize("seed", range(8))
def test_best_f1_is_the_best_of_all_thresholds(seed):
    scores, labels = one_class(seed)
    threshold = best_f1_threshold(scores, labels)
    candidates = {float(t): f1_score(labels, scores >= t) for t in scores}
    best = max(candidates.values())
    assert f1_score(labels, scores >= threshold) == pytest.approx(best, abs=1e-12)
    highest = max(t for t, f1 in candidates.items() if f1 == pytest.approx(best, abs=1e-12))
    np.testing.assert_array_equal(scores >= threshold, scores >= np.float32(highest))


@pytest.mark.parametrize("precision", [0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(6))
def test_a_precision_is_reached_by_the_lowest_threshold(seed, precision):
    scores, labels = one_class(seed)
    threshold = OperatingPoints.from_scores(scores, labels).lowest_threshold(precision)
    precisions, _, thresholds = precision_recall_curve(labels, scores)
    sufficient = thresholds[precisions[:-1] >= precision]
    if not len(sufficient):
        assert threshold == math.inf
        return
    np.testing.assert_array_equal(scores >= threshold, scores >= sufficient.min())
    assert labels[scores >= threshold].mean() >= precision


def test_thresholds_lie_halfway_between_scores():
    points = OperatingPoints.from_scores(np.array([0.1, 0.75, 0.25, 0.75]), np.array([0, 1, 0, 0]))
    np.testing.assert_allclose(points.thresholds, [0.5, 0.175, 0.1])
    assert points.true_positives.tolist() == [1, 1, 1]
    assert points.detections.tolist() == [2, 3, 4]
    assert points.best_f1_threshold() == 0.5
    assert points.lowest_threshold(0.3) == pytest.approx(0.175)
    assert points.lowest_threshold(0.6) == math.inf


@pytest.mark.parametrize("seed", range(4))
def test_a_shared_threshold_has_the_best_macro_f1_of_all_thresholds(seed):
    scores, labels = several_classes(4, clips=40, seed=1000 * seed)
    threshold = best_macro_f1_threshold(scores, labels)
    all_f1 = [f1_score(labels, scores >= t, average="macro") for t in np.unique(scores)]
    assert f1_score(labels, scores >= threshold, average="macro") == pytest.approx(max(all_f1), abs=1e-12)
    single = best_macro_f1_threshold(scores[:, :1], labels[:, :1])
    expected = best_f1_threshold(scores[:, 0], labels[:, 0])
    np.testing.assert_array_equal(scores[:, 0] >= single, scores[:, 0] >= expected)


# ---- curves


class LogOdds(ClassifierMixin, BaseEstimator):
    """A classifier without parameters, whose decision function is the log-odds of the score."""

    def fit(self, x, y):
        self.classes_ = np.unique(y)
        return self

    def predict(self, x):
        return self.decision_function(x) > 0

    def decision_function(self, x):
        return log_odds(x[:, 0])


@pytest.mark.parametrize("seed", range(3))
def test_sigmoid_is_platt_scaling(seed):
    scores, labels = one_class(seed, 200)
    curve = fit_sigmoid(scores, labels)
    data = scores[:, None], labels.astype(int)
    expected = CalibratedClassifierCV(FrozenEstimator(LogOdds().fit(*data)), method="sigmoid").fit(*data)
    inputs = np.linspace(-0.1, 1.3, 57).astype(np.float32)
    np.testing.assert_allclose(curve(inputs), expected.predict_proba(inputs[:, None])[:, 1], rtol=0, atol=2e-6)


@pytest.mark.parametrize("seed", range(3))
def test_isotonic_is_what_scikit_learn_predicts(seed):
    scores, labels = one_class(seed, 200)
    expected = IsotonicRegression(out_of_bounds="clip").fit(scores.astype(np.float64), platt_targets(labels))
    inputs = np.linspace(-0.1, 1.3, 57)
    curve = fit_isotonic(scores, labels)
    np.testing.assert_allclose(curve(inputs), expected.predict(inputs), atol=1e-12)
    assert (np.diff(curve(inputs)) >= 0).all()


def test_perfect_scores_give_no_probability_of_0_or_1():
    scores, labels = np.array([0.01] * 30 + [0.9] * 10, np.float32), np.array([0] * 30 + [1] * 10, np.float32)
    for curve in (fit_sigmoid(scores, labels), fit_isotonic(scores, labels)):
        assert curve(np.array([0.01, 0.9])) == pytest.approx([1 / 32, 11 / 12], abs=1e-4)


def test_scores_that_mean_the_opposite_have_no_sigmoid():
    assert fit_sigmoid(np.array([0.9, 0.8, 0.1, 0.2]), np.array([0, 0, 1, 1])) is None
    assert Sigmoid(1e6, 0.0)(np.array([0.0, 0.5, 2.0])).tolist() == [0.0, 0.5, 1.0], "no overflow"


@pytest.mark.parametrize("curve", [Sigmoid(1.25, -0.1), Isotonic((0.1, 0.3), (1 / 3, 0.7))])
def test_curves_are_read_back_as_they_were(curve):
    assert curve_from_json(json.loads(json.dumps(asdict(curve)))) == curve


# ---- all classes


def test_classes_with_few_positives_share():
    scores, labels = several_classes(6)
    labels[:, 3], labels[:, 4], labels[:, 5] = 0, 0, 0
    labels[np.argsort(scores[:, 3])[-3:], 3] = 1
    labels[np.argsort(scores[:, 4])[-4:], 4] = 1
    result = fit(scores, labels, FitOptions(min_positives=5))
    assert [calibrator is None for calibrator in result.own] == [False, False, False, True, True, True]
    for i in range(3):
        assert result.own[i].threshold == best_f1_threshold(scores[:, i], labels[:, i])
        assert result.own[i].curve == fit_sigmoid(scores[:, i], labels[:, i])
    assert result.shared.threshold == best_macro_f1_threshold(scores[:, 3:5], labels[:, 3:5])
    assert result.shared.curve == fit_sigmoid(scores[:, 3:5].ravel(), labels[:, 3:5].ravel())
    precise = fit(scores, labels, FitOptions(min_positives=5, precision=0.7)).shared.threshold
    assert precise == OperatingPoints.from_scores(scores[:, 3:5].ravel(), labels[:, 3:5].ravel()).lowest_threshold(0.7)
    assert result.thresholds[5] == result.thresholds[4] == result.shared.threshold
    expected = result.own[1].curve(scores[:, 1])
    np.testing.assert_allclose(result.probabilities(scores)[:, 1], expected, rtol=1e-6)
    np.testing.assert_array_equal(result.present(scores)[:, 4], scores[:, 4] >= result.shared.threshold)


def test_all_classes_are_pooled_if_the_rare_ones_together_have_too_few_positives():
    scores, labels = several_classes(3)
    labels[:, 2] = 0
    labels[0, 2] = 1
    shared = fit(scores, labels, FitOptions(min_positives=5)).shared
    assert shared.curve == fit_sigmoid(scores.ravel(), labels.ravel())


def test_uninformative_scores_give_the_share_of_positives():
    scores, labels = np.full((20, 1), 0.3, np.float32), np.zeros((20, 1), np.float32)
    labels[:5] = 1
    calibrators = fit(scores, labels, FitOptions(min_positives=2))
    assert calibrators.probabilities(np.array([[0.1], [0.9]]))[:, 0] == pytest.approx([6 / 22, 6 / 22], rel=1e-5)
    all_positive = fit(scores, np.ones((20, 1)), FitOptions())
    assert all_positive.probabilities(np.array([[0.3]]))[0, 0] == pytest.approx(21 / 22)


def test_an_unreachable_precision_gives_an_infinite_threshold():
    scores, labels = np.array([[0.9], [0.5], [0.1]] * 10), np.array([[0], [1], [0]] * 10)
    calibrators = fit(scores, labels, FitOptions(precision=0.6))
    assert calibrators.thresholds.tolist() == [math.inf]
    assert not calibrators.present(scores).any()


# ---- held-out clips


@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
def test_a_clip_is_evaluated_by_a_fit_to_the_other_folds(method):
    scores, labels = several_classes(3)
    options = FitOptions(method=method, folds=4)
    before, present = crossfit(scores, labels, options)
    changed = labels.copy()
    changed[7] = 1 - changed[7]
    after, _ = crossfit(scores, changed, options)
    differs = (before != after).any(axis=1)
    assert not differs[7]
    assert differs.sum() >= 40, "the other folds are evaluated by fits to this clip"
    # The result equals that of a fit to the other folds.
    fold_of = np.random.default_rng(0).permutation(80) % 4
    own = fit(scores[fold_of != fold_of[7]], labels[fold_of != fold_of[7]], options)
    np.testing.assert_array_equal(before[7], own.probabilities(scores[7]))
    np.testing.assert_array_equal(present[7], own.present(scores[7]))


def test_held_out_metrics_of_random_scores_are_not_optimistic():
    rng = np.random.default_rng(3)
    scores, labels = rng.random((120, 5)), (rng.random((120, 5)) < 0.2).astype(np.float32)
    options = FitOptions(method="isotonic")
    fitted = fit(scores, labels, options).probabilities(scores)
    held_out, _ = crossfit(scores, labels, options)
    rate = labels.mean()
    assert ((fitted - labels) ** 2).mean() < rate * (1 - rate) < ((held_out - labels) ** 2).mean()


# ---- invalid input

INVALID_OPTIONS = {
    "method": ("method of a calibration is 'beta'", {"method": "beta"}),
    "precision 0": ("precision of a calibration is 0", {"precision": 0.0}),
    "precision 80": ("precision of a calibration is 80", {"precision": 80.0}),
    "min_positives": ("min_positives of a calibration is 0", {"min_positives": 0}),
    "folds": ("folds of a calibration is 1", {"folds": 1}),
}


@pytest.mark.parametrize("name", INVALID_OPTIONS)
def test_invalid_options(name):
    message, fields = INVALID_OPTIONS[name]
    with pytest.raises(CalibrationError, match=message):
        FitOptions(**fields)


def test_bad_scores_and_labels():
    scores, labels = several_classes(2)
    invalid = scores.copy()
    invalid[3, 1] = np.nan
    for function in (fit, crossfit):
        with pytest.raises(CalibrationError, match="clip 3 has the score nan for class 1"):
            function(invalid, labels, FitOptions())
        with pytest.raises(CalibrationError, match="none of the 80 clips has a label"):
            function(scores, 0 * labels, FitOptions())
        with pytest.raises(CalibrationError, match=r"scores have shape \(80, 2\) and labels \(80, 1\)"):
            function(scores, labels[:, :1], FitOptions())
        with pytest.raises(CalibrationError, match="with at least one clip"):
            function(scores[:0], labels[:0], FitOptions())
    with pytest.raises(CalibrationError, match="4 clips are fewer than 5 folds"):
        crossfit(scores[:4], labels[:4], FitOptions())
