"""Scores of a set of clips with their ids and labels, and the files that hold them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from psla_jax.audio.windows import OUTPUT_FRAME_SECONDS
from psla_jax.evaluation.metrics import Metrics, evaluate
from psla_jax.runtime.files import NPZ_ERRORS, atomic_path

MAX_EXAMPLES = 5
"""Number of unreadable clips that a note names."""


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
        left_out: `(clips,)` float32, seconds at the end of each clip that were not scored; empty if unknown.
    """

    clips: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    skipped: tuple[str, ...] = ()
    mids: tuple[str, ...] = ()
    left_out: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    def notes(self) -> list[str]:
        """Returns a sentence if clips could not be read, and one if the end of clips was not scored."""
        notes = []
        if self.skipped:
            examples = ", ".join(self.skipped[:MAX_EXAMPLES]) + (", ..." if len(self.skipped) > MAX_EXAMPLES else "")
            notes.append(f"{len(self.skipped):,} clips cannot be read: {examples}")
        long = self.left_out[self.left_out >= OUTPUT_FRAME_SECONDS]
        if len(long):
            notes.append(
                f"{len(long):,} of {len(self.clips):,} clips are longer than a window of the model, and "
                f"{long.sum():,.0f} s at their ends were not scored: score whole clips with --windows (in a training "
                "--data.windows True)"
            )
        return notes

    def metrics(self) -> Metrics:
        """Returns the metrics of these clips."""
        return evaluate(self.scores, self.labels)

    def save(self, path: Path) -> None:
        """Writes an ``.npz`` file atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        labels = self.labels.astype(np.float16)
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(
                file, clips=self.clips, scores=self.scores, labels=labels, skipped=self.skipped, mids=self.mids,
                left_out=self.left_out,
            )  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> Scores:
        """Reads a file of :meth:`save`; raises ScoresError if it is damaged or of another kind."""
        try:
            with np.load(path, allow_pickle=False) as file:
                labels = file["labels"].astype(np.float32)
                mids = tuple(file["mids"].tolist()) if "mids" in file else ()
                left_out = file["left_out"] if "left_out" in file else np.zeros(0, np.float32)
                return cls(file["clips"], file["scores"], labels, tuple(file["skipped"].tolist()), mids, left_out)
        except NPZ_ERRORS as error:
            raise ScoresError(f"{path} does not hold scores ({error}): delete it and run again.") from error
