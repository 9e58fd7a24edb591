"""Watches a run's steps from the host without making the device wait: losses are read a few steps late."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator

import jax
import numpy as np

from psla_jax.audio import AudioError, read
from psla_jax.config import Channel
from psla_jax.data.datafile import Datafile
from psla_jax.data.pipeline import Batch
from psla_jax.training import TrainingError

SLOW_LOADER = 0.1
"""Share of an epoch spent waiting for data from which on the user is told."""

BEHIND = 2
"""Steps that the device may be ahead of what the host has read."""


class Watch:
    """One epoch's losses, and the clips that could not be read in it.

    Attributes:
        failed: indices of the clips set aside.
    """

    def __init__(self, data: Datafile, failed: set[int]) -> None:
        self.failed = set(failed)
        self._data = data
        self._pending: deque[tuple[int, np.ndarray, jax.Array]] = deque()
        self._loss = float("nan")
        self._started = time.perf_counter()
        self._waited = 0.0

    def fetch(self, stream: Iterator[Batch]) -> Batch:
        """The next batch; notes how long the loader let the step wait."""
        asked = time.perf_counter()
        batch = next(stream)
        self._waited += time.perf_counter() - asked
        return batch

    def add(self, step: int, batch: Batch, metrics: dict[str, jax.Array]) -> None:
        """Notes a step that was started. Raises TrainingError if the loss of an earlier one is not finite."""
        self.failed.update(batch["failed"][batch["failed"] >= 0].tolist())
        self._pending.append((step, batch["clip"], metrics["loss"]))
        while len(self._pending) > BEHIND:
            self._check(*self._pending.popleft())

    def settle(self) -> None:
        """Waits for all steps. Raises TrainingError if a loss is not finite: no such state is ever saved."""
        while self._pending:
            self._check(*self._pending.popleft())

    def note(self) -> str:
        """The newest loss that is known, for the progress bar."""
        return "compiling" if np.isnan(self._loss) else f"loss {self._loss:.4f}"

    def _check(self, step: int, clips: np.ndarray, loss: jax.Array) -> None:
        self._loss = float(loss)
        if np.isfinite(self._loss):
            return
        names = ", ".join(self._data.wav(int(clip)) for clip in clips if clip >= 0)
        raise TrainingError(
            f"the loss is {self._loss} at step {step}, so the run stops; its last checkpoint is as it was. Lower "
            f"optimizer.learning_rate, or look at the clips of that step: {names}"
        )

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
                read(self._data.wav(clip), channel=channel)
                say(f"set aside in this epoch: {self._data.wav(clip)} could not be read then, but can be now")
            except AudioError as error:
                say(f"set aside in this epoch: {error}")
