"""Events with onset and offset from frame scores: smoothing, hysteresis thresholding, gaps and durations.

All classes process blocks of output frames: an event is returned as soon as later frames cannot change it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from psla_jax.audio.windows import Grid
from psla_jax.tagging.defaults import DEFAULTS


class EventError(ValueError):
    """Invalid event rules; the message names the rule and its value."""


@dataclass(frozen=True)
class Rules:
    """Event detection parameters."""

    threshold: float | np.ndarray | None = None
    """Score that an event reaches in at least one output frame: one for all classes, or one per class `(classes,)`.
    Infinity disables a class. None: the thresholds of a calibrated model, and 0.2 for other models."""
    release: float = DEFAULTS.release
    """Fraction of the threshold; an event lasts while scores stay at or above it."""
    smooth: int = DEFAULTS.smooth
    """Width of the running median in output frames, odd; 1 disables it."""
    min_gap: float = DEFAULTS.min_gap
    """Minimum seconds between two events of a class; events with a shorter gap are merged."""
    min_duration: float = DEFAULTS.min_duration
    """Minimum duration in seconds; shorter events are dropped."""

    def __post_init__(self) -> None:
        threshold = np.asarray(DEFAULTS.threshold if self.threshold is None else self.threshold, np.float64)
        for name, value, valid, remedy in (
            ("threshold", self.threshold, bool((threshold > 0).all()), "use scores above 0"),
            ("release", self.release, 0 < self.release <= 1, "use a fraction of the threshold, above 0 and up to 1"),
            ("smooth", self.smooth, self.smooth >= 1 and self.smooth % 2 == 1, "use an odd number of output frames"),
            ("min_gap", self.min_gap, 0 <= self.min_gap < math.inf, "use 0 or more seconds"),
            ("min_duration", self.min_duration, 0 <= self.min_duration < math.inf, "use 0 or more seconds"),
        ):
            if not valid:
                raise EventError(f"{name} is {value!r}: {remedy}.")

    def with_threshold(self, default: float | np.ndarray = DEFAULTS.threshold) -> Rules:
        """Returns the rules with their own threshold, or with `default` if they have none."""
        return replace(self, threshold=default) if self.threshold is None else self

    def min_gap_frames(self, grid: Grid) -> int:
        """Returns the minimum number of output frames between two events of a class."""
        return math.ceil(round(self.min_gap / grid.output_seconds, 6))

    def min_duration_frames(self, grid: Grid) -> int:
        """Returns the minimum number of output frames of an event."""
        return max(1, math.ceil(round(self.min_duration / grid.output_seconds, 6)))


@dataclass(frozen=True, order=True)
class Span:
    """An event in output frames."""

    start: int
    """First frame."""
    column: int
    """Column of the class in the scores."""
    stop: int
    """Frame after the last one."""
    score: float
    """Highest (smoothed) score of its frames."""


class RunningMedian:
    """Running median over time; the first and the last frame are repeated beyond both ends."""

    def __init__(self, width: int) -> None:
        self._half = width // 2
        self._buffer: np.ndarray | None = None

    def push(self, scores: np.ndarray) -> np.ndarray:
        """Adds `(frames, n)` and returns the medians of all frames whose neighbours are complete."""
        if self._half == 0 or len(scores) == 0:
            return scores
        before = np.repeat(scores[:1], self._half, axis=0) if self._buffer is None else self._buffer
        return self._medians(np.concatenate([before, scores]))

    def finish(self) -> np.ndarray:
        """Returns the medians of the remaining frames."""
        if self._buffer is None:
            return np.zeros((0, 0), np.float32)
        return self._medians(np.concatenate([self._buffer, np.repeat(self._buffer[-1:], self._half, axis=0)]))

    def _medians(self, frames: np.ndarray) -> np.ndarray:
        """Returns the medians of all complete windows, and keeps the frames that later windows need."""
        width = 2 * self._half + 1
        count = max(0, len(frames) - width + 1)
        self._buffer = frames[count:]
        shifts = [frames[i : count + i] for i in range(width)]
        if width == 3:  # Several times as fast as np.median.
            low, middle, high = shifts
            return np.maximum(np.minimum(low, middle), np.minimum(np.maximum(low, middle), high))
        return np.median(np.stack(shifts), axis=0)


class EventFinder:
    """Finds events per class: runs of frames at or above the release level that reach the threshold at least once.

    Scores are first smoothed by :class:`RunningMedian`. Runs with a gap shorter than `min_gap` are merged, then events
    shorter than `min_duration` are dropped. Memory does not grow with the recording.

    Attributes:
        num_frames: number of frames searched so far: those whose neighbours for smoothing are complete.
    """

    def __init__(self, rules: Rules, columns: int, grid: Grid | None = None) -> None:
        self.num_frames, grid = 0, grid or Grid()
        self._median = RunningMedian(rules.smooth)
        self._threshold = np.broadcast_to(np.asarray(rules.with_threshold().threshold, np.float32), (columns,))
        self._release = self._threshold * np.float32(rules.release)
        self._min_gap, self._min_duration = rules.min_gap_frames(grid), rules.min_duration_frames(grid)
        self._run_start = np.full(columns, -1)  # First frame of the current run; -1 if there is none.
        self._run_peak = np.zeros(columns, np.float32)
        self._start = np.full(columns, -1)  # First frame of the event that a run may still extend; -1 if there is none.
        self._stop = np.zeros(columns, np.int64)
        self._score = np.zeros(columns, np.float32)

    def push(self, scores: np.ndarray) -> list[Span]:
        """Adds frames `(frames, columns)` and returns the events that became final, by frame and then by class."""
        return [span for row in self._median.push(scores) for span in self._push_frame(row)]

    def finish(self) -> list[Span]:
        """Returns the remaining events."""
        spans = [span for row in self._median.finish() for span in self._push_frame(row)]
        self._end_runs(self._run_start >= 0)
        return spans + self._close(self._start >= 0)

    def active(self) -> list[Span]:
        """The events that have started and are not final, as they are now."""
        started = (self._run_start >= 0) & (self._run_peak >= self._threshold)
        # Classes with an earlier event that has no later run, or whose later run will be merged into it.
        earlier = (self._start >= 0) & (~started | (self._run_start - self._stop < self._min_gap))
        start = np.where(earlier, self._start, self._run_start)
        stop = np.where(started, self.num_frames, self._stop)
        score = np.maximum(np.where(started, self._run_peak, 0), np.where(earlier, self._score, 0))
        return sorted(_spans(started | earlier, start, stop, score))

    def _push_frame(self, row: np.ndarray) -> list[Span]:
        above = row >= self._release
        starting = above & (self._run_start < 0)
        self._run_start[starting] = self.num_frames
        self._run_peak[starting] = 0
        self._end_runs(~above & (self._run_start >= 0))
        np.maximum(self._run_peak, row, out=self._run_peak, where=above)
        self.num_frames += 1
        # An event is final once neither the current run nor one that starts at the next frame can extend it.
        earliest = np.where(self._run_start >= 0, self._run_start, self.num_frames)
        return self._close((self._start >= 0) & (earliest - self._stop >= self._min_gap))

    def _end_runs(self, ended: np.ndarray) -> None:
        """Ends runs before the current frame; those that reached the threshold become or extend an event."""
        if not ended.any():
            return
        reached = ended & (self._run_peak >= self._threshold)
        new = reached & (self._start < 0)
        self._start[new] = self._run_start[new]
        self._score[reached] = np.maximum(self._run_peak[reached], np.where(new, 0, self._score)[reached])
        self._stop[reached] = self.num_frames
        self._run_start[ended] = -1

    def _close(self, final: np.ndarray) -> list[Span]:
        spans = _spans(final, self._start, self._stop, self._score)
        self._start[final] = -1
        return [span for span in spans if span.stop - span.start >= self._min_duration]


def _spans(columns: np.ndarray, start: np.ndarray, stop: np.ndarray, score: np.ndarray) -> list[Span]:
    """Returns the spans of the columns that a mask selects."""
    return [Span(int(start[i]), int(i), int(stop[i]), float(score[i])) for i in np.flatnonzero(columns)]


def find_events(scores: np.ndarray, rules: Rules, grid: Grid | None = None) -> Sequence[Span]:
    """Returns the events of a whole timeline `(frames, columns)`, in order of their start."""
    finder = EventFinder(rules, scores.shape[1], grid)
    return sorted([*finder.push(scores), *finder.finish()])
