"""Accumulates the model outputs of one recording; memory does not grow with it unless frame outputs are requested."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from psla_jax.audio.reading import MAX_AMPLITUDE, Reading
from psla_jax.audio.windows import Grid
from psla_jax.tagging.calibration.model import Calibration
from psla_jax.tagging.events import EventFinder, Rules, Span
from psla_jax.tagging.plot.heatmap import Heatmaps, MaxDownsampler
from psla_jax.tagging.result import Embeddings, Event, Tags, Timeline
from psla_jax.tagging.windows import OverlapAverage, Window
from psla_jax.vocabulary.vocabulary import Vocabulary

SILENCE = 2.0**-15
"""Peak below which a recording is silent: less than the least significant of 16 bits."""


@dataclass(frozen=True)
class FrameOutputs:
    """Frame outputs to keep. Their memory grows with the recording, except for a plot."""

    timeline: bool = False
    embeddings: bool = False
    plot: bool = False


class EnsembleMean:
    """Mean of several models' frame values; their windows differ, so the numbers of finished frames do as well."""

    def __init__(self, models: int) -> None:
        self._buffers: list[list[np.ndarray]] = [[] for _ in range(models)]

    def push(self, index: int, values: np.ndarray) -> np.ndarray:
        """Adds frames ``(frames, n)`` of one model and returns the mean of those that all models have finished."""
        if len(self._buffers) == 1:
            return values
        if len(values):
            self._buffers[index].append(values)
        count = min(sum(map(len, buffer)) for buffer in self._buffers)
        if count == 0:
            return values[:0]
        joined = [np.concatenate(buffer) for buffer in self._buffers]
        self._buffers = [[frames[count:]] for frames in joined]
        return np.mean([frames[:count] for frames in joined], axis=0)


