"""Downsampling over time: values of a recording of any length in at most as many columns as a plot resolves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

COLUMNS = 2048
"""Maximum number of columns; more than a plot has pixels."""


class MaxDownsampler:
    """Reduces a sequence of rows to the maxima of groups of consecutive rows, in constant memory.

    The group size doubles whenever the columns are full. Maxima preserve short events.
    """

    def __init__(self, columns: int = COLUMNS) -> None:
        self.group_size = 1
        """Number of input rows per column."""
        self._capacity = 2 * (columns // 2)
        self._blocks: list[np.ndarray] = []
        self._remainder: np.ndarray | None = None

    def push(self, rows: np.ndarray) -> None:
        """Adds the next rows, `(n, values)`."""
        rows = rows if self._remainder is None else np.concatenate([self._remainder, rows])
        while len(rows) >= self.group_size:
            count = min(len(rows) // self.group_size, self._capacity - self._count())
            whole, rows = rows[: count * self.group_size], rows[count * self.group_size :]
            self._blocks.append(_group_max(whole, self.group_size))
            if self._count() == self._capacity:
                self._blocks = [_group_max(np.concatenate(self._blocks), 2)]
                self.group_size *= 2
        self._remainder = rows.copy()

    def finish(self) -> np.ndarray:
        """Returns all columns, `(columns, values)`; the last one may cover fewer rows."""
        rest = [] if self._remainder is None or not len(self._remainder) else [self._remainder.max(0, keepdims=True)]
        return np.concatenate([*self._blocks, *rest])

    def _count(self) -> int:
        return sum(map(len, self._blocks))


def _group_max(rows: np.ndarray, size: int) -> np.ndarray:
    return rows.reshape(len(rows) // size, size, rows.shape[1]).max(axis=1)


@dataclass(frozen=True, eq=False)
class Heatmaps:
    """Scores and attention of all classes over time, downsampled for a plot."""

    scores: np.ndarray
    """float32 ``(columns, classes)``, in the order of the vocabulary."""
    attention: np.ndarray | None
    """Attention weights of the same shape, as multiples of a uniform weight; None for models without attention."""
    frames_per_column: int
    """Number of output frames per column."""
