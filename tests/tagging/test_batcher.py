"""Batches of windows are computed at the same time, and their outputs are added in order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import pytest

from psla_jax.tagging.batcher import WindowBatcher
from psla_jax.tagging.network import ModelOutput


class StubModel:
    """A model whose scores are the first samples of its windows; its computations wait for each other."""

    batch_size, has_attention = 2, False

    def __init__(self, num_threads: int) -> None:
        self.num_threads = num_threads
        self.together = threading.Barrier(num_threads, timeout=60)

    def prepare(self, windows: Sequence[np.ndarray]) -> Callable[[], ModelOutput]:
        def computation() -> ModelOutput:
            self.together.wait()
            return ModelOutput(np.array([[samples[0]] for samples in windows]))

        return computation


class StubRecording:
    """Keeps the scores that are added."""

    clip = "a.wav"
    frame_outputs = SimpleNamespace(plot=False, embeddings=False)

    def __init__(self) -> None:
        self.scores: list[float] = []

    def add_window(self, index: int, window: object, scores: np.ndarray, *frames: object) -> None:
        self.scores.append(float(scores[0]))


@pytest.mark.parametrize("num_threads", [1, 3])
def test_as_many_batches_as_threads_are_computed_at_the_same_time(num_threads: int) -> None:
    recording, grid = StubRecording(), SimpleNamespace(output_seconds=0.32, rate=16_000)
    batches = 2 * num_threads
    with WindowBatcher([StubModel(num_threads)], [np.array([0])], lambda clip, seconds: None) as batcher:
        for number in range(2 * batches):
            window = SimpleNamespace(samples=np.full(5, number, np.float32), start=0, grid=grid)
            batcher.add(recording, 0, window)
        batcher.flush()
    assert recording.scores == list(range(2 * batches))
