"""Statistics of log-mel values, compared with those of spectrograms computed clip by clip."""

from __future__ import annotations

import numpy as np
import pytest
from recordings import noise, write
from tolerance import assert_close

from psla_jax.audio import decode
from psla_jax.audio.frontend import Frontend
from psla_jax.config import FrontendConfig
from psla_jax.data import datafile
from psla_jax.data.validate.feature_stats import log_mel_statistics

CONFIG = FrontendConfig(target_length=60)
SECONDS = (0.3, 0.9, 0.02, 0.5, 0.6, 0.025, 0.7, 0.31, 0.4, 0.2)


@pytest.fixture
def data(tmp_path):
    for i, seconds in enumerate(SECONDS):
        write(tmp_path / f"{i}.wav", noise(i, seconds, level=0.05 * (i + 1)))
    datafile.write(tmp_path / "a.json", [(f"{i}.wav", []) for i in range(len(SECONDS))])
    return datafile.read_open_vocabulary(tmp_path / "a.json")[0]


def frames(data, clip: int) -> np.ndarray:
    """Log-mel values of a clip in a spectrogram of its own length, without padding."""
    waveform = decode.read(data.wav(clip))
    count = min(1 + (len(waveform) - 400) // 160, 60)
    if count < 1:
        return np.zeros((0, 128))
    return np.asarray(Frontend(count).log_mel((waveform - waveform.mean())[None], np.array([len(waveform)])))[0]


def test_every_frame_counts_once_and_padding_does_not(data):
    values = np.concatenate([frames(data, clip) for clip in range(len(SECONDS))]).astype(np.float64)
    processed = []
    statistics = log_mel_statistics(data, range(len(SECONDS)), CONFIG, channel="mean", advance=processed.append)
    assert_close([statistics.mean, statistics.std], [values.mean(), values.std()], 2e-6)
    assert statistics.num_clips == 9  # one is shorter than a frame
    assert sum(processed) >= len(SECONDS)


def test_some_of_the_clips(data):
    statistics = log_mel_statistics(data, [1, 4], CONFIG, channel="mean", workers=1)
    values = np.concatenate([frames(data, 1), frames(data, 4)])
    assert_close([statistics.mean, statistics.std], [values.mean(), values.std()], 1e-5)


def test_unreadable_clips_are_skipped(data, tmp_path):
    expected = log_mel_statistics(data, [0, 1], CONFIG, channel="mean")
    (tmp_path / "3.wav").write_text("not audio")
    statistics = log_mel_statistics(data, [0, 3, 1], CONFIG, channel="mean")
    assert_close([statistics.mean, statistics.std], [expected.mean, expected.std], 1e-6)
    assert statistics.num_clips == expected.num_clips == 2
    assert log_mel_statistics(data, [3], CONFIG, channel="mean") is None
    assert log_mel_statistics(data, [], CONFIG, channel="mean") is None
