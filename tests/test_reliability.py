"""Reliability figures against scikit-learn and a sum done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, f1_score, precision_score, recall_score

from psla_jax.reliability import decisions, expected_calibration_error, reliability


def test_calibration_error_by_hand():
    # Two bins. Lower: 0.1, 0.2, 0.3 with one positive: |0.6 - 1| = 0.4. Upper: 0.5, 0.9 with two: |1.4 - 2| = 0.6.
    probabilities, labels = np.array([0.1, 0.2, 0.3, 0.5, 0.9]), np.array([0, 1, 0, 1, 1])
    assert expected_calibration_error(probabilities, labels, bins=2) == pytest.approx((0.4 + 0.6) / 5)
    # Every probability in a bin of its own: the mean of |0.1|, |0.8|, |0.3|, |0.5|, |0.1|.
    assert expected_calibration_error(probabilities, labels, bins=10) == pytest.approx(1.8 / 5)


def test_scores_outside_the_unit_interval_are_taken_for_its_ends():
    odd, labels = np.array([[-0.5], [1.25], [1.0]]), np.array([[0], [1], [0]])
    assert reliability(odd, labels) == reliability(np.array([[0.0], [1.0], [1.0]]), labels)
    assert reliability(odd, labels).brier == pytest.approx(1 / 3)
    assert reliability(odd, labels).ece == pytest.approx(1 / 3)


def test_against_scikit_learn():
    rng = np.random.default_rng(0)
    probabilities, labels = rng.random((50, 6)), (rng.random((50, 6)) < 0.3).astype(np.float32)
    labels[:, 4] = 0
    found = reliability(probabilities, labels)
    assert found.brier == pytest.approx(brier_score_loss(labels.ravel(), probabilities.ravel()))
    by_class = [expected_calibration_error(probabilities[:, i], labels[:, i]) for i in range(6)]
    assert found.ece_per_class == pytest.approx(np.mean(by_class))
    present, scored = probabilities > 0.6, [0, 1, 2, 3, 5]
    found = decisions(present, labels)
    truth, said = labels[:, scored], present[:, scored]
    assert found.micro_f1 == pytest.approx(f1_score(truth, said, average="micro"))
    assert found.macro_f1 == pytest.approx(f1_score(truth, said, average="macro"))
    assert found.precision == pytest.approx(precision_score(truth, said, average="micro"))
    assert found.recall == pytest.approx(recall_score(truth, said, average="micro"))
    np.testing.assert_allclose(found.of_class["f1"][scored], f1_score(truth, said, average=None))
    assert np.isnan(found.of_class["f1"][4])


def test_nothing_to_measure_is_no_number():
    nothing = decisions(np.zeros((3, 2), bool), np.zeros((3, 2)))
    assert math.isnan(nothing.micro_f1)
    assert math.isnan(nothing.macro_f1)
    assert math.isnan(reliability(np.zeros((3, 0)), np.zeros((3, 0))).ece)
    assert math.isnan(decisions(np.zeros((3, 1), bool), np.ones((3, 1))).precision)
