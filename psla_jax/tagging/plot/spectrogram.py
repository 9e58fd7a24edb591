"""Log-mel spectrogram of a recording of any length, downsampled for a plot."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from psla_jax.audio.frontend import FRAME_LENGTH, FRAME_SHIFT, NUM_MELS, Frontend
from psla_jax.tagging.plot.heatmap import MaxDownsampler

DECIBELS = 10 / np.log(10)
"""Factor from the frontend's natural logarithms of energies to decibels."""
_FRAMES = 1024
"""Number of frames computed at a time, so that one compiled program serves recordings of any length."""


@dataclass(frozen=True, eq=False)
class Spectrogram:
    """Log-mel energies, as maxima over groups of consecutive frames."""

    decibels: np.ndarray
    """float32 ``(columns, 128)``."""
    frames_per_column: int
    """Number of spectrogram frames of 10 ms per column."""


def log_mel_spectrogram(blocks: Iterable[np.ndarray]) -> Spectrogram:
    """Computes the log-mel spectrogram of a waveform as the models receive it, in constant memory.

    The blocks of the waveform are float32 ``(samples,)`` at 16 kHz, at least 25 ms in total.
    """
    frontend, columns, buffer = Frontend(_FRAMES), MaxDownsampler(), np.zeros(0, np.float32)
    for block in blocks:
        buffer = np.concatenate([buffer, block])
        while len(buffer) >= frontend.num_samples:
            columns.push(_log_mel(frontend, buffer[: frontend.num_samples]))
            buffer = buffer[_FRAMES * FRAME_SHIFT :]
    if len(buffer) >= FRAME_LENGTH:
        columns.push(_log_mel(frontend, buffer))
    return Spectrogram(columns.finish() * np.float32(DECIBELS), columns.group_size)


def _log_mel(frontend: Frontend, samples: np.ndarray) -> np.ndarray:
    """Returns the frames that lie completely within the samples, `(frames, 128)`."""
    padded = np.zeros((1, frontend.num_samples), np.float32)
    padded[0, : len(samples)] = samples
    frames = 1 + (len(samples) - FRAME_LENGTH) // FRAME_SHIFT
    return np.asarray(frontend.log_mel(padded, np.array([len(samples)], np.int32)))[0, :frames].reshape(-1, NUM_MELS)
