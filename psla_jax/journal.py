"""What a run says: lines on the screen and in ``log.txt``, a progress bar while it works."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from psla_jax.terminal import printable

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
        text = printable(text)
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
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        with Progress(
            *columns, console=screen, transient=True, disable=self._silent or not screen.is_terminal
        ) as progress:
            yield Bar(progress, progress.add_task(description, total=total, completed=done, note=""))


class Rate(ProgressColumn):
    """How many pieces of work are done per second, or how many seconds each of them takes."""

    def render(self, task: Task) -> Text:
        """Called by rich."""
        speed = task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each", style="dim")


class Board:
    """TensorBoard events; what an earlier start wrote from step `start` on is taken back.

    Events are written at once: tensorboardX's own writer leaves that to a thread, and waits for ever once a full disk
    has ended it. Curves are worth no run: where they cannot be written, it is said, and there are no more of them.
    """

    def __init__(self, directory: Path | None, start: int, say: Callable[[str], None] = print) -> None:
        """Without a directory nothing is written."""
        self._directory, self._start, self._say = directory, start, say
        self._events: Any = None

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *_: object) -> None:
        if self._events is not None:
            with contextlib.suppress(OSError):
                self._events.close()

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        """One value of each curve, where it is finite."""
        finite = {name: value for name, value in scalars.items() if np.isfinite(value)}
        self._write(lambda summary: [summary.scalar(name, value) for name, value in finite.items()], step)

    def spread(self, name: str, values: np.ndarray, step: int) -> None:
        """A histogram of the finite ones of `values`."""
        values = values[np.isfinite(values)]
        if len(values):
            self._write(
                lambda summary: [summary.histogram(name, values, np.linspace(values.min(), values.max() + 1e-6, 31))],
                step,
            )

    def _write(self, make: Callable[[Any], list[Any]], step: int) -> None:
        if self._directory is None:
            return
        # Load PyTorch where there is one: not before there is something to write.
        from tensorboardX import summary
        from tensorboardX.proto.event_pb2 import Event

        try:
            if self._events is None:
                self._events = self._opened(self._directory)
            for made in make(summary):
                self._events.write_event(Event(wall_time=time.time(), step=step, summary=made))
            self._events.flush()
        except OSError as error:
            self._say(f"curves cannot be written to {self._directory} ({error.strerror}): there are none from here on")
            self._directory = None

    def _opened(self, directory: Path) -> Any:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        directory.mkdir(parents=True, exist_ok=True)
        events = EventsWriter(str(directory / "events"))
        start = SessionLog(status=SessionLog.START)
        events.write_event(Event(wall_time=time.time(), step=self._start, session_log=start))
        return events


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
