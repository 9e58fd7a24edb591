"""Metrics against scikit-learn, on random scores with and without ties."""

from __future__ import annotations

import dataclasses
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import scipy.stats
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from psla_jax.evaluation import metrics
from psla_jax.evaluation.metrics import (
    Interval,
    MetricsError,
    average_precision,
    bootstrap,
    d_prime,
    evaluate,
    middle_precision_recall,
    roc_auc,
)


def one_class(count: int = 300) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields scores and labels of one class, of any length and share of positives, from no ties to a constant score."""
    rng = np.random.default_rng(0)
    for draw in range(count):
        clips = int(rng.integers(2, 60))
        labels = rng.random(clips) < rng.choice([0.05, 0.5, 0.95])
        labels[rng.integers(clips)] = True
        scores = rng.standard_normal(clips) + labels
        levels = (None, 8.0, 2.0, 0.5, 0.0)[draw % 5]
        scores = scores if levels is None else np.rint(scores * levels)
        yield scores.astype((np.float32, np.float64)[draw % 2]), labels


def many_classes(rng: np.random.Generator, clips: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns scores, with ties in a third of the classes, and labels; class 0 is never and class 1 always positive."""
    labels = rng.random((clips, classes)) < rng.uniform(0.01, 0.6, classes)
    labels[:, 0], labels[:, 1] = False, True
    labels[0, 2:] = True
    scores = (rng.standard_normal((clips, classes)) + labels).astype(np.float32)
    scores[:, ::3] = np.rint(scores[:, ::3])
    return scores, labels


def test_average_precision_is_scikit_learns() -> None:
    for scores, labels in one_class():
        assert average_precision(scores, labels) == pytest.approx(average_precision_score(labels, scores), abs=1e-12)


def test_auc_is_scikit_learns() -> None:
    for scores, labels in one_class():
        if labels.all():
            continue
        assert roc_auc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_the_middle_of_the_curve_is_scikit_learns() -> None:
    for scores, labels in one_class():
        precision, recall, _ = precision_recall_curve(labels, scores)
        expected = precision[len(precision) // 2], recall[len(recall) // 2]
        assert middle_precision_recall(scores, labels) == pytest.approx(expected, abs=1e-12)


def test_values_computed_by_hand() -> None:
    assert average_precision([3, 2, 1], [1, 0, 1]) == pytest.approx((1 + 2 / 3) / 2)
    assert roc_auc([3, 2, 1], [1, 0, 1]) == 0.5
    assert average_precision([7, 7, 7, 7], [1, 0, 0, 0]) == 0.25
    assert roc_auc([7, 7, 7, 7], [1, 0, 0, 0]) == 0.5
    assert middle_precision_recall([7, 7], [1, 0]) == (1.0, 0.0)
    assert average_precision([0.1, 0.2], [1, 1]) == 1.0
    assert average_precision([-np.inf, np.inf], [0, 1]) == 1.0
    assert roc_auc([0.0, -0.0], [0, 1]) == 0.5


def test_order_of_the_clips_and_scale_of_the_scores_do_not_matter() -> None:
    rng = np.random.default_rng(3)
    scores, labels = rng.integers(0, 9, 50), rng.random(50) < 0.3
    order = rng.permutation(50)
    for metric in (average_precision, roc_auc, middle_precision_recall):
        assert metric(scores, labels) == metric(scores[order] * 5 - 3, labels[order])


def test_d_prime() -> None:
    for auc in (1e-9, 0.2, 0.5, 0.974, 1 - 1e-9):
        assert d_prime(auc) == pytest.approx(math.sqrt(2) * scipy.stats.norm.ppf(auc), abs=1e-9)
    assert d_prime(0.974) == pytest.approx(2.75, abs=0.005)
    assert (d_prime(1), d_prime(0)) == (math.inf, -math.inf)
    assert math.isnan(d_prime(math.nan))
    for auc in (-0.1, 1.1):
        with pytest.raises(MetricsError, match=str(auc)):
            d_prime(auc)


def test_evaluate_is_the_mean_over_the_classes_that_have_positives() -> None:
    scores, labels = many_classes(np.random.default_rng(1), 200, 40)
    result = evaluate(scores, labels)
    scored, both = range(1, 40), range(2, 40)
    ap = [average_precision_score(labels[:, c], scores[:, c]) for c in scored]
    auc = [roc_auc_score(labels[:, c], scores[:, c]) for c in both]
    middles = [middle_precision_recall(scores[:, c], labels[:, c]) for c in scored]
    np.testing.assert_allclose(result.per_class_ap, [np.nan, *ap], atol=1e-12)
    np.testing.assert_allclose(result.per_class_auc, [np.nan, np.nan, *auc], atol=1e-12)
    assert result.mAP == pytest.approx(np.mean(ap))
    assert result.mAUC == pytest.approx(np.mean(auc))
    assert result.d_prime == d_prime(result.mAUC)
    assert (result.precision, result.recall) == pytest.approx(tuple(np.mean(middles, axis=0)))
    assert (result.num_clips, result.num_classes, result.num_scored) == (200, 40, 39)
    assert math.isnan(result.accuracy)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.mAP = 1.0  # type: ignore[misc]


def test_labels_may_have_any_numeric_type() -> None:
    scores, labels = many_classes(np.random.default_rng(1), 50, 5)
    expected = evaluate(scores, labels).mAP
    for dtype in (np.float32, np.int64, np.uint8):
        assert evaluate(scores, labels.astype(dtype)).mAP == expected


def test_accuracy_is_defined_if_every_clip_has_one_label() -> None:
    scores = np.array([[0.9, 0.1], [0.8, 0.3], [0.2, 0.7], [0.6, 0.4]], np.float32)
    labels = np.array([[1, 0], [0, 1], [0, 1], [1, 0]])
    assert evaluate(scores, labels).accuracy == 0.75
    labels[0, 1] = 1
    assert math.isnan(evaluate(scores, labels).accuracy)


def test_auc_is_undefined_without_a_negative_clip() -> None:
    result = evaluate(np.array([[0.1], [0.2]], np.float32), np.ones((2, 1)))
    assert (result.mAP, result.num_scored) == (1.0, 1)
    assert math.isnan(result.mAUC)
    assert math.isnan(result.d_prime)


def test_bootstrap_equals_a_loop_over_resampled_clips() -> None:
    scores, labels = many_classes(np.random.default_rng(2), 60, 7)
    labels[:, 3] = np.arange(60) == 5
    counts = metrics._counts(60, 11, range(20)).astype(int)
    assert (counts.sum(0) == 60).all()
    assert counts.max() > 1
    assert (counts[5] == 0).any(), "class 3 should be missing from a resample"
    means = []
    for weights in counts.T:
        drawn = np.repeat(np.arange(60), weights)
        present = [c for c in range(7) if labels[drawn, c].any()]
        means.append(np.mean([average_precision_score(labels[drawn, c], scores[drawn, c]) for c in present]))
    centred = np.array(means) - np.mean(means) + evaluate(scores, labels).mAP
    interval = bootstrap(scores, labels, resamples=20, seed=11, level=0.9)
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(centred, [0.05, 0.95])), abs=1e-12)


