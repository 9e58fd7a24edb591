"""Scores of a set of clips with their ids and labels, and the files that hold them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from psla_jax.evaluation.metrics import Metrics, evaluate
from psla_jax.runtime.files import NPZ_ERRORS, atomic_path


class ScoresError(ValueError):
    """Missing or unusable scores; the message names the file."""


@dataclass(frozen=True)
class Scores:
    """Scores of a model for the clips that could be read.

    Attributes:
        clips: `(clips,)` ids of the clips.
        scores: `(clips, classes)` float32.
        labels: `(clips, classes)` float32, 0 or 1.
        skipped: ids of the clips that could not be read; the arrays do not contain them.
        mids: classes in the order of the columns; empty if unknown.
    """

    clips: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    skipped: tuple[str, ...] = ()
    mids: tuple[str, ...] = ()

    def metrics(self) -> Metrics:
        """Returns the metrics of these clips."""
        return evaluate(self.scores, self.labels)

    def save(self, path: Path) -> None:
        """Writes an ``.npz`` file atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        labels = self.labels.astype(np.float16)
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, clips=self.clips, scores=self.scores, labels=labels, skipped=self.skipped, mids=self.mids)

    @classmethod
    def load(cls, path: Path) -> Scores:
        """Reads a file of :meth:`save`; raises ScoresError if it is damaged or of another kind."""
        try:
            with np.load(path, allow_pickle=False) as file:
                labels = file["labels"].astype(np.float32)
                mids = tuple(file["mids"].tolist()) if "mids" in file else ()
                return cls(file["clips"], file["scores"], labels, tuple(file["skipped"].tolist()), mids)
        except NPZ_ERRORS as error:
            raise ScoresError(f"{path} does not hold scores ({error}): delete it and run again.") from error
