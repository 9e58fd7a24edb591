"""Decisions that a threshold can make on the scores of a class."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class OperatingPoints:
    """All distinct decisions that a threshold can make on the scores of a class, from the highest threshold down."""

    thresholds: np.ndarray
    """`(points,)`, halfway between two consecutive scores; the last one is the lowest score."""
    true_positives: np.ndarray
    """Number of positives at or above each threshold, `(points,)`."""
    detections: np.ndarray
    """Number of clips at or above each threshold, `(points,)`."""
    positives: int

    @classmethod
    def from_scores(cls, scores: np.ndarray, labels: np.ndarray) -> OperatingPoints:
        """Returns the operating points of scores and labels `(clips,)`; clips of equal score are never separated."""
        order = np.argsort(-scores, kind="stable")
        ranked = scores[order].astype(np.float64)
        ends = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(ranked) - 1)
        next_lower = ranked[np.minimum(ends + 1, len(ranked) - 1)]
        true_positives = np.cumsum(labels[order] > 0.5)[ends]
        return cls((ranked[ends] + next_lower) / 2, true_positives, ends + 1, int(true_positives[-1]))

    def f1(self) -> np.ndarray:
        """Returns the F1 at each threshold, `(points,)`; at least one clip must be positive."""
        return 2 * self.true_positives / (self.detections + self.positives)

    def best_f1_threshold(self) -> float:
        """Returns the threshold with the best F1; of several, the highest."""
        return float(self.thresholds[np.argmax(self.f1())])

    def lowest_threshold(self, precision: float) -> float:
        """Returns the lowest threshold with at least this precision; infinity if there is none."""
        reached = np.flatnonzero(self.true_positives >= precision * self.detections)
        return float(self.thresholds[reached[-1]]) if len(reached) else math.inf
