"""What a run says: lines on the screen and in ``log.txt``, a progress bar while it works."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

T = TypeVar("T")


class Journal:
    """Lines go to standard output and, with a time stamp, to the log file; the bar to standard error."""

    def __init__(self, log: Path | None = None, *, silent: bool = False) -> None:
        """`silent` is for all processes of a run but the first."""
        self._silent = silent
        screen = Console(highlight=False, soft_wrap=True)
        # What is not a screen has no width: a table in a file is never cut.
        self.console = screen if screen.is_terminal else Console(highlight=False, soft_wrap=True, width=160)
        self._log = log

    def say(self, text: str) -> None:
        """One line, on the screen and in the log."""
        if self._silent:
            return
        self.console.print(text, markup=False)
        self.note(text)

    def note(self, text: str) -> None:
        """Lines for the log alone."""
        if self._log is not None and not self._silent:
            with open(self._log, "a", encoding="utf-8") as file:
                file.writelines(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n" for line in text.splitlines())

    @contextmanager
    def progress(self, description: str, total: int, done: int = 0) -> Iterator[Bar]:
        """A bar that is gone when the work is done."""
        screen = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        with Progress(
            *columns, console=screen, transient=True, disable=self._silent or not screen.is_terminal
        ) as progress:
            yield Bar(progress, progress.add_task(description, total=total, completed=done, note=""))


class Board:
    """TensorBoard events; what an earlier start wrote from step `start` on is taken back."""

    def __init__(self, directory: Path | None, start: int) -> None:
        """Without a directory nothing is written."""
        self._directory, self._start = directory, start
        self._writer: Any = None

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def _opened(self) -> Any:
        if self._writer is None:
            # Loads PyTorch where there is one: not before there is something to write.
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self._directory), purge_step=self._start)
        return self._writer

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        """One value of each curve, where it is finite."""
        if self._directory is not None:
            for name, value in scalars.items():
                if np.isfinite(value):
                    self._opened().add_scalar(name, value, step)

    def spread(self, name: str, values: np.ndarray, step: int) -> None:
        """A histogram of the finite ones of `values`."""
        values = values[np.isfinite(values)]
        if self._directory is not None and len(values):
            self._opened().add_histogram(name, values, step)


class Bar:
    """One line of progress."""

    def __init__(self, progress: Progress, task) -> None:
        self._progress, self._task = progress, task

    def advance(self, note: str = "", count: int = 1) -> None:
        """One piece of work is done, or `count`; `note` stands behind the bar."""
        self._progress.update(self._task, advance=count, note=note)

    def reach(self, done: int) -> None:
        """So many pieces of work are done."""
        self._progress.update(self._task, completed=done)

    def over(self, items: Iterable[T]) -> Iterator[T]:
        """The items; each counts as done when the next one is asked for."""
        for item in items:
            yield item
            self.advance()

    def describe(self, note: str) -> None:
        """Changes what stands behind the bar."""
        self._progress.update(self._task, note=note)
