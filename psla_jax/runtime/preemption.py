"""Graceful stop on SIGTERM and SIGINT: finish the current step, save, exit. A second signal ends the process at once.

Schedulers send SIGTERM before they take a machine away; Ctrl-C sends SIGINT. The exit codes are those of a shell, 143
and 130; both mean that the work so far is saved and that the same command resumes from there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from psla_jax.runtime import distributed

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def exit_code(number: int) -> int:
    """Returns the exit code of a process that was stopped by a signal."""
    return 128 + number


class Stopped(KeyboardInterrupt):
    """Raised when a signal was received and all work so far is saved; the message says what was saved."""

    def __init__(self, number: int, saved: str) -> None:
        self.code = exit_code(number)
        super().__init__(f"stopped by {signal.Signals(number).name}; {saved}: start the command again to resume.")


class StopHandler:
    """Context manager that records the first SIGINT or SIGTERM, and ends the process at the second one.

    Python runs signal handlers between two bytecode instructions of the main thread, so a handler would wait until a
    compilation or a step is over. Here the signal's number goes to a pipe, which a thread reads.

    Attributes:
        signal: number of the signal that was received; 0 if there was none.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._previous_handlers: dict[int, Any] = {}
        self._pipe: tuple[int, int] | None = None
        self._previous_wakeup = -1

    def __bool__(self) -> bool:
        return self.signal != 0

    def __enter__(self) -> StopHandler:
        if threading.current_thread() is not threading.main_thread():
            return self  # Only the main thread can set signal handlers, and the program that uses it may have its own.
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        threading.Thread(target=self._listen, args=(self._pipe[0],), name="signals", daemon=True).start()
        self._previous_handlers = {number: signal.signal(number, _ignore) for number in SIGNALS}
        self._previous_wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pipe is None:
            return
        signal.set_wakeup_fd(self._previous_wakeup)
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)
        os.close(self._pipe[1])  # The thread then reads the end of the pipe and closes the other end.
        self._pipe = None

    def check(self, saved: str = "all work so far is saved") -> None:
        """Raises Stopped if a signal was received; `saved` says what was saved."""
        if self.signal:
            raise Stopped(self.signal, saved)

    def check_all_processes(self, saved: str = "all work so far is saved") -> None:
        """Raises Stopped in all processes if any of them received a signal. All of them must call it together."""
        if number := distributed.max_over_processes(self.signal):
            raise Stopped(number, saved)

    def _listen(self, read_end: int) -> None:
        with contextlib.closing(os.fdopen(read_end, "rb", buffering=0)) as pipe:
            while number := pipe.read(1):
                if number[0] not in SIGNALS:
                    continue
                name = signal.Signals(number[0]).name
                if self.signal:
                    _print(f"{name} received again: ending at once; earlier checkpoints are intact.")
                    # The handlers of both signals belong to the main thread, which may be inside a compilation.
                    os.kill(os.getpid(), signal.SIGKILL)
                self.signal = number[0]
                _print(f"{name} received: finishing this step and saving; a second signal ends the process at once.")


def _ignore(number: int, frame: FrameType | None) -> None:
    """Signal handler that does nothing: signals reach the wake-up pipe only while a Python handler is installed."""


def _print(text: str) -> None:
    """Writes a line to standard error with one system call, so that output of the main thread cannot split it."""
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), f"psla: {text}\n".encode())
