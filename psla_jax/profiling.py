"""Some steps of a run as JAX's profiler sees them, and how long the devices waited between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

SETTLED = 5
"""Steps before those that are recorded: compilation, and the first touch of memory, are over by then."""
CPU_PROGRAM = "ThunkExecutor::Execute (wait for completion)"
"""What XLA's CPU runtime calls the execution of a program."""


class Profile:
    """Records `steps` steps into `directory`, which TensorBoard and Perfetto can show; 0 records nothing."""

    def __init__(self, directory: Path, steps: int, started: int) -> None:
        self._directory = directory
        self._first = started + SETTLED
        self._last = self._first + steps
        self._running = False

    def before(self, step: int, settle: Callable[[], None], say: Callable[[str], None]) -> None:
        """To be called before every step; `settle` waits for the steps that were started."""
        if step == self._first < self._last:
            settle()
            jax.profiler.start_trace(str(self._directory))
            self._running = True
        elif step == self._last:
            self.finish(settle, say)

    def finish(self, settle: Callable[[], None], say: Callable[[str], None]) -> None:
        """Ends the recording, if there is one, and says what it shows."""
        if not self._running:
            return
        settle()
        jax.profiler.stop_trace()
        self._running = False
        found = waits(self._directory)
        say(f"profile in {self._directory}: {found or 'it holds no events of a device'}")


@dataclass(frozen=True)
class Waits:
    """How long the devices had nothing to do between the first and the last thing they did."""

    seconds: float
    """From the first to the last."""
    busy: float
    """Share of it, of the device that was busy least."""
    longest: float
    """The longest wait, in seconds."""

    def __str__(self) -> str:
        return (
            f"the device was busy {self.busy:.1%} of {self.seconds:.2f} s, its longest wait {self.longest * 1e3:.1f} ms"
        )


def waits(directory: Path) -> Waits | None:
    """Reads the newest recording below `directory`; None if it knows nothing of a device: names differ between JAX's
    releases, and no run ends because of that."""
    files = sorted(directory.rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    events = _device_events(jax.profiler.ProfileData.from_file(str(files[-1]))) if files else []
    return min(map(_waits_of, events), key=lambda waits: waits.busy, default=None)


def _device_events(profile: Any) -> list[list[tuple[float, float]]]:
    """Beginning and end of everything that each device did, in nanoseconds; a CPU counts as one device."""
    devices = [plane for plane in profile.planes if plane.name.startswith("/device:")]
    of_devices = [[(e.start_ns, e.end_ns) for line in plane.lines for e in line.events] for plane in devices]
    lines = [line for plane in profile.planes if plane.name.startswith("/host:") for line in plane.lines]
    on_cpu = [(e.start_ns, e.end_ns) for line in lines for e in line.events if e.name == CPU_PROGRAM]
    return [events for events in [*of_devices, [] if any(of_devices) else on_cpu] if events]


def _waits_of(events: Iterable[tuple[float, float]]) -> Waits:
    ordered = sorted(events)
    first = end = ordered[0][0]
    idle = longest = 0.0
    for start, stop in ordered:
        idle += max(start - end, 0.0)
        longest = max(longest, start - end)
        end = max(end, stop)
    span = max(end - first, 1.0)
    return Waits(span / 1e9, 1.0 - idle / span, longest / 1e9)
