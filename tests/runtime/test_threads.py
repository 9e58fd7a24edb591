"""Thread pools: order, number of pending results, exceptions and timeouts."""

from __future__ import annotations

import threading
import time

import pytest

from psla_jax.runtime import threads
from psla_jax.runtime.threads import as_completed, in_order


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_results_come_in_order(workers, count):
    work = lambda i: (time.sleep(0.002 * (i % 3)), i * i)[1]  # noqa: E731
    assert list(in_order(work, range(count), workers)) == [i * i for i in range(count)]
    assert sorted(as_completed(work, range(count), workers, 60)) == [(i, i * i) for i in range(count)]


def test_the_number_of_pending_results_is_bounded():
    begun: list[int] = []
    results = in_order(lambda i: begun.append(i), range(1000), 2)
    for taken in range(20):
        next(results)
        assert len(begun) <= taken + 1 + threads._PENDING_PER_WORKER * 2
    results.close()
    assert len(begun) < 40


def fail(i: int) -> int:
    if i == 7:
        raise ValueError("seven")
    return i


def test_the_first_exception_ends_it():
    with pytest.raises(ValueError, match="seven"):
        list(in_order(fail, range(1000), 2))
    with pytest.raises(ValueError, match="seven"):
        list(as_completed(fail, range(1000), 2, 60))


def test_calls_that_exceed_the_timeout_are_abandoned(monkeypatch):
    monkeypatch.setattr(threads, "_POLL_SECONDS", 0.01)
    release = threading.Event()
    stuck = {3, 4, 11}
    work = lambda i: release.wait(60) if i in stuck else i  # noqa: E731
    try:
        results = dict(as_completed(work, range(20), 2, 0.1))
    finally:
        release.set()
    assert results == {i: None if i in stuck else i for i in range(20)}


def test_closing_the_iterator_stops_the_work():
    begun: list[int] = []

    def work(i: int) -> None:
        begun.append(i)
        time.sleep(0.001)

    results = as_completed(work, range(100_000), 2, 60)
    next(results)
    results.close()
    time.sleep(0.05)
    count = len(begun)
    time.sleep(0.05)
    assert len(begun) == count < 1000
