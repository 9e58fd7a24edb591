"""What tagging gives: plain data that prints well and needs no knowledge of JAX."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from psla_jax.ontology import Vocabulary
from psla_jax.tagging.windows import beginning_of

SHOWN = 5
"""Tags that are shown where nobody says how many."""


class ResultError(ValueError):
    """Something that a result does not hold."""


@dataclass(frozen=True)
class Tag:
    """A class and its score for a whole recording."""

    mid: str
    name: str
    score: float


@dataclass(frozen=True)
class Event:
    """A class that sounds from one moment to another, in seconds."""

    onset: float
    offset: float
    mid: str
    name: str
    score: float
    """The highest score of a step in it."""


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
        aside = place.with_name(f".{place.name}.{os.getpid()}{place.suffix}")
        try:
            if place.suffix == ".npy":
                np.save(aside, self.clip)
            else:
                np.savez(aside, clip=self.clip, frames=self.frames, times=self.times)
            os.replace(aside, place)
        finally:
            aside.unlink(missing_ok=True)


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

    def top(self, count: int = SHOWN, threshold: float = 0.0) -> list[Tag]:
        """The selected classes with the highest scores, at least `threshold`; the highest first."""
        order = sorted(self.selected, key=lambda i: (-self.scores[i], i))[:count]
        names, mids = self.vocabulary.names, self.vocabulary.mids
        return [Tag(mids[i], names[i], float(self.scores[i])) for i in order if self.scores[i] >= threshold]

    def __getitem__(self, name: str) -> float:
        """The score of a class by its mid or name. Raises ResultError if there is none."""
        for known in (self.vocabulary.mids, self.vocabulary.names):
            if name in known:
                return float(self.scores[known.index(name)])
        raise ResultError(f"there is no class {name!r} among the {len(self.vocabulary)} of the model.")

    def __str__(self) -> str:
        lines = [f"{self.clip} ({clock(self.duration)})"]
        lines += [f"  {tag.score:.3f}  {tag.name}" for tag in self.top()]
        if self.long and self.events:
            lines += [f"  {clock(e.onset)} - {clock(e.offset)}  {e.score:.3f}  {e.name}" for e in self.events]
        return "\n".join(lines)

    __repr__ = __str__

    def to_dataframe(self) -> Any:
        """The events as a pandas DataFrame: clip, onset, offset, class, mid, score.

        Raises:
            ResultError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ResultError("a DataFrame needs pandas, which is not installed: pip install pandas.") from error
        rows = [(self.clip, e.onset, e.offset, e.name, e.mid, e.score) for e in self.events]
        return pandas.DataFrame(rows, columns=["clip", "onset", "offset", "class", "mid", "score"])


def clock(seconds: float) -> str:
    """``12:03.4`` or ``1:12:03.4``."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest / 10:04.1f}" if hours else f"{minutes}:{rest / 10:04.1f}"


def select(vocabulary: Vocabulary, indices: Sequence[int] | None) -> np.ndarray:
    """Sorted indices, all of them where None is given."""
    return np.arange(len(vocabulary)) if indices is None else np.array(sorted(set(indices)), np.int64)
