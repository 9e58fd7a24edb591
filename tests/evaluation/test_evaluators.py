"""Further metrics: values against scikit-learn, what callables receive and may return, and their errors."""

from __future__ import annotations

import functools
import math

import measures
import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    label_ranking_average_precision_score,
    top_k_accuracy_score,
)

from psla_jax.data import datafile
from psla_jax.data.datafile import Datafile
from psla_jax.evaluation.evaluators import EVALUATORS, Evaluators, column
from psla_jax.evaluation.metrics import evaluate
from psla_jax.evaluation.scores import Scores
from psla_jax.vocabulary.vocabulary import Vocabulary

VOCABULARY = Vocabulary(("/m/a", "/m/b", "/m/c"), ("A", "B", "C"))


def drawn(seed: int, exclusive: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns scores, with ties for odd seeds, and labels of 60 clips and 9 classes; class 0 has no positive clip."""
    rng = np.random.default_rng(seed)
    labels = np.eye(9)[rng.integers(1, 9, 60)] if exclusive else (rng.random((60, 9)) < 0.3).astype(float)
    labels[:, 0] = 0
    scores = np.clip(0.3 * labels + 0.7 * rng.random((60, 9)), 0, 1)
    return (np.rint(8 * scores) / 8 if seed % 2 else scores).astype(np.float32), labels.astype(np.float32)


@pytest.mark.parametrize("seed", range(6))
def test_the_values_are_those_of_scikit_learn(seed: int) -> None:
    scores, labels = drawn(seed, exclusive=False)
    counts = labels.sum(axis=1)
    labelled = counts > 0
    expected = {
        "lwlrap": label_ranking_average_precision_score(
            labels[labelled], scores[labelled], sample_weight=counts[labelled]
        ),
        "micro_f1": f1_score(labels, scores >= 0.5, average="micro"),
        "macro_f1": f1_score(labels[:, 1:], scores[:, 1:] >= 0.5, average="macro"),
        "accuracy": accuracy_score(labels, scores >= 0.5),
        "micro_map": average_precision_score(labels, scores, average="micro"),
    }
    values = {name: EVALUATORS[name](scores, labels) for name in expected}
    assert values == pytest.approx(expected, rel=1e-12)
    assert EVALUATORS["macro_f1"](scores, labels, threshold=0.25) == pytest.approx(
        f1_score(labels[:, 1:], scores[:, 1:] >= 0.25, average="macro"), rel=1e-12
    )
    scores, labels = drawn(2 * seed, exclusive=True)
    classes = labels.argmax(axis=1)
    assert EVALUATORS["accuracy"](scores, labels) == evaluate(scores, labels).accuracy
    assert EVALUATORS["accuracy"](scores, labels) == accuracy_score(classes, scores.argmax(axis=1))
    for k in (1, 3):
        expected_top = top_k_accuracy_score(classes, scores, k=k, labels=range(9))
        assert EVALUATORS["top_k"](scores, labels, k=k) == pytest.approx(expected_top, rel=1e-12)


def test_a_clip_with_several_labels_is_hit_by_any_of_them_and_one_without_is_left_out() -> None:
    scores = np.array([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.9, 0.5, 0.1]])
    labels = np.array([[0, 1, 1], [0, 0, 1], [0, 0, 0]])
    assert EVALUATORS["top_k"](scores, labels, k=2) == 0.5


@pytest.fixture
def data(tmp_path) -> Datafile:
    """Five clips of three classes, of which the last has no clip."""
    labels = [["/m/a"], ["/m/b"], ["/m/a", "/m/b"], [], ["/m/a"]]
    datafile.write(tmp_path / "five.json", [(f"{i}.wav", mids) for i, mids in enumerate(labels)])
    return Datafile.read(tmp_path / "five.json", VOCABULARY)


def test_callables_receive_what_they_name_and_may_return_several_numbers(data) -> None:
    metrics = ("lwlrap", measures.report, functools.partial(measures.worst, factor=2.0), "micro_f1(threshold=0.1)")
    evaluators = Evaluators.find(metrics, VOCABULARY, exclusive=True)
    names = [
        *("lwlrap", "report/classes", "report/clips", "report/exclusive", "report/mean_score_all"),
        *("worst_factor_2.0", "micro_f1_threshold_0.1"),
    ]
    assert evaluators.require_defined(data) == names
    scores = np.array([[0.9, 0.05, 0.0], [0.2, 0.6, 0.0]], np.float32)
    values = evaluators(Scores(np.array(["x", "y"]), scores, np.eye(3, dtype=np.float32)[:2]))
    deviations = (0.4 + 0.45 + 0.5 + 0.3 + 0.1 + 0.5) / 6
    expected = [1.0, 3, 2, 1.0, 1.75 / 6, -2 * deviations, 2 * 2 / (3 + 2)]
    assert list(values) == names
    assert list(values.values()) == pytest.approx(expected, rel=1e-6)
    assert all(type(value) is float for value in values.values())
    assert Evaluators.find((), VOCABULARY).require_defined(data) == []


WRONG = {
    "f1": "metrics is 'f1': 'f1' is unknown: choose one of lwlrap, micro_f1",
    "micro_f1(limit=1)": "micro_f1 has no option 'limit': its parameters are scores, labels, threshold",
    "measures:nothing": "'measures:nothing' cannot be imported",
    "measures:failing": "failing cannot be computed for scores and labels of the shape (5, 3) (KeyError: 'no such",
    "macro_f1(threshold=30)": "(ValueError: the threshold 30 is not in (0, 1]): correct the metric or its options",
    "micro_f1(threshold=0)": "(ValueError: the threshold 0 is not in (0, 1])",
    "top_k(k=3)": "(ValueError: k is 3 for 3 classes)",
    "top_k(k=0)": "(ValueError: k is 0 for 3 classes)",
    "measures:undefined": "undefined is nan for random scores of the clips in ",
    "measures:text": "text is 'good': return a number or a dictionary of numbers",
    "measures:per_class": "per_class is array([",
    "measures:demanding": "cannot be called (missing a required argument: 'embeddings'): it may take names, mids",
    "measures:lwlrap lwlrap": "a second metric of the name 'lwlrap'",
}


@pytest.mark.parametrize("texts", WRONG)
def test_a_metric_that_does_not_fit_is_an_error_of_one_sentence(data, texts: str) -> None:
    with pytest.raises(ValueError, match="metrics") as raised:
        Evaluators.find(texts.split(" "), VOCABULARY).require_defined(data)
    assert type(raised.value).__module__.startswith("psla_jax.")
    assert WRONG[texts] in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_value_that_becomes_undefined_later_is_reported_as_such() -> None:
    scores = Scores(np.array(["x"]), np.ones((1, 3), np.float32), np.ones((1, 3), np.float32))
    assert math.isnan(Evaluators.find((measures.undefined,), VOCABULARY)(scores)["undefined"])


@pytest.mark.parametrize(
    ("text", "name"),
    [("top_k(k=3)", "top_k_k_3"), ("a.b:C.of(names=('x', 'y'))", "C.of_names_x_y"), ("lwlrap", "lwlrap")],
)
def test_a_column_has_characters_that_all_trackers_accept(text: str, name: str) -> None:
    assert column(text) == name
