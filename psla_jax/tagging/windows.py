"""Splits recordings of any length into overlapping windows, and joins the windows' outputs into one timeline.

The backbones reduce 32 spectrogram frames to one output frame, of 0.32 s by default. Windows start at output frames, so
that the frames of overlapping windows coincide. Both directions process block after block and buffer about one window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from psla_jax.audio.windows import Grid


@dataclass(frozen=True)
class Window:
    """A piece of a recording, at most as long as the input of a model."""

    start: int
    """Index of its first output frame in the recording."""
    samples: np.ndarray
    """float32 ``(samples,)`` at the rate of the model: a full window, or the whole of a shorter recording."""
    grid: Grid = field(default_factory=Grid)

    @property
    def num_frames(self) -> int:
        """Number of output frames that contain sound."""
        return self.grid.num_output_frames(len(self.samples))


class Cutter:
    """Cuts blocks of samples into windows: one every `hop` output frames, and a last one up to the recording's end.

    The last window starts at the first output frame from which the remaining samples fit into a window, so that it
    lacks less than one output frame; only a recording that is shorter than a window gives a shorter one.
    """

    def __init__(self, size: int, hop: int, grid: Grid | None = None) -> None:
        self.size, self.hop, self.grid = size, hop, grid or Grid()
        self.grid.require_covering(size, hop)
        self._buffer = np.zeros(0, np.float32)
        self._start = self._next = 0  # Output frames at which the buffer and the next window start.

    def push(self, block: np.ndarray) -> Iterator[Window]:
        """Yields the windows that a block completes."""
        self._buffer = np.concatenate([self._buffer, block])
        while len(self._buffer) >= (self._next - self._start) * self.grid.output_samples + self.size:
            self._drop_before(self._next)
            yield Window(self._start, self._buffer[: self.size].copy(), self.grid)
            self._next += self.hop

    def finish(self) -> Iterator[Window]:
        """Yields the last window, unless the previous one ends exactly with the recording."""
        excess = len(self._buffer) - self.size
        if len(self._buffer) > 0 and (self._next == 0 or excess > 0):
            self._drop_before(self._start + -(-max(excess, 0) // self.grid.output_samples))
            yield self.partial()

    def partial(self) -> Window:
        """The samples buffered so far, as a window."""
        return Window(self._start, self._buffer.copy(), self.grid)

    def _drop_before(self, frame: int) -> None:
        self._buffer = self._buffer[(frame - self._start) * self.grid.output_samples :]
        self._start = frame


class OverlapAverage:
    """Joins the output frames of overlapping windows into those of the recording, by a weighted mean.

    The weight of a frame decreases towards the edges of its window, where the model has context on one side only.
    """

    def __init__(self) -> None:
        self._total, self._weight = np.zeros((0, 0), np.float32), np.zeros(0, np.float32)
        self._start = 0

    def push(self, start: int, values: np.ndarray, size: int) -> np.ndarray:
        """Adds the values of a window and returns the frames before it that have not been returned, ``(frames, n)``.

        Args:
            start: the window's first output frame; not less than that of the previous window.
            values: float32 ``(frames, n)`` for the output frames that contain sound.
            size: number of output frames of a full window.
        """
        finished = self._pop(start - self._start)
        frames = len(values)
        missing = frames - len(self._total)
        if missing > 0:
            columns = values.shape[1] - self._total.shape[1]  # Not zero at the first call only.
            self._total = np.pad(self._total, ((0, missing), (0, columns)))
            self._weight = np.pad(self._weight, (0, missing))
        position = np.arange(frames, dtype=np.float32)
        weight = np.minimum(position + 1, size - position)
        self._total[:frames] += weight[:, None] * values
        self._weight[:frames] += weight
        return finished

    def finish(self) -> np.ndarray:
        """Returns the remaining frames after the last window."""
        return self._pop(len(self._total))

    def _pop(self, count: int) -> np.ndarray:
        values = self._total[:count] / self._weight[:count, None]
        self._total, self._weight = self._total[count:], self._weight[count:]
        self._start += count
        return values
