"""A bounded queue of audio blocks between a recording thread and a computing thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

POLL_SECONDS = 0.1
"""Timeout of each wait, after which the stop event is checked, so that Ctrl-C takes effect."""


@dataclass(frozen=True)
class AudioBlock:
    """A block taken from the queue."""

    lost: int
    """Samples per channel that were dropped directly before this block."""
    samples: np.ndarray
    """``(samples, channels)``."""


class AudioQueue:
    """Passes blocks of up to `limit` samples per channel from one thread to another.

    When the queue is full, :meth:`put` waits, for sources that can be paused. :meth:`put_nowait` never waits, for
    real-time sources: it drops and counts all queued blocks, because the newest audio matters most.
    """

    def __init__(self, limit: int) -> None:
        self._limit = max(1, limit)
        self._changed = threading.Condition()
        self._blocks: deque[np.ndarray] = deque()
        self._size = self._lost = 0
        self._closed = False
        self._error: BaseException | None = None

    @property
    def size(self) -> int:
        """Number of samples per channel in the queue."""
        return self._size

    def put(self, block: np.ndarray) -> bool:
        """Waits for room and adds a block; returns False if the queue is closed."""
        with self._changed:
            while self._blocks and self._size + len(block) > self._limit and not self._closed:
                self._changed.wait(POLL_SECONDS)
            self._add(block)
            return not self._closed

    def put_nowait(self, block: np.ndarray) -> None:
        """Adds a block without waiting; drops all queued blocks if there is no room."""
        with self._changed:
            if self._blocks and self._size + len(block) > self._limit:
                self._lost += self._size
                self._blocks.clear()
                self._size = 0
            self._add(block)

    def _add(self, block: np.ndarray) -> None:
        if not self._closed:
            self._blocks.append(block)
            self._size += len(block)
            self._changed.notify_all()

    def close(self, error: BaseException | None = None) -> None:
        """Refuses further blocks. :meth:`blocks` raises `error`, if any, after the last queued block."""
        with self._changed:
            self._closed, self._error = True, self._error or error
            self._changed.notify_all()

    def blocks(self, stop: threading.Event) -> Iterator[AudioBlock]:
        """Yields the blocks in order until the queue is closed and empty or `stop` is set; then closes the queue."""
        try:
            while not stop.is_set():
                with self._changed:
                    if not self._changed.wait_for(lambda: self._blocks or self._closed, POLL_SECONDS):
                        continue
                    if not self._blocks:
                        break
                    block = AudioBlock(self._lost, self._blocks.popleft())
                    self._size -= len(block.samples)
                    self._lost = 0
                    self._changed.notify_all()
                yield block
        finally:
            self.close()
        if self._error is not None and not stop.is_set():
            raise self._error
