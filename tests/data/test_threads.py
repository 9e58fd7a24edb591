"""Work in threads: order, what is in flight, and calls that never return."""

from __future__ import annotations

import threading
import time

import pytest

from psla_jax.data import threads
from psla_jax.data.threads import as_answered, in_order


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_results_come_in_order(workers, count):
    work = lambda i: (time.sleep(0.002 * (i % 3)), i * i)[1]  # noqa: E731
    assert list(in_order(work, range(count), workers)) == [i * i for i in range(count)]
    assert sorted(as_answered(work, range(count), workers, 60)) == [(i, i * i) for i in range(count)]


def test_only_a_few_results_wait_to_be_taken():
    begun: list[int] = []
    results = in_order(lambda i: begun.append(i), range(1000), 2)
    for taken in range(20):
        next(results)
        assert len(begun) <= taken + 1 + threads._AHEAD * 2
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
        list(as_answered(fail, range(1000), 2, 60))


def test_calls_that_never_return_are_left_to_themselves(monkeypatch):
    monkeypatch.setattr(threads, "_LOOK_EVERY", 0.01)
    release = threading.Event()
    stuck = {3, 4, 11}
    work = lambda i: release.wait(60) if i in stuck else i  # noqa: E731
    try:
        found = dict(as_answered(work, range(20), 2, 0.1))
    finally:
        release.set()
    assert found == {i: None if i in stuck else i for i in range(20)}


def test_who_stops_listening_stops_the_work():
    begun: list[int] = []

    def work(i: int) -> None:
        begun.append(i)
        time.sleep(0.001)

    answers = as_answered(work, range(100_000), 2, 60)
    next(answers)
    answers.close()
    time.sleep(0.05)
    count = len(begun)
    time.sleep(0.05)
    assert len(begun) == count < 1000
