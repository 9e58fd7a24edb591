"""Metrics as users write them; configs name them ``measures:report`` and so on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def report(
    scores: np.ndarray, labels: np.ndarray, names: Sequence[str], clips: Sequence[str], exclusive: bool
) -> dict[str, float]:
    """Several values, with what is known of the columns and rows."""
    return {
        "classes": len(names),
        "clips": np.int64(len(clips)),
        "exclusive": float(exclusive),
        "mean score (all)": scores.mean(),
    }


def worst(scores: np.ndarray, labels: np.ndarray, mids: Sequence[str], factor: float = 1.0) -> np.float32:
    """A value that falls as the tagger learns, so that the first epoch is selected."""
    assert scores.shape == labels.shape == (len(scores), len(mids))
    return -factor * np.abs(scores - 0.5).mean()


def failing(scores: np.ndarray, labels: np.ndarray) -> float:
    raise KeyError("no such column")


def undefined(scores: np.ndarray, labels: np.ndarray) -> float:
    return float("nan")


def text(scores: np.ndarray, labels: np.ndarray) -> str:
    return "good"


def per_class(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return scores.mean(axis=0)


def demanding(scores: np.ndarray, labels: np.ndarray, embeddings: np.ndarray) -> float:
    return float(embeddings.mean())


def lwlrap(scores: np.ndarray, labels: np.ndarray) -> float:
    return 0.5
