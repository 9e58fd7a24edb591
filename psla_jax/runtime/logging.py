"""Messages of a run on the screen and in ``log.txt``, its progress bar, and its TensorBoard events."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
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
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from psla_jax.runtime.streams import discard_standard_output
from psla_jax.runtime.terminal import printable

T = TypeVar("T")


class Logger:
    """Writes messages to standard output and, with a time stamp, to a log file; progress bars go to standard error."""

    def __init__(self, log: Path | None = None, *, silent: bool = False) -> None:
        """Creates a logger. Without `log` there is no file; with `silent`, nothing is written at all."""
        self._silent = silent
        screen = _Screen(emoji=False, highlight=False, soft_wrap=True)
        # Output that is not a terminal has no width: tables redirected to a file must not be cut.
        self.console = (
            screen if screen.is_terminal else _Screen(emoji=False, highlight=False, soft_wrap=True, width=160)
        )
        self._log = log

    def info(self, text: str) -> None:
        """Writes a message to the screen and to the log file."""
        text = printable(text)
        if not self._silent:
            self.console.print(text, markup=False)
        self.debug(text)

    def debug(self, text: str) -> None:
        """Writes lines to the log file only."""
        if self._log is not None and not self._silent:
            with open(self._log, "a", encoding="utf-8") as file:
                file.writelines(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n" for line in text.splitlines())

    @contextlib.contextmanager
    def progress(self, description: str, total: int, done: int = 0) -> Iterator[Bar]:
        """Shows a progress bar, which disappears at the end, for `total` items of which `done` are complete."""
        screen = Console(emoji=False, stderr=True)
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[note]}"),
        )  # fmt: skip
        hidden = self._silent or not screen.is_terminal
        with Progress(*columns, console=screen, transient=True, disable=hidden) as progress:
            yield Bar(progress, progress.add_task(description, total=total, completed=done, note=""))


class _Screen(Console):
    """Standard output, whose reader, such as ``head``, may close it: the work and its files are completed then too."""

    def on_broken_pipe(self) -> None:
        """Discards further output; Rich would end the process."""
        self.quiet = True
        discard_standard_output()


class Rate(ProgressColumn):
    """Items per second, or seconds per item where that is less than one."""

    def render(self, task: Task) -> Text:
        """Returns the text of the column."""
        if not (speed := task.speed):
            return Text("")
        return Text(f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each", style="dim")


class TensorBoardWriter:
    """Writes scalars and histograms as TensorBoard events.

    Events of an earlier start of the run from step `start` on are discarded by TensorBoard. Events are written
    synchronously: the background thread of tensorboardX's own writer blocks forever once the disk is full. A write
    error is logged once, and nothing more is written, since curves must not end a run.
    """

    def __init__(self, directory: Path | None, start: int, log: Callable[[str], None] = print) -> None:
        """Creates a writer; without a directory, nothing is written."""
        self._directory, self._start, self._log = directory, start, log
        self._events: Any = None

    def __enter__(self) -> TensorBoardWriter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._events is not None:
            with contextlib.suppress(OSError):
                self._events.close()

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Writes one point of each curve, except values that are not finite."""
        finite = {name: value for name, value in values.items() if np.isfinite(value)}
        self._write(lambda summary: [summary.scalar(name, value) for name, value in finite.items()], step)

    def histogram(self, name: str, values: np.ndarray, step: int) -> None:
        """Writes a histogram of the finite values."""
        values = values[np.isfinite(values)]
        if len(values):
            bins = np.linspace(values.min(), values.max() + 1e-6, 31)
            self._write(lambda summary: [summary.histogram(name, values, bins)], step)

    def _write(self, make_summaries: Callable[[Any], list[Any]], step: int) -> None:
        if self._directory is None:
            return
        # tensorboardX imports PyTorch where it is installed, so it is imported only when there is something to write.
        from tensorboardX import summary
        from tensorboardX.proto.event_pb2 import Event

        try:
            if self._events is None:
                self._events = self._open(self._directory)
            for proto in make_summaries(summary):
                self._events.write_event(Event(wall_time=time.time(), step=step, summary=proto))
            self._events.flush()
        except OSError as error:
            self._log(f"TensorBoard events cannot be written to {self._directory} ({error.strerror}) and are disabled")
            self._directory = None

    def _open(self, directory: Path) -> Any:
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        directory.mkdir(parents=True, exist_ok=True)
        events = EventsWriter(str(directory / "events"))
        start = SessionLog(status=SessionLog.START)
        events.write_event(Event(wall_time=time.time(), step=self._start, session_log=start))
        return events


class Bar:
    """A progress bar that :meth:`Logger.progress` shows."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, note: str = "", count: int = 1) -> None:
        """Marks `count` more items as complete, and shows `note` behind the bar."""
        self._progress.update(self._task, advance=count, note=note)

    def reach(self, done: int) -> None:
        """Sets the number of complete items."""
        self._progress.update(self._task, completed=done)

    def track(self, items: Iterable[T]) -> Iterator[T]:
        """Yields the items; each one counts as complete when the next one is requested."""
        for item in items:
            yield item
            self.advance()

    def describe(self, note: str) -> None:
        """Changes the text behind the bar."""
        self._progress.update(self._task, note=note)
