"""Monitors the steps of an epoch from the host without blocking the device: losses are read a few steps late."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np

from psla_jax.audio.decode import MAX_CLIP_SECONDS, AudioError
from psla_jax.audio.segments import read
from psla_jax.config import Channel
from psla_jax.data.datafile import Datafile
from psla_jax.data.loader import Batch
from psla_jax.runtime.sharding import CONTROL

SLOW_LOADER = 0.1
"""Fraction of an epoch spent waiting for data from which on a message recommends a faster loader."""
MAX_STEPS_AHEAD = 2
"""Number of steps that the host dispatches before it reads the metrics of the first one."""
MAX_CONSECUTIVE_SKIPS = 100
"""Number of consecutive skipped steps after which a run with ``optimizer.nonfinite skip`` stops."""
POINTS_PER_EPOCH = 100
"""Number of points of each per-step curve in an epoch."""
Curves = Callable[[Mapping[str, float], int], None]


class TrainingError(RuntimeError):
    """Training cannot continue; the message has the step, its clips, and the remedy."""


class TrainingMonitor:
    """Reads the metrics of one epoch's steps, and records waiting times and unreadable clips.

    Attributes:
        failed: indices of the clips that this process could not read.
        control: control code of the latest step whose metrics are known; the same in all processes.
    """

    def __init__(
        self,
        data: Datafile,
        failed: set[int],
        *,
        skip: bool = False,
        log: Callable[[str], None] = lambda text: None,
        curves: Curves = lambda scalars, step: None,
        steps: int = POINTS_PER_EPOCH,
    ) -> None:
        """Creates the monitor of an epoch of `steps` steps, in which the clips `failed` were unreadable before.

        With `skip` (``optimizer.nonfinite skip``), steps whose loss or gradient is not finite are reported to `log`
        instead of raising. `curves` receives metrics, each averaged over some steps, and the number of the step.
        """
        self.failed = set(failed)
        self.control = 0
        self._data, self._skip, self._log, self._curves = data, skip, log, curves
        self._steps_per_point = max(1, steps // POINTS_PER_EPOCH)
        self._point: list[dict[str, float]] = []
        self._consecutive_skips = 0
        self._pending: deque[tuple[int, np.ndarray, float, dict[str, jax.Array]]] = deque()
        self._loss = float("nan")
        self._started = time.perf_counter()
        self._total_wait = self._wait = 0.0

    def fetch(self, stream: Iterator[Batch]) -> Batch:
        """Returns the next batch, and measures how long the loader took."""
        started = time.perf_counter()
        batch = next(stream)
        self._wait = time.perf_counter() - started
        self._total_wait += self._wait
        return batch

    def add(self, step: int, batch: Batch, metrics: dict[str, jax.Array]) -> None:
        """Adds a dispatched step. Raises TrainingError if the loss of an earlier one is not finite."""
        self.failed.update(batch["failed"][batch["failed"] >= 0].tolist())
        self._pending.append((step, batch["clip"], self._wait, metrics))
        while len(self._pending) > MAX_STEPS_AHEAD:
            self._read(*self._pending.popleft())

    def settle(self) -> None:
        """Waits for all steps. Raises TrainingError if a loss is not finite, so that no such state is saved."""
        while self._pending:
            self._read(*self._pending.popleft())

    def status(self) -> str:
        """Returns the latest known loss, for the progress bar."""
        return "compiling" if np.isnan(self._loss) else f"loss {self._loss:.4f}"

    def _read(self, step: int, clips: np.ndarray, wait: float, metrics: dict[str, jax.Array]) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        self.control = int(values.pop(CONTROL, 0))
        self._loss = values["loss"]
        if all(map(np.isfinite, values.values())):
            self._consecutive_skips = 0
            self._add_point(step, {**values, "data_wait_seconds": wait, "clips_set_aside": len(self.failed)})
            return
        problem = f"the loss is {values['loss']} and the norm of the gradient {values['gradient_norm']} at step {step}"
        names = ", ".join(f"{self._data.audio(int(clip))}" for clip in clips if clip >= 0)
        self._consecutive_skips += 1
        if self._skip and self._consecutive_skips < MAX_CONSECUTIVE_SKIPS:
            self._log(f"{problem}, which is skipped; its clips: {names}")
            return
        reason = f"as in the {MAX_CONSECUTIVE_SKIPS} steps before" if self._skip else "so the run stops"
        raise TrainingError(
            f"{problem}, {reason}; the last checkpoint is intact. Lower optimizer.learning_rate, inspect the clips of "
            f"that step, or skip such steps with --optimizer.nonfinite skip: {names}"
        )

    def _add_point(self, step: int, values: dict[str, float]) -> None:
        """Passes the mean over some steps to the curves."""
        self._point.append(values)
        if len(self._point) >= self._steps_per_point:
            mean = {name: sum(each[name] for each in self._point) / len(self._point) for name in values}
            self._curves(mean, step + 1)
            self._point.clear()

    def loader_report(self) -> tuple[str, bool]:
        """Returns a message with the time spent waiting for data, and whether it is long enough to be shown."""
        elapsed = time.perf_counter() - self._started
        fraction = self._total_wait / elapsed
        line = f"training took {elapsed:.1f} s, {self._total_wait:.1f} s ({fraction:.0%}) of it waiting for data"
        slow = fraction > SLOW_LOADER and self._total_wait > 1.0
        return (f"{line}: more data.workers or data.threads, or psla pack, would help" if slow else line), slow

    def report_failed_clips(self, channel: Channel, log: Callable[[str], None]) -> None:
        """Logs which clips were excluded, and why."""
        for clip in sorted(self.failed):
            try:
                read(self._data.audio(clip), channel=channel, seconds=MAX_CLIP_SECONDS)
                log(f"set aside in this epoch: {self._data.audio(clip)} could not be read then, but can be now")
            except AudioError as error:
                log(f"set aside in this epoch: {error}")
