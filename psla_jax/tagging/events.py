"""Scores of steps to events with a beginning and an end: smoothing, two thresholds, gaps, durations.

Everything works on blocks of steps as they come: an event is known as soon as nothing later can change it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from psla_jax.tagging.windows import STEP_SECONDS


class EventError(ValueError):
    """Rules that make no events; the message names the rule and its value."""


@dataclass(frozen=True)
class Rules:
    """What counts as an event."""

    threshold: float | np.ndarray = 0.3
    """The score an event has to reach at one step at least; one for all classes, or one each `(classes,)`.
    Infinity for a class that makes no events."""
    release: float = 0.7
    """An event lasts while scores stay at this fraction of the threshold or above."""
    smooth: int = 1
    """Steps, an odd number, whose median takes the place of the middle one; 1 for none."""
    min_gap: float = 0.64
    """Seconds: events of a class with less between them are one."""
    min_duration: float = 0.32
    """Seconds: shorter events are none."""

    def __post_init__(self) -> None:
        threshold = np.asarray(self.threshold, np.float64)
        for name, value, ok, remedy in (
            ("threshold", self.threshold, bool((threshold > 0).all()), "use scores above 0"),
            ("release", self.release, 0 < self.release <= 1, "use a fraction of the threshold, above 0 and up to 1"),
            ("smooth", self.smooth, self.smooth >= 1 and self.smooth % 2 == 1, "use an odd number of steps"),
            ("min_gap", self.min_gap, 0 <= self.min_gap < math.inf, "use 0 or more seconds"),
            ("min_duration", self.min_duration, 0 <= self.min_duration < math.inf, "use 0 or more seconds"),
        ):
            if not ok:
                raise EventError(f"{name} of events is {value!r}: {remedy}.")

    def gap_steps(self) -> int:
        """Events with fewer steps than this between them are one."""
        return math.ceil(round(self.min_gap / STEP_SECONDS, 6))

    def duration_steps(self) -> int:
        """Steps that an event has at least."""
        return max(1, math.ceil(round(self.min_duration / STEP_SECONDS, 6)))


@dataclass(frozen=True, order=True)
class Span:
    """An event in steps."""

    start: int
    """Its first step."""
    column: int
    """The class, as a column of the scores."""
    stop: int
    """The step after its last."""
    score: float
    """The highest (smoothed) score in it."""


class Smoother:
    """The running median over time; at both ends the first and last step stand for what is beyond them."""

    def __init__(self, steps: int) -> None:
        self._half = steps // 2
        self._held: np.ndarray | None = None

    def push(self, scores: np.ndarray) -> np.ndarray:
        """Smoothed `(steps, n)` of those steps of which all neighbours are known by now."""
        if self._half == 0 or len(scores) == 0:
            return scores
        if self._held is None:
            self._held = np.repeat(scores[:1], self._half, axis=0)
        self._held = np.concatenate([self._held, scores])
        return self._medians()

    def finish(self) -> np.ndarray:
        """The rest."""
        if self._held is None:
            return np.zeros((0, 0), np.float32)
        self._held = np.concatenate([self._held, np.repeat(self._held[-1:], self._half, axis=0)])
        return self._medians()

    def _medians(self) -> np.ndarray:
        assert self._held is not None
        width = 2 * self._half + 1
        if len(self._held) < width:
            return self._held[:0]
        shifts = [self._held[i : len(self._held) - width + 1 + i] for i in range(width)]
        self._held = self._held[len(self._held) - width + 1 :]
        if width == 3:  # Several times as quick as the general way.
            low, middle, high = shifts
            return np.maximum(np.minimum(low, middle), np.minimum(np.maximum(low, middle), high))
        return np.median(np.stack(shifts), axis=0)


class Tracker:
    """Follows every class from step to step: an event is a run of steps at the release level or above, with one at the
    threshold or above in it; runs with a short gap between them are one, and short ones are dropped.

    Memory does not grow with the recording.
    """

    def __init__(self, rules: Rules, columns: int) -> None:
        self._on = np.broadcast_to(np.asarray(rules.threshold, np.float32), (columns,))
        self._off = self._on * np.float32(rules.release)
        self._gap, self._shortest = rules.gap_steps(), rules.duration_steps()
        self._now = 0
        self._run = np.full(columns, -1)  # Where the run in progress began; -1: there is none.
        self._peak = np.zeros(columns, np.float32)  # Its highest score.
        self._start = np.full(columns, -1)  # The event that may still be continued; -1: there is none.
        self._stop = np.zeros(columns, np.int64)
        self._score = np.zeros(columns, np.float32)

    @property
    def steps(self) -> int:
        """How many steps it has taken."""
        return self._now

    def push(self, scores: np.ndarray) -> list[Span]:
        """The events that are over for certain after these steps, `(steps, columns)`; those of a step by class."""
        found: list[Span] = []
        for row in scores:
            found += self._step(row)
        return found

    def finish(self) -> list[Span]:
        """The events that last until the end, or that might have been continued."""
        self._end_runs(self._run >= 0)
        return self._close(self._start >= 0)

    def going_on(self) -> list[Span]:
        """The events that have begun and may not be over yet, as they are now."""
        begun = (self._run >= 0) & (self._peak >= self._on)
        joined = begun & (self._start >= 0) & (self._run - self._stop < self._gap)
        spans = []
        for i in np.flatnonzero(begun | (self._start >= 0)):
            start = self._start[i] if joined[i] or not begun[i] else self._run[i]
            stop = self._now if begun[i] else self._stop[i]
            score = max(self._peak[i] if begun[i] else 0.0, self._score[i] if joined[i] or not begun[i] else 0.0)
            spans.append(Span(int(start), int(i), int(stop), float(score)))
        return sorted(spans)

    def _step(self, row: np.ndarray) -> list[Span]:
        above = row >= self._off
        began = above & (self._run < 0)
        self._run[began] = self._now
        self._peak[began] = 0
        self._end_runs(~above & (self._run >= 0))
        np.maximum(self._peak, row, out=self._peak, where=above)
        self._now += 1
        # An event is over once no run can join it: neither the one in progress nor one that begins at the next step.
        begins = np.where(self._run >= 0, self._run, self._now)
        return self._close((self._start >= 0) & (begins - self._stop >= self._gap))

    def _end_runs(self, ended: np.ndarray) -> None:
        """Runs that ended before this step; those that reached the threshold are events, or continue one."""
        if not ended.any():
            return
        real = ended & (self._peak >= self._on)
        new = real & (self._start < 0)
        self._start[new] = self._run[new]
        self._score[real] = np.maximum(self._peak[real], np.where(new, 0, self._score)[real])
        self._stop[real] = self._now
        self._run[ended] = -1

    def _close(self, over: np.ndarray) -> list[Span]:
        spans = [
            Span(int(self._start[i]), int(i), int(self._stop[i]), float(self._score[i])) for i in np.flatnonzero(over)
        ]
        self._start[over] = -1
        return [span for span in spans if span.stop - span.start >= self._shortest]


class EventFinder:
    """Scores of steps, block by block, to events: :class:`Smoother`, then :class:`Tracker`."""

    def __init__(self, rules: Rules, columns: int) -> None:
        self._smoother, self._tracker = Smoother(rules.smooth), Tracker(rules, columns)

    def push(self, scores: np.ndarray) -> list[Span]:
        """Takes `(steps, columns)` and gives the events that are over."""
        return self._tracker.push(self._smoother.push(scores))

    def finish(self) -> list[Span]:
        """The events that were not over yet."""
        return [*self._tracker.push(self._smoother.finish()), *self._tracker.finish()]

    @property
    def steps(self) -> int:
        """How many steps were searched: those whose neighbours are known."""
        return self._tracker.steps

    def going_on(self) -> list[Span]:
        """The events that have begun and may not be over yet."""
        return self._tracker.going_on()


def find_events(scores: np.ndarray, rules: Rules) -> Sequence[Span]:
    """The events of a whole timeline `(steps, columns)`, in order of their beginning."""
    finder = EventFinder(rules, scores.shape[1])
    return sorted([*finder.push(scores), *finder.finish()])
