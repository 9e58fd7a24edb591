"""Statistics of the log-mel against those of spectrograms computed one clip at a time."""

from __future__ import annotations

import numpy as np
import pytest
from recordings import noise, write

from psla_jax import audio
from psla_jax.config import FrontendConfig
from psla_jax.data import datafile
from psla_jax.frontend import Frontend
from psla_jax.normalisation import log_mel_statistics

CONFIG = FrontendConfig(target_length=60)
SECONDS = (0.3, 0.9, 0.02, 0.5, 0.6, 0.025, 0.7, 0.31, 0.4, 0.2)


@pytest.fixture
def data(tmp_path):
    for i, seconds in enumerate(SECONDS):
        write(tmp_path / f"{i}.wav", noise(i, seconds, level=0.05 * (i + 1)))
    datafile.write(tmp_path / "a.json", [(f"{i}.wav", []) for i in range(len(SECONDS))])
    return datafile.read_any(tmp_path / "a.json")[0]


def frames(data, clip: int) -> np.ndarray:
    """The log-mel of a clip cut to its own length: no padding there to leave out."""
    waveform = audio.read(data.wav(clip))
    count = min(1 + (len(waveform) - 400) // 160, 60)
    if count < 1:
        return np.zeros((0, 128))
    return np.asarray(Frontend(count).log_mel((waveform - waveform.mean())[None], np.array([len(waveform)])))[0]


def test_every_frame_of_sound_counts_once_and_padding_does_not(data):
    values = np.concatenate([frames(data, clip) for clip in range(len(SECONDS))]).astype(np.float64)
    done = []
    found = log_mel_statistics(data, range(len(SECONDS)), CONFIG, channel="mean", done=done.append)
    assert found.mean == pytest.approx(values.mean(), abs=1e-5)
    assert found.std == pytest.approx(values.std(), abs=1e-5)
    assert found.clips == 9  # one is shorter than a frame
    assert sum(done) >= len(SECONDS)


def test_some_of_the_clips(data):
    found = log_mel_statistics(data, [1, 4], CONFIG, channel="mean", workers=1)
    values = np.concatenate([frames(data, 1), frames(data, 4)])
    assert (found.mean, found.std) == pytest.approx((values.mean(), values.std()), abs=1e-4)


def test_clips_that_cannot_be_read_are_left_out(data, tmp_path):
    whole = log_mel_statistics(data, [0, 1], CONFIG, channel="mean")
    (tmp_path / "3.wav").write_text("not audio")
    assert log_mel_statistics(data, [0, 3, 1], CONFIG, channel="mean") == whole
    assert log_mel_statistics(data, [3], CONFIG, channel="mean") is None
    assert log_mel_statistics(data, [], CONFIG, channel="mean") is None
