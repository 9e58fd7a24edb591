"""A program applied to groups of the rows of a batch at the same time, on the cores of a CPU.

XLA divides every operation of a program among the cores, and the operations of these networks are too short for that:
two cores take nearly as long as one. Several programs at a time, each on a group of rows, use all of the cores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

ROWS = 4
"""Number of rows per program. The groups, and so the results, do not depend on the number of cores."""

MAX_PROGRAMS = 16
"""Largest number of programs at a time: each needs memory of its own, and XLA divides its operations as well."""

Rows = Mapping[str, np.ndarray]
"""Arrays with the same number of rows, along their first axis."""
Program = Callable[[dict[str, np.ndarray]], Any]
"""Maps the arrays of a group to an array with a result for every row."""


def num_programs() -> int:
    """Returns the number of programs to run at a time."""
    return min(available(), MAX_PROGRAMS)


def available() -> int:
    """Returns the number of cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # macOS and Windows have none.
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class SideBySide(AbstractContextManager["SideBySide"]):
    """Applies a program to groups of :data:`ROWS` rows, one per core at a time; the context ends its threads.

    Args:
        compiled: returns the program for groups of rows with the shapes of its argument.
    """

    def __init__(self, compiled: Callable[[dict[str, np.ndarray]], Program]) -> None:
        self._compiled = compiled
        self._programs: dict[int, Program] = {}
        self._pool = ThreadPoolExecutor(num_programs())

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, rows: Rows) -> Callable[[], np.ndarray]:
        """Starts the computation of the results of all rows, and returns the function that waits for them."""
        total = len(next(iter(rows.values())))
        size = min(total, ROWS)
        starts = range(0, total, size)
        groups = [{name: _group(array, start, size) for name, array in rows.items()} for start in starts]
        if size not in self._programs:  # Compiled here, since each of the threads would compile it.
            self._programs[size] = self._compiled(groups[0])
        results = [self._pool.submit(_computed, self._programs[size], group) for group in groups]
        return lambda: np.concatenate([result.result() for result in results])[:total]


def _computed(program: Program, group: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(program(group))


def _group(array: np.ndarray, start: int, size: int) -> np.ndarray:
    """Returns `size` rows from `start` on; the last row is repeated if there are fewer."""
    rows = array[start : start + size]
    missing = size - len(rows)
    return np.concatenate([rows, np.repeat(rows[-1:], missing, axis=0)]) if missing else rows
