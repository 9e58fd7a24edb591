"""Table of the classes and confusion matrix, against scikit-learn."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    confusion_matrix,
    f1_score,
    precision_recall_curve,
    roc_auc_score,
)

from psla_jax.evaluation import per_class
from psla_jax.evaluation.scores import Scores
from psla_jax.vocabulary.vocabulary import Vocabulary

VOCABULARY = Vocabulary(
    tuple(f"/m/{i}" for i in range(6)), ("Dog", "Cat, big", 'A "quoted" one', "Bird", "Never", "Cow")
)


def random_scores(seed: int, *, ties: bool = False, exclusive: bool = False) -> Scores:
    """Returns scores of 80 clips that are higher for their labels; no clip has the class Never."""
    rng = np.random.default_rng(seed)
    labels = rng.random((80, 6)) < 0.2
    if exclusive:
        labels = np.eye(6, dtype=bool)[rng.choice([0, 1, 2, 3, 5], 80)]
    labels[:, 4] = False
    scores = (rng.random((80, 6)) + 0.4 * labels).astype(np.float32)
    if ties:
        scores = np.round(scores, 1)
    return Scores(np.array([f"{i}.wav" for i in range(80)]), scores, labels.astype(np.float32))


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("ties", [False, True])
def test_the_table_agrees_with_scikit_learn(tmp_path, ties):
    scores = random_scores(0, ties=ties)
    per_class.write_all(tmp_path, "evaluation_average", [scores], scores.metrics(), VOCABULARY)
    rows = read(tmp_path / "per_class" / "evaluation_average.csv")
    assert list(rows[0]) == ["class", "mid", "AP", "AUC", "positives", "threshold", "F1"]
    assert [(row["class"], row["mid"]) for row in rows] == list(zip(VOCABULARY.names, VOCABULARY.mids))
    for row, column, truth in zip(rows, scores.scores.T, scores.labels.T):
        assert int(row["positives"]) == truth.sum()
        if row["class"] == "Never":
            assert [row[name] for name in ("AP", "AUC", "threshold", "F1")] == [""] * 4
            continue
        precision, recall, _ = precision_recall_curve(truth, column)
        best = np.max(2 * precision * recall / np.maximum(precision + recall, 1e-9))
        reached = f1_score(truth, column.astype(np.float64) >= float(row["threshold"]))
        expected = average_precision_score(truth, column), roc_auc_score(truth, column), best, best
        assert [float(row[name]) for name in ("AP", "AUC", "F1")] + [reached] == pytest.approx(expected, abs=1e-8)
    assert not (tmp_path / "confusion").exists()


def test_the_table_of_several_epochs_has_their_means_and_no_threshold(tmp_path):
    members = [random_scores(seed) for seed in (0, 1)]
    members[1] = Scores(members[0].clips, members[1].scores, members[0].labels)
    per_class.write_all(tmp_path, "single", members, members[0].metrics(), VOCABULARY)
    row = read(tmp_path / "per_class" / "single.csv")[1]
    assert float(row["F1"]) == pytest.approx(np.mean([per_class.best_f1(scores)[1, 1] for scores in members]))
    assert row["threshold"] == ""


@pytest.mark.parametrize("ties", [False, True])
def test_the_confusion_matrix_is_scikit_learns_and_its_diagonal_the_accuracy(tmp_path, ties):
    scores = random_scores(2, ties=ties, exclusive=True)
    per_class.write_all(tmp_path, "evaluation_best", [scores], scores.metrics(), VOCABULARY)
    with open(tmp_path / "confusion" / "evaluation_best.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["true class", *VOCABULARY.names]
    assert [row[0] for row in rows] == list(VOCABULARY.names)
    matrix = np.array([list(map(int, row[1:])) for row in rows])
    truth, predicted = scores.labels.argmax(axis=1), scores.scores.argmax(axis=1)
    np.testing.assert_array_equal(matrix, confusion_matrix(truth, predicted, labels=range(6)))
    assert np.trace(matrix) / 80 == pytest.approx(scores.metrics().accuracy)
