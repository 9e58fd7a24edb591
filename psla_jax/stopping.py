"""A process that is told to stop finishes what it is at, saves, and ends; told a second time, it is gone at once.

Schedulers send SIGTERM before they take a machine away, people type Ctrl-C. Exit codes are those of a shell: 130 after
SIGINT, 143 after SIGTERM; both mean that what was done is saved, and that the same command goes on from there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from psla_jax import processes

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def exit_code(number: int) -> int:
    """What a process that was stopped by a signal exits with."""
    return 128 + number


class Stopped(KeyboardInterrupt):
    """The process was told to stop, and has saved what it had; ``str`` says so."""

    def __init__(self, number: int, saved: str) -> None:
        self.code = exit_code(number)
        super().__init__(f"stopped by {signal.Signals(number).name}; {saved}: start it again to go on.")


class Stop:
    """While entered, the first signal is noted and the second ends the process, whatever it is doing.

    Python runs signal handlers between two of its own instructions, so a handler would wait until a compilation or a
    step is over. Here a thread is told instead.

    Attributes:
        signal: the number of the signal that came; 0 while there was none.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}
        self._pipe: tuple[int, int] | None = None
        self._wakeup = -1

    def __bool__(self) -> bool:
        return self.signal != 0

    def __enter__(self) -> Stop:
        if threading.current_thread() is not threading.main_thread():
            return self  # Signals are the main thread's business, and it may have a use of its own for them.
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        threading.Thread(target=self._listen, args=(self._pipe[0],), name="signals", daemon=True).start()
        self._before = {number: signal.signal(number, _leave_to_the_thread) for number in SIGNALS}
        self._wakeup = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pipe is None:
            return
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._pipe[1])  # The thread reads the end of it, and closes its own.
        self._pipe = None

    def check(self, saved: str = "what was done is saved") -> None:
        """Raises Stopped if a signal came; `saved` says what becomes of the work."""
        if self.signal:
            raise Stopped(self.signal, saved)

    def check_together(self, saved: str = "what was done is saved") -> None:
        """The same for all processes of a run at the same moment, as soon as one of them got a signal."""
        number = processes.largest(self.signal)
        if number:
            raise Stopped(number, saved)

    def _listen(self, end: int) -> None:
        with contextlib.closing(os.fdopen(end, "rb", buffering=0)) as pipe:
            while number := pipe.read(1):
                if number[0] not in SIGNALS:
                    continue
                name = signal.Signals(number[0]).name
                if self.signal:
                    _say(f"{name} again: ended at once; what was saved before is as it was.")
                    os._exit(exit_code(number[0]))
                self.signal = number[0]
                _say(f"{name}: finishing this step and saving; once more ends it at once.")


def _leave_to_the_thread(number: int, frame: FrameType | None) -> None:
    """Without a handler in Python, the number would not be written to the pipe."""


def _say(text: str) -> None:
    """One line that is not interrupted by what the main thread writes."""
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), f"psla: {text}\n".encode())
