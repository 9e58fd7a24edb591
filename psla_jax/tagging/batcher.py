"""Gathers the windows of several recordings into batches for the models."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager

import numpy as np

from psla_jax.tagging.network import CompiledModel, ModelOutput
from psla_jax.tagging.recording import RecordingAccumulator
from psla_jax.tagging.windows import Window

_Batch = list[tuple[RecordingAccumulator, Window]]


class WindowBatcher(AbstractContextManager["WindowBatcher"]):
    """Gathers windows of one or more recordings into batches, which are computed while the next ones are gathered.

    The context ends the threads that compute them.

    Args:
        models: the models, by the index of a window.
        class_orders: for each model, the indices of its classes in the order of the results.
        on_progress: called with the name of a recording and the seconds that are done.
    """

    def __init__(
        self,
        models: Sequence[CompiledModel],
        class_orders: Sequence[np.ndarray],
        on_progress: Callable[[str, float], None],
    ) -> None:
        self._models, self._class_orders, self._on_progress = models, class_orders, on_progress
        self._have_attention = all(model.has_attention for model in models)
        self._gathered: list[_Batch] = [[] for _ in models]
        self._running: deque[tuple[int, _Batch, Future[ModelOutput]]] = deque()
        self._num_threads = models[0].num_threads
        self._pool = ThreadPoolExecutor(self._num_threads)

    def __exit__(self, *exception: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def add(self, recording: RecordingAccumulator, index: int, window: Window) -> None:
        """Adds a window for the model with that index."""
        self._gathered[index].append((recording, window))
        if len(self._gathered[index]) == self._models[index].batch_size:
            self._start(index, self._gathered[index])
            self._gathered[index] = []

    def flush(self) -> None:
        """Computes all gathered windows and waits for the results."""
        for index, gathered in enumerate(self._gathered):
            # Up to half a batch costs less window by window than as a batch that is mostly padding.
            size = 1 if 2 * len(gathered) <= self._models[index].batch_size else len(gathered)
            for first in range(0, len(gathered), size):
                self._start(index, gathered[first : first + size])
            self._gathered[index] = []
        while self._running:
            self._distribute_first()

    def _start(self, index: int, batch: _Batch) -> None:
        computation = self._models[index].prepare([window.samples for _, window in batch])
        self._running.append((index, batch, self._pool.submit(computation)))
        while self._running and (len(self._running) > self._num_threads or self._running[0][2].done()):
            self._distribute_first()

    def _distribute_first(self) -> None:
        """Waits for the batch that was started first, and adds its outputs to the recordings."""
        index, batch, running = self._running.popleft()
        output = running.result()
        order = self._class_orders[index]
        scores = np.asarray(output.scores)[:, order]
        frames = None if output.frames is None else np.asarray(output.frames)[..., order]
        # Attention and features are copied from the device only if a recording of the batch needs them.
        requested = [recording.frame_outputs for recording, _ in batch]
        has_attention = self._have_attention and any(outputs.plot for outputs in requested)
        attention = np.asarray(output.attention)[..., order] if has_attention else None
        features = np.asarray(output.features) if any(outputs.embeddings for outputs in requested) else None
        for row, (recording, window) in enumerate(batch):
            of_window = [None if values is None else values[row] for values in (frames, attention, features)]
            recording.add_window(index, window, scores[row], *of_window)
            grid = window.grid
            end = window.start * grid.output_seconds + len(window.samples) / grid.rate
            self._on_progress(recording.clip, end)
