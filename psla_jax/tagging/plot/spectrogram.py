"""Log-mel spectrogram of a recording of any length, downsampled for a plot."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from psla_jax.audio.frontend import Frontend
from psla_jax.audio.windows import Grid
from psla_jax.config import FrontendConfig
from psla_jax.tagging.plot.heatmap import MaxDownsampler

DECIBELS = 10 / np.log(10)
"""Factor from the frontend's natural logarithms of energies to decibels."""
_FRAMES = 1024
"""Number of frames computed at a time, so that one compiled program serves recordings of any length."""


@dataclass(frozen=True, eq=False)
class Spectrogram:
    """Log-mel energies, as maxima over groups of consecutive frames."""

    decibels: np.ndarray
    """float32 ``(columns, mels)``."""
    frames_per_column: int
    """Number of spectrogram frames per column."""
    frontend: FrontendConfig = field(default_factory=FrontendConfig)
    """The settings that it was computed with."""


def log_mel_spectrogram(blocks: Iterable[np.ndarray], config: FrontendConfig | None = None) -> Spectrogram:
    """Computes the log-mel spectrogram of a waveform as the models receive it, in constant memory.

    The blocks of the waveform are float32 ``(samples,)`` at the rate of `config`, at least one frame in total.
    """
    frontend = Frontend.from_config(replace(config or FrontendConfig(), target_length=_FRAMES))
    columns, buffer = MaxDownsampler(), np.zeros(0, np.float32)
    for block in blocks:
        buffer = np.concatenate([buffer, block])
        while len(buffer) >= frontend.num_samples:
            columns.push(_log_mel(frontend, buffer[: frontend.num_samples]))
            buffer = buffer[_FRAMES * frontend.hop_samples :]
    if len(buffer) >= frontend.window_samples:
        columns.push(_log_mel(frontend, buffer))
    return Spectrogram(columns.finish() * np.float32(DECIBELS), columns.group_size, frontend)


def _log_mel(frontend: Frontend, samples: np.ndarray) -> np.ndarray:
    """Returns the frames that lie completely within the samples, `(frames, mels)`."""
    padded = np.zeros((1, frontend.num_samples), np.float32)
    padded[0, : len(samples)] = samples
    frames = Grid.of(frontend).num_frames(len(samples))
    return np.asarray(frontend.log_mel(padded, np.array([len(samples)], np.int32)))[0, :frames]
