"""Calibration and decision metrics against scikit-learn and values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, f1_score, precision_score, recall_score

from psla_jax.tagging.calibration.metrics import calibration_metrics, decision_metrics, expected_calibration_error


def test_calibration_error_by_hand():
    # Two bins. Lower: 0.1, 0.2, 0.3 with one positive: |0.6 - 1| = 0.4. Upper: 0.5, 0.9 with two: |1.4 - 2| = 0.6.
    probabilities, labels = np.array([0.1, 0.2, 0.3, 0.5, 0.9]), np.array([0, 1, 0, 1, 1])
    assert expected_calibration_error(probabilities, labels, bins=2) == pytest.approx((0.4 + 0.6) / 5)
    # One probability per bin: the mean of |0.1|, |0.8|, |0.3|, |0.5|, |0.1|.
    assert expected_calibration_error(probabilities, labels, bins=10) == pytest.approx(1.8 / 5)


def test_scores_outside_the_unit_interval_are_taken_for_its_ends():
    scores, labels = np.array([[-0.5], [1.25], [1.0]]), np.array([[0], [1], [0]])
    assert calibration_metrics(scores, labels) == calibration_metrics(np.array([[0.0], [1.0], [1.0]]), labels)
    assert calibration_metrics(scores, labels).brier == pytest.approx(1 / 3)
    assert calibration_metrics(scores, labels).ece == pytest.approx(1 / 3)


def test_against_scikit_learn():
    rng = np.random.default_rng(0)
    probabilities, labels = rng.random((50, 6)), (rng.random((50, 6)) < 0.3).astype(np.float32)
    labels[:, 4] = 0
    metrics = calibration_metrics(probabilities, labels)
    assert metrics.brier == pytest.approx(brier_score_loss(labels.ravel(), probabilities.ravel()))
    per_class = [expected_calibration_error(probabilities[:, i], labels[:, i]) for i in range(6)]
    assert metrics.ece_per_class == pytest.approx(np.mean(per_class))
    present, scored = probabilities > 0.6, [0, 1, 2, 3, 5]
    metrics = decision_metrics(present, labels)
    truth, predicted = labels[:, scored], present[:, scored]
    assert metrics.micro_f1 == pytest.approx(f1_score(truth, predicted, average="micro"))
    assert metrics.macro_f1 == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert metrics.precision == pytest.approx(precision_score(truth, predicted, average="micro"))
    assert metrics.recall == pytest.approx(recall_score(truth, predicted, average="micro"))
    np.testing.assert_allclose(metrics.per_class["f1"][scored], f1_score(truth, predicted, average=None))
    assert np.isnan(metrics.per_class["f1"][4])


def test_undefined_metrics_are_nan():
    nothing = decision_metrics(np.zeros((3, 2), bool), np.zeros((3, 2)))
    assert math.isnan(nothing.micro_f1)
    assert math.isnan(nothing.macro_f1)
    assert math.isnan(calibration_metrics(np.zeros((3, 0)), np.zeros((3, 0))).ece)
    assert math.isnan(decision_metrics(np.zeros((3, 1), bool), np.ones((3, 1))).precision)
