"""What a model gave to each clip, by clip id: saved, read back, and laid beside the clips of a datafile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from psla_jax.files import DAMAGE, whole
from psla_jax.metrics import Metrics, evaluate

"""What reading a file that is no whole ``.npz`` raises."""


class ScoresError(ValueError):
    """Scores that cannot be used; the message names the file."""


@dataclass(frozen=True)
class Scores:
    """What a model gave to each clip that could be read.

    Attributes:
        clips: `(clips,)` paths as in the datafile: their ids.
        scores: `(clips, classes)` float32.
        labels: `(clips, classes)` float32, the truth.
        skipped: paths of the clips that could not be read; they are in none of the arrays.
        mids: the classes in the order of the columns; empty where that is not known.
    """

    clips: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    skipped: tuple[str, ...] = ()
    mids: tuple[str, ...] = ()

    def metrics(self) -> Metrics:
        """AP, AUC, d' and the others, over these clips."""
        return evaluate(self.scores, self.labels)

    def save(self, path: Path) -> None:
        """Writes an ``.npz``; it appears whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        labels = self.labels.astype(np.float16)
        with whole(path) as aside, open(aside, "wb") as file:
            np.savez(file, clips=self.clips, scores=self.scores, labels=labels, skipped=self.skipped, mids=self.mids)

    @classmethod
    def load(cls, path: Path) -> Scores:
        """Reads what :meth:`save` wrote. Raises ScoresError naming the file if it is not that."""
        try:
            with np.load(path, allow_pickle=False) as file:
                labels = file["labels"].astype(np.float32)
                mids = tuple(file["mids"].tolist()) if "mids" in file else ()
                return cls(file["clips"], file["scores"], labels, tuple(file["skipped"].tolist()), mids)
        except DAMAGE as error:
            raise ScoresError(f"{path} does not hold scores ({error}): delete it and run again.") from error
