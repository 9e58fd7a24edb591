"""The section ``distill`` of a config: training on the scores of a teacher besides the labels."""

from __future__ import annotations

import math
from dataclasses import dataclass

from psla_jax.config_fields import require, to_tuples


@dataclass(frozen=True)
class DistillConfig:
    """Distillation: a teacher's scores of the training clips as targets besides the labels."""

    teacher: str = ""
    """Scores of a teacher for the training clips: a file of `psla evaluate --save`, an `.npz`, `.npy` or HDF5 file of
    scores or logits, or a folder of `psla teach`; empty for none."""
    model: tuple[str, ...] = ()
    """Instead of stored scores: model or run directories of a teacher, which scores every augmented batch in the step;
    several are averaged."""
    weight: float = 0.9
    """Weight w of the teacher in the loss: w * cross-entropy with the teacher's scores + (1 - w) * loss(labels)."""
    temperature: float = 1.0
    """Divides the logits of the teacher, and in the teacher's part of the loss those of the student."""
    logits: bool = False
    """Whether the teacher's file has logits; False for scores in [0, 1]."""
    scores: str = "scores"
    """Name of the array of scores or logits, (clips, classes), in an `.npz` or HDF5 file."""
    clips: tuple[str, ...] = ("clips",)
    """Clip ids or file names of its rows: an array in the file, a text file with one per line, or `FILE:ARRAY` of
    another `.npz` or HDF5 file; several are joined."""
    mids: str = "mids"
    """Classes of its columns: an array of mids in the file, a CSV file with the header index,mid,display_name,
    `audioset` or `fsd50k`."""
    segments: float = 0.0
    """Seconds of the segments into which the training clips are cut, each with the labels of its clip and with scores
    of its own (`psla evaluate --segments`, `psla teach`); 0 trains on whole clips."""
    consistency: float = 0.0
    """Weight of the cross-entropy between two augmented views of every clip, each of which learns from the other's
    scores; the loss is otherwise the mean over both. 0 trains on one view, at half the cost."""

    def __post_init__(self) -> None:
        to_tuples(self, "model", "clips")
        require(self, "model", not (self.model and self.teacher), "use either this or distill.teacher")
        require(self, "segments", self.segments == 0 or 0.1 <= self.segments < math.inf, "use 0.1 s or more, or 0")
        require(self, "consistency", 0 <= self.consistency < math.inf, "use 0 or a positive weight")
        require(self, "weight", 0 < self.weight <= 1, "use a weight in (0, 1]")
        require(self, "temperature", 0 < self.temperature < math.inf, "use a positive number")
        require(self, "clips", bool(self.clips), "name an array or a file with the clip ids of the teacher's rows")

    @property
    def active(self) -> bool:
        """Whether there is a teacher."""
        return bool(self.teacher or self.model)
