"""The log-mel spectrogram of plots against the frontend on the whole waveform."""

from __future__ import annotations

import numpy as np
import pytest
from tolerance import assert_close

from psla_jax.audio.frontend import Frontend
from psla_jax.tagging.plot.spectrogram import log_mel_spectrogram


def in_blocks(samples: np.ndarray) -> list[np.ndarray]:
    """Splits samples into blocks of random sizes."""
    sizes = np.random.default_rng(0).integers(1, 90_000, 1000).cumsum()
    return np.split(samples, sizes[sizes < len(samples)])


@pytest.mark.parametrize("length", [400, 559, 560, 164_079, 164_080, 200_000])
def test_short_recordings_keep_every_frame(length: int) -> None:
    samples = np.random.default_rng(length).normal(0, 0.1, length).astype(np.float32)
    spectrogram = log_mel_spectrogram(in_blocks(samples))
    frames = 1 + (length - 400) // 160
    whole = np.asarray(Frontend(1280).log_mel(samples[None], np.array([length])))[0, :frames]
    assert spectrogram.decibels.shape == (frames, 128)
    assert_close(spectrogram.decibels, 10 * np.log10(np.exp(whole.astype(np.float64))), 1e-5)
    assert spectrogram.frames_per_column == 1


def test_long_recordings_keep_the_loudest_of_several_frames() -> None:
    samples = np.random.default_rng(0).normal(0, 1e-3, 16_000 * 50).astype(np.float32)
    samples[480_000:480_200] += 0.5
    spectrogram = log_mel_spectrogram(in_blocks(samples))
    assert spectrogram.frames_per_column == 4
    assert len(spectrogram.decibels) == -(-(1 + (16_000 * 50 - 400) // 160) // 4)
    assert spectrogram.decibels.max(axis=1).argmax() * 4 * 160 == pytest.approx(480_000, abs=1000)


def test_one_program_serves_any_length(monkeypatch) -> None:
    shapes = []

    def recorded(self: Frontend, waveforms: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        shapes.append((waveforms.shape, waveforms.dtype, lengths.shape, lengths.dtype))
        return np.zeros((1, self.target_length, 128), np.float32)

    monkeypatch.setattr(Frontend, "log_mel", recorded)
    for length in (400, 5_000, 164_080, 400_000):
        log_mel_spectrogram(in_blocks(np.zeros(length, np.float32)))
    assert len(shapes) > 4
    assert len(set(shapes)) == 1
