"""Windows of many recordings, gathered into batches for the networks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from psla_jax.audio import SAMPLE_RATE
from psla_jax.tagging.clip import ClipState
from psla_jax.tagging.programs import Network, Output
from psla_jax.tagging.windows import STEP_SECONDS, Window


class Batches:
    """Gathers windows, of one clip or of many, into batches; one batch is computed while the next one is gathered."""

    def __init__(
        self, networks: Sequence[Network], orders: Sequence[np.ndarray], on_progress: Callable[[str, float], None]
    ) -> None:
        self._networks, self._orders, self._on_progress = networks, orders, on_progress
        self._have_attention = all(network.has_attention for network in networks)
        self._gathered: list[list[tuple[ClipState, Window]]] = [[] for _ in networks]
        self._running: deque[tuple[int, list[tuple[ClipState, Window]], Output]] = deque()

    def add(self, state: ClipState, number: int, window: Window) -> None:
        """Takes a window for one of the networks."""
        gathered = self._gathered[number]
        gathered.append((state, window))
        if len(gathered) == self._networks[number].batch_size:
            self._start(number, gathered)
            self._gathered[number] = []

    def flush(self) -> None:
        """Computes what is gathered, and waits for all of it."""
        for number, gathered in enumerate(self._gathered):
            # Up to half a batch costs less one by one than as a batch that is mostly padding.
            size = 1 if 2 * len(gathered) <= self._networks[number].batch_size else len(gathered)
            for first in range(0, len(gathered), size):
                self._start(number, gathered[first : first + size])
            self._gathered[number] = []
        while self._running:
            self._absorb(*self._running.popleft())

    def _start(self, number: int, batch: list[tuple[ClipState, Window]]) -> None:
        output = self._networks[number]([window.samples for _, window in batch])
        self._running.append((number, batch, output))
        if len(self._running) > 1:
            self._absorb(*self._running.popleft())

    def _absorb(self, number: int, batch: list[tuple[ClipState, Window]], output: Output) -> None:
        order = self._orders[number]
        scores = np.asarray(output.scores)[:, order]
        frames = None if output.frames is None else np.asarray(output.frames)[..., order]
        # What nobody wants does not leave the device.
        wanted = [state.wanted for state, _ in batch]
        pictures = self._have_attention and any(w.picture for w in wanted)
        attention = np.asarray(output.attention)[..., order] if pictures else None
        features = np.asarray(output.features) if any(w.embeddings for w in wanted) else None
        for row, (state, window) in enumerate(batch):
            of_row = [None if values is None else values[row] for values in (frames, attention, features)]
            state.absorb(number, window, scores[row], *of_row)
            self._on_progress(state.clip, window.start * STEP_SECONDS + len(window.samples) / SAMPLE_RATE)
