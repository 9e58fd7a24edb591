"""Thresholds against every possible cut and scikit-learn's curve; curves against scikit-learn's own predictions."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import f1_score, precision_recall_curve

from psla_jax.calibration import CalibrationError, Isotonic, Sigmoid, curve_from_json, log_odds
from psla_jax.calibration_fit import Cuts, Recipe, best_mean_f1, crossfit, fit, isotonic_curve, sigmoid_curve, targets


def one_class(seed: int, clips: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Scores with ties, some outside [0, 1], and labels that they half predict."""
    rng = np.random.default_rng(seed)
    scores = np.round(rng.beta(1, 3, clips) * 1.2 - 0.02, 2).astype(np.float32)
    labels = (rng.random(clips) < np.clip(scores, 0.05, 0.95)).astype(np.float32)
    labels[0] = 1
    return scores, labels


def set_of(classes: int, clips: int = 80, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    columns = [one_class(seed + 100 + i, clips) for i in range(classes)]
    return np.stack([s for s, _ in columns], axis=1), np.stack([y for _, y in columns], axis=1)


# ---- thresholds


@pytest.mark.parametrize("seed", range(8))
def test_best_f1_is_the_best_of_all_cuts(seed):
    scores, labels = one_class(seed)
    found = Cuts.of(scores, labels).best_f1()
    tried = {float(t): f1_score(labels, scores >= t) for t in scores}
    best = max(tried.values())
    assert f1_score(labels, scores >= found) == pytest.approx(best, abs=1e-12)
    highest = max(t for t, f1 in tried.items() if f1 == pytest.approx(best, abs=1e-12))
    np.testing.assert_array_equal(scores >= found, scores >= np.float32(highest))


@pytest.mark.parametrize("precision", [0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("seed", range(6))
def test_a_wanted_precision_is_reached_by_the_lowest_cut(seed, precision):
    scores, labels = one_class(seed)
    found = Cuts.of(scores, labels).lowest_with(precision)
    reached, _, thresholds = precision_recall_curve(labels, scores)
    good = thresholds[reached[:-1] >= precision]
    if not len(good):
        assert found == math.inf
        return
    np.testing.assert_array_equal(scores >= found, scores >= good.min())
    assert labels[scores >= found].mean() >= precision


def test_cuts_lie_halfway_between_scores():
    cuts = Cuts.of(np.array([0.1, 0.75, 0.25, 0.75]), np.array([0, 1, 0, 0]))
    np.testing.assert_allclose(cuts.thresholds, [0.5, 0.175, 0.1])
    assert cuts.hits.tolist() == [1, 1, 1]
    assert cuts.found.tolist() == [2, 3, 4]
    assert cuts.best_f1() == 0.5
    assert cuts.lowest_with(0.3) == pytest.approx(0.175)
    assert cuts.lowest_with(0.6) == math.inf


@pytest.mark.parametrize("seed", range(4))
def test_a_shared_threshold_has_the_best_mean_f1_of_all_cuts(seed):
    scores, labels = set_of(4, clips=40, seed=1000 * seed)
    found = best_mean_f1(scores, labels)
    tried = [f1_score(labels, scores >= t, average="macro") for t in np.unique(scores)]
    assert f1_score(labels, scores >= found, average="macro") == pytest.approx(max(tried), abs=1e-12)
    alone = best_mean_f1(scores[:, :1], labels[:, :1])
    np.testing.assert_array_equal(scores[:, 0] >= alone, scores[:, 0] >= Cuts.of(scores[:, 0], labels[:, 0]).best_f1())


# ---- curves


class LogOdds(ClassifierMixin, BaseEstimator):
    """A classifier that has nothing to learn: its decision is the log-odds of the score."""

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
    found = sigmoid_curve(scores, labels)
    given = scores[:, None], labels.astype(int)
    theirs = CalibratedClassifierCV(FrozenEstimator(LogOdds().fit(*given)), method="sigmoid").fit(*given)
    asked = np.linspace(-0.1, 1.3, 57).astype(np.float32)
    np.testing.assert_allclose(found(asked), theirs.predict_proba(asked[:, None])[:, 1], atol=2e-6)


@pytest.mark.parametrize("seed", range(3))
def test_isotonic_is_what_scikit_learn_predicts(seed):
    scores, labels = one_class(seed, 200)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(scores.astype(np.float64), targets(labels))
    asked = np.linspace(-0.1, 1.3, 57)
    found = isotonic_curve(scores, labels)
    np.testing.assert_allclose(found(asked), theirs.predict(asked), atol=1e-12)
    assert (np.diff(found(asked)) >= 0).all()


def test_perfect_scores_are_no_certainty():
    scores, labels = np.array([0.01] * 30 + [0.9] * 10, np.float32), np.array([0] * 30 + [1] * 10, np.float32)
    for curve in (sigmoid_curve(scores, labels), isotonic_curve(scores, labels)):
        assert curve(np.array([0.01, 0.9])) == pytest.approx([1 / 32, 11 / 12], abs=1e-4)


def test_scores_that_mean_the_opposite_have_no_sigmoid():
    assert sigmoid_curve(np.array([0.9, 0.8, 0.1, 0.2]), np.array([0, 0, 1, 1])) is None
    assert Sigmoid(1e6, 0.0)(np.array([0.0, 0.5, 2.0])).tolist() == [0.0, 0.5, 1.0], "no overflow"


@pytest.mark.parametrize("curve", [Sigmoid(1.25, -0.1), Isotonic((0.1, 0.3), (1 / 3, 0.7))])
def test_curves_are_read_back_as_they_were(curve):
    assert curve_from_json(json.loads(json.dumps(curve.to_json()))) == curve


# ---- all classes


def test_classes_with_few_positives_share():
    scores, labels = set_of(6)
    labels[:, 3], labels[:, 4], labels[:, 5] = 0, 0, 0
    labels[np.argsort(scores[:, 3])[-3:], 3] = 1
    labels[np.argsort(scores[:, 4])[-4:], 4] = 1
    found = fit(scores, labels, Recipe(min_positives=5))
    assert [own is None for own in found.own] == [False, False, False, True, True, True]
    for i in range(3):
        assert found.own[i].threshold == Cuts.of(scores[:, i], labels[:, i]).best_f1()
        assert found.own[i].curve == sigmoid_curve(scores[:, i], labels[:, i])
    assert found.shared.threshold == best_mean_f1(scores[:, 3:5], labels[:, 3:5])
    assert found.shared.curve == sigmoid_curve(scores[:, 3:5].ravel(), labels[:, 3:5].ravel())
    precise = fit(scores, labels, Recipe(min_positives=5, precision=0.7)).shared.threshold
    assert precise == Cuts.of(scores[:, 3:5].ravel(), labels[:, 3:5].ravel()).lowest_with(0.7)
    deciders = found.deciders
    assert deciders.of_class[5] == deciders.of_class[4] == found.shared
    np.testing.assert_allclose(deciders.probabilities(scores)[:, 1], found.own[1].curve(scores[:, 1]), rtol=1e-6)
    np.testing.assert_array_equal(deciders.present(scores)[:, 4], scores[:, 4] >= found.shared.threshold)


def test_where_even_the_few_together_are_too_few_all_classes_are_pooled():
    scores, labels = set_of(3)
    labels[:, 2] = 0
    labels[0, 2] = 1
    shared = fit(scores, labels, Recipe(min_positives=5)).shared
    assert shared.curve == sigmoid_curve(scores.ravel(), labels.ravel())


def test_scores_that_tell_nothing_give_the_share_of_positives():
    scores, labels = np.full((20, 1), 0.3, np.float32), np.zeros((20, 1), np.float32)
    labels[:5] = 1
    found = fit(scores, labels, Recipe(min_positives=2)).deciders
    assert found.probabilities(np.array([[0.1], [0.9]]))[:, 0] == pytest.approx([6 / 22, 6 / 22], rel=1e-5)
    everywhere = fit(scores, np.ones((20, 1)), Recipe()).deciders
    assert everywhere.probabilities(np.array([[0.3]]))[0, 0] == pytest.approx(21 / 22)


def test_an_unreachable_precision_is_said():
    scores, labels = np.array([[0.9], [0.5], [0.1]] * 10), np.array([[0], [1], [0]] * 10)
    found = fit(scores, labels, Recipe(precision=0.6)).deciders
    assert found.thresholds.tolist() == [math.inf]
    assert not found.present(scores).any()


# ---- judged on held-out clips


@pytest.mark.parametrize("method", ["sigmoid", "isotonic"])
def test_a_clip_is_judged_by_what_has_not_seen_it(method):
    scores, labels = set_of(3)
    recipe = Recipe(method=method, folds=4)
    before = crossfit(scores, labels, recipe)
    changed = labels.copy()
    changed[7] = 1 - changed[7]
    after = crossfit(scores, changed, recipe)
    differs = (before.probabilities != after.probabilities).any(axis=1)
    assert not differs[7]
    assert differs.sum() >= 40, "the clips of the other folds are judged by fits that have seen it"
    # Both are what fits to the other folds alone say.
    fold_of = np.random.default_rng(0).permutation(80) % 4
    own = fit(scores[fold_of != fold_of[7]], labels[fold_of != fold_of[7]], recipe).deciders
    np.testing.assert_array_equal(before.probabilities[7], own.probabilities(scores[7]))
    np.testing.assert_array_equal(before.present[7], own.present(scores[7]))


def test_held_out_figures_do_not_flatter_scores_that_know_nothing():
    rng = np.random.default_rng(3)
    scores, labels = rng.random((120, 5)), (rng.random((120, 5)) < 0.2).astype(np.float32)
    recipe = Recipe(method="isotonic")
    seen = fit(scores, labels, recipe).deciders.probabilities(scores)
    held_out = crossfit(scores, labels, recipe).probabilities
    rate = labels.mean()
    assert ((seen - labels) ** 2).mean() < rate * (1 - rate) < ((held_out - labels) ** 2).mean()


# ---- bad input

RECIPES = {
    "method": ("method of a calibration is 'beta'", {"method": "beta"}),
    "precision 0": ("precision of a calibration is 0", {"precision": 0.0}),
    "precision 80": ("precision of a calibration is 80", {"precision": 80.0}),
    "min_positives": ("min_positives of a calibration is 0", {"min_positives": 0}),
    "folds": ("folds of a calibration is 1", {"folds": 1}),
}


@pytest.mark.parametrize("name", RECIPES)
def test_an_impossible_recipe(name):
    message, fields = RECIPES[name]
    with pytest.raises(CalibrationError, match=message):
        Recipe(**fields)


def test_bad_scores_and_labels():
    scores, labels = set_of(2)
    bad = scores.copy()
    bad[3, 1] = np.nan
    for function in (fit, crossfit):
        with pytest.raises(CalibrationError, match="clip 3 has the score nan for class 1"):
            function(bad, labels, Recipe())
        with pytest.raises(CalibrationError, match="none of the 80 clips has a label"):
            function(scores, 0 * labels, Recipe())
        with pytest.raises(CalibrationError, match=r"scores have shape \(80, 2\) and labels \(80, 1\)"):
            function(scores, labels[:, :1], Recipe())
        with pytest.raises(CalibrationError, match="with a clip at least"):
            function(scores[:0], labels[:0], Recipe())
    with pytest.raises(CalibrationError, match="4 clips do not make 5 folds"):
        crossfit(scores[:4], labels[:4], Recipe())
