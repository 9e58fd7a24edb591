"""Between a thread that hears, and may not wait, and one that computes: blocks of sound in a queue with a limit."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

PATIENCE = 0.1
"""Seconds after which somebody who waits looks up, so that Ctrl-C is answered."""


@dataclass(frozen=True)
class Heard:
    """A block as it comes out of the queue."""

    lost: int
    """Samples of each channel that were heard before it and are lost."""
    block: np.ndarray
    """``(samples, channels)``."""


class Inbox:
    """Blocks on their way from one thread to another, `limit` samples of each channel at most.

    When it is full, one who may wait does (:meth:`put`). Otherwise (:meth:`offer`) all that lies in it is thrown away
    and counted: what comes now is worth more than what is late already.
    """

    def __init__(self, limit: int) -> None:
        self._limit = max(1, limit)
        self._changed = threading.Condition()
        self._blocks: deque[np.ndarray] = deque()
        self._held = self._lost = 0
        self._ended = False
        self._error: BaseException | None = None

    @property
    def held(self) -> int:
        """Samples that wait."""
        return self._held

    def put(self, block: np.ndarray) -> bool:
        """Waits for room; False if nobody takes blocks any more."""
        with self._changed:
            while self._blocks and self._held + len(block) > self._limit and not self._ended:
                self._changed.wait(PATIENCE)
            self._add(block)
            return not self._ended

    def offer(self, block: np.ndarray) -> None:
        """Makes room if there is none, and never waits."""
        with self._changed:
            if self._blocks and self._held + len(block) > self._limit:
                self._lost += self._held
                self._blocks.clear()
                self._held = 0
            self._add(block)

    def _add(self, block: np.ndarray) -> None:
        if not self._ended:
            self._blocks.append(block)
            self._held += len(block)
            self._changed.notify_all()

    def end(self, error: BaseException | None = None) -> None:
        """There is no more to come; after an error, whoever takes blocks meets it behind the last one."""
        with self._changed:
            self._ended, self._error = True, self._error or error
            self._changed.notify_all()

    def blocks(self, stop: threading.Event) -> Iterator[Heard]:
        """The blocks in their order, until they end or `stop` is set; then nothing more is let in."""
        try:
            while not stop.is_set():
                with self._changed:
                    if not self._blocks and not self._ended:
                        self._changed.wait(PATIENCE)
                        continue
                    if not self._blocks:
                        break
                    heard = Heard(self._lost, self._blocks.popleft())
                    self._held -= len(heard.block)
                    self._lost = 0
                    self._changed.notify_all()
                yield heard
        finally:
            self.end()
        if self._error is not None and not stop.is_set():
            raise self._error
