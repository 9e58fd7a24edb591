"""Programs that run at the same time on the cores of a CPU."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from psla_jax.runtime import cores
from psla_jax.runtime.cores import ROWS, SideBySide


@pytest.mark.parametrize("total", [1, ROWS - 1, ROWS, ROWS + 1, 3 * ROWS, 3 * ROWS + 2])
def test_results_are_those_of_every_row_in_order(total: int) -> None:
    shapes = []

    def compiled(group: dict[str, np.ndarray]):
        shapes.append(group["x"].shape)
        return lambda rows: rows["x"].sum(1) * rows["factor"]

    x, factor = np.random.default_rng(0).random((total, 3)), np.arange(total)
    with SideBySide(compiled) as side_by_side:
        first, second = side_by_side({"x": x, "factor": factor}), side_by_side({"x": 2 * x, "factor": factor})
        np.testing.assert_array_equal(first(), x.sum(1) * factor)
        np.testing.assert_array_equal(second(), (2 * x).sum(1) * factor)
    assert shapes == [(min(total, ROWS), 3)]


def test_groups_are_computed_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "available", lambda: 3)
    together = threading.Barrier(3, timeout=60)

    def program(rows: dict[str, np.ndarray]) -> np.ndarray:
        together.wait()
        return rows["x"]

    with SideBySide(lambda group: program) as side_by_side:
        np.testing.assert_array_equal(side_by_side({"x": np.arange(3 * ROWS)})(), np.arange(3 * ROWS))


def test_an_error_reaches_the_caller() -> None:
    def program(rows: dict[str, np.ndarray]) -> np.ndarray:
        raise ValueError(f"row {rows['x'][0]}")

    with SideBySide(lambda group: program) as side_by_side, pytest.raises(ValueError, match="row 0"):
        side_by_side({"x": np.arange(2 * ROWS)})()


def test_cores_are_those_that_the_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda process: {0, 5, 7}, raising=False)
    assert cores.available() == 3
    monkeypatch.delattr(cores.os, "sched_getaffinity")
    monkeypatch.setattr(cores.os, "cpu_count", lambda: 6)
    assert cores.available() == cores.num_programs() == 6
    monkeypatch.setattr(cores.os, "cpu_count", lambda: 200)
    assert (cores.available(), cores.num_programs()) == (200, cores.MAX_PROGRAMS)
