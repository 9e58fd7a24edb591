"""Further metrics of a run or an evaluation, by name or as callables: the setting ``metrics``.

A metric is called as ``metric(scores, labels, **further)``: scores ``(clips, classes)`` float32, labels of this shape,
0 or 1, and by name those of ``names``, ``mids``, ``clips`` (ids) and ``exclusive`` (whether every clip has exactly one
class) that are named among its parameters. It returns a number, or a dictionary of numbers.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from psla_jax import ingredients
from psla_jax.data.datafile import Datafile
from psla_jax.evaluation.metrics import MetricsError, evaluate
from psla_jax.evaluation.scores import Scores
from psla_jax.evaluation.tables import EPOCH_COLUMNS
from psla_jax.ingredients import Ingredient
from psla_jax.vocabulary.vocabulary import Vocabulary

FIELD = "metrics"


def lwlrap(scores: np.ndarray, labels: np.ndarray) -> float:
    """Returns the label-weighted label-ranking average precision (DCASE 2019, task 2).

    For every label of a clip, it is the fraction of labels among the classes of the clip that score at least as high;
    the mean is over all labels of all clips.
    """
    precisions = []
    for clip_scores, positive in zip(scores, labels > 0.5):
        own = clip_scores[positive][:, None]
        precisions.append((clip_scores[positive] >= own).sum(axis=1) / (clip_scores >= own).sum(axis=1))
    return float(np.concatenate(precisions).mean())


def micro_f1(scores: np.ndarray, labels: np.ndarray, threshold: float = 0.5) -> float:
    """Returns the F1 of all decisions ``score >= threshold`` together."""
    _require_threshold(threshold)
    detected, positive = scores >= threshold, labels > 0.5
    return float(2 * (detected & positive).sum() / (detected.sum() + positive.sum()))


def macro_f1(scores: np.ndarray, labels: np.ndarray, threshold: float = 0.5) -> float:
    """Returns the mean F1 of the decisions ``score >= threshold``, over the classes with a positive clip."""
    _require_threshold(threshold)
    detected, positive = scores >= threshold, labels > 0.5
    scored = positive.any(axis=0)
    f1 = 2 * (detected & positive).sum(axis=0)[scored] / (detected.sum(axis=0) + positive.sum(axis=0))[scored]
    return float(f1.mean())


def accuracy(scores: np.ndarray, labels: np.ndarray, threshold: float = 0.5) -> float:
    """Returns the fraction of clips whose labels are predicted exactly.

    If every clip has one label, the class with the highest score is predicted; otherwise all classes with scores of
    `threshold` or more, as in scikit-learn's ``accuracy_score``.
    """
    _require_threshold(threshold)
    if (np.count_nonzero(labels, axis=1) == 1).all():
        return float(np.mean(scores.argmax(axis=1) == labels.argmax(axis=1)))
    return float(np.mean(((scores >= threshold) == (labels > 0.5)).all(axis=1)))


def top_k(scores: np.ndarray, labels: np.ndarray, k: int = 5) -> float:
    """Returns the fraction of labelled clips that have a label among their `k` classes with the highest scores."""
    if not 0 < k < scores.shape[1]:
        raise ValueError(f"k is {k} for {scores.shape[1]} classes")
    labelled = labels.any(axis=1)
    highest = np.argsort(-scores[labelled], axis=1, kind="stable")[:, :k]
    return float(np.take_along_axis(labels[labelled], highest, axis=1).any(axis=1).mean())


def _require_threshold(threshold: float) -> None:
    """Raises ValueError for a threshold that decides the same for all scores."""
    if not 0 < threshold <= 1:
        raise ValueError(f"the threshold {threshold} is not in (0, 1]")


def micro_map(scores: np.ndarray, labels: np.ndarray) -> float:
    """Returns the average precision of all pairs of a clip and a class as one list."""
    return evaluate(scores.reshape(-1, 1), labels.reshape(-1, 1)).mAP


EVALUATORS: dict[str, Callable[..., Any]] = {
    "lwlrap": lwlrap,
    "micro_f1": micro_f1,
    "macro_f1": macro_f1,
    "accuracy": accuracy,
    "top_k": top_k,
    "micro_map": micro_map,
}


@dataclass(frozen=True)
class Evaluators:
    """The further metrics of a run, by the name of their column."""

    functions: Mapping[str, Callable[..., Any]]
    vocabulary: Vocabulary
    exclusive: bool = False

    @classmethod
    def find(cls, metrics: Sequence[Ingredient], vocabulary: Vocabulary, exclusive: bool = False) -> Evaluators:
        """Returns the metrics of a config.

        Raises IngredientError if one cannot be found, and MetricsError if two have the same name.
        """
        functions: dict[str, Callable[..., Any]] = {}
        for text in map(ingredients.specification, metrics):
            name = column(text)
            if name in functions or name in EPOCH_COLUMNS:
                raise MetricsError(f"{FIELD} has a second metric of the name {name!r}: remove it, or rename it.")
            functions[name] = ingredients.find(text, EVALUATORS, FIELD)
        return cls(functions, vocabulary, exclusive)

    def __call__(self, scores: Scores) -> dict[str, float]:
        """Returns the value of every metric; a dictionary ``{key: value}`` of one has the names ``metric/key``.

        Raises:
            IngredientError: the metric requires a parameter that is not available.
            MetricsError: the metric raises an exception, or returns something else than numbers.
        """
        values: dict[str, float] = {}
        for name, function in self.functions.items():
            values |= _numbers(name, self._value(name, function, scores))
        return values

    def _value(self, name: str, function: Callable[..., Any], scores: Scores) -> Any:
        available = {
            "names": self.vocabulary.names,
            "mids": self.vocabulary.mids,
            "clips": scores.clips,
            "exclusive": self.exclusive,
        }
        try:
            return ingredients.call(function, scores.scores, scores.labels, field=FIELD, **available)
        except ingredients.IngredientError:
            raise
        except Exception as error:
            raise MetricsError(
                f"{FIELD}: {name} cannot be computed for scores and labels of the shape {scores.scores.shape} "
                f"({ingredients.reason(error)}): correct the metric or its options, or remove it."
            ) from error

    def require_defined(self, data: Datafile) -> list[str]:
        """Computes every metric for random scores of the clips in `data`, before a training; returns their names.

        Raises MetricsError or IngredientError as a call, and MetricsError if a value is not finite.
        """
        if not self.functions:
            return []
        clips, classes = len(data), len(self.vocabulary)
        labels = np.stack([data.multi_hot(i) for i in range(clips)]).astype(np.float32)
        scores = np.random.default_rng(0).uniform(size=(clips, classes)).astype(np.float32)
        values = self(Scores(np.array([data.clip_id(i) for i in range(clips)]), scores, labels))
        for name, value in values.items():
            if not math.isfinite(value):
                raise MetricsError(
                    f"{FIELD}: {name} is {value} for random scores of the clips in {data.source}: return a finite "
                    "number, for example by leaving out classes without a positive clip."
                )
        return list(values)


def column(specification: str) -> str:
    """Returns the name of a metric in tables: that of the function and its options, as in ``micro_f1_threshold_0.3``.

    It has only characters that TensorBoard, W&B and MLflow accept.
    """
    name, options = ingredients.parse(specification)
    parts = [name.rpartition(":")[2], *(f"{option}_{value}" for option, value in options.items())]
    return _plain("_".join(parts))


def _plain(text: str) -> str:
    return re.sub(r"(_|[^\w.-])+", "_", text).strip("_")


def _numbers(name: str, value: Any) -> dict[str, float]:
    """Returns the value or values of a metric as numbers by name. Raises MetricsError if they are none."""
    values = {name: value}
    if isinstance(value, Mapping):
        values = {f"{name}/{_plain(str(key))}": each for key, each in value.items()}
    numbers = {}
    for key, each in values.items():
        if np.ndim(each) or not np.issubdtype(np.asarray(each).dtype, np.number) or np.iscomplexobj(each):
            raise MetricsError(f"{FIELD}: {key} is {each!r:.100}: return a number or a dictionary of numbers.")
        numbers[key] = float(each)
    return numbers