def test_bootstrap_does_not_depend_on_the_sizes_of_its_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    scores, labels = many_classes(np.random.default_rng(4), 100, 40)
    whole = bootstrap(scores, labels, resamples=30)
    monkeypatch.setattr(metrics, "_WEIGHT_BYTES", 4 * 100 * 7)
    monkeypatch.setattr(metrics, "_CLASSES_PER_TASK", 3)
    divided = bootstrap(scores, labels, resamples=30)
    assert (divided.low, divided.high) == pytest.approx((whole.low, whole.high), abs=1e-12)
    assert bootstrap(scores, labels, resamples=30, seed=1) != whole
    wider = bootstrap(scores, labels, resamples=30, level=0.99)
    assert wider.low < whole.low < whole.high < wider.high
    assert isinstance(whole, Interval)


def test_bootstrap_discards_resamples_without_a_positive_label() -> None:
    labels = np.zeros((3, 1))
    labels[0] = 1
    assert (metrics._counts(3, 0, range(50))[0] == 0).any()
    interval = bootstrap(np.array([[1.0], [0.5], [0.2]]), labels, resamples=50)
    assert interval == Interval(1.0, 1.0)
    without_label = next(s for s in range(100) if metrics._counts(3, s, range(1))[0, 0] == 0)
    with pytest.raises(MetricsError, match="none of the 1 resamples"):
        bootstrap(np.array([[1.0], [0.5], [0.2]]), labels, resamples=1, seed=without_label)


def test_there_are_no_warnings() -> None:
    scores, labels = many_classes(np.random.default_rng(5), 30, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluate(scores, labels)
        bootstrap(scores, labels, resamples=10)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (np.zeros((3, 2)), np.ones((2, 3)), r"\(3, 2\) and labels \(2, 3\)"),
        (np.zeros(3), np.ones(3), r"pass \(clips, classes\)"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "no clip or no class"),
        (np.zeros((2, 0)), np.zeros((2, 0)), "no clip or no class"),
        (np.array([[0.1, np.nan]]), np.ones((1, 2)), "1 of 2 scores are NaN"),
        (np.zeros((2, 2)), np.full((2, 2), 0.5), "a label is 0.5"),
        (np.zeros((2, 2)), np.array([[1, 0], [np.nan, 0]]), "a label is nan"),
        (np.zeros((2, 2)), np.zeros((2, 2)), "none of 2 clips has a label"),
    ],
)
def test_invalid_scores_and_labels_are_refused(scores: np.ndarray, labels: np.ndarray, message: str) -> None:
    for function in (evaluate, bootstrap):
        with pytest.raises(MetricsError, match=message):
            function(scores, labels)


def test_metrics_of_one_class_require_positive_and_negative_clips() -> None:
    for metric in (average_precision, roc_auc, middle_precision_recall):
        with pytest.raises(MetricsError, match="positive"):
            metric([0.1, 0.2], [0, 0])
        with pytest.raises(MetricsError, match=r"pass \(clips,\)"):
            metric([[0.1]], [[1]])
    with pytest.raises(MetricsError, match="2 of 2 labels are 1"):
        roc_auc([0.1, 0.2], [1, 1])


@pytest.mark.parametrize("setting", [{"resamples": 0}, {"seed": -1}, {"level": 1.0}, {"level": 0.0}])
def test_bootstrap_settings_out_of_range_are_refused(setting: dict[str, float]) -> None:
    name, value = next(iter(setting.items()))
    with pytest.raises(MetricsError, match=f"{name} is {value}"):
        bootstrap(np.zeros((2, 1)), np.ones((2, 1)), **setting)  # type: ignore[arg-type]


def test_importing_the_metrics_loads_no_large_library() -> None:
    large = ("jax", "sklearn", "scipy", "torch")
    program = f"import sys, psla_jax.evaluation.metrics; print([m for m in {large} if m in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
