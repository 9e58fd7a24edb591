"""Results of tagging, as plain data without JAX arrays."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from psla_jax.audio.windows import Grid
from psla_jax.runtime.files import atomic_path
from psla_jax.tagging.calibration.model import Calibration
from psla_jax.tagging.defaults import DEFAULTS
from psla_jax.vocabulary.vocabulary import Vocabulary

PRESENT_MARK = "✓"
"""Mark of a class that reaches its own threshold."""


class ResultError(ValueError):
    """A value that a result does not contain."""


@dataclass(frozen=True)
class Tag:
    """A class and its score for a whole recording."""

    mid: str
    name: str
    score: float
    probability: float | None = None
    """Probability that the class is present; None for uncalibrated models."""
    present: bool | None = None
    """Whether the score reaches the class's own threshold; None for uncalibrated models."""


@dataclass(frozen=True)
class Event:
    """A class that sounds from `onset` to `offset`, in seconds."""

    onset: float
    offset: float
    mid: str
    name: str
    score: float
    """Highest score of its output frames."""
    probability: float | None = None
    """Probability of the class, if the event is a whole recording and the model is calibrated; otherwise None."""
    present: bool | None = None
    """Whether the class reaches its own threshold, under the same conditions."""


@dataclass(frozen=True, eq=False)
class Timeline:
    """Scores of every output frame of a recording."""

    scores: np.ndarray
    """float16 ``(frames, classes)``, in the order of the vocabulary."""
    vocabulary: Vocabulary
    grid: Grid = field(default_factory=Grid)
    """Where the output frames are in the recording."""

    @property
    def times(self) -> np.ndarray:
        """Start of each output frame in seconds, float64 ``(frames,)``."""
        return np.array([self.grid.frame_start(frame) for frame in range(len(self.scores))])


@dataclass(frozen=True, eq=False)
class Embeddings:
    """Backbone features of a recording."""

    clip: np.ndarray
    """float32 ``(channels,)``: the mean over the output frames."""
    frames: np.ndarray
    """float32 ``(frames, channels)``: one output frame every 0.32 s by default, without padding."""
    grid: Grid = field(default_factory=Grid)
    """Where the output frames are in the recording."""

    @property
    def times(self) -> np.ndarray:
        """Start of each output frame in seconds, float64 ``(frames,)``."""
        return np.array([self.grid.frame_start(frame) for frame in range(len(self.frames))])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes ``.npz`` with ``clip``, ``frames`` and ``times``, or ``.npy`` with ``clip`` only, atomically.

        Raises:
            ResultError: the path has another suffix.
        """
        path = Path(path)
        if path.suffix not in (".npy", ".npz"):
            raise ResultError(f"embeddings cannot be written to {path}: use a name that ends in .npz or .npy.")
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            if path.suffix == ".npy":
                np.save(file, self.clip)
            else:
                np.savez(file, clip=self.clip, frames=self.frames, times=self.times)


@dataclass(frozen=True, eq=False)
class Tags:
    """Classes and events of a recording.

    Attributes:
        clip: path of the recording, or a name for an array.
        duration: duration in seconds.
        scores: float32 ``(classes,)`` in the order of the vocabulary; the maximum over the windows of a long recording.
        events: events in order of their onset.
        vocabulary: the model's classes.
        selected: ascending indices of the classes to list.
        long: whether the recording is longer than a window, so that events are more informative than scores.
        events_from: ``head`` if the head scored every output frame; ``windows`` if events are as precise as windows.
        notes: a sentence for each peculiarity of the recording.
        calibration: calibration of the model by ``psla calibrate``; None if there is none or it is disabled.
    """

    clip: str
    duration: float
    scores: np.ndarray
    events: tuple[Event, ...]
    vocabulary: Vocabulary
    selected: np.ndarray = field(repr=False)
    long: bool = False
    events_from: str = "head"
    notes: tuple[str, ...] = ()
    calibration: Calibration | None = field(default=None, repr=False)

    @cached_property
    def probabilities(self) -> np.ndarray | None:
        """Probability that each class is present, float32 ``(classes,)``; None for uncalibrated models.

        The calibration is fitted to whole clips; for a long recording, it applies to the maximum over the windows.
        """
        return None if self.calibration is None else self.calibration.calibrators.probabilities(self.scores)

    @cached_property
    def present(self) -> np.ndarray | None:
        """Whether each class reaches its own threshold, bool ``(classes,)``; None for uncalibrated models."""
        return None if self.calibration is None else self.calibration.calibrators.present(self.scores)

    def top(self, count: int = DEFAULTS.top, threshold: float | np.ndarray = 0.0) -> list[Tag]:
        """Returns the selected classes with the highest probabilities, or scores if uncalibrated, in descending order.

        Args:
            count: maximum number of classes.
            threshold: minimum score, one for all classes or one per class ``(classes,)``.
        """
        reached = self.scores >= threshold
        rank = self.scores if self.probabilities is None else self.probabilities
        order = sorted((i for i in self.selected if reached[i]), key=lambda i: (-rank[i], -self.scores[i], i))
        tags = [Tag(self.vocabulary.mids[i], self.vocabulary.names[i], float(self.scores[i])) for i in order[:count]]
        if self.probabilities is None or self.present is None:
            return tags
        return [
            replace(tag, probability=float(self.probabilities[i]), present=bool(self.present[i]))
            for tag, i in zip(tags, order)
        ]

    def __getitem__(self, name: str) -> float:
        """Returns the score of a class by its mid or name; raises ResultError if there is none."""
        for identifiers in (self.vocabulary.mids, self.vocabulary.names):
            if name in identifiers:
                return float(self.scores[identifiers.index(name)])
        raise ResultError(f"there is no class {name!r} among the model's {len(self.vocabulary)} classes.")

    def __str__(self) -> str:
        lines = [f"{self.clip} ({clock(self.duration)})"]
        for tag in self.top():
            mark = f"{PRESENT_MARK if tag.present else ' '} "
            score = f"{tag.score:.3f}" if tag.probability is None else f"{mark}{tag.probability:.3f}"
            lines.append(f"  {score}  {tag.name}")
        if self.long:
            lines += [f"  {clock(e.onset)} - {clock(e.offset)}  {e.score:.3f}  {e.name}" for e in self.events]
        return "\n".join(lines)

    __repr__ = __str__

    def to_dataframe(self, what: Literal["events", "tags"] = "events") -> Any:
        """Returns a pandas DataFrame with clip, onset (s), offset (s), class, mid and score.

        Args:
            what: ``events``; or ``tags`` for all selected classes in the order of :meth:`top`, without times.

        Raises:
            ResultError: pandas is not installed, or `what` is invalid.
        """
        if what not in ("events", "tags"):
            raise ResultError(f"what is {what!r}: choose events or tags.")
        try:
            import pandas
        except ImportError as error:
            raise ResultError("a DataFrame needs pandas, which is not installed: pip install pandas.") from error
        if what == "tags":
            tags = [(self.clip, t.name, t.mid, t.score) for t in self.top(len(self.scores))]
            return pandas.DataFrame(tags, columns=["clip", "class", "mid", "score"])
        rows = [(self.clip, e.onset, e.offset, e.name, e.mid, e.score) for e in self.events]
        return pandas.DataFrame(rows, columns=["clip", "onset", "offset", "class", "mid", "score"])


def clock(seconds: float) -> str:
    """Formats a time in seconds as ``12:03.4`` or ``1:12:03.4``."""
    minutes, tenths = divmod(round(seconds * 10), 600)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{tenths / 10:04.1f}" if hours else f"{minutes}:{tenths / 10:04.1f}"
