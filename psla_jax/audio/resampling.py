"""Resampling of mono waveforms that arrive in blocks."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import soxr

SAMPLE_RATE = 16_000
"""Default sample rate of waveforms, in Hz (PSLA, section III-A)."""
_BLOCK = 1 << 20
"""Samples that are resampled at a time at most, counted at the new rate."""


class Resampler:
    """Streaming resampler of a mono waveform; its output does not depend on the division into blocks."""

    def __init__(self, rate: float, sample_rate: int = SAMPLE_RATE) -> None:
        """Accepts samples at `rate` Hz, and converts them to `sample_rate`."""
        self._ratio = rate / sample_rate
        self._stream = None if rate == sample_rate else soxr.ResampleStream(rate, sample_rate, 1, dtype="float32")

    def push(self, block: np.ndarray) -> np.ndarray:
        """Accepts float32 ``(samples,)`` and returns complete resampled ones, delayed by hundredths of a second."""
        return block if self._stream is None else self._stream.resample_chunk(block)

    def push_in_pieces(self, block: np.ndarray) -> Iterator[np.ndarray]:
        """Yields the result of :meth:`push` in non-empty pieces of bounded size: at 1 Hz a sample lasts a second."""
        size = len(block) if self._ratio >= 1 else max(1, int(_BLOCK * self._ratio))
        for start in range(0, len(block), size or 1):
            piece = self.push(block[start : start + size])
            if len(piece):
                yield piece

    def finish(self) -> np.ndarray:
        """Returns the remaining samples, float32 ``(samples,)``, at the end of the waveform."""
        empty = np.zeros(0, np.float32)
        return empty if self._stream is None else self._stream.resample_chunk(empty, last=True)
