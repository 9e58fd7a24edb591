"""Work on millions of files in threads, with a few results in memory at a time."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 3
"""Items per thread that are worked on or wait to be taken."""
_LOOK_EVERY = 0.5
"""Seconds between two looks at what takes long."""


def in_order(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """What ``work`` returns for each item, in their order; an exception of it, or Ctrl-C, ends it."""
    with ThreadPoolExecutor(workers) as pool:
        begun: deque[Future[Result]] = deque()
        try:
            for item in items:
                begun.append(pool.submit(work, item))
                if len(begun) >= _AHEAD * workers:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def as_answered(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int, patience: float
) -> Iterator[tuple[Item, Result | None]]:
    """Each item with what ``work`` returns for it, as they come.

    A call that gives no answer cannot be ended, for it may be inside a decoder or wait for a disk. It is left to
    itself: its item comes with None, another thread takes its place, and the process can end without it.

    Args:
        work: called with each item; what it raises ends the iteration.
        items: what to work on; taken as threads become free.
        workers: threads that work at a time.
        patience: seconds that a call may take.
    """
    crew = _Crew(work, iter(items))
    try:
        for _ in range(workers):
            crew.hire()
        while crew.threads:
            answer = crew.answer()
            if isinstance(answer, BaseException):
                raise answer
            if answer is not None:
                yield answer
            yield from ((item, None) for item in crew.dismiss(patience))
    finally:
        crew.stopped = True


class _Crew:
    """Threads that take items from one iterator."""

    def __init__(self, work: Callable[[Any], Any], items: Iterator[Any]) -> None:
        self.threads = 0
        """How many are at work, those left to themselves not counted."""
        self.stopped = False
        self._work, self._items = work, items
        self._lock = threading.Lock()
        self._busy: dict[int, tuple[Any, float]] = {}
        self._hired = 0
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._looked = time.monotonic()

    def hire(self) -> None:
        """Starts a thread that does not keep the process from ending."""
        self.threads += 1
        self._hired += 1
        threading.Thread(target=self._run, args=(self._hired,), daemon=True).start()

    def answer(self) -> Any:
        """An item with its result; an exception of the work; None if there is nothing new."""
        try:
            found = self._answers.get(timeout=_LOOK_EVERY)
        except queue.Empty:
            return None
        if found is None:
            self.threads -= 1
        return found

    def dismiss(self, patience: float) -> list[Any]:
        """The items whose threads take too long; these are replaced."""
        now = time.monotonic()
        if now - self._looked < _LOOK_EVERY:
            return []
        self._looked = now
        with self._lock:
            late = [number for number, (_, since) in self._busy.items() if now - since > patience]
            items = [self._busy.pop(number)[0] for number in late]
        self.threads -= len(late)
        for _ in late:
            self.hire()
        return items

    def _run(self, number: int) -> None:
        while (item := self._take(number)) is not _NONE_LEFT:
            try:
                answer: Any = (item, self._work(item))
            except BaseException as error:
                answer = error
            with self._lock:
                if self._busy.pop(number, None) is None:
                    return  # Too late: another thread has taken this one's place.
            self._answers.put(answer)
        self._answers.put(None)

    def _take(self, number: int) -> Any:
        with self._lock:
            item = _NONE_LEFT if self.stopped else next(self._items, _NONE_LEFT)
            if item is not _NONE_LEFT:
                self._busy[number] = item, time.monotonic()
            return item


_NONE_LEFT = object()
