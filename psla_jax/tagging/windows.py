"""A recording of any length as overlapping windows, and what is known of each window's steps as one timeline.

A step is what the backbones make of 32 frames, 0.32 s. Windows start on steps, so that those of two windows agree. Both
directions work on blocks as they come, and hold about a window.

Five convolutions of stride 2, padded on both sides alike, leave the middle of step `k` at the middle of frame `32 k`: a
step stands for the sound from half a step before that to half a step after. (Static padding moves it by up to a step.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

FRAMES_PER_STEP = 32
FRAME_LENGTH, FRAME_SHIFT = 400, 160
STEP_SAMPLES = FRAMES_PER_STEP * FRAME_SHIFT
STEP_SECONDS = 0.32
_FIRST_MIDDLE = FRAME_LENGTH / 2 / 16_000
"""Seconds from the beginning of a recording to the middle of its first step."""


class WindowError(ValueError):
    """Windows that cannot be cut; the message names the setting."""


@dataclass(frozen=True)
class Window:
    """A piece of a recording, cut to what a model sees at once."""

    start: int
    """The step it starts at, counted from the beginning of the recording."""
    samples: np.ndarray
    """float32 ``(samples,)`` at 16 kHz: a whole window, or all there is of a shorter recording."""

    @property
    def steps(self) -> int:
        """How many steps have sound in them."""
        return steps_of(len(self.samples))


def steps_of(samples: int) -> int:
    """Steps that so many samples reach into, at least one."""
    frames = 0 if samples < FRAME_LENGTH else 1 + (samples - FRAME_LENGTH) // FRAME_SHIFT
    return max(1, -(-frames // FRAMES_PER_STEP))


def beginning_of(step: int) -> float:
    """The second from which a step of a recording stands for its sound; the first one from 0."""
    return max(0.0, (step - 0.5) * STEP_SECONDS + _FIRST_MIDDLE)


def hop_of(size: int, overlap: float) -> int:
    """Steps from one window of `size` samples to the next, of which the given fraction overlaps.

    Raises:
        WindowError: the overlap is not in [0, 0.95].
    """
    if not 0 <= overlap <= 0.95:
        raise WindowError(f"the overlap of windows is {overlap!r}: use a fraction from 0 to 0.95.")
    return max(1, round(size // STEP_SAMPLES * (1 - overlap)))


class Cutter:
    """Cuts blocks of samples into windows: one every `hop` steps, and a last one that ends where the recording does.

    The last one begins at the first step from which the rest fits, so that it is a whole window too but for a part of
    a step; only a recording that is shorter than a window gives a shorter one.
    """

    def __init__(self, size: int, hop: int) -> None:
        if hop * STEP_SAMPLES > size:
            raise WindowError(
                f"windows of {size / 16_000:.2f} s are shorter than the step from one to the next: use a model with "
                f"a target_length of at least {hop * FRAMES_PER_STEP + 2} frames."
            )
        self.size, self.hop = size, hop
        self._held = np.zeros(0, np.float32)
        self._start = 0
        self._next = 0

    def push(self, block: np.ndarray) -> Iterator[Window]:
        """The windows that a block completes."""
        self._held = np.concatenate([self._held, block])
        while len(self._held) >= (self._next - self._start) * STEP_SAMPLES + self.size:
            self._drop_to(self._next)
            yield Window(self._start, self._held[: self.size].copy())
            self._next += self.hop

    def finish(self) -> Iterator[Window]:
        """The last window, unless one ended exactly where the recording does."""
        held = len(self._held)
        if held == 0 or (self._next > 0 and held <= self.size):
            return
        beyond = max(held - self.size, 0)
        self._drop_to(self._start + -(-beyond // STEP_SAMPLES))
        yield Window(self._start, self._held.copy())

    def so_far(self) -> Window:
        """What is there of the next window."""
        return Window(self._start, self._held.copy())

    def _drop_to(self, step: int) -> None:
        """Forgets the samples before a step."""
        self._held = self._held[(step - self._start) * STEP_SAMPLES :]
        self._start = step


class Joiner:
    """Values of windows' steps as those of the recording's steps.

    Where windows overlap, their weighted mean: a step counts the less the nearer it is to the edge of its window, where
    the model has seen only one side of it.
    """

    def __init__(self) -> None:
        self._total = np.zeros((0, 0), np.float32)
        self._weight = np.zeros(0, np.float32)
        self._base = 0

    def push(self, start: int, values: np.ndarray, size: int) -> np.ndarray:
        """Takes the values of a window and gives those that no later window will touch.

        Args:
            start: the window's first step; never less than that of the window before.
            values: ``(steps, n)`` of those of its steps that have sound in them.
            size: how many steps a whole window has.

        Returns:
            float32 ``(steps, n)``: all steps before `start` that have not been given before.
        """
        done = self._take(start - self._base)
        steps = len(values)
        missing = steps - len(self._total)
        if missing > 0:
            columns = values.shape[1] - self._total.shape[1]  # None at first.
            self._total = np.pad(self._total, ((0, missing), (0, columns)))
            self._weight = np.pad(self._weight, (0, missing))
        position = np.arange(steps, dtype=np.float32)
        weight = np.minimum(position + 1, size - position)
        self._total[:steps] += weight[:, None] * values
        self._weight[:steps] += weight
        return done

    def finish(self) -> np.ndarray:
        """The rest, once there is no more window."""
        return self._take(len(self._total))

    def _take(self, count: int) -> np.ndarray:
        done = self._total[:count] / self._weight[:count, None]
        self._total, self._weight = self._total[count:], self._weight[count:]
        self._base += count
        return done
