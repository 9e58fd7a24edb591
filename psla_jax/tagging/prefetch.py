"""Reading ahead of the device: a thread computes the next elements of an iterator."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def prefetch(elements: Iterable[T], depth: int) -> Iterator[T]:
    """Yields the elements in order while a thread computes up to `depth` of them in advance.

    An exception is raised in place of the element that caused it. Closing the iterator ends the thread.
    """
    iterator, end, pool = iter(elements), object(), ThreadPoolExecutor(1, "psla-reader")
    try:
        ready: deque[Future[Any]] = deque(pool.submit(next, iterator, end) for _ in range(depth))
        while (element := ready.popleft().result()) is not end:
            ready.append(pool.submit(next, iterator, end))
            yield element
    finally:
        pool.shutdown(cancel_futures=True)
