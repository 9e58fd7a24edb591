"""Rows of a batch, read from the clips of a datafile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from psla_jax.audio.decode import MAX_CLIP_SECONDS, AudioError
from psla_jax.audio.reading import Reading
from psla_jax.audio.segments import duration, read
from psla_jax.audio.windows import Grid
from psla_jax.config import Channel
from psla_jax.data.datafile import Datafile
from psla_jax.data.teacher import TeacherScores

Row = dict[str, Any]
"""One row of a batch: the same fields without the leading dimension."""


@dataclass(frozen=True)
class ClipReader:
    """Reads clips of a datafile, mixed down by `channel`, at the rate of `grid`, cut to rows of `num_samples`."""

    datafile: Datafile
    num_samples: int
    channel: Channel
    grid: Grid = field(default_factory=Grid)
    teacher: TeacherScores | None = None
    """Scores of a teacher, which are further targets of the clips."""

    def waveform(self, clip: int, reading: Reading | None = None) -> np.ndarray:
        """Returns the zero-mean waveform of a clip, float32 ``(samples,)``, at most its first ten minutes.

        `reading` receives what is peculiar about it. Raises AudioError if the clip cannot be read.
        """
        samples = self.read(clip, MAX_CLIP_SECONDS, reading)
        samples -= samples.mean()
        return samples

    def read(self, clip: int, seconds: float, reading: Reading | None = None) -> np.ndarray:
        """Returns at most the first `seconds` of the waveform of a clip; arguments and errors of :meth:`waveform`."""
        rate = self.grid.rate
        return read(self.datafile.audio(clip), channel=self.channel, seconds=seconds, reading=reading, sample_rate=rate)

    def num_clip_samples(self, clip: int) -> int:
        """Returns the number of samples of a clip at the rate of the model, 0 if it cannot be read."""
        try:
            return round(duration(self.datafile.audio(clip)) * self.grid.rate)
        except AudioError:
            return 0

    def targets(self, clip: int) -> dict[str, np.ndarray]:
        """Returns the targets of a clip, float32 ``(classes,)`` each: ``labels``, and ``teacher`` if there is one."""
        labels = {"labels": self.datafile.multi_hot(clip)}
        return labels if self.teacher is None else {**labels, "teacher": self.teacher[clip]}

    def row(
        self,
        clip: int,
        waveform: np.ndarray,
        targets: Mapping[str, np.ndarray],
        failed: int = -1,
        *,
        reading: Reading | None = None,
    ) -> Row:
        """Returns a valid row with at most `num_samples` of the waveform, not padded, and what `reading` showed."""
        reading = reading or Reading()
        cut = waveform[: self.num_samples]
        return {
            "waveform": cut,
            "num_samples": np.int32(len(cut)),
            "left_out": np.int32(len(waveform) - len(cut)),
            "flawed": np.int32(reading.is_flawed),
            "narrow": np.int32(0 < reading.rate < self.grid.rate),
            **targets,
            "valid": np.float32(1.0),
            "clip": np.int64(clip),
            "failed": np.int64(failed),
        }

    def invalid_row(self, clip: int = -1) -> Row:
        """Returns a row with ``valid`` 0: padding, or the unreadable clip `clip`."""
        names = ["labels"] if self.teacher is None else ["labels", "teacher"]
        targets = {name: np.zeros(self.datafile.num_classes, np.float32) for name in names}
        row = self.row(clip, np.zeros(0, np.float32), targets, failed=clip)
        return {**row, "valid": np.float32(0.0)}

    def pad(self, row: Row) -> Row:
        """Returns a row with the waveform zero-padded to `num_samples`."""
        waveform = np.empty(self.num_samples, np.float32)
        put_padded(row["waveform"], waveform)
        return {**row, "waveform": waveform}


def put_padded(waveform: np.ndarray, destination: np.ndarray) -> None:
    """Copies a waveform to the beginning of an array and sets the rest to 0."""
    destination[: len(waveform)], destination[len(waveform) :] = waveform, 0.0
