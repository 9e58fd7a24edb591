"""Profile of some training steps, and how long the devices were idle during them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

WARMUP_STEPS = 5
"""Number of steps before the recording starts, so that it excludes compilation and memory allocation."""
CPU_EXECUTION_EVENT = "ThunkExecutor::Execute (wait for completion)"
"""Name of the event of XLA's CPU runtime for the execution of a program."""


class Profile:
    """Records `steps` steps into `directory`, for TensorBoard or Perfetto; 0 records nothing.

    `started` is the number of the first step of this process.
    """

    def __init__(self, directory: Path, steps: int, started: int) -> None:
        self._directory = directory
        self._first = started + WARMUP_STEPS
        self._last = self._first + steps
        self._running = False

    def before(self, step: int, settle: Callable[[], None], log: Callable[[str], None]) -> None:
        """Must be called before every step; `settle` waits for the steps that were dispatched."""
        if step == self._first < self._last:
            settle()
            jax.profiler.start_trace(str(self._directory))
            self._running = True
        elif step == self._last:
            self.finish(settle, log)

    def finish(self, settle: Callable[[], None], log: Callable[[str], None]) -> None:
        """Ends the recording, if one is running, and logs the idle time of the devices."""
        if not self._running:
            return
        settle()
        jax.profiler.stop_trace()
        self._running = False
        log(f"profile in {self._directory}: {idle_time(self._directory) or 'it has no device events'}")


@dataclass(frozen=True)
class IdleTime:
    """Idle time of a device between its first and its last event."""

    seconds: float
    """Seconds from the first to the last event."""
    busy: float
    """Fraction of them in which the device was busy."""
    longest: float
    """Longest idle time in seconds."""

    def __str__(self) -> str:
        longest = f"its longest idle time was {self.longest * 1e3:.1f} ms"
        return f"the device was busy {self.busy:.1%} of {self.seconds:.2f} s; {longest}"


def idle_time(directory: Path) -> IdleTime | None:
    """Returns the idle time of the least busy device in the newest recording below `directory`.

    None if there are no device events: their names differ between releases of JAX, which must not end a run.
    """
    files = sorted(directory.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    events = _device_events(jax.profiler.ProfileData.from_file(str(files[-1]))) if files else []
    return min(map(_idle_time_of, events), key=lambda idle: idle.busy, default=None)


def _device_events(profile: Any) -> list[list[tuple[float, float]]]:
    """Returns start and end of the events of each device in nanoseconds; the CPU counts as one device."""
    devices = [plane for plane in profile.planes if plane.name.startswith("/device:")]
    of_devices = [[(e.start_ns, e.end_ns) for line in plane.lines for e in line.events] for plane in devices]
    lines = [line for plane in profile.planes if plane.name.startswith("/host:") for line in plane.lines]
    on_cpu = [(e.start_ns, e.end_ns) for line in lines for e in line.events if e.name == CPU_EXECUTION_EVENT]
    return [events for events in [*of_devices, [] if any(of_devices) else on_cpu] if events]


def _idle_time_of(events: Iterable[tuple[float, float]]) -> IdleTime:
    ordered = sorted(events)
    first = end = ordered[0][0]
    idle = longest = 0.0
    for start, stop in ordered:
        idle += max(start - end, 0.0)
        longest = max(longest, start - end)
        end = max(end, stop)
    span = max(end - first, 1.0)
    return IdleTime(span / 1e9, 1.0 - idle / span, longest / 1e9)
