"""Scores of a set of clips with their ids and labels, and the files that hold them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from psla_jax.evaluation.metrics import Metrics, evaluate
from psla_jax.runtime.files import NPZ_ERRORS, atomic_path

MIN_LEFT_OUT = 0.32
"""Seconds of a clip that were not scored from which a note counts it."""
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
        flawed: ids of scored clips that are damaged, or whose level is wrong, see
            :attr:`psla_jax.audio.reading.Reading.is_flawed`.
        narrow: ids of scored clips whose sample rate is lower than that of the model.
        computed_in: precision of the products, see :func:`psla_jax.models.precision.computed_in`; empty if unknown.
    """

    clips: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    skipped: tuple[str, ...] = ()
    mids: tuple[str, ...] = ()
    left_out: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    flawed: tuple[str, ...] = ()
    narrow: tuple[str, ...] = ()
    computed_in: str = ""

    def notes(self) -> list[str]:
        """Returns a sentence each on clips that could not be read, are flawed, or were not scored to their ends."""
        notes = []
        if self.skipped:
            notes.append(f"unreadable clips, which are left out: {_counted(self.skipped)}")
        if self.flawed:
            reasons = "damaged, with channels that cancel each other, or with samples far beyond full scale"
            notes.append(f"scores may be wrong for clips that are {reasons} (psla check): {_counted(self.flawed)}")
        if self.narrow:
            notes.append(
                "scores may be wrong for clips that lack the upper frequencies of the model, as their sample rate is "
                f"lower: {_counted(self.narrow)}"
            )
        long = self.left_out[self.left_out >= MIN_LEFT_OUT]
        if len(long):
            notes.append(
                f"clips longer than a window of the model: {len(long):,} of {len(self.clips):,}, of which "
                f"{long.sum():,.0f} s at the end were not scored: psla evaluate --windows scores whole clips, and so "
                "does a training that is started with --data.windows True"
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
                left_out=self.left_out, flawed=self.flawed, narrow=self.narrow, computed_in=self.computed_in,
            )  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> Scores:
        """Reads a file of :meth:`save`; raises ScoresError if it is damaged or of another kind."""
        try:
            with np.load(path, allow_pickle=False) as file:
                labels = file["labels"].astype(np.float32)
                mids = tuple(file["mids"].tolist()) if "mids" in file else ()
                left_out = file["left_out"] if "left_out" in file else np.zeros(0, np.float32)
                flawed, narrow = (tuple(file[k].tolist()) if k in file else () for k in ("flawed", "narrow"))
                skipped = tuple(file["skipped"].tolist())
                computed_in = str(file["computed_in"]) if "computed_in" in file else ""
                return cls(file["clips"], file["scores"], labels, skipped, mids, left_out, flawed, narrow, computed_in)
        except NPZ_ERRORS as error:
            raise ScoresError(f"{path} does not hold scores ({error}): delete it and run again.") from error


def _counted(clips: tuple[str, ...]) -> str:
    examples = ", ".join(clips[:MAX_EXAMPLES])
    return examples if len(clips) <= MAX_EXAMPLES else f"{examples}, ... ({len(clips):,} clips)"