class RecordingAccumulator:
    """Accumulates the model outputs for the windows of one recording; its results are valid once it is ``complete``.

    The reading thread counts samples and expected windows, the computing thread adds the outputs.
    """

    def __init__(
        self,
        clip: str,
        vocabulary: Vocabulary,
        rules: Rules,
        frame_outputs: FrameOutputs,
        selected: np.ndarray,
        window_frames: list[int],
        events_from: str,
        rate: float,
        calibration: Calibration | None = None,
        exclusive: Sequence[bool] = (),
        grid: Grid | None = None,
        top_hz: float = 8000.0,
    ) -> None:
        """Creates an empty accumulator, see :meth:`psla_jax.tagging.tagger.Tagger.accumulator`.

        The score of a recording by a model is the largest one of its windows; for the models with `exclusive` classes
        it is their mean, so that the scores of a recording are a distribution as well.
        """
        self.clip, self.rate, self._calibration = clip, rate, calibration
        self.reading, self.grid, self._top_hz = Reading(), grid or Grid(), top_hz
        self.samples, self.peak = 0, 0.0
        self._ended = self._finished = False
        self._expected, self._added = [0] * len(window_frames), [0] * len(window_frames)
        self._vocabulary, self.frame_outputs, self._selected = vocabulary, frame_outputs, selected
        self._window_frames, self._events_from = window_frames, events_from
        self._exclusive = exclusive or [False] * len(window_frames)
        self._scores = [np.full(len(vocabulary), 0.0 if each else -np.inf, np.float32) for each in self._exclusive]
        self._averages, self._mean = [OverlapAverage() for _ in window_frames], EnsembleMean(len(window_frames))
        threshold = np.broadcast_to(np.asarray(rules.threshold, np.float32), len(vocabulary))[selected]
        self._finder = EventFinder(replace(rules, threshold=threshold), len(selected), self.grid)
        self._spans, self._timeline, self._features = list[Span](), list[np.ndarray](), list[np.ndarray]()
        self._feature_average = OverlapAverage()
        self._strips = MaxDownsampler(), MaxDownsampler()

    def add_samples(self, block: np.ndarray) -> None:
        """Counts a block of samples that was read and tracks the peak."""
        self.samples += len(block)
        self.peak = max(self.peak, float(np.abs(block).max(initial=0.0)))

    def expect_window(self, index: int) -> None:
        """Counts a window that was passed to the model with that index."""
        self._expected[index] += 1

    def end(self) -> None:
        """Marks that no further windows follow."""
        self._ended = True

    @property
    def complete(self) -> bool:
        """Whether the outputs of all windows have been added."""
        return self._ended and self._added == self._expected

    @property
    def duration(self) -> float:
        """Seconds read so far."""
        return self.samples / self.grid.rate

    @property
    def final_frames(self) -> int:
        """Number of output frames in which later windows change no event."""
        return self._finder.num_frames

    def active_events(self) -> list[Span]:
        """The events that have started and are not final."""
        return self._finder.active()

    def pop_finished(self) -> list[Span]:
        """Returns the events that became final since the last call. They are then missing from the result."""
        spans, self._spans = sorted(self._spans), []
        return spans

    def pop_remaining(self) -> list[Span]:
        """Ends the recording and returns all events that have not been returned yet."""
        self._finish()
        return self.pop_finished()

    def copy(self) -> RecordingAccumulator:
        """Returns a deep copy, from which provisional results can be computed."""
        return copy.deepcopy(self, {id(self._vocabulary): self._vocabulary})

    def add_window(
        self,
        index: int,
        window: Window,
        scores: np.ndarray,
        frames: np.ndarray | None = None,
        attention: np.ndarray | None = None,
        features: np.ndarray | None = None,
    ) -> None:
        """Adds the output of the model with that index for a window; a model's windows are added in their order.

        Shapes are `scores` ``(classes,)``, `frames` ``(frames, classes)``, which is None for heads without frame
        scores, `attention` ``(frames, classes)``, from all models or from none, and `features` ``(frames, channels)``.
        """
        self._added[index] += 1
        combine = np.add if self._exclusive[index] else np.maximum
        self._scores[index] = combine(self._scores[index], scores)
        size = self._window_frames[index]
        count = min(window.num_frames, size)
        if self._events_from == "windows" or frames is None:
            frames = np.broadcast_to(scores, (count, len(scores)))
        if self.frame_outputs.plot and attention is not None:
            frames = np.concatenate([frames[:count], attention[:count]], axis=1)
        self._add_frames(index, self._averages[index].push(window.start, frames[:count], size))
        if self.frame_outputs.embeddings and features is not None:
            self._features.append(self._feature_average.push(window.start, features[:count], size))

    def _add_frames(self, index: int, values: np.ndarray) -> None:
        """Passes finished frames of a model, scores and possibly attention, to the events, timeline and plot."""
        values = self._mean.push(index, values)
        if len(values) == 0:
            return
        scores, attention = np.split(values, [len(self._vocabulary)], axis=1)
        self._spans += self._finder.push(scores[:, self._selected])
        if self.frame_outputs.timeline:
            self._timeline.append(scores.astype(np.float16))
        if self.frame_outputs.plot:
            for strip, rows in zip(self._strips, (scores, attention)):
                strip.push(rows)

    def _finish(self) -> None:
        """Processes the remaining frames; further calls have no effect."""
        if self._finished:
            return
        self._finished = True
        for index, average in enumerate(self._averages):
            self._add_frames(index, average.finish())
        self._spans += self._finder.finish()
        if self.frame_outputs.embeddings:
            self._features.append(self._feature_average.finish())

    def result(self) -> Tags:
        """Returns scores and events."""
        self._finish()
        events = tuple(self.event(span) for span in sorted(self._spans))
        notes = quality_notes(self.clip, self.peak, self.rate or self.reading.rate, self.reading, self._top_hz)
        counts = [max(count, 1) if mean else 1 for mean, count in zip(self._exclusive, self._added)]
        scores: np.ndarray = np.mean([total / count for total, count in zip(self._scores, counts)], axis=0)
        return Tags(
            self.clip, self.duration, scores, events, self._vocabulary, self._selected,
            max(self._expected) > 1, self._events_from, notes, self._calibration,
        )  # fmt: skip

    def timeline(self) -> Timeline:
        """Returns the scores of all output frames."""
        self._finish()
        return Timeline(np.concatenate(self._timeline), self._vocabulary, self.grid)

    def embeddings(self) -> Embeddings:
        """Returns the embeddings of the recording and of its output frames."""
        self._finish()
        frames = np.concatenate([block for block in self._features if len(block)])
        return Embeddings(frames.mean(axis=0), frames, self.grid)

    def heatmaps(self) -> Heatmaps:
        """Returns scores and attention over time, reduced to the columns of a plot."""
        self._finish()
        scores, attention = (strip.finish() for strip in self._strips)
        return Heatmaps(scores, attention if attention.size else None, self._strips[0].group_size)

    def event(self, span: Span) -> Event:
        """Returns an event in seconds, with its class."""
        i = int(self._selected[span.column])
        is_last = span.stop >= self.grid.num_output_frames(self.samples)
        onset, offset = (
            self.grid.frame_start(span.start),
            self.duration if is_last else min(self.grid.frame_start(span.stop), self.duration),
        )
        mid, name = self._vocabulary.mids[i], self._vocabulary.names[i]
        return Event(round(onset, 3), round(offset, 3), mid, name, span.score)


def quality_notes(
    name: str, peak: float, rate: float, reading: Reading | None = None, top_hz: float = 8000.0
) -> tuple[str, ...]:
    """Returns a sentence for each peculiarity of a recording: defects of its file, its level or a low sample rate.

    `peak` is the largest magnitude of its samples, `rate` the number of samples per second, 0 if it is unknown, and
    `top_hz` the highest frequency of the features of the model.
    """
    reading = reading or Reading()
    cancelled = (
        f"{name} has channels that cancel each other, so that their mean is nearly silent: use the first one "
        "(--channel first)."
    )
    silent = f"{name} is silent: its scores are those of silence."
    loud = (
        f"{name} has samples as large as {peak:.3g} times full scale, for which its scores are wrong: scale it to "
        "[-1, 1]."
    )
    narrow = (
        f"{name} was sampled at {rate:g} Hz: it has nothing above {rate / 2:g} Hz, "
        f"and the model was trained with sound up to {top_hz:g} Hz."
    )
    notes = {
        cancelled: reading.is_cancelled,
        silent: peak < SILENCE and not reading.is_cancelled,
        loud: peak > MAX_AMPLITUDE,
        narrow: 0 < rate < 2 * top_hz,
    }
    return tuple(f"{name} {note}" for note in reading.notes) + tuple(note for note, applies in notes.items() if applies)
