"""What tagging gives: plain data that prints well and needs no knowledge of JAX."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from psla_jax.calibration import Calibration
from psla_jax.files import whole
from psla_jax.ontology import Vocabulary
from psla_jax.tagging.windows import beginning_of

SHOWN = 5
"""Tags that are shown where nobody says how many."""
PRESENT = "✓"
"""The mark of a class that reaches its own threshold."""


class ResultError(ValueError):
    """Something that a result does not hold."""


@dataclass(frozen=True)
class Tag:
    """A class and its score for a whole recording."""

    mid: str
    name: str
    score: float
    probability: float | None = None
    """That the class is there; None where the model is not calibrated, likewise `present`."""
    present: bool | None = None
    """Whether the score reaches the class's own threshold."""


@dataclass(frozen=True)
class Event:
    """A class that sounds from one moment to another, in seconds."""

    onset: float
    offset: float
    mid: str
    name: str
    score: float
    """The highest score of a step in it."""
    probability: float | None = None
    """Of a whole recording told as one event, where the model is calibrated; likewise `present`."""
    present: bool | None = None


@dataclass(frozen=True, eq=False)
class Timeline:
    """Scores of every step of a recording."""

    scores: np.ndarray
    """float16 ``(steps, classes)``, in the order of the vocabulary."""
    vocabulary: Vocabulary

    @property
    def times(self) -> np.ndarray:
        """Where each step begins, in seconds, float64 ``(steps,)``."""
        return np.array([beginning_of(step) for step in range(len(self.scores))])


@dataclass(frozen=True, eq=False)
class Embeddings:
    """What the backbone makes of a recording, before its classes."""

    clip: np.ndarray
    """float32 ``(channels,)``: the mean over the steps."""
    frames: np.ndarray
    """float32 ``(steps, channels)``: a step every 0.32 s; padding is left out."""

    @property
    def times(self) -> np.ndarray:
        """Where each step begins, in seconds, float64 ``(steps,)``."""
        return np.array([beginning_of(step) for step in range(len(self.frames))])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes ``.npz`` with ``clip``, ``frames`` and ``times``, or ``.npy`` with the clip's alone; whole or not.

        Raises:
            ResultError: the name ends otherwise.
        """
        place = Path(path)
        if place.suffix not in (".npy", ".npz"):
            raise ResultError(f"embeddings cannot be written to {place}: use a name that ends in .npz or .npy.")
        with whole(place) as aside, open(aside, "wb") as file:
            if place.suffix == ".npy":
                np.save(file, self.clip)
            else:
                np.savez(file, clip=self.clip, frames=self.frames, times=self.times)


@dataclass(frozen=True, eq=False)
class Tags:
    """What is in a recording.

    Attributes:
        clip: its path, or a name for an array.
        duration: in seconds.
        scores: float32 ``(classes,)``, in the order of the vocabulary: of a recording that is longer than a window,
            the highest of its windows.
        events: in order of their onset.
        vocabulary: the classes.
        selected: indices of the classes that were asked for, ascending.
        long: whether the recording is longer than a window, so that its events say more than its scores.
        events_from: ``head`` if every step was scored, ``windows`` if the events are as coarse as those.
        notes: what is odd about the recording, a sentence each.
        calibration: what ``psla calibrate`` fitted to the model; None where it has not, or is not to count.
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
        """Of each class that it is there, float32 ``(classes,)``; None where the model is not calibrated.

        They were fitted to whole clips: of a recording longer than a window it is that of the highest window.
        """
        return None if self.calibration is None else self.calibration.deciders.probabilities(self.scores)

    @cached_property
    def present(self) -> np.ndarray | None:
        """Whether each class reaches its own threshold, bool ``(classes,)``; None where the model is not calibrated."""
        return None if self.calibration is None else self.calibration.deciders.present(self.scores)

    def top(self, count: int = SHOWN, threshold: float | np.ndarray = 0.0) -> list[Tag]:
        """The selected classes that score at least `threshold`, one or one each; the highest or most probable first."""
        reached = self.scores >= threshold
        rank = self.scores if self.probabilities is None else self.probabilities
        order = sorted((i for i in self.selected if reached[i]), key=lambda i: (-rank[i], -self.scores[i], i))
        return [self._tag(i) for i in order[:count]]

    def _tag(self, i: int) -> Tag:
        tag = Tag(self.vocabulary.mids[i], self.vocabulary.names[i], float(self.scores[i]))
        if self.probabilities is None or self.present is None:
            return tag
        return replace(tag, probability=float(self.probabilities[i]), present=bool(self.present[i]))

    def __getitem__(self, name: str) -> float:
        """The score of a class by its mid or name. Raises ResultError if there is none."""
        for known in (self.vocabulary.mids, self.vocabulary.names):
            if name in known:
                return float(self.scores[known.index(name)])
        raise ResultError(f"there is no class {name!r} among the {len(self.vocabulary)} of the model.")

    def __str__(self) -> str:
        lines = [f"{self.clip} ({clock(self.duration)})"]
        lines += [f"  {_told(tag)}  {tag.name}" for tag in self.top()]
        if self.long and self.events:
            lines += [f"  {clock(e.onset)} - {clock(e.offset)}  {e.score:.3f}  {e.name}" for e in self.events]
        return "\n".join(lines)

    __repr__ = __str__

    def to_dataframe(self, what: Literal["events", "tags"] = "events") -> Any:
        """A pandas DataFrame.

        Args:
            what: ``events`` for clip, onset, offset, class, mid, score; ``tags`` for clip, class, mid, score of all
                selected classes, the highest first.

        Raises:
            ResultError: pandas is not installed, or there is no such thing.
        """
        if what not in ("events", "tags"):
            raise ResultError(f"there are no {what!r} to make a DataFrame of: choose events or tags.")
        try:
            import pandas
        except ImportError as error:
            raise ResultError("a DataFrame needs pandas, which is not installed: pip install pandas.") from error
        if what == "tags":
            found = [(self.clip, t.name, t.mid, t.score) for t in self.top(len(self.scores))]
            return pandas.DataFrame(found, columns=["clip", "class", "mid", "score"])
        rows = [(self.clip, e.onset, e.offset, e.name, e.mid, e.score) for e in self.events]
        return pandas.DataFrame(rows, columns=["clip", "onset", "offset", "class", "mid", "score"])


def _told(tag: Tag) -> str:
    """Its score; or its probability, and whether it is present."""
    if tag.probability is None:
        return f"{tag.score:.3f}"
    return f"{PRESENT if tag.present else ' '} {tag.probability:.3f}"


def clock(seconds: float) -> str:
    """``12:03.4`` or ``1:12:03.4``."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest / 10:04.1f}" if hours else f"{minutes}:{rest / 10:04.1f}"


def select(vocabulary: Vocabulary, indices: Sequence[int] | None) -> np.ndarray:
    """Sorted indices, all of them where None is given."""
    return np.arange(len(vocabulary)) if indices is None else np.array(sorted(set(indices)), np.int64)
