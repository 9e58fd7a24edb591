"""What reading a recording yields besides its waveform: an error, or its peaks and notes on its defects."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import numpy as np

MAX_AMPLITUDE = 32.0
"""Largest plausible magnitude, as a multiple of full scale: integers that were not scaled exceed it."""


class AudioError(ValueError):
    """Audio that gives no waveform; its text is one sentence, ``path`` followed by ``reason``."""

    def __init__(self, path: str | os.PathLike[str], reason: str = "") -> None:
        super().__init__(path, reason)
        self.path = os.fspath(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path} {self.reason}".rstrip()


@dataclass
class Reading:
    """What reading a recording showed besides its waveform; complete after the last block."""

    rate: int = 0
    """Sample rate in Hz, the lowest one if a file consists of several parts."""
    channel_peak: float = 0.0
    """Largest magnitude in any channel."""
    mono_peak: float = 0.0
    """Largest magnitude after several channels were mixed down, before resampling."""
    notes: list[str] = field(default_factory=list)
    """A sentence, to be appended to the path, for each defect of the file: damage, or an end before the stated one."""

    @property
    def is_flawed(self) -> bool:
        """Whether its scores may be wrong: it is damaged, its channels cancel, or it is far from full scale."""
        return bool(self.notes) or self.is_cancelled or self.mono_peak > MAX_AMPLITUDE

    @property
    def is_cancelled(self) -> bool:
        """Whether the channels cancel each other, so that their mean is 40 dB weaker than they are."""
        return self.mono_peak < 0.01 * self.channel_peak

    def add(self, block: np.ndarray, mono: np.ndarray) -> None:
        """Adds the peaks of a block ``(frames, channels)`` and of its mixdown ``(frames,)``."""
        self.channel_peak = max(self.channel_peak, peak(block))
        self.mono_peak = max(self.mono_peak, peak(mono))


def peak(samples: np.ndarray) -> float:
    """Returns the largest magnitude; NaN if a sample is NaN."""
    return float(max(samples.max(), -samples.min())) if samples.size else 0.0
