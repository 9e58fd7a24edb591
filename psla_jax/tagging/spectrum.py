"""The log-mel of a recording of any length, as no more columns than a picture shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from psla_jax.frontend import FRAME_LENGTH, FRAME_SHIFT, NUM_MELS, Frontend
from psla_jax.tagging.strip import Strip

DECIBELS = 10 / np.log(10)
"""The frontend has natural logarithms of energies."""
_FRAMES = 1024
"""Computed at a time: one shape, so that one program serves any length."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The loudest of so many frames in a row each."""

    decibels: np.ndarray
    """float32 ``(columns, 128)``."""
    frames: int
    """How many frames of 10 ms a column stands for."""


def spectrum(blocks: Iterable[np.ndarray]) -> Spectrum:
    """The log-mel of a waveform that comes in blocks, as the models see it; memory does not grow with it.

    Args:
        blocks: float32 ``(samples,)`` at 16 kHz, 25 ms or more of them altogether.
    """
    frontend, strip, held = Frontend(_FRAMES), Strip(), np.zeros(0, np.float32)
    for block in blocks:
        held = np.concatenate([held, block])
        while len(held) >= frontend.num_samples:
            strip.push(_log_mel(frontend, held[: frontend.num_samples]))
            held = held[_FRAMES * FRAME_SHIFT :]
    if len(held) >= FRAME_LENGTH:
        strip.push(_log_mel(frontend, held))
    return Spectrum(strip.finish() * np.float32(DECIBELS), strip.each)


def _log_mel(frontend: Frontend, samples: np.ndarray) -> np.ndarray:
    """All frames that lie wholly inside the samples, `(frames, 128)`."""
    padded = np.zeros((1, frontend.num_samples), np.float32)
    padded[0, : len(samples)] = samples
    frames = 1 + (len(samples) - FRAME_LENGTH) // FRAME_SHIFT
    return np.asarray(frontend.log_mel(padded, np.array([len(samples)], np.int32)))[0, :frames].reshape(-1, NUM_MELS)
