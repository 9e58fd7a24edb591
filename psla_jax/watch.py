"""Watches a run's steps from the host without making the device wait: losses are read a few steps late."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np

from psla_jax.audio import LONGEST_CLIP, AudioError, read
from psla_jax.config import Channel
from psla_jax.data.datafile import Datafile
from psla_jax.data.pipeline import Batch
from psla_jax.training import WISH, TrainingError

SLOW_LOADER = 0.1
"""Share of an epoch spent waiting for data from which on the user is told."""

BEHIND = 2
"""Steps that the device may be ahead of what the host has read."""


SKIPPED_IN_A_ROW = 100
"""Steps without a finite loss or gradient after which a run stops that was told to skip such steps."""
POINTS = 100
"""Points of each curve over the steps of an epoch."""
Curves = Callable[[Mapping[str, float], int], None]


class Watch:
    """One epoch's losses, what the processes tell each other, and the clips that could not be read.

    Attributes:
        failed: indices of the clips that this process set aside.
        told: the wish that a process had in the newest step that is known; the same in all of them.
    """

    def __init__(
        self,
        data: Datafile,
        failed: set[int],
        *,
        skip: bool = False,
        say: Callable[[str], None] = lambda text: None,
        curves: Curves = lambda scalars, step: None,
        steps: int = POINTS,
    ) -> None:
        """`steps` of an epoch are averaged over to give `curves` their points; `skip` is ``optimizer.nonfinite``."""
        self.failed = set(failed)
        self.told = 0
        self._data, self._skip, self._say, self._curves = data, skip, say, curves
        self._every = max(1, steps // POINTS)
        self._points: list[dict[str, float]] = []
        self._skipped_in_a_row = 0
        self._pending: deque[tuple[int, np.ndarray, float, dict[str, jax.Array]]] = deque()
        self._loss = float("nan")
        self._started = time.perf_counter()
        self._waited = self._wait = 0.0

    def fetch(self, stream: Iterator[Batch]) -> Batch:
        """The next batch; notes how long the loader let the step wait."""
        asked = time.perf_counter()
        batch = next(stream)
        self._wait = time.perf_counter() - asked
        self._waited += self._wait
        return batch

    def add(self, step: int, batch: Batch, metrics: dict[str, jax.Array]) -> None:
        """Notes a step that was started. Raises TrainingError if the loss of an earlier one is not finite."""
        self.failed.update(batch["failed"][batch["failed"] >= 0].tolist())
        self._pending.append((step, batch["clip"], self._wait, metrics))
        while len(self._pending) > BEHIND:
            self._check(*self._pending.popleft())

    def settle(self) -> None:
        """Waits for all steps. Raises TrainingError if a loss is not finite: no such state is ever saved."""
        while self._pending:
            self._check(*self._pending.popleft())

    def note(self) -> str:
        """The newest loss that is known, for the progress bar."""
        return "compiling" if np.isnan(self._loss) else f"loss {self._loss:.4f}"

    def _check(self, step: int, clips: np.ndarray, wait: float, metrics: dict[str, jax.Array]) -> None:
        found = {name: float(value) for name, value in metrics.items()}
        self.told = int(found.pop(WISH, 0))
        self._loss = found["loss"]
        if all(np.isfinite(value) for value in found.values()):
            self._skipped_in_a_row = 0
            self._draw(step, {**found, "data_wait_seconds": wait, "clips_set_aside": len(self.failed)})
            return
        what = f"the loss is {found['loss']} and the norm of the gradient {found['gradient_norm']} at step {step}"
        names = ", ".join(self._data.wav(int(clip)) for clip in clips if clip >= 0)
        self._skipped_in_a_row += 1
        if self._skip and self._skipped_in_a_row < SKIPPED_IN_A_ROW:
            self._say(f"{what}, which is skipped; its clips: {names}")
            return
        why = f"as in the {SKIPPED_IN_A_ROW} steps up to it" if self._skip else "so the run stops"
        raise TrainingError(
            f"{what}, {why}; the last checkpoint is as it was. Lower optimizer.learning_rate, look at the clips of "
            f"that step, or leave such steps out with --optimizer.nonfinite skip: {names}"
        )

    def _draw(self, step: int, values: dict[str, float]) -> None:
        """Gives the curves the mean of some steps."""
        self._points.append(values)
        if len(self._points) >= self._every:
            mean = {name: sum(point[name] for point in self._points) / len(self._points) for name in values}
            self._curves(mean, step + 1)
            self._points.clear()

    def pace(self) -> tuple[str, bool]:
        """How much of the epoch the steps waited for data, and whether that is worth a word on the screen."""
        elapsed = time.perf_counter() - self._started
        share = self._waited / elapsed
        line = f"training took {elapsed:.1f} s, of which it waited {self._waited:.1f} s ({share:.0%}) for data"
        slow = share > SLOW_LOADER and self._waited > 1.0
        return (f"{line}: more data.workers, or psla pack, would help" if slow else line), slow

    def report(self, channel: Channel, say: Callable[[str], None]) -> None:
        """Says which clips were set aside, and why."""
        for clip in sorted(self.failed):
            try:
                read(self._data.wav(clip), channel=channel, seconds=LONGEST_CLIP)
                say(f"set aside in this epoch: {self._data.wav(clip)} could not be read then, but can be now")
            except AudioError as error:
                say(f"set aside in this epoch: {error}")
