"""Values in time as no more columns than a picture shows, whatever the length of the recording."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COLUMNS = 2048
"""The most there are: more than a picture has pixels."""


class Strip:
    """Rows of values that come one after the other, kept as the highest of so many in a row each.

    That number doubles whenever there is no more room, so that memory does not grow with the recording and what is
    short is not lost.
    """

    def __init__(self, columns: int = COLUMNS) -> None:
        self.each = 1
        """How many rows have become one."""
        self._most = 2 * (columns // 2)
        self._kept: list[np.ndarray] = []
        self._rest: np.ndarray | None = None

    def push(self, rows: np.ndarray) -> None:
        """Takes the next rows, `(n, values)`."""
        rows = rows if self._rest is None else np.concatenate([self._rest, rows])
        while len(rows) >= self.each:
            count = min(len(rows) // self.each, self._most - self._count())
            whole, rows = rows[: count * self.each], rows[count * self.each :]
            self._kept.append(_highest(whole, self.each))
            if self._count() == self._most:
                self._kept = [_highest(np.concatenate(self._kept), 2)]
                self.each *= 2
        self._rest = rows.copy()

    def finish(self) -> np.ndarray:
        """All of it, `(columns, values)`; the last column may stand for fewer rows."""
        rest = [] if self._rest is None or not len(self._rest) else [self._rest.max(axis=0, keepdims=True)]
        return np.concatenate([*self._kept, *rest])

    def _count(self) -> int:
        return sum(map(len, self._kept))


def _highest(rows: np.ndarray, each: int) -> np.ndarray:
    return rows.reshape(len(rows) // each, each, rows.shape[1]).max(axis=1)


@dataclass(frozen=True, eq=False)
class Strips:
    """What a picture shows of a recording's steps."""

    scores: np.ndarray
    """float32 ``(columns, classes)``, in the order of the vocabulary."""
    attention: np.ndarray | None
    """Likewise, as a multiple of an even weight; None for models whose heads have none."""
    steps: int
    """How many steps of 0.32 s a column stands for."""
