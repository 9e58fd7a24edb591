"""Thread pools for the processing of millions of files, with a bounded number of results in memory."""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_PENDING_PER_WORKER = 3
"""Maximum number of items per thread that are in progress or whose results have not been consumed."""
_POLL_SECONDS = 0.5
"""Seconds between checks for calls that exceed the timeout."""


def in_order(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Generator[Result]:
    """Yields the results of ``work`` in the order of the items; its first exception, or Ctrl-C, ends the iteration."""
    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(work, item))
                if len(pending) >= _PENDING_PER_WORKER * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def as_completed(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int, timeout: float
) -> Iterator[tuple[Item, Result | None]]:
    """Yields every item with the result of ``work``, in the order of completion.

    Each call has a thread of its own, and items are fetched as one of `workers` becomes free; an exception ends the
    iteration. A thread inside a decoder or a blocking read cannot be cancelled: when a call exceeds `timeout` seconds,
    its item is yielded with None, and the thread, a daemon, is abandoned and does not prevent process exit.
    """
    outcomes: queue.SimpleQueue[tuple[int, Any, BaseException | None]] = queue.SimpleQueue()
    remaining = enumerate(items)
    running: dict[int, tuple[Item, float]] = {}

    def run(number: int, item: Item) -> None:
        try:
            outcomes.put((number, work(item), None))
        except BaseException as error:
            outcomes.put((number, None, error))

    while True:
        for number, item in itertools.islice(remaining, workers - len(running)):
            running[number] = item, time.monotonic()
            threading.Thread(target=run, args=(number, item), daemon=True).start()
        if not running:
            return
        with contextlib.suppress(queue.Empty):
            number, result, error = outcomes.get(timeout=_POLL_SECONDS)
            if number in running:  # Otherwise the call has exceeded the timeout before.
                if error is not None:
                    raise error
                yield running.pop(number)[0], result
        for number in [n for n, (_, start) in running.items() if time.monotonic() - start > timeout]:
            yield running.pop(number)[0], None
